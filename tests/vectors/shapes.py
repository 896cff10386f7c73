"""Between the short form of a vector and objects as the API server has them, both ways."""

from __future__ import annotations

from typing import Any

Body = dict[str, Any]
Row = dict[str, Any]

NAMESPACE = "default"
MODES = {
    "RWO": "ReadWriteOnce",
    "ROX": "ReadOnlyMany",
    "RWX": "ReadWriteMany",
    "RWOP": "ReadWriteOncePod",
}
SHORT = {long: short for short, long in MODES.items()}
DEFAULT_MODES = ("RWO", "ROX")
MARKS = {
    "bound-by-controller": "pv.kubernetes.io/bound-by-controller",
    "bind-completed": "pv.kubernetes.io/bind-completed",
}
CLASS_MARK = "storageclass.kubernetes.io/is-default-class"


def volume_body(row: Row) -> Body:
    """A PersistentVolume."""
    spec: Body = {
        "capacity": {"storage": row["capacity"]} if "capacity" in row else {},
        "accessModes": _long(row),
        "persistentVolumeReclaimPolicy": row.get("reclaim", "Retain"),
        "storageClassName": row.get("class", ""),
        "csi" if row.get("source") == "csi" else "hostPath": _source(row),
    }
    _set(spec, "volumeMode", row.get("volumeMode"))
    _set(spec, "volumeAttributesClassName", row.get("attributesClass"))
    if "claimRef" in row:
        spec["claimRef"] = {"namespace": NAMESPACE, **row["claimRef"]}
    if row.get("nodeAffinity") is not None:
        spec["nodeAffinity"] = {"required": {"nodeSelectorTerms": [_term(row["nodeAffinity"])]}}
    status = {"phase": row["phase"]} if row.get("phase") else {}
    if row.get("message"):
        status["message"] = "as it was"
    return {"metadata": _metadata(row), "spec": spec, "status": status}


def claim_body(row: Row) -> Body:
    """A PersistentVolumeClaim."""
    spec: Body = {"accessModes": _long(row), "resources": {"requests": {"storage": row["request"]}}}
    _set(spec, "volumeMode", row.get("volumeMode"))
    _set(spec, "storageClassName", row.get("class"))
    _set(spec, "volumeName", row.get("volumeName"))
    _set(spec, "volumeAttributesClassName", row.get("attributesClass"))
    _set(spec, "dataSource", row.get("dataSource"))
    if "selector" in row:
        spec["selector"] = {"matchLabels": row["selector"]}
    status: Body = {"phase": row.get("phase", "Pending")}
    if status["phase"] == "Bound":
        status["accessModes"] = _long(row)
    if "statusCapacity" in row:
        status["capacity"] = {"storage": row["statusCapacity"]}
    _set(status, "currentVolumeAttributesClassName", row.get("currentAttributesClass"))
    metadata = _metadata(row)
    metadata["namespace"] = row.get("namespace", NAMESPACE)
    return {"metadata": metadata, "spec": spec, "status": status}


def class_body(row: Row) -> Body:
    """A StorageClass."""
    body: Body = {
        "metadata": {"name": row["name"], "uid": f"class-{row['name']}", "resourceVersion": "1"},
        "provisioner": row.get("provisioner", ""),
        "reclaimPolicy": row.get("reclaim", "Delete"),
        "parameters": row.get("parameters", {}),
        "mountOptions": row.get("mountOptions", []),
    }
    if row.get("default"):
        body["metadata"]["annotations"] = {CLASS_MARK: "true"}
    _set(body, "volumeBindingMode", row.get("bindingMode"))
    return body


def pod_body(row: Row) -> Body:
    """A Pod that uses one claim."""
    source = {"persistentVolumeClaim": {"claimName": row["claim"]}}
    return {
        "metadata": {"name": row["name"], "namespace": NAMESPACE, "uid": row["name"], "resourceVersion": "1"},
        "spec": {"volumes": [{"name": "data", **source}], "nodeName": row.get("node", "")},
        "status": {"phase": row.get("phase", "Pending")},
    }


