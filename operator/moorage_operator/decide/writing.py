"""The bodies of every write, exactly: objects, JSON patches and their paths.

Each patch tests what it was decided upon, so a write that comes too late is refused instead of undoing
somebody's work. Where something is taken away, that is the resourceVersion. The patches of a bind test just
their reasons (this object, reserved for this claim, not bound yet): the in-tree controllers annotate and mark
the same objects at the same moment, which changes the version and none of the reasons, and by version four of
ten binds of a burst were refused and decided anew. What is written is what the in-tree binder and the upstream
provisioner would write, so that either may take over at any point.
"""

from collections.abc import Mapping
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
        "claimRef": {
            "apiVersion": claims.API_VERSION,
            "kind": claims.KIND,
            "namespace": claim.namespace,
            "name": claim.name,
            "uid": claim.uid,
            "resourceVersion": claim.resource_version,
        },
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


def mark_volume_bound(volume: Volume) -> Write:
    """Phase Bound on the status of a volume that is still reserved for the same claim."""
    return _patch(
        volume_target(volume),
        volume.reference,
        _test("/metadata/uid", volume.uid),
        _test("/spec/claimRef/uid", volume.claim.uid if volume.claim else None),
        _test("/status/phase", volume.phase),
        {"op": "add", "path": "/status/phase", "value": volumes.BOUND},
        subresource="/status",
    )


def bind_claim(claim: Claim, volume: Volume) -> Write:
    """Put volumeName and the marks on the claim; ``bound-by-controller`` only with a volumeName that we chose."""
    marks = {}
    ops: list[Mapping[str, Any]] = [
        _test("/metadata/uid", claim.uid),
        _test("/spec/volumeName", claim.volume_name or None),
    ]
    if claim.volume_name != volume.name:
        ops.append({"op": "add", "path": "/spec/volumeName", "value": volume.name})
        marks[claims.BOUND_BY_CONTROLLER] = "yes"
    if not claim.bind_completed:
        marks[claims.BIND_COMPLETED] = "yes"
    if claim.has_annotations:
        ops += [{"op": "add", "path": _annotation(key), "value": value} for key, value in marks.items()]
    elif marks:
        # A map put where there was none must not take the place of one that somebody has put there meanwhile.
        ops += [_test("/metadata/annotations", None), {"op": "add", "path": "/metadata/annotations", "value": marks}]
    return _patch(claim_target(claim), claim.reference, *ops)


def mark_claim_bound(claim: Claim, volume: Volume) -> Write:
    """Phase Bound on the status of a claim that names the volume, with the volume's modes verbatim and its capacity."""
    return _patch(
        claim_target(claim),
        claim.reference,
        _test("/metadata/uid", claim.uid),
        _test("/spec/volumeName", volume.name),
        _test("/status/phase", claim.phase),
        {"op": "add", "path": "/status/phase", "value": claims.BOUND},
        {"op": "add", "path": "/status/accessModes", "value": list(volume.access_modes)},
        {"op": "add", "path": "/status/capacity", "value": {"storage": volume.capacity_text}},
        subresource="/status",
    )


def give_back_to_scheduler(claim: Claim) -> Write:
    """Remove the selected node that had no room: the agreed signal for "not there, choose again"."""
    return _patch(
        claim_target(claim),
        claim.reference,
        _test("/metadata/resourceVersion", claim.resource_version),
        {"op": "remove", "path": _annotation(claims.SELECTED_NODE)},
    )


def delete_volume(volume: Volume) -> Write:
    """DELETE the volume object of that uid."""
    return Write(
        verb=Verb.DELETE,
        target=volume_target(volume),
        path=volume_path(volume.name),
        blame=volume.reference,
    )


def remove_finalizer(volume: Volume) -> Write:
    """Take our finalizer off: the object may go."""
    position = volume.finalizers.index(volumes.FINALIZER)
    return _patch(
        volume_target(volume),
        volume.reference,
        _test("/metadata/resourceVersion", volume.resource_version),
        {"op": "remove", "path": f"/metadata/finalizers/{position}"},
    )


def claim_named(claim: ClaimRef) -> Target:
    """Whatever claim of that namespace and name exists."""
    return Target(kind=Claim, key=claim.key, path=claim_path(claim.namespace, claim.name))


def _patch(target: Target, blame: Reference, *ops: Mapping[str, Any], subresource: str = "") -> Write:
    return Write(verb=Verb.PATCH, target=target, path=target.path + subresource, ops=ops, blame=blame)


def _test(path: str, value: str | None) -> Mapping[str, Any]:
    """The patch is refused unless the field has this value; None: unless it is absent."""
    return {"op": "test", "path": path, "value": value}


def _annotation(key: str) -> str:
    return "/metadata/annotations/" + key.replace("~", "~0").replace("/", "~1")


def _term(segment: Mapping[str, str]) -> dict[str, Any]:
    return {
        "matchExpressions": [
            {"key": key, "operator": "In", "values": [value]} for key, value in sorted(segment.items())
        ]
    }
