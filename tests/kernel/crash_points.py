"""Where a driver that changes the disk can die, and running a program that dies at each such point."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moorage_csi.host import commands, syscalls

if TYPE_CHECKING:
    from collections.abc import Callable


def die_at(fatal: int) -> None:
    """End this process before or after its ``fatal``-th change of the disk, or while mkfs runs."""
    seen = itertools.count(1)

    def point() -> None:
        if next(seen) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(module: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(module, name)

        def watched(*arguments: Any, **more: Any) -> Any:
            point()
            result = real(*arguments, **more)
            point()
            return result

        setattr(module, name, watched)

    for name in ("fsync", "mkdir", "rename", "ftruncate", "rmdir", "unlink", "fchmod"):
        watch(os, name)
    watch(syscalls, "rename_no_replace")
    real_run = commands.run

    async def run(*arguments: Any, **more: Any) -> commands.Result:
        task = asyncio.ensure_future(real_run(*arguments, **more))
        await asyncio.sleep(0.002)
        point()
        result = await task
        point()
        return result

    setattr(commands, "run", run)  # noqa: B010 - mypy would refuse the plain assignment


def areas_of(*program: str) -> list[Path]:
    """Run a program that forks a child for each crash point; the areas that they leave, the last one came through."""
    done = subprocess.run(
        [sys.executable, *program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    areas = [Path(path) for path in json.loads(done.stdout)]
    assert 10 < len(areas) < 400, "the crash points were not counted"
    return areas
