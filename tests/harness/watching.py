"""Clean up after whoever ends without doing so: a small process in a session of its own that outlives its owner."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.harness import loops, processes
from tests.harness.places import ROOT, run_dir

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def watch(*arguments: str) -> None:
    """Start a watcher of this process: `python -m tests.harness watch` with these arguments.

    It is nobody's child, so that it neither ends with its owner nor has to be waited for.
    """
    log = run_dir() / "watch.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    argv = ["setsid", "--fork", sys.executable, "-m", "tests.harness", "watch", f"--owner={os.getpid()}", *arguments]
    with log.open("ab") as output:
        subprocess.run(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True)


def wait_for_end(pid: int) -> None:
    """Return when a process has ended; the descriptor names that very process, whatever becomes of its pid."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        select.select([descriptor], [], [])
        os.close(descriptor)


@contextlib.contextmanager
def folder(directory: Path) -> Iterator[None]:
    """Own a folder for a while: it and the loop devices on its files are gone afterwards, also after a SIGKILL."""
    watch(f"--folder={directory}")
    try:
        yield
    finally:
        remove(directory)


def remove(directory: Path) -> None:
    """Detach the loop devices whose files lie below a folder, then remove it. Idempotent."""
    loops.detach_below(directory)
    for place, _, _ in os.walk(directory):
        with contextlib.suppress(OSError):
            os.chmod(place, 0o700)  # noqa: PTH101 - os.walk yields text
    processes.run(["rm", "-rf", "--one-file-system", "--", directory])
