"""A burst of claims among volumes that exist, bound by the operator instead of the in-tree binder, beside the raw floor.

Thousands of Released volumes stand in the way. The Available ones have as many sizes as the claims ask for, so
each claim has a volume that is exactly right for it, and getting any other would be seen. The floor is a blind
client that is told its volumes and does the same four writes for each claim, as many at the same time as the
operator has workers, on the same API server, before the operator has started and after it has ended.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.bench import audit, burst, replica
from tests.bench.client import MERGE_PATCH, Client, connect, gather_bounded, make_namespaces
from tests.bench.figures import Figure
from tests.bench.replica import Replica
from tests.harness.controlplane import ControlPlane

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.bench.burst import Burst
    from tests.harness.progress import Progress

PART = "claims at once among static volumes, instead of the in-tree binder"
CLAIMS = 1_000
RELEASED = 5_000
WORKERS = 32
SIZES = 100
OF_FLOOR = 0.6
OBJECT_WRITES = 4
EVENTS = 1
READY_WITHIN = 120.0
QUIET_SECONDS = 4
"""The other controllers write once about every claim, long after it is bound, and our events are held back for a
moment: a run begins when nobody has written for so long."""
QUIET_WITHIN = 90
FLAGS = ("--binder-mode=instead", f"--workers={WORKERS}", "--api-qps=0")
"""Without its limit on requests, which is there to spare an API server and would be all that is measured."""


class WronglyBoundError(Exception):
    """A claim has not got the one volume that is right for it."""


def measure(*, progress: Progress) -> list[Figure]:
    """Run the floor, the operator, and the floor again."""
    with (
        ControlPlane("bench-static", controllers=True, binder=False, users=replica.USERS, progress=progress) as plane,
        replica.folder(plane) as folder,
    ):
        return asyncio.run(_measure(plane, folder, progress=progress))


async def _measure(plane: ControlPlane, folder: Path, *, progress: Progress) -> list[Figure]:
    async with connect(plane.kubeconfig) as client:
        with progress.step(f"making {RELEASED} Released and {3 * CLAIMS} Available volumes", usually="20 s"):
            await _fill(client)
        await _quiet(plane)
        with progress.step(f"the floor: {CLAIMS} claims"):
            floors = [await _floor(client, "before")]
        await _quiet(plane)
        with Replica(plane, folder, *FLAGS) as operator:
            await asyncio.to_thread(operator.wait_ready, seconds=READY_WITHIN)
            await _quiet(plane)
            start, used = audit.position(plane.audit_log), operator.processor_seconds()
            with progress.step(f"the operator: {CLAIMS} claims"):
                ours = await burst.bind_all(client, list(_claims("static")), limit=WORKERS)
            await _quiet(plane)
            used = operator.processor_seconds() - used
            counted = audit.tally(audit.writes(plane.audit_log, since=start, user=replica.USER))
        await _check(client)
        with progress.step(f"the floor again: {CLAIMS} claims"):
            floors.append(await _floor(client, "after"))
    return _figures(ours, floors, counted, processor=used)


def _figures(ours: Burst, floors: list[Burst], counted: dict[str, int], *, processor: float) -> list[Figure]:
    floor = sum(each.claims for each in floors) / sum(each.seconds for each in floors)
    objects = {key: count for key, count in counted.items() if "persistentvolume" in key}
    refused = sum(count for key, count in objects.items() if "(409)" in key) / CLAIMS
    stored = sum(objects.values()) / CLAIMS - refused
    events = sum(count for key, count in counted.items() if " events" in key) / CLAIMS
    detail = ", ".join(f"{key} {count / CLAIMS:.2f}" for key, count in sorted(counted.items()))
    rates = ", ".join(f"{each.rate:.1f}" for each in floors)
    return [
        Figure(part=PART, name="the floor", value=floor, unit="claims/s", detail=f"before and after: {rates}"),
        Figure(part=PART, name="the operator", value=ours.rate, unit="claims/s"),
        Figure(part=PART, name="of the floor", value=ours.rate / floor, least=OF_FLOOR),
        Figure(part=PART, name="processor time of the operator", value=processor / CLAIMS * 1000, unit="ms a claim"),
        Figure(part=PART, name="created to Bound, p50", value=ours.percentile(0.5), unit="s"),
        Figure(part=PART, name="created to Bound, p95", value=ours.percentile(0.95), unit="s"),
        Figure(part=PART, name="writes of objects", value=stored, unit="a claim", most=OBJECT_WRITES, detail=detail),
        Figure(part=PART, name="writes refused by a conflict", value=refused, unit="a claim"),
        Figure(part=PART, name="events", value=events, unit="a claim", most=EVENTS),
    ]


async def _fill(client: Client) -> None:
    await make_namespaces(client, burst.NAMESPACE, replica.NAMESPACE)
    jobs = [_add_volume(client, f"released-{number}", number, "Released", "static") for number in range(RELEASED)]
    jobs += [_add_volume(client, f"static-{number}", number, "Available", "static") for number in range(CLAIMS)]
    for floor in ("before", "after"):
        jobs += [_add_volume(client, f"{floor}-{number}", number, "Available", floor) for number in range(CLAIMS)]
    await gather_bounded(limit=WORKERS, jobs=jobs)


async def _add_volume(client: Client, name: str, number: int, phase: str, class_name: str) -> None:
    spec: dict[str, Any] = {
        "capacity": {"storage": f"{number % SIZES + 1}Gi"},
        "accessModes": ["ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": class_name,
        "hostPath": {"path": f"/srv/{name}"},
    }
    if phase == "Released":
        gone = {"metadata": {"namespace": burst.NAMESPACE, "name": f"gone-{number}", "uid": f"gone-{number}"}}
        spec["claimRef"] = burst.holder(gone)
    await client.request("POST", burst.VOLUMES, {"metadata": {"name": name}, "spec": spec})
    status = {"status": {"phase": phase}}
    await client.request("PATCH", f"{burst.VOLUMES}/{name}/status", status, content=MERGE_PATCH)


def _claims(prefix: str) -> Iterator[dict[str, Any]]:
    """Claims of every size, each a little smaller than the volume that is right for it."""
    for number in range(CLAIMS):
        size = f"{(number % SIZES + 1) * 1024 - 1}Mi"
        yield burst.claim(f"{prefix}-{number}", class_name=prefix, size=size)


async def _floor(client: Client, name: str) -> Burst:
    return await burst.bind_all(
        client,
        list(_claims(name)),
        created=lambda stored: burst.reserve_blindly(client, stored, volume_name=stored["metadata"]["name"]),
        limit=WORKERS,
    )


async def _quiet(plane: ControlPlane) -> None:
    """Return when no claim and no volume has been written for a while."""
    async with asyncio.timeout(QUIET_WITHIN):
        before = -1
        while (now := _written(plane)) != before:
            before = now
            await asyncio.sleep(QUIET_SECONDS)


def _written(plane: ControlPlane) -> int:
    """How many claims and volumes were written so far."""
    with plane.audit_log.open("rb") as lines:
        return sum(b'"resource":"persistentvolume' in line for line in lines)


async def _check(client: Client) -> None:
    """Every claim has a volume of the right size, and none has that of another."""
    found = (await client.request("GET", burst.CLAIMS))["items"]
    ours = [claim for claim in found if claim["metadata"]["name"].startswith("static-")]
    names = {claim["spec"]["volumeName"] for claim in ours}
    if len(names) != CLAIMS:
        raise WronglyBoundError(f"{CLAIMS} claims have {len(names)} volumes")
    for claim in ours:
        number = int(claim["metadata"]["name"].removeprefix("static-"))
        if claim["status"]["capacity"]["storage"] != f"{number % SIZES + 1}Gi":
            raise WronglyBoundError(f"{claim['metadata']['name']}: {claim['spec']} {claim['status']}")