def node_body(labels: dict[str, str], name: str = "n-1") -> Body:
    """A Node."""
    return {"metadata": {"name": name, "uid": f"node-{name}", "resourceVersion": "1", "labels": labels}}


def volume_row(body: Body) -> Row:
    """The short form of a PersistentVolume, every default written out."""
    spec, ref = body["spec"], body["spec"].get("claimRef")
    row = _common(body) | {
        "capacity": (spec.get("capacity") or {}).get("storage"),
        "class": spec.get("storageClassName") or "",
        "reclaim": spec.get("persistentVolumeReclaimPolicy"),
        "source": "csi" if "csi" in spec else "non-csi",
        "claimRef": None if ref is None else {key: ref.get(key) or "" for key in ("namespace", "name", "uid")},
        "message": bool(body["status"].get("message")),
    }
    return row | {"phase": body["status"].get("phase") or ""}


def claim_row(body: Body) -> Row:
    """The short form of a PersistentVolumeClaim, every default written out."""
    spec, status = body["spec"], body["status"]
    return _common(body) | {
        "uid": body["metadata"]["uid"],
        "request": spec["resources"]["requests"]["storage"],
        "class": spec.get("storageClassName"),
        "volumeName": spec.get("volumeName") or "",
        "phase": status.get("phase") or "",
        "statusCapacity": (status.get("capacity") or {}).get("storage"),
        "statusModes": status.get("accessModes") or [],
        "currentAttributesClass": status.get("currentVolumeAttributesClassName") or "",
        "selector": (spec.get("selector") or {}).get("matchLabels"),
        "dataSource": spec.get("dataSource"),
    }


def _common(body: Body) -> Row:
    metadata, spec = body["metadata"], body["spec"]
    annotations = metadata.get("annotations") or {}
    return {
        "name": metadata["name"],
        "accessModes": [SHORT[mode] for mode in spec.get("accessModes") or []],
        "volumeMode": spec.get("volumeMode") or "Filesystem",
        "attributesClass": spec.get("volumeAttributesClassName") or "",
        "marks": sorted(mark for mark, key in MARKS.items() if key in annotations),
        "annotations": {key: value for key, value in annotations.items() if key not in MARKS.values()},
        "finalizers": [each for each in metadata.get("finalizers") or [] if each != HELD],
        "deleting": "deletionTimestamp" in metadata,
    }


HELD = "example/held"
"""What keeps an object that is being deleted and has no finalizer in the vector."""


def _metadata(row: Row) -> Body:
    metadata: Body = {"name": row["name"], "uid": row.get("uid") or f"uid-{row['name']}", "resourceVersion": "1"}
    annotations = {**row.get("annotations", {}), **{MARKS[mark]: "yes" for mark in row.get("marks", ())}}
    if annotations:
        metadata["annotations"] = annotations
    if row.get("labels"):
        metadata["labels"] = row["labels"]
    if row.get("finalizers"):
        metadata["finalizers"] = list(row["finalizers"])
    if row.get("deleting"):
        metadata["deletionTimestamp"] = "2026-01-02T03:04:05Z"
        metadata.setdefault("finalizers", [HELD])
    if row.get("created"):
        metadata["creationTimestamp"] = row["created"]
    return metadata


def _long(row: Row) -> list[str]:
    return [MODES[mode] for mode in row.get("accessModes", DEFAULT_MODES)]


def _source(row: Row) -> Body:
    return (
        {"driver": "csi.example/any", "volumeHandle": row["name"]} if row.get("source") == "csi" else {"path": "/srv/a"}
    )


def _term(affinity: dict[str, list[str]]) -> Body:
    return {"matchExpressions": [{"key": k, "operator": "In", "values": v} for k, v in affinity.items()]}


def _set(body: Body, field: str, value: Any) -> None:
    if value is not None:
        body[field] = value
