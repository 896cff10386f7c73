"""A program that makes crashed drivers: it has loaded the driver, and forks a child for every order that it reads.

An order is a line of JSON: what is done (see ``crash_operations``), to which kind of volume, in which directory, and at which point
the child dies (see ``crash_points``). The answer is one too: whether the child died there, and what the point is called.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Final

from tests.kernel.crash_operations import BASES, OPERATIONS, RETENTIONS
from tests.kernel.crash_points import die_at
from tests.kernel.crash_world import KINDS, Kind, World

_DIED: Final = "died"


async def build(base: str, kind: Kind, area: Path) -> None:
    """Make what is in the pool before an operation."""
    async with World.started(area, kind, whole=False, retention=RETENTIONS.get(base, 0)) as world:
        await BASES[base](world)


async def die(order: dict[str, Any]) -> None:
    """Do what the order says, until the point at which this process dies."""
    kind = next(kind for kind in KINDS if kind.name == order["kind"])
    operation = next(each for each in OPERATIONS if each.name == order["operation"])
    area = Path(order["area"])
    if order["base"]:
        done = ["cp", "-a", "--reflink=auto", "--sparse=auto", order["base"], str(area)]
        subprocess.run(done, check=True)
    else:
        await build(operation.base, kind, area)
    async with World.started(area, kind, whole=False, retention=operation.retention) as world:
        if operation.prepare is not None:
            await operation.prepare(world)
        told = os.open(area / _DIED, os.O_WRONLY | os.O_CREAT, 0o600)
        write = os.write
        die_at(order["fatal"], told=lambda name: write(told, name.encode()))
        await operation.act(world)
        # Whoever comes through does not close the driver: an answer that was given is a point too.
        os._exit(0)


def main() -> None:
    """Serve orders until there are no more."""
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(die(order))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        name = Path(order["area"]) / _DIED
        answer = {
            "died": died,
            "failed": not died and status != 0,
            "at": name.read_text(encoding="ascii") if died and name.exists() else "",
        }
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
