"""The driver is killed while the tool that grows ext4 is at work, which journals nothing: the data stays, and it goes on."""

import asyncio
import contextlib
import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from moorage_csi.backends.backend import Publication, Shape
from moorage_csi.backends.fitting import GROWING
from moorage_csi.backends.image import Image
from moorage_csi.errors import UnavailableError
from moorage_csi.host import mounts
from moorage_csi.host.paths import Directory
from tests.kernel.crash_bases import SOURCE
from tests.kernel.crash_victim import build
from tests.kernel.crash_world import KINDS, World, read, written
from tests.kernel.machine import mounted, tool

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

SMALL, LARGE = 64 << 20, 256 << 30
TRIES = 60
CONTENT = os.urandom(1 << 20)

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_TRACE_ME, _TO_NEXT_CALL = 0, 24

_VICTIM = """
import asyncio, json, os, signal, sys
from moorage_csi.backends.image import Image
from moorage_csi.host import commands
from moorage_csi.host.paths import Directory
from tests.kernel.test_growing_crashes import shape

path, size, tool, stopped = json.loads(sys.argv[1])
real = commands._Child._started

def started(self):
    process = real(self)
    if self._argv[0] == tool:
        if stopped:
            os.kill(process.pid, signal.SIGSTOP)
            print(process.pid, flush=True)
        else:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    return process

commands._Child._started = started
with Directory.open(path) as folder:
    Image().grow(folder, shape(size))
    asyncio.run(Image().fit(folder, shape(size)))
"""


def shape(size: int) -> Shape:
    return Shape(
        uuid="00000000-0000-0000-0000-00000000002a",
        size=size,
        block=False,
        filesystem="ext4",
        permissions=0o770,
        quota="enforced",
    )


def killed(folder: Path, size: int, tool: str, *, stopped: bool = False) -> str:
    """Grow the image in a process that dies while this tool runs; returns what it said."""
    done = subprocess.run(
        [sys.executable, "-c", _VICTIM, json.dumps([str(folder), size, tool, stopped])],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    return done.stdout


def publication(area: Path) -> Publication:
    return Publication(
        target=f"{area}/target", kubelet_dir=str(area), readonly=False, exclusive=False, options=("noatime",)
    )


def stopped_after(calls: int, *argv: str | Path) -> int:
    """Run a program and kill it at so many entries to and exits from the kernel; returns how many it came to."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
            os.dup2(1, 2)
            _LIBC.ptrace(_TRACE_ME, 0, None, None)
            os.execvp(argv[0], list(map(str, argv)))  # noqa: S606 - it stops before each call
        finally:
            os._exit(1)
    for number in itertools.count():
        _, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            assert status == 0 or os.WIFSIGNALED(status)
            return number
        if number >= calls:
            os.kill(child, signal.SIGKILL)
        else:
            _LIBC.ptrace(_TO_NEXT_CALL, child, None, None)
    raise AssertionError


def test_a_filesystem_that_was_half_grown_is_whole_again_and_as_large_as_asked_for(area: Path) -> None:
    memory = area / "memory"
    memory.mkdir()
    with mounted(memory, "-t", "tmpfs", "tmpfs"):
        base, torn, whole = memory / "base", memory / "torn", memory / "whole"
        base.mkdir()
        with Directory.open(base) as folder:
            Image().make(folder, shape(SMALL))
            asyncio.run(Image().format(folder, shape(SMALL)))
            Image().publish(folder, shape(SMALL), publication(area))
            (area / "target" / "kept").write_bytes(CONTENT)
            Image().unpublish(folder, f"{area}/target", str(area))
        # From here on it is as the driver has it when the tool begins.
        killed(base, LARGE, "resize2fs")
        tool("e2fsck", "-fy", base / "image", check=False)
        assert (base / GROWING).exists()
        tool("cp", "-a", "--sparse=auto", base, whole)
        calls = stopped_after(sys.maxsize, "resize2fs", whole / "image")
        outcomes = Counter[int]()
        for number in range(0, calls, max(1, calls // TRIES)):
            tool("cp", "-a", "--sparse=auto", base, torn)
            stopped_after(number, "resize2fs", torn / "image")
            tool("cp", "--sparse=auto", torn / "image", memory / "looked-at")
            outcomes[tool("e2fsck", "-fp", memory / "looked-at", check=False).returncode] += 1
            _goes_on(torn, area)
            tool("rm", "-r", torn)
        assert set(outcomes) >= {0, 4}, "no try was in the middle of what a check alone does not repair"


def _goes_on(torn: Path, area: Path) -> None:
    """It is neither mounted nor copied as it is, and growing it again makes it whole."""
    copy = area / "copy"
    copy.mkdir(exist_ok=True)
    with Directory.open(torn) as folder:
        with pytest.raises(UnavailableError, match="half grown"):
            Image().publish(folder, shape(LARGE), publication(area))
        with Directory.open(copy) as other, pytest.raises(UnavailableError, match="half grown"):
            Image().copy(folder, other, shape(LARGE), pace=lambda: None)
        assert asyncio.run(Image().fit(folder, shape(LARGE)))
        assert not (torn / GROWING).exists()
        tool("e2fsck", "-fn", torn / "image")
        Image().publish(folder, shape(LARGE), publication(area))
        try:
            assert (area / "target" / "kept").read_bytes() == CONTENT
            seen = os.statvfs(area / "target")
            assert seen.f_blocks * seen.f_frsize > 0.9 * LARGE
        finally:
            mounts.unmount(f"{area}/target")


@pytest.mark.parametrize("tool_name", ["e2fsck", "resize2fs"])
async def test_a_tool_that_outlives_the_driver_is_left_alone_until_it_has_ended(area: Path, tool_name: str) -> None:
    kind = next(kind for kind in KINDS if kind.name == "image ext4")
    await build("volume", kind, area)
    size = 2 * kind.size
    tool_pid = int(killed(area / "pool" / "volumes" / SOURCE, size, tool_name, stopped=True))
    try:
        async with World.started(area, kind) as world:
            expanding = asyncio.create_task(world.expand(SOURCE, size))
            publishing = asyncio.create_task(world.publish(SOURCE))
            copying = asyncio.create_task(world.create("copy", of=SOURCE))
            await asyncio.sleep(1)
            for call in (expanding, publishing, copying):
                assert not call.done(), "two work on one filesystem"
            os.kill(tool_pid, signal.SIGCONT)
            await expanding
            target = await publishing
            assert read(target) == written(kind)
            copied = await copying
            assert await world.content(copied.volume_id) == written(kind)
            await world.clear()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(tool_pid, signal.SIGKILL)
