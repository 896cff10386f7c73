"""Objects as the API server sends them, with every field that matters settable by its short name."""

from __future__ import annotations

from typing import Any

from moorage_csi.contract import DRIVER_NAME, TOPOLOGY_KEY
from moorage_operator.decide.plan import Emit, Plan
from moorage_operator.ledger import Ledger
from moorage_operator.model.claim import Claim
from moorage_operator.model.node import Node, NodeDrivers
from moorage_operator.model.storage_class import Class
from moorage_operator.model.volume import Volume

FINALIZER = "external-provisioner.volume.kubernetes.io/finalizer"


def claim_body(
    name: str = "data",
    *,
    uid: str = "u1",
    version: int = 1,
    class_name: str | None = "fast",
    size: str = "1Gi",
    phase: str = "Pending",
    marks: dict[str, str] | None = None,
    deleting: bool = False,
    **spec: Any,
) -> dict[str, Any]:
    meta: dict[str, Any] = {"name": name, "namespace": "ns", "uid": uid, "resourceVersion": str(version)}
    meta["creationTimestamp"] = "2026-01-02T03:04:05Z"
    if marks:
        meta["annotations"] = marks
    if deleting:
        meta |= {"deletionTimestamp": "2026-01-02T03:04:06Z", "finalizers": ["kubernetes.io/pvc-protection"]}
    body: dict[str, Any] = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    if class_name is not None:
        body["storageClassName"] = class_name
    status: dict[str, Any] = {"phase": phase}
    if phase == "Bound":
        status |= {"accessModes": body["accessModes"], "capacity": {"storage": size}}
    return {"metadata": meta, "spec": body | spec, "status": status}


def volume_body(
    name: str = "pvc-u1",
    *,
    uid: str = "pv1",
    version: int = 1,
    claim: tuple[str, str] | None = ("data", "u1"),
    phase: str = "Pending",
    policy: str = "Delete",
    node: str = "n1",
    driver: str = DRIVER_NAME,
    provisioned_by: str = DRIVER_NAME,
    finalizers: tuple[str, ...] = (FINALIZER,),
    deleting: bool = False,
    size: str = "1Gi",
    class_name: str = "fast",
) -> dict[str, Any]:
    meta: dict[str, Any] = {"name": name, "uid": uid, "resourceVersion": str(version), "finalizers": list(finalizers)}
    if provisioned_by:
        meta["annotations"] = {"pv.kubernetes.io/provisioned-by": provisioned_by}
    if deleting:
        meta["deletionTimestamp"] = "2026-01-02T03:04:06Z"
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "capacity": {"storage": size},
        "persistentVolumeReclaimPolicy": policy,
        "storageClassName": class_name,
        "csi": {"driver": driver, "volumeHandle": f"vol-{name}", "volumeAttributes": {"backend": "image"}},
    }
    if claim is not None:
        spec["claimRef"] = {"namespace": "ns", "name": claim[0], "uid": claim[1]}
    if node:
        expression = {"key": TOPOLOGY_KEY, "operator": "In", "values": [node]}
        spec["nodeAffinity"] = {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}
    return {"metadata": meta, "spec": spec, "status": {"phase": phase}}


def class_body(name: str = "fast", *, version: int = 1, late: bool = False, **fields: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": f"class-{name}", "resourceVersion": str(version)},
        "provisioner": DRIVER_NAME,
        "volumeBindingMode": "WaitForFirstConsumer" if late else "Immediate",
        **fields,
    }


def node_body(
    name: str, *, ready: bool = True, cordoned: bool = False, labels: dict[str, str] | None = None
) -> dict[str, Any]:
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    return {
        "metadata": {"name": name, "uid": f"node-{name}", "resourceVersion": "1", "labels": labels or {}},
        "spec": {"unschedulable": cordoned},
        "status": {"conditions": [condition]},
    }


def csinode_body(name: str, *drivers: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": f"csinode-{name}", "resourceVersion": "1"},
        "spec": {"drivers": [{"name": driver, "nodeID": name} for driver in drivers or (DRIVER_NAME,)]},
    }


def known(*records: Any, nodes: tuple[str, ...] = ("n1",), **cls: Any) -> Ledger:
    ledger = Ledger()
    ledger.apply(Class.from_api(class_body(**cls)))
    for name in nodes:
        ledger.apply(Node.from_api(node_body(name)))
        ledger.apply(NodeDrivers.from_api(csinode_body(name)))
    for record in records:
        ledger.apply(record)
    return ledger


def claim(**fields: Any) -> Claim:
    return Claim.from_api(claim_body(**fields))


def volume(**fields: Any) -> Volume:
    return Volume.from_api(volume_body(**fields))


def sentence(plan: Plan) -> Emit:
    (emit,) = [step for step in plan if isinstance(step, Emit)]
    return emit
