"""How the cluster is set up, as far as it changes what the binder has to do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

IN_TREE: Final = "kubernetes.io/"
"""Provisioners of this prefix are plugins inside the in-tree controller; all others are programs of their own."""

MIGRATED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "kubernetes.io/aws-ebs": "ebs.csi.aws.com",
        "kubernetes.io/azure-disk": "disk.csi.azure.com",
        "kubernetes.io/azure-file": "file.csi.azure.com",
        "kubernetes.io/cinder": "cinder.csi.openstack.org",
        "kubernetes.io/gce-pd": "pd.csi.storage.gke.io",
        "kubernetes.io/portworx-volume": "pxd.portworx.com",
        "kubernetes.io/vsphere-volume": "csi.vsphere.vmware.com",
    }
)
"""Plugins whose volumes CSI drivers have taken over for good, and which driver."""

PATIENCE: Final = 3.0
"""Seconds that a claim waits before people are told why: most waits are over by then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugin:
    """What a plugin inside this process can do for volumes that no CSI driver holds.

    Attributes:
        sources: the kinds of volume that are its own, as a spec calls them.
        mount_options: it takes a class's mount options.
    """

    sources: frozenset[str] = frozenset()
    mount_options: bool = False
    provisions: bool = False
    deletes: bool = False
    recycles: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The setting in which is decided.

    Attributes:
        instead: we are the cluster's only binder, for everybody's volumes; else the in-tree binder runs too.
        attributes_classes: the cluster's VolumeAttributesClass feature is on (always, since Kubernetes 1.36).
        migrated: in-tree plugins by name, and the CSI driver that has taken each over.
        plugins: in-tree plugins by name that this process runs itself.
        patience: seconds before a wait is explained.
        explains: waits are explained that the in-tree binder leaves without an event.
    """

    instead: bool = False
    attributes_classes: bool = True
    migrated: Mapping[str, str] = field(default_factory=lambda: MIGRATED)
    plugins: Mapping[str, Plugin] = field(default_factory=lambda: MappingProxyType({}))
    patience: float = PATIENCE
    explains: bool = True
