"""The objects that a person would apply, as Python data."""

from collections.abc import Mapping
from typing import Any

BUSYBOX = "busybox:1.37"
HOLD = "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done"
"""Keeps a pod running and lets it end at once when asked to."""


def claim(
    name: str,
    *,
    class_name: str,
    size: str = "64Mi",
    modes: tuple[str, ...] = ("ReadWriteOnce",),
    volume_mode: str = "Filesystem",
    **spec: Any,
) -> dict[str, Any]:
    """Return a PersistentVolumeClaim; further fields of its spec by their own names, `storageClassName` among them."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": list(modes),
            "storageClassName": class_name,
            "volumeMode": volume_mode,
            "resources": {"requests": {"storage": size}},
            **spec,
        },
    }


def static_volume(
    name: str,
    *,
    test: str,
    class_name: str,
    size: str,
    modes: tuple[str, ...] = ("ReadWriteOnce",),
    labels: Mapping[str, str] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """Return a PersistentVolume that somebody made by hand; `test` is the namespace with which it is removed."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "labels": {"test": test, **(labels or {})}},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": list(modes),
            "storageClassName": class_name,
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": f"/tmp/{name}"},  # noqa: S108 - no pod ever mounts it
            **spec,
        },
    }


def pod(
    name: str, *, claim_name: str, script: str = HOLD, read_only: bool = False, block: bool = False
) -> dict[str, Any]:
    """Return a pod that has a claim at /data (a block claim at /dev/data) and runs a shell script, then waits."""
    place = (
        {"volumeDevices": [{"name": "data", "devicePath": "/dev/data"}]}
        if block
        else {"volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": read_only}]}
    )
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "main",
                    "image": BUSYBOX,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", script],
                    **place,
                }
            ],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim_name}}],
        },
    }


def storage_class(name: str, *, mode: str = "Immediate", **parameters: str) -> dict[str, Any]:
    """Return a StorageClass of our driver; parameters whose key is no identifier are given by unpacking a dict."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": "csi.moorage.dev",
        "volumeBindingMode": mode,
        "parameters": parameters,
    }
