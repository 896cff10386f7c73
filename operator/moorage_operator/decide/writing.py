"""The bodies of every write, exactly: objects, JSON patches and their paths.

Each patch tests what it was decided upon, so a write that comes too late is refused instead of undoing
somebody's work. Where something is taken away, that is the resourceVersion. The patches of a bind test just
their reasons (this object, reserved for this claim, not bound yet): the in-tree controllers annotate and mark
the same objects at the same moment, which changes the version and none of the reasons, and by version four of
ten binds of a burst were refused and decided anew. What is written is what the in-tree binder and the upstream
provisioner would write, so that either may take over at any point.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from moorage_csi.contract import DRIVER_NAME, Context
from moorage_operator.decide.plan import Target, Verb, Write
from moorage_operator.model import claim as claims
from moorage_operator.model import volume as volumes
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import Uid, volume_key
from moorage_operator.model.provisioning import Created, CreateRequest
from moorage_operator.model.quantity import format_bytes
from moorage_operator.model.reference import Reference
from moorage_operator.model.storage_class import Class
from moorage_operator.model.volume import ClaimRef, Volume

VOLUMES: Final = "/api/v1/persistentvolumes"
_ATTRIBUTES_CLASS: Final = "/status/currentVolumeAttributesClassName"


def volume_name(uid: Uid) -> str:
    """The name of the volume for a claim: the same for every provisioner there is."""
    return f"pvc-{uid}"


def claim_path(namespace: str, name: str) -> str:
    """Where a claim is."""
    return f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"


def volume_path(name: str) -> str:
    """Where a volume is."""
    return f"{VOLUMES}/{name}"


def claim_target(claim: Claim) -> Target:
    """That claim."""
    return Target(kind=Claim, key=claim.key, path=claim_path(claim.namespace, claim.name), uid=claim.uid)


def volume_target(volume: Volume) -> Target:
    """That volume."""
    return Target(kind=Volume, key=volume.key, path=volume_path(volume.name), uid=volume.uid)


def volume_named(name: str) -> Target:
    """Whatever volume of that name exists, or is to be."""
    return Target(kind=Volume, key=volume_key(name), path=volume_path(name))


def create_volume(claim: Claim, cls: Class, request: CreateRequest, created: Created) -> Write:
    """POST the PersistentVolume for a claim; the reservation (claimRef with uid) is in it from the start."""
    return Write(
        verb=Verb.CREATE,
        target=volume_named(request.name),
        path=VOLUMES,
        body=volume_body(claim, cls, request, created),
        blame=claim.reference,
    )


def volume_body(claim: Claim, cls: Class, request: CreateRequest, created: Created) -> dict[str, Any]:
    """The PersistentVolume of what the driver made."""
    csi: dict[str, Any] = {
        "driver": DRIVER_NAME,
        "volumeHandle": created.volume_id,
        "volumeAttributes": dict(created.context),
    }
    filesystem = created.context.get(Context.FILESYSTEM) or request.filesystem
    if filesystem and claim.volume_mode == "Filesystem":
        csi["fsType"] = filesystem
    spec: dict[str, Any] = {
        "accessModes": list(claim.access_modes),
        "capacity": {"storage": format_bytes(created.capacity_bytes or request.required_bytes)},
        "claimRef": claim_reference(claim),
        "csi": csi,
        "mountOptions": list(cls.mount_options),
        "persistentVolumeReclaimPolicy": cls.reclaim_policy,
        "storageClassName": cls.name,
        "volumeMode": claim.volume_mode,
    }
    if created.topology:
        spec["nodeAffinity"] = {"required": {"nodeSelectorTerms": [_term(segment) for segment in created.topology]}}
    return {
        "apiVersion": volumes.API_VERSION,
        "kind": volumes.KIND,
        "metadata": {
            "name": request.name,
            "annotations": {volumes.PROVISIONED_BY: DRIVER_NAME},
            "finalizers": [volumes.FINALIZER],
        },
        "spec": spec,
    }


def reserve(volume: Volume, claim: Claim) -> Write:
    """Put the claim into claimRef: the step that decides who gets the volume, so it tests the version.

    ``bound-by-controller`` says that the choice was ours, and may be undone; a claimRef that a person wrote stays theirs.
    """
    chosen = volume.claim is None or not volume.claim.means(claim)
    ops: list[Mapping[str, Any]] = [{"op": "add", "path": "/spec/claimRef", "value": claim_reference(claim)}]
    if chosen:
        ops += _marks(volume, {claims.BOUND_BY_CONTROLLER: "yes"})
    write = _versioned(volume_target(volume), volume.reference, volume.resource_version, *ops)
    return replace(write, holds=volume.name if chosen else "")


def claim_reference(claim: Claim) -> dict[str, Any]:
    """The claimRef that binds a volume to exactly this claim."""
    return {
        "apiVersion": claims.API_VERSION,
        "kind": claims.KIND,
        "namespace": claim.namespace,
        "name": claim.name,
        "uid": claim.uid,
        "resourceVersion": claim.resource_version,
    }


def give_back(volume: Volume) -> Write:
    """Undo a choice of a controller: nobody's volume any more (binding.md V7)."""
    return _loosen(volume, "/spec/claimRef", mark=volume.bound_by_controller)


