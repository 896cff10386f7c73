"""PersistentVolumes, as far as they decide anything."""

from collections.abc import Mapping
from dataclasses import dataclass
from sys import intern
from types import MappingProxyType
from typing import Any, Final

from moorage_csi.contract import DRIVER_NAME, TOPOLOGY_KEY, Context
from moorage_operator.model.affinity import Affinity, affinity
from moorage_operator.model.claim import BETA_CLASS, BOUND_BY_CONTROLLER, MIGRATED_TO, Claim
from moorage_operator.model.ids import Key, Uid, claim_key, volume_key
from moorage_operator.model.metadata import Metadata, words
from moorage_operator.model.quantity import parse_bytes
from moorage_operator.model.reference import Reference
from moorage_operator.model.storage_class import REUSE

API_VERSION: Final = "v1"
KIND: Final = "PersistentVolume"

PROVISIONED_BY: Final = "pv.kubernetes.io/provisioned-by"
PRE_RESIZE_CAPACITY: Final = "volume.alpha.kubernetes.io/pre-resize-capacity"
RESERVED_FOR: Final = "moorage.dev/reserved-for"
FINALIZER: Final = "external-provisioner.volume.kubernetes.io/finalizer"
"""The name the upstream sidecar uses, so that people can switch between it and us."""

IN_TREE_FINALIZER: Final = "kubernetes.io/pv-controller"

PENDING: Final = "Pending"
AVAILABLE: Final = "Available"
BOUND: Final = "Bound"
RELEASED: Final = "Released"
FAILED: Final = "Failed"

RETAIN: Final = "Retain"
DELETE: Final = "Delete"
RECYCLE: Final = "Recycle"

SAME_CLAIM: Final = "same-claim"
AFTER_WIPE: Final = "after-wipe"

ANY_CLAIM: Final = "*"
"""The name in a claimRef that keeps a volume for a whole namespace: no claim can have it."""

NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})

