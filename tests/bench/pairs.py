"""Bound pairs in great numbers, as a binder leaves them: written blindly, many at a time, with nobody else writing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moorage_csi.contract import DRIVER_NAME, TOPOLOGY_KEY, Context
from tests.bench.client import MERGE_PATCH, Client, gather_bounded

if TYPE_CHECKING:
    from collections.abc import Iterable

NAMESPACE = "pairs"
CLASS_NAME = "pairs"
CLAIMS = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims"
VOLUMES = "/api/v1/persistentvolumes"
IN_FLIGHT = 48
NODES = 20
SIZE = "10Gi"
MODES = ["ReadWriteOnce"]


async def fill(client: Client, numbers: Iterable[int]) -> None:
    """Make one bound pair for each number, in four requests; the namespace must be there."""
    await gather_bounded(limit=IN_FLIGHT, jobs=[_pair(client, number) for number in numbers])


async def _pair(client: Client, number: int) -> None:
    volume_name = f"pvc-{number:08x}-5d7c-4c7e-9d3a-2f6b1c0e8a41"
    stored = await client.request("POST", CLAIMS, _claim(f"data-database-{number}", volume_name))
    await client.request("POST", VOLUMES, _volume(volume_name, stored, node=f"worker-{number % NODES}"))
    bound = {"status": {"phase": "Bound"}}
    await client.request("PATCH", f"{VOLUMES}/{volume_name}/status", bound, content=MERGE_PATCH)
    status = {"phase": "Bound", "accessModes": MODES, "capacity": {"storage": SIZE}}
    path = f"{CLAIMS}/{stored['metadata']['name']}/status"
    await client.request("PATCH", path, {"status": status}, content=MERGE_PATCH)


def _claim(name: str, volume_name: str) -> dict[str, Any]:
    """A claim of a StatefulSet as it looks once it is bound, but for its status."""
    marks = {
        "pv.kubernetes.io/bind-completed": "yes",
        "pv.kubernetes.io/bound-by-controller": "yes",
        "volume.kubernetes.io/selected-node": "worker-1",
        "volume.kubernetes.io/storage-provisioner": DRIVER_NAME,
    }
    labels = {"app.kubernetes.io/name": "database", "app.kubernetes.io/instance": "main"}
    return {
        "metadata": {
            "name": name,
            "annotations": marks,
            "labels": labels,
            "finalizers": ["kubernetes.io/pvc-protection"],
        },
        "spec": {
            "accessModes": MODES,
            "storageClassName": CLASS_NAME,
            "volumeName": volume_name,
            "resources": {"requests": {"storage": SIZE}},
        },
    }


def _volume(name: str, claim: dict[str, Any], *, node: str) -> dict[str, Any]:
    """A volume as our own operator makes it."""
    meta = claim["metadata"]
    term = {"matchExpressions": [{"key": TOPOLOGY_KEY, "operator": "In", "values": [node]}]}
    return {
        "metadata": {
            "name": name,
            "annotations": {"pv.kubernetes.io/provisioned-by": DRIVER_NAME},
            "finalizers": ["kubernetes.io/pv-protection", "external-provisioner.volume.kubernetes.io/finalizer"],
        },
        "spec": {
            "capacity": {"storage": SIZE},
            "accessModes": MODES,
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": CLASS_NAME,
            "volumeMode": "Filesystem",
            "claimRef": {"kind": "PersistentVolumeClaim", "apiVersion": "v1"}
            | {key: meta[key] for key in ("namespace", "name", "uid")},
            "csi": {
                "driver": DRIVER_NAME,
                "fsType": "ext4",
                "volumeHandle": f"vol-{meta['uid'].replace('-', '')}",
                "volumeAttributes": {Context.BACKEND: "image"},
            },
            "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
        },
    }