def keep_by_name(volume: Volume) -> Write:
    """Take the uid out of claimRef: kept for whatever claim has that name (binding.md V8)."""
    return _loosen(volume, "/spec/claimRef/uid", mark=False)


def keep_for_next(volume: Volume) -> Write:
    """The same, for good: no controller's choice any more, so none gives it back."""
    return _loosen(volume, "/spec/claimRef/uid", mark=volume.bound_by_controller)


def keep_for(volume: Volume, namespace: str, name: str) -> Write:
    """Keep a free volume for a claim by name, or with ``ANY_CLAIM`` for a namespace."""
    reference = {"apiVersion": claims.API_VERSION, "kind": claims.KIND, "namespace": namespace, "name": name}
    ops = [{"op": "add", "path": "/spec/claimRef", "value": reference}]
    write = _versioned(volume_target(volume), volume.reference, volume.resource_version, *ops)
    return replace(write, holds=volume.name)


def set_volume_phase(volume: Volume, phase: str, *, message: str = "") -> Write:
    """A phase on the status of a volume that has not changed since."""
    ops: list[Mapping[str, Any]] = [{"op": "add", "path": "/status/phase", "value": phase}]
    if message:
        ops.append({"op": "add", "path": "/status/message", "value": message})
    elif volume.has_message:
        ops.append({"op": "remove", "path": "/status/message"})
    target = volume_target(volume)
    return _versioned(target, volume.reference, volume.resource_version, *ops, subresource="/status")


def set_volume_marks(volume: Volume, *, finalizers: tuple[str, ...], migrated_to: str) -> Write:
    """The finalizers and the migration mark that the volume ought to have."""
    ops: list[Mapping[str, Any]] = []
    if finalizers != volume.finalizers:
        ops.append({"op": "add", "path": "/metadata/finalizers", "value": list(finalizers)})
    if migrated_to != volume.migrated_to:
        ops += _migrated(volume, migrated_to)
    return _versioned(volume_target(volume), volume.reference, volume.resource_version, *ops)


def set_claim_migrated(claim: Claim, migrated_to: str) -> Write:
    """The migration mark that the claim ought to have."""
    ops = _migrated(claim, migrated_to)
    return _versioned(claim_target(claim), claim.reference, claim.resource_version, *ops)


def ask_provisioner(claim: Claim, provisioner: str, migrated_to: str) -> Write:
    """Both annotations that tell a provisioner to act, and the migration mark with them."""
    marks = {claims.BETA_PROVISIONER: provisioner, claims.STORAGE_PROVISIONER: provisioner}
    if migrated_to:
        marks[claims.MIGRATED_TO] = migrated_to
    ops = _marks(claim, marks)
    return _versioned(claim_target(claim), claim.reference, claim.resource_version, *ops)


def set_class(claim: Claim, cls: Class) -> Write:
    """Give a claim that names no class the default one."""
    ops = [{"op": "add", "path": "/spec/storageClassName", "value": cls.name}]
    return _versioned(claim_target(claim), claim.reference, claim.resource_version, *ops)


def set_claim_phase(claim: Claim, phase: str) -> Write:
    """A phase without a volume: what the status says of one goes."""
    target = claim_target(claim)
    ops: list[Mapping[str, Any]] = [{"op": "add", "path": "/status/phase", "value": phase}]
    ops += [{"op": "remove", "path": f"/status/{field}"} for field in claim.outcome]
    return _versioned(target, claim.reference, claim.resource_version, *ops, subresource="/status")


def mark_volume_bound(volume: Volume) -> Write:
    """Phase Bound on the status of a volume that is still reserved for the same claim."""
    ops: list[Mapping[str, Any]] = [
        _test("/metadata/uid", volume.uid),
        _test("/spec/claimRef/uid", volume.claim_uid),
        _test("/status/phase", volume.phase),
        {"op": "add", "path": "/status/phase", "value": volumes.BOUND},
    ]
    if volume.has_message:
        ops.append({"op": "remove", "path": "/status/message"})
    write = _patch(volume_target(volume), volume.reference, *ops, subresource="/status")
    return replace(write, holds=volume.name)


def bind_claim(claim: Claim, volume: Volume) -> Write:
    """Put volumeName and the marks on the claim; ``bound-by-controller`` only with a volumeName that we chose."""
    marks = {}
    ops: list[Mapping[str, Any]] = [
        _test("/metadata/uid", claim.uid),
        _test("/spec/volumeName", claim.volume_name),
    ]
    if claim.volume_name != volume.name:
        ops.append({"op": "add", "path": "/spec/volumeName", "value": volume.name})
        marks[claims.BOUND_BY_CONTROLLER] = "yes"
    if not claim.bind_completed:
        marks[claims.BIND_COMPLETED] = "yes"
    ops += _marks(claim, marks)
    return _patch(claim_target(claim), claim.reference, *ops)


