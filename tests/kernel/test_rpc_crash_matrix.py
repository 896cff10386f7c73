"""The driver is killed (SIGKILL) at every point of every operation on every kind of volume, and started again.

The points are enumerated from the code (see ``crash_points``), the operations and what has to hold after each stand in
``crash_operations``. By default the caller asks again after each point and then has everything deleted, and every other
point is abandoned too; MOORAGE_CRASHES=all abandons each.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from moorage_csi.host import loops
from tests.kernel.crash_operations import OPERATIONS, Operation
from tests.kernel.crash_victim import build
from tests.kernel.crash_world import KINDS, Kind, World, devices_below, disk_of
from tests.kernel.machine import tool

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1800)]

WORKERS: Final = 3
MOST: Final = 1000
LEAST: Final = 300
ALL: Final = os.environ.get("MOORAGE_CRASHES") == "all"
ONLY: Final = os.environ.get("MOORAGE_CRASH_OPERATION", "")


class Victim:
    """A process that makes crashed drivers."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @asynccontextmanager
    async def started(cls) -> AsyncIterator[Victim]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.kernel.crash_victim"),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            yield cls(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await asyncio.wait_for(process.wait(), 60)

    async def die(self, **order: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(order)}\n".encode())
        answer: dict[str, Any] = json.loads(await asyncio.wait_for(self._process.stdout.readline(), 60))
        return answer


class Matrix:
    """All points of all operations on one kind of volume."""

    def __init__(self, kind: Kind, disk: Path) -> None:
        self.kind = kind
        self.points: Counter[str] = Counter()
        self.failures: list[str] = []
        self._disk = disk
        self._bases: dict[str, str] = {}

    async def run(self) -> None:
        wanted = [
            each for each in OPERATIONS if ONLY in each.name and not (each.mounted_only and self.kind.block)
        ]
        for base in {each.base for each in wanted}:
            # The subvolumes of one pool cannot be those of another.
            if self.kind.disk != "btrfs":
                area = self._disk / f"base-{base}"
                await build(base, self.kind, area)
                self._bases[base] = str(area)
        left = list(wanted)
        await asyncio.gather(*(self._work(left) for _ in range(WORKERS)))

    async def _work(self, left: list[Operation]) -> None:
        async with Victim.started() as victim:
            while left:
                operation = left.pop()
                for fatal in range(1, MOST):
                    if not await self._point(victim, operation, fatal):
                        break

    async def _point(self, victim: Victim, operation: Operation, fatal: int) -> bool:
        """Die at this point and go on; False where the operation came through."""
        ways = ["retried", "abandoned"] if ALL or fatal % 2 else ["retried"]
        died = {}
        for way in ways:
            area = self._disk / f"{operation.name}-{fatal}-{way}".replace(" ", "-").replace("'", "")
            try:
                died = await victim.die(
                    kind=self.kind.name,
                    operation=operation.name,
                    area=str(area),
                    base=self._bases.get(operation.base, ""),
                    fatal=fatal,
                )
                assert not died["failed"], "the operation failed before it died"
                await self._go_on(operation, area, way)
            except BaseException:
                self.failures.append(
                    f"{self.kind.name}, {operation.name}, {fatal} ({died.get('at') or 'after all'}), {way}:\n"
                    f"{traceback.format_exc(limit=-6)}"
                )
            finally:
                _cleared(area)
        if died.get("died"):
            self.points[operation.name] += 1
        return bool(died.get("died")) and len(self.failures) < 40

    async def _go_on(self, operation: Operation, area: Path, way: str) -> None:
        async with World.started(area, self.kind, retention=operation.retention) as world:
            await getattr(operation, way)(world)
            if not operation.retention:
                await world.clear(*operation.kept)
                return
        async with World.started(area, self.kind) as world:
            await world.clear(*operation.kept)


def _cleared(area: Path) -> None:
    """Take away what a failure left."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()[::-1]:
        target = line.split()[4]
        if target.startswith(f"{area}/"):
            tool("umount", target, check=False)
    for device in devices_below(area):
        loops.detach(int(device.removeprefix("loop")))
    if (area / "pool").exists() and shutil.which("btrfs"):
        for data in [*area.glob("pool/*/*/data"), *area.glob("pool/*/*/*/data")]:
            tool("btrfs", "subvolume", "delete", data, check=False)
    shutil.rmtree(area, ignore_errors=True)


@pytest.fixture(scope="module")
def counted() -> Counter[str]:
    """How many points each kind had."""
    return Counter()


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Where the pools of the kind are."""
    with disk_of(request.getfixturevalue("kind"), tmp_path) as path:
        yield path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.replace(" ", "-"))
async def test_killed_at_any_point_it_goes_on_or_is_undone(kind: Kind, disk: Path, counted: Counter[str]) -> None:
    matrix = Matrix(kind, disk)
    await matrix.run()
    counted[kind.name] = matrix.points.total()
    print({**matrix.points})
    assert not matrix.failures, "\n\n".join(matrix.failures)


def test_there_are_enough_points(counted: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    if len(counted) < len(KINDS) or ONLY:
        pytest.skip("not every kind was killed")
    with capsys.disabled():
        each = ", ".join(f"{name} {points}" for name, points in counted.items())
        print(f"\n{counted.total()} crash points: {each}")
    assert counted.total() >= LEAST