_NO_SOURCE: Final = frozenset(
    {
        "accessModes",
        "capacity",
        "claimRef",
        "mountOptions",
        "nodeAffinity",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "volumeAttributesClassName",
        "volumeMode",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRef:
    """``spec.claimRef``; with an empty uid the volume is reserved by name only."""

    namespace: str
    name: str
    uid: Uid

    @property
    def key(self) -> Key:
        """The claim's key of work."""
        return claim_key(self.namespace, self.name)

    def means(self, claim: Claim) -> bool:
        """Whether the volume is kept for this claim: by its name, and by its uid once there is one."""
        return self.name == claim.name and self.namespace == claim.namespace and self.uid in {"", claim.uid}


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One volume at one resourceVersion.

    Attributes:
        driver: its CSI driver; empty for every other kind of volume.
        source: which kind of volume it is, as its spec calls it: ``csi``, ``hostPath``, ``nfs``.
        handle: the driver's id of it.
        provisioned_by: who made it; empty for volumes made by hand.
        node: the one node of its affinity; empty when it has none, or several.
        capacity: bytes.
        capacity_text: the same as the object says it, to be copied verbatim; empty when it does not.
        has_message: its status says something beside the phase.
        affinity: the nodes that can use it; None is every node.
        labels: for selectors.
        pre_resize_capacity: what a newly bound claim is told instead of the capacity; empty for nothing.
        reuse: what may become of it once it is Released; empty leaves it to its class.
        reserved_for: a namespace, or ``namespace/claim``, that alone may use it; empty for everybody.
        backend: what the driver made it of, for a sentence; empty for volumes of others.
    """

    name: str
    uid: Uid
    resource_version: str
    phase: str
    has_message: bool
    claim: ClaimRef | None
    driver: str
    handle: str
    reclaim_policy: str
    provisioned_by: str
    class_name: str
    access_modes: tuple[str, ...]
    volume_mode: str
    attributes_class: str
    capacity: int
    capacity_text: str
    pre_resize_capacity: str
    affinity: Affinity | None
    labels: Mapping[str, str]
    source: str
    bound_by_controller: bool
    migrated_to: str
    reuse: str
    reserved_for: str
    has_annotations: bool
    node: str
    backend: str
    finalizers: tuple[str, ...]
    deleting: bool

    @property
    def key(self) -> Key:
        """Its key of work."""
        return volume_key(self.name)

    @property
    def reference(self) -> Reference:
        """What events about it point at."""
        return Reference(
            api_version=API_VERSION,
            kind=KIND,
            name=self.name,
            uid=self.uid,
            resource_version=self.resource_version,
        )

    @property
    def ours(self) -> bool:
        """Our driver holds its data, and nobody else claims to have provisioned it."""
        return self.driver == DRIVER_NAME and self.provisioned_by in {"", DRIVER_NAME}

    @property
    def made_by_us(self) -> bool:
        """We provisioned it, so finishing its bind cannot overrule anybody's choice."""
        return self.driver == DRIVER_NAME and self.provisioned_by == DRIVER_NAME

    @property
    def claim_uid(self) -> Uid:
        """The uid of the claim that holds it; empty when none does."""
        return self.claim.uid if self.claim else Uid("")

    @classmethod
    def from_api(cls, body: Mapping[str, Any]) -> "Volume":
        """Parse an object as the API server sends it.

        Raises:
            MalformedObjectError: it lacks identity.
            QuantityError: its capacity is no quantity (the API server lets none such in).
        """
        meta = Metadata.from_api(body)
        spec: Mapping[str, Any] = body.get("spec") or {}
        csi: Mapping[str, Any] = spec.get("csi") or {}
        marks = meta.annotations
        capacity = str((spec.get("capacity") or {}).get("storage", ""))
        return cls(
            name=meta.name,
            uid=meta.uid,
            resource_version=meta.resource_version,
            phase=intern((body.get("status") or {}).get("phase") or ""),
            has_message=bool((body.get("status") or {}).get("message")),
            claim=_claim_ref(spec.get("claimRef")),
            driver=intern(csi.get("driver") or ""),
            handle=csi.get("volumeHandle") or "",
            reclaim_policy=intern(spec.get("persistentVolumeReclaimPolicy") or "Retain"),
            provisioned_by=intern(marks.get(PROVISIONED_BY) or ""),
            class_name=intern(marks.get(BETA_CLASS, spec.get("storageClassName")) or ""),
            access_modes=words(spec.get("accessModes")),
            volume_mode=intern(spec.get("volumeMode") or "Filesystem"),
            attributes_class=intern(spec.get("volumeAttributesClassName") or ""),
            capacity=parse_bytes(capacity or 0),
            capacity_text=capacity,
            pre_resize_capacity=marks.get(PRE_RESIZE_CAPACITY) or "",
            affinity=affinity(spec.get("nodeAffinity")),
            labels={intern(key): intern(value) for key, value in meta.labels.items()} if meta.labels else NO_LABELS,
            source=intern(_source(spec)),
            bound_by_controller=BOUND_BY_CONTROLLER in marks,
            migrated_to=intern(marks.get(MIGRATED_TO) or ""),
            reuse=intern(marks.get(REUSE) or ""),
            reserved_for=intern(marks.get(RESERVED_FOR) or ""),
            has_annotations=bool(marks),
            node=intern(_single_node(spec.get("nodeAffinity"))),
            backend=intern((csi.get("volumeAttributes") or {}).get(Context.BACKEND) or ""),
            finalizers=meta.finalizers,
            deleting=meta.deleting,
        )


def _source(spec: Mapping[str, Any]) -> str:
    """The one field of the spec that says what the volume is."""
    return next((field for field in spec if field not in _NO_SOURCE), "")


def _claim_ref(ref: Mapping[str, Any] | None) -> ClaimRef | None:
    if not ref:
        return None
    return ClaimRef(
        namespace=intern(ref.get("namespace") or ""), name=ref.get("name") or "", uid=Uid(ref.get("uid") or "")
    )


def _single_node(affinity: Mapping[str, Any] | None) -> str:
    """The node a required affinity names by our topology key, when it names exactly one."""
    terms = ((affinity or {}).get("required") or {}).get("nodeSelectorTerms") or []
    nodes = {
        value
        for term in terms
        for expression in term.get("matchExpressions") or []
        if expression.get("key") == TOPOLOGY_KEY and expression.get("operator") == "In"
        for value in expression.get("values") or []
    }
    return str(nodes.pop()) if len(nodes) == 1 else ""
