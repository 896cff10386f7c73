"""What the operator costs beside objects that are at rest: memory, and time until everything is known.

The API server and etcd are alone, so nobody writes meanwhile. *Known* is /readyz: it answers 200 once every object
that a list shows is in the ledger, this replica leads, and its certificates are made; the time begins
with the process. Memory is read a moment later, when the first decision about every object has been made.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tests.bench import pairs, replica
from tests.bench.client import connect, make_namespaces
from tests.bench.figures import MIB, Figure
from tests.bench.replica import Replica
from tests.harness.controlplane import ControlPlane

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.harness.progress import Progress

PART = "the operator beside bound pairs"
COUNTS = (1_000, 10_000)
MEMORY = {1_000: 110, 10_000: 160, 50_000: 400}
"""Resident MiB at most, by pairs."""
SECONDS = {10_000: 12}
"""Until everything is known, at most, by pairs."""
SETTLED_SECONDS = 5
READY_WITHIN = 300.0


def measure(counts: Sequence[int], *, progress: Progress) -> list[Figure]:
    """Fill an API server step by step, and start an operator at each of the counts."""
    figures: list[Figure] = []
    with ControlPlane("bench-start", users=replica.USERS, progress=progress) as plane, replica.folder(plane) as folder:
        asyncio.run(_prepare(plane))
        with Replica(plane, folder) as warm:
            warm.wait_ready(seconds=READY_WITHIN)
        made = 0
        for count in sorted(counts):
            with progress.step(f"making {count - made} bound pairs", usually=f"{(count - made) / 200:.0f} s"):
                asyncio.run(_fill(plane, range(made, count)))
            made = count
            with progress.step(f"starting the operator beside {count} pairs"):
                figures += _start(plane, folder, count)
    return figures


def _start(plane: ControlPlane, folder: Path, count: int) -> list[Figure]:
    with Replica(plane, folder) as operator:
        ready = operator.wait_ready(seconds=READY_WITHIN)
        processor = operator.processor_seconds()
        time.sleep(SETTLED_SECONDS)
        weight = operator.weigh()
    where = f"{count:,} pairs"
    return [
        Figure(part=PART, name=f"{where}: start to known", value=ready, unit="s", most=SECONDS.get(count)),
        Figure(part=PART, name=f"{where}: processor time of that", value=processor, unit="s"),
        Figure(part=PART, name=f"{where}: resident", value=weight.resident / MIB, unit="MiB", most=MEMORY.get(count)),
        Figure(part=PART, name=f"{where}: resident at the peak", value=weight.peak / MIB, unit="MiB"),
        Figure(part=PART, name=f"{where}: shared with nobody", value=weight.anonymous / MIB, unit="MiB"),
    ]


async def _prepare(plane: ControlPlane) -> None:
    async with connect(plane.kubeconfig) as client:
        await make_namespaces(client, pairs.NAMESPACE, replica.NAMESPACE)


async def _fill(plane: ControlPlane, numbers: range) -> None:
    async with connect(plane.kubeconfig) as client:
        await pairs.fill(client, numbers)
