"""Pairs that name each other: how long from the claim's creation to Bound, in both modes of the binder.

First the volume is made and then its claim, as a tool that restores a backup does it; the API server, all other in-tree
controllers and the operator are there and have nothing else to do.
"""

from __future__ import annotations

import asyncio
import statistics
from typing import TYPE_CHECKING, Any

from tests.bench import burst
from tests.bench.client import Client, connect, gather_bounded, make_namespaces
from tests.bench.figures import Figure
from tests.bench.replica import NAMESPACE, USERS, Replica, folder
from tests.harness.controlplane import ControlPlane

if TYPE_CHECKING:
    from tests.harness.progress import Progress

PART = "pairs that name each other, created to Bound"
CLASS_NAME = "prebound"
SINGLES = 30
AT_ONCE = 50
REST_SECONDS = 0.3
"""Between two single pairs, so that each finds everybody idle."""
READY_WITHIN = 60.0
MOST_MILLISECONDS = 100
MODES = ("beside", "instead")


def measure(*, progress: Progress) -> list[Figure]:
    """Measure both modes, each on a control plane of its own."""
    return [figure for mode in MODES for figure in _mode(mode, progress=progress)]


def _mode(mode: str, *, progress: Progress) -> list[Figure]:
    binder = mode == "beside"
    where = "beside the in-tree binder" if binder else "instead of the in-tree binder"
    with (
        ControlPlane(f"bench-{mode}", controllers=True, binder=binder, users=USERS, progress=progress) as plane,
        folder(plane) as place,
        progress.step(f"{SINGLES} pairs one by one and {AT_ONCE} at once, {where}"),
    ):
        singles, at_once = asyncio.run(_run(plane, Replica(plane, place, f"--binder-mode={mode}")))
    return [
        *_figures(f"{where}, one by one", singles, most=MOST_MILLISECONDS),
        *_figures(f"{where}, {AT_ONCE} at once", at_once, most=None),
    ]


def _figures(name: str, waits: list[float], *, most: float | None) -> list[Figure]:
    p50, p95 = statistics.median(waits) * 1000, statistics.quantiles(waits, n=20)[-1] * 1000
    return [
        Figure(part=PART, name=f"{name}, p50", value=p50, unit="ms", most=most),
        Figure(part=PART, name=f"{name}, p95", value=p95, unit="ms"),
    ]


async def _run(plane: ControlPlane, operator: Replica) -> tuple[list[float], list[float]]:
    async with connect(plane.kubeconfig) as client:
        await make_namespaces(client, burst.NAMESPACE, NAMESPACE)
        with operator:
            await asyncio.to_thread(operator.wait_ready, seconds=READY_WITHIN)
            return await _measure(client)


async def _measure(client: Client) -> tuple[list[float], list[float]]:
    await _pairs(client, ["warm-up"])
    singles: list[float] = []
    for number in range(SINGLES):
        await asyncio.sleep(REST_SECONDS)
        singles += await _pairs(client, [f"one-{number}"])
    await asyncio.sleep(REST_SECONDS)
    return singles, await _pairs(client, [f"many-{number}" for number in range(AT_ONCE)])


async def _pairs(client: Client, names: list[str]) -> list[float]:
    await gather_bounded(limit=AT_ONCE, jobs=[client.request("POST", burst.VOLUMES, _volume(name)) for name in names])
    claims = [burst.claim(name, class_name=CLASS_NAME, size="1Gi") for name in names]
    for claim in claims:
        claim["spec"]["volumeName"] = claim["metadata"]["name"]
    return list((await burst.bind_all(client, claims, limit=AT_ONCE)).waits)


def _volume(name: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": CLASS_NAME,
            "claimRef": {"namespace": burst.NAMESPACE, "name": name},
            "hostPath": {"path": f"/srv/{name}"},
        },
    }
