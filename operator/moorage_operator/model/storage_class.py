"""StorageClasses."""

from collections.abc import Mapping
from dataclasses import dataclass
from sys import intern
from typing import Any, Final

from moorage_csi.contract import DRIVER_NAME
from moorage_operator.model.ids import Uid
from moorage_operator.model.metadata import Metadata

LATE: Final = "WaitForFirstConsumer"
DEFAULT_MARKS: Final = (
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
)
REUSE: Final = "moorage.dev/reuse"

TopologyTerm = tuple[tuple[str, frozenset[str]], ...]
"""Label keys and their allowed values; all of them must hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Class:
    """One storage class at one resourceVersion.

    Attributes:
        binding_mode: ``Immediate`` or ``WaitForFirstConsumer``; the API server sets it where it is missing.
        default: claims that name no class get this one.
        reuse: what may become of its Released volumes, unless a volume says otherwise.
        created: seconds since the epoch.
        allowed_topologies: one of the terms must hold on a node; none at all allows every node.
    """

    name: str
    uid: Uid
    resource_version: str
    provisioner: str
    parameters: Mapping[str, str]
    binding_mode: str
    reclaim_policy: str
    mount_options: tuple[str, ...]
    allowed_topologies: tuple[TopologyTerm, ...]
    allow_expansion: bool
    default: bool
    reuse: str
    created: float

    @property
    def late(self) -> bool:
        """Volumes are chosen or made only once a pod has been scheduled."""
        return self.binding_mode == LATE

    @property
    def ours(self) -> bool:
        """Its volumes are made by our driver."""
        return self.provisioner == DRIVER_NAME

    @classmethod
    def from_api(cls, body: Mapping[str, Any]) -> "Class":
        """Parse an object as the API server sends it.

        Raises:
            MalformedObjectError: it lacks identity.
        """
        meta = Metadata.from_api(body)
        return cls(
            name=intern(meta.name),
            uid=meta.uid,
            resource_version=meta.resource_version,
            provisioner=intern(body.get("provisioner") or ""),
            parameters=dict(body.get("parameters") or {}),
            binding_mode=intern(body.get("volumeBindingMode") or ""),
            reclaim_policy=intern(body.get("reclaimPolicy") or "Delete"),
            mount_options=tuple(body.get("mountOptions") or ()),
            allowed_topologies=tuple(
                tuple(
                    (expression["key"], frozenset(expression.get("values") or ()))
                    for expression in term.get("matchLabelExpressions") or ()
                )
                for term in body.get("allowedTopologies") or ()
            ),
            allow_expansion=bool(body.get("allowVolumeExpansion")),
            default=any(meta.annotations.get(mark) == "true" for mark in DEFAULT_MARKS),
            reuse=intern(meta.annotations.get(REUSE) or ""),
            created=meta.created,
        )
