"""What the driver is asked to make, and what it made.

Plain records between the deciding part and the effects: nothing here knows of protobuf or gRPC.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

_EMPTY: Final[Mapping[str, str]] = MappingProxyType({})


def empty() -> Mapping[str, str]:
    """The mapping that holds nothing, once for all records."""
    return _EMPTY


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """One ``CreateVolume`` call.

    The same claim always gives the same ``name``, so that asking again after a lost answer finds
    the volume that the first call made instead of making a second one.

    Attributes:
        name: the name of the PersistentVolume to be, ``pvc-<claim uid>``.
        required_bytes: the least size, in bytes; there is no upper limit.
        parameters: the class's parameters for the driver, and the ``csi.storage.k8s.io/pv/name``,
            ``pvc/name`` and ``pvc/namespace`` keys.
        access_modes: the claim's, in Kubernetes' words (``ReadWriteOnce`` ...).
        volume_mode: ``Filesystem`` or ``Block``.
        filesystem: the class's ``csi.storage.k8s.io/fstype``; empty lets the driver choose.
        mount_options: the class's.
        topology: the one segment (key to value) the volume has to be reachable from.
    """

    name: str
    required_bytes: int
    parameters: Mapping[str, str] = field(default_factory=empty)
    access_modes: tuple[str, ...] = ()
    volume_mode: str = "Filesystem"
    filesystem: str = ""
    mount_options: tuple[str, ...] = ()
    topology: Mapping[str, str] = field(default_factory=empty)


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """What ``CreateVolume`` answered.

    Attributes:
        volume_id: the driver's opaque handle.
        capacity_bytes: the real size in bytes; 0 means the size asked for.
        context: becomes ``spec.csi.volumeAttributes``.
        topology: segments the volume is reachable from, one of them is enough; empty = everywhere.
    """

    volume_id: str
    capacity_bytes: int
    context: Mapping[str, str] = field(default_factory=empty)
    topology: tuple[Mapping[str, str], ...] = ()
