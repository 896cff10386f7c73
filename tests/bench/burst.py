"""A burst of claims, timed from the first create to the last one Bound, by whoever binds them.

Two runs of the same shape are compared: one where Moorage provisions and binds, and the *floor*, where a blind
client does the four writes that every provisioned claim needs (binding.md 4.2: POST the volume, then its status,
the claim, the claim's status) as fast as the API server takes them, without making any storage.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench.client import MERGE_PATCH, Client, gather_bounded

NAMESPACE = "bench"
CLAIMS = f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims"
VOLUMES = "/api/v1/persistentvolumes"
IN_FLIGHT = 64

Created = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Burst:
    """What one burst took: `seconds` to the last Bound, and each claim's own seconds from created to Bound."""

    claims: int
    seconds: float
    waits: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Claims per second."""
        return self.claims / self.seconds

    def percentile(self, share: float) -> float:
        """Return the seconds within which this share (0 to 1) of the claims was Bound."""
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def claim(name: str, *, class_name: str, size: str) -> dict[str, Any]:
    """Return an ordinary claim, as a person would apply it."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": class_name,
            "resources": {"requests": {"storage": size}},
        },
    }


async def burst(
    client: Client, *, count: int, class_name: str, size: str, prefix: str, created: Created | None = None
) -> Burst:
    """Create `count` equal claims at once and wait until a watch has shown each of them Bound.

    `created` is called with each stored claim; the floor does its writes there.
    """
    names = [f"{prefix}-{number}" for number in range(count)]
    return await bind_all(
        client, [claim(name, class_name=class_name, size=size) for name in names], created=created, limit=IN_FLIGHT
    )


async def bind_all(
    client: Client, claims: Sequence[dict[str, Any]], *, created: Created | None = None, limit: int
) -> Burst:
    """Create claims, at most `limit` at the same time, and wait until a watch has shown each of them Bound."""
    listed = await client.request("GET", f"{CLAIMS}?limit=1")
    waiting = {each["metadata"]["name"] for each in claims}
    begun: dict[str, float] = {}
    bound: dict[str, float] = {}

    async def observe() -> None:
        async for event in client.watch(CLAIMS, resource_version=listed["metadata"]["resourceVersion"]):
            body = event["object"]
            name = body["metadata"].get("name")
            if name in waiting and body["status"].get("phase") == "Bound":
                bound.setdefault(name, time.perf_counter())
                if len(bound) == len(waiting):
                    return

    async def make(body: dict[str, Any]) -> None:
        begun[body["metadata"]["name"]] = time.perf_counter()
        stored = await client.request("POST", CLAIMS, body)
        if created is not None:
            await created(stored)

    observer = asyncio.create_task(observe())
    await gather_bounded(limit=limit, jobs=[make(body) for body in claims])
    await asyncio.wait_for(observer, timeout=max(120.0, len(waiting)))
    return Burst(
        claims=len(waiting),
        seconds=max(bound.values()) - min(begun.values()),
        waits=tuple(bound[name] - begun[name] for name in waiting),
    )


async def bind_blindly(client: Client, stored: dict[str, Any]) -> None:
    """Do the four writes for one claim, unconditionally and unchecked: the least that any provisioner must send."""
    volume = await client.request("POST", VOLUMES, _volume(f"floor-{stored['metadata']['uid']}", stored))
    await finish_blindly(client, stored, volume)


async def reserve_blindly(client: Client, stored: dict[str, Any], *, volume_name: str) -> None:
    """Do the four writes that bind one claim to a volume that exists: the least that any binder must send."""
    path = f"{VOLUMES}/{volume_name}"
    volume = await client.request("PATCH", path, {"spec": {"claimRef": holder(stored)}}, content=MERGE_PATCH)
    await finish_blindly(client, stored, volume)


async def finish_blindly(client: Client, stored: dict[str, Any], volume: dict[str, Any]) -> None:
    """Do the last three writes, for a volume whose claimRef is stored."""
    meta, name = stored["metadata"], volume["metadata"]["name"]

    async def volume_status() -> None:
        bound = {"status": {"phase": "Bound"}}
        await client.request("PATCH", f"{VOLUMES}/{name}/status", bound, content=MERGE_PATCH)

    async def claim_parts() -> None:
        path = f"{CLAIMS}/{meta['name']}"
        marks = {"pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes"}
        await client.request(
            "PATCH", path, {"metadata": {"annotations": marks}, "spec": {"volumeName": name}}, content=MERGE_PATCH
        )
        status = {"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": volume["spec"]["capacity"]}
        await client.request("PATCH", f"{path}/status", {"status": status}, content=MERGE_PATCH)

    await asyncio.gather(volume_status(), claim_parts())


def holder(stored: dict[str, Any]) -> dict[str, Any]:
    """The claimRef that reserves a volume for one claim and no other of its name."""
    meta = stored["metadata"]
    names = {key: meta[key] for key in ("namespace", "name", "uid")}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **names}


def _volume(name: str, stored: dict[str, Any]) -> dict[str, Any]:
    spec = stored["spec"]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "labels": {"bench": "floor"}},
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": spec["storageClassName"],
            "claimRef": holder(stored),
            "csi": {"driver": "floor.bench.moorage.dev", "volumeHandle": name},
        },
    }
