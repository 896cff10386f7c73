"""The driver is killed (SIGKILL) at every point of every operation on every kind of volume, and started again.

The points are enumerated from the code (see ``crash_points``), the operations and what has to hold after each stand in
``crash_operations``. After each point at which something differs the caller asks again, and then has everything deleted; each
third point is abandoned too. With MOORAGE_CRASHES=all it is each, and before and after every call.
"""

import asyncio
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

import pytest

from moorage_csi.host import btrfs, loops
from tests.kernel.crash_operations import OPERATIONS, Operation
from tests.kernel.crash_victim import Answer, Order, build
from tests.kernel.crash_world import KINDS, Kind, devices_below, disk_of
from tests.kernel.machine import opened, tool

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(3600)]

ALL: Final = os.environ.get("MOORAGE_CRASHES") == "all"
ONLY: Final = os.environ.get("MOORAGE_CRASH_OPERATION", "")
"""A part of the name of the operations that are wanted; empty for all."""

WORKERS: Final = 4
MOST: Final = 1000
LEAST: Final = 300
PATIENCE: Final = 120
_ABANDON_EVERY: Final = 1 if ALL else 3
_FAILURES: Final = 10

_ROOTS, _QUOTAS, _ROOT, _GROUP, _LEVEL = 1, 8, 132, 242, 48
"""Trees of a btrfs, kinds of items in them, and where the level in a group's number begins."""


class Victim:
    """A process that crashes drivers and starts them again."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._orders, self._answers = process.stdin, process.stdout

    @classmethod
    @asynccontextmanager
    async def started(cls) -> AsyncIterator["Victim"]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.kernel.crash_victim"),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        victim = cls(process)
        try:
            yield victim
        finally:
            victim._orders.close()
            await asyncio.wait_for(process.wait(), PATIENCE)

    async def answer(self, order: Order) -> Answer:
        self._orders.write(f"{json.dumps(asdict(order))}\n".encode())
        return Answer(**json.loads(await asyncio.wait_for(self._answers.readline(), PATIENCE)))


class Matrix:
    """All points of all operations on one kind of volume."""

    def __init__(self, kind: Kind, disk: Path) -> None:
        self.points: Counter[str] = Counter()
        self.failures: list[str] = []
        self._kind = kind
        self._disk = disk
        self._bases: dict[str, str] = {}

    async def run(self) -> None:
        wanted = [each for each in OPERATIONS if ONLY in each.name and not (each.mounted_only and self._kind.block)]
        # The subvolumes of one pool cannot be those of another: there each point gets a pool of its own.
        for base in sorted({each.base for each in wanted} if self._kind.disk != "btrfs" else ()):
            await build(base, self._kind, self._disk / base)
            self._bases[base] = str(self._disk / base)
        await asyncio.gather(*(self._work(wanted) for _ in range(WORKERS)))

    async def _work(self, left: list[Operation]) -> None:
        async with Victim.started() as victim:
            while left:
                operation = left.pop(0)
                for fatal in range(1, MOST):
                    if not await self._died(victim, operation, fatal):
                        break
                else:
                    self.failures.append(f"{operation.name} does not end")

    async def _died(self, victim: Victim, operation: Operation, fatal: int) -> bool:
        """Die at this point, start again and go on; False where the operation came through."""
        died = False
        both = fatal % _ABANDON_EVERY == 0 or operation.retention or operation.hesitation
        for way in ("retried", "abandoned") if both else ("retried",):
            area = self._disk / f"{OPERATIONS.index(operation)}-{fatal}-{way}"
            order = Order(
                operation=operation.name,
                kind=self._kind.name,
                area=str(area),
                base=self._bases.get(operation.base, ""),
                fatal=fatal,
                distinct=not ALL,
                way=way,
            )
            try:
                answer = await victim.answer(order)
            finally:
                _cleared(area)
            died |= answer.died
            if answer.wrong:
                what = f"{self._kind.name}, {operation.name}, {fatal} ({answer.at}), {way}"
                self.failures.append(f"{what}:\n{answer.wrong}")
        self.points[operation.name] += died
        return died and len(self.failures) < _FAILURES


def _cleared(area: Path) -> None:
    """Take away what is left, after a failure more than an empty pool."""
    for line in reversed(Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()):
        target = line.split()[4]
        if target.startswith(f"{area}/"):
            tool("umount", target, check=False)
    for device in devices_below(area):
        loops.detach(int(device.removeprefix("loop")))
    for data in area.glob("pool/*/*/data"):
        if data.stat().st_ino == 256:
            tool("btrfs", "subvolume", "delete", data, check=False)
    shutil.rmtree(area, ignore_errors=True)


def _groups_of_nobody(disk: Path) -> list[int]:
    """The driver's quota groups whose subvolumes are gone."""
    with opened(disk, os.O_RDONLY) as fd:
        groups = [group for group, _ in btrfs.items(fd, tree=_QUOTAS, object_id=0, kind=_GROUP)]
        numbers = [group & (1 << _LEVEL) - 1 for group in groups if group >> _LEVEL]
        return [
            number
            for number in numbers
            if next(btrfs.items(fd, tree=_ROOTS, object_id=number, kind=_ROOT), None) is None
        ]


@pytest.fixture(scope="module")
def counted() -> Counter[str]:
    """How many points each kind had."""
    return Counter()


@pytest.fixture
def disk(kind: Kind, tmp_path: Path) -> Iterator[Path]:
    """Where the pools of the kind are."""
    with disk_of(kind, tmp_path) as path:
        yield path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name.replace(" ", "-"))
async def test_killed_at_any_point_it_goes_on_or_is_undone(
    kind: Kind, disk: Path, counted: Counter[str], capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = Matrix(kind, disk)
    await matrix.run()
    counted[kind.name] = matrix.points.total()
    with capsys.disabled():
        print(f"\n{kind.name}: {matrix.points.total()} points", end=" ")  # noqa: T201 - counted for people
    assert not matrix.failures, "\n\n".join(matrix.failures)
    if kind.disk == "btrfs":
        assert _groups_of_nobody(disk) == [], "the kernel keeps limits for subvolumes that are gone"


def test_there_are_enough_points(counted: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    if len(counted) < len(KINDS) or ONLY:
        pytest.skip("not every operation on every kind was killed")
    with capsys.disabled():
        each = ", ".join(f"{name} {points}" for name, points in counted.items())
        print(f"\n{counted.total()} crash points: {each}", end=" ")  # noqa: T201
    assert counted.total() >= LEAST
