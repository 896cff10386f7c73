"""PersistentVolumeClaims, as far as they decide anything."""

from collections.abc import Mapping
from dataclasses import dataclass
from sys import intern
from typing import Any, Final

from moorage_operator.model.ids import Key, Uid, claim_key
from moorage_operator.model.metadata import Metadata, words
from moorage_operator.model.quantity import parse_bytes
from moorage_operator.model.reference import Reference
from moorage_operator.model.requirement import Requirements, selector

API_VERSION: Final = "v1"
KIND: Final = "PersistentVolumeClaim"

BIND_COMPLETED: Final = "pv.kubernetes.io/bind-completed"
BOUND_BY_CONTROLLER: Final = "pv.kubernetes.io/bound-by-controller"
SELECTED_NODE: Final = "volume.kubernetes.io/selected-node"
STORAGE_PROVISIONER: Final = "volume.kubernetes.io/storage-provisioner"
BETA_PROVISIONER: Final = "volume.beta.kubernetes.io/storage-provisioner"
MIGRATED_TO: Final = "pv.kubernetes.io/migrated-to"
BETA_CLASS: Final = "volume.beta.kubernetes.io/storage-class"

PENDING: Final = "Pending"
BOUND: Final = "Bound"
LOST: Final = "Lost"

_OUTCOME: Final = ("accessModes", "capacity", "currentVolumeAttributesClassName")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One claim at one resourceVersion.

    Attributes:
        class_name: the beta annotation if there is one, else ``storageClassName``; None is "no
            class said", the empty string is "no class wanted".
        requested: bytes; 0 when the claim does not say.
        selector: None when there is none; an empty one selects every volume.
        selected_node: where the scheduler wants it (late binding); empty when it did not say.
        has_annotations: there is any annotation, so that one can be added beside it.
        source: kind and name of the data source, for a sentence; empty when there is none.
        attributes_class: ``volumeAttributesClassName``; empty equals unset.
        storage_provisioner: who is asked to make a volume; None when the annotation is not there.
        outcome: the fields of its status that speak of a volume.
        status_modes: the access modes in its status.
        status_attributes_class: the attributes class in its status.
    """

    namespace: str
    name: str
    uid: Uid
    resource_version: str
    phase: str
    volume_name: str
    class_name: str | None
    access_modes: tuple[str, ...]
    volume_mode: str
    requested: int
    selector: Requirements | None
    source: str
    attributes_class: str
    bind_completed: bool
    bound_by_controller: bool
    selected_node: str
    storage_provisioner: str | None
    beta_provisioner: str | None
    migrated_to: str
    status_modes: tuple[str, ...]
    status_attributes_class: str
    outcome: tuple[str, ...]
    has_annotations: bool
    finalizers: tuple[str, ...]
    deleting: bool
    created: float

    @property
    def key(self) -> Key:
        """Its key of work."""
        return claim_key(self.namespace, self.name)

    @property
    def reference(self) -> Reference:
        """What events about it point at."""
        return Reference(
            api_version=API_VERSION,
            kind=KIND,
            namespace=self.namespace,
            name=self.name,
            uid=self.uid,
            resource_version=self.resource_version,
        )

    @property
    def bound(self) -> bool:
        """Every step of the bind is stored: nothing is left to be written on the claim."""
        return bool(self.volume_name) and self.bind_completed and self.phase == BOUND

    @classmethod
    def from_api(cls, body: Mapping[str, Any]) -> "Claim":
        """Parse an object as the API server sends it.

        Raises:
            MalformedObjectError: it lacks identity.
            QuantityError: its request is no quantity (the API server lets none such in).
        """
        meta = Metadata.from_api(body)
        spec: Mapping[str, Any] = body.get("spec") or {}
        status: Mapping[str, Any] = body.get("status") or {}
        marks = meta.annotations
        class_name = marks.get(BETA_CLASS, spec.get("storageClassName"))
        requests = (spec.get("resources") or {}).get("requests") or {}
        source = spec.get("dataSource") or spec.get("dataSourceRef") or {}
        return cls(
            namespace=meta.namespace,
            name=meta.name,
            uid=meta.uid,
            resource_version=meta.resource_version,
            phase=intern(status.get("phase") or PENDING),
            volume_name=spec.get("volumeName") or "",
            class_name=None if class_name is None else intern(class_name),
            access_modes=words(spec.get("accessModes")),
            volume_mode=intern(spec.get("volumeMode") or "Filesystem"),
            requested=parse_bytes(requests.get("storage", 0)),
            selector=selector(spec.get("selector")),
            source=f"{source.get('kind', 'object')} {source.get('name', '')!r}" if source else "",
            attributes_class=intern(spec.get("volumeAttributesClassName") or ""),
            bind_completed=BIND_COMPLETED in marks,
            bound_by_controller=BOUND_BY_CONTROLLER in marks,
            selected_node=intern(marks.get(SELECTED_NODE) or ""),
            storage_provisioner=marks.get(STORAGE_PROVISIONER),
            beta_provisioner=marks.get(BETA_PROVISIONER),
            migrated_to=intern(marks.get(MIGRATED_TO) or ""),
            status_modes=words(status.get("accessModes")),
            status_attributes_class=intern(status.get("currentVolumeAttributesClassName") or ""),
            outcome=tuple(field for field in _OUTCOME if status.get(field)),
            has_annotations=bool(marks),
            finalizers=meta.finalizers,
            deleting=meta.deleting,
            created=meta.created,
        )