def mark_claim_bound(claim: Claim, volume: Volume) -> Write:
    """Phase Bound on the status of a claim that names the volume, with the volume's modes verbatim and its capacity.

    The capacity of a claim that is Bound already is the resizer's; the attributes class belongs to whoever modifies it.
    """
    ops: list[Mapping[str, Any]] = [
        _test("/metadata/uid", claim.uid),
        _test("/spec/volumeName", volume.name),
        _test("/status/phase", claim.phase),
    ]
    if claim.phase != claims.BOUND:
        capacity = {"storage": volume.pre_resize_capacity or volume.capacity_text}
        ops.append({"op": "add", "path": "/status/phase", "value": claims.BOUND})
        ops.append({"op": "add", "path": "/status/capacity", "value": capacity})
    if claim.status_modes != volume.access_modes:
        ops.append({"op": "add", "path": "/status/accessModes", "value": list(volume.access_modes)})
    if claim.phase == claims.PENDING and claim.status_attributes_class != volume.attributes_class:
        ops.append({"op": "add", "path": _ATTRIBUTES_CLASS, "value": volume.attributes_class})
    return _patch(claim_target(claim), claim.reference, *ops, subresource="/status")


def give_back_to_scheduler(claim: Claim) -> Write:
    """Remove the selected node that had no room: the agreed signal for "not there, choose again"."""
    ops = [{"op": "remove", "path": _annotation(claims.SELECTED_NODE)}]
    return _versioned(claim_target(claim), claim.reference, claim.resource_version, *ops)


def delete_volume(volume: Volume) -> Write:
    """DELETE the volume object of that uid."""
    return Write(
        verb=Verb.DELETE,
        target=volume_target(volume),
        path=volume_path(volume.name),
        blame=volume.reference,
    )


def remove_finalizer(volume: Volume, finalizer: str = volumes.FINALIZER) -> Write:
    """Take a finalizer off: as far as it goes, the object may go."""
    ops = [{"op": "remove", "path": f"/metadata/finalizers/{volume.finalizers.index(finalizer)}"}]
    return _versioned(volume_target(volume), volume.reference, volume.resource_version, *ops)


def claim_named(claim: ClaimRef, *, uid: str = "") -> Target:
    """Whatever claim of that namespace and name exists, or the one of that uid."""
    return Target(kind=Claim, key=claim.key, path=claim_path(claim.namespace, claim.name), uid=uid)


def _patch(target: Target, blame: Reference, *ops: Mapping[str, Any], subresource: str = "") -> Write:
    return Write(verb=Verb.PATCH, target=target, path=target.path + subresource, ops=ops, blame=blame)


def _loosen(volume: Volume, path: str, *, mark: bool) -> Write:
    """Remove claimRef or part of it, and with ``mark`` the word that a controller had chosen."""
    ops: list[Mapping[str, Any]] = [{"op": "remove", "path": path}]
    if mark:
        ops.append({"op": "remove", "path": _annotation(claims.BOUND_BY_CONTROLLER)})
    return _versioned(volume_target(volume), volume.reference, volume.resource_version, *ops)


def _versioned(target: Target, blame: Reference, version: str, *ops: Mapping[str, Any], subresource: str = "") -> Write:
    return _patch(target, blame, _test("/metadata/resourceVersion", version), *ops, subresource=subresource)


def _test(path: str, value: str | None) -> Mapping[str, Any]:
    """The patch is refused unless the field has this value; None or empty: unless it is absent."""
    return {"op": "test", "path": path, "value": value or None}


def _marks(on: Claim | Volume, marks: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """Annotations added to an object."""
    if on.has_annotations:
        return [{"op": "add", "path": _annotation(key), "value": value} for key, value in marks.items()]
    if not marks:
        return []
    # A map put where there was none must not take the place of one that somebody has put there meanwhile.
    return [_test("/metadata/annotations", None), {"op": "add", "path": "/metadata/annotations", "value": marks}]


def _migrated(on: Claim | Volume, migrated_to: str) -> list[Mapping[str, Any]]:
    if migrated_to:
        return _marks(on, {claims.MIGRATED_TO: migrated_to})
    return [{"op": "remove", "path": _annotation(claims.MIGRATED_TO)}]


def _annotation(key: str) -> str:
    return "/metadata/annotations/" + key.replace("~", "~0").replace("/", "~1")


def _term(segment: Mapping[str, str]) -> dict[str, Any]:
    return {
        "matchExpressions": [
            {"key": key, "operator": "In", "values": [value]} for key, value in sorted(segment.items())
        ]
    }
