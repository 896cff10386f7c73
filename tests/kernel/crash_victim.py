"""A program that crashes drivers and starts them again: it has loaded the driver, and forks a child for each.

An order is a line of JSON (see ``Order``). One child does what it says until the point at which it dies, and another one is the
driver that is started on what is left. The answer is a line too, see ``Answer``.
"""

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.kernel.crash_bases import BASES, RETENTIONS
from tests.kernel.crash_operations import OPERATIONS, Operation
from tests.kernel.crash_points import die_at
from tests.kernel.crash_world import KINDS, Kind, World

_DIED: Final = "died"
_FAILED: Final = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is done to which kind of volume, where, and at which point the driver dies.

    ``base`` is a directory with what is there before, to be copied; empty where it has to be made. ``way`` is how the
    caller goes on.
    """

    operation: str
    kind: str
    area: str
    base: str
    fatal: int
    distinct: bool
    way: str

    def what(self) -> tuple[Operation, Kind]:
        """The operation and the kind."""
        return (
            next(each for each in OPERATIONS if each.name == self.operation),
            next(kind for kind in KINDS if kind.name == self.kind),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Whether the driver died, at which point, and what was wrong with the next one; empty where nothing was."""

    died: bool
    at: str
    wrong: str


async def build(base: str, kind: Kind, area: Path) -> None:
    """Make what is in the pool before an operation."""
    async with World.started(area, kind, whole=False, retention=RETENTIONS.get(base, 0)) as world:
        await BASES[base](world)


async def die(order: Order) -> None:
    """Do what the order says, until the point at which this process dies."""
    operation, kind = order.what()
    area = Path(order.area)
    if order.base:
        _copied(order.base, order.area)
    else:
        await build(operation.base, kind, area)
    async with World.started(area, kind, whole=False, retention=operation.retention) as world:
        if operation.prepare is not None:
            await operation.prepare(world)
        told, write = os.open(area / _DIED, os.O_WRONLY | os.O_CREAT, 0o600), os.write
        die_at(order.fatal, distinct=order.distinct, told=lambda name: write(told, name.encode()))
        await operation.act(world)
        # Whoever comes through does not close the driver: after the answer is a point too.
        os._exit(0)


def _copied(base: str, area: str) -> None:
    command = ["/usr/bin/env", "cp", "-a", "--reflink=auto", "--sparse=auto", base, area]
    subprocess.run(command, check=True)


async def go_on(order: Order) -> None:
    """Start the driver on what is left, go on in the way of the order, and have everything deleted."""
    operation, kind = order.what()
    area = Path(order.area)
    retention = operation.retention or (operation.hesitation if order.way == "abandoned" else 0)
    async with World.started(area, kind, retention=retention) as world:
        await world.is_sound()
        await {"retried": operation.retried, "abandoned": operation.abandoned}[order.way](world)
        if not retention:
            await world.clear(*operation.kept)
            return
    async with World.started(area, kind) as world:
        await world.clear(*operation.kept)


def _forked(work: Callable[[Order], Awaitable[None]], order: Order) -> int:
    """Do it in a child; returns how that ended, as ``waitpid`` says it."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        asyncio.run(work(order))  # type: ignore[arg-type]
        os._exit(0)
    except BaseException:  # noqa: BLE001 - a child tells of whatever ends it
        Path(order.area).mkdir(exist_ok=True)
        (Path(order.area) / _FAILED).write_text(traceback.format_exc(limit=-8), encoding="utf-8")
    finally:
        os._exit(1)


def answer(order: Order) -> Answer:
    """Carry out one order."""
    status = _forked(die, order)
    area = Path(order.area)
    died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    at = _said(area / _DIED) if died else "after all"
    if not died and status:
        return Answer(died=False, at="before it died", wrong=_said(area / _FAILED) or f"status {status}")
    status = _forked(go_on, order)
    return Answer(died=died, at=at, wrong=(_said(area / _FAILED) or f"status {status}") if status else "")


def _said(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def main() -> None:
    """Carry out orders until there are no more."""
    # What is loaded lives as long as the process, and a child that looks at it has to copy it.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        sys.stdout.write(f"{json.dumps(asdict(answer(Order(**json.loads(line)))))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
