"""What every test of the kernel layer gets: root or a skip, a directory of its own, and proof that nothing was left."""

import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from moorage_csi.host import loops, mounts
from moorage_csi.host.mountinfo import parse_mountinfo
from tests.kernel.machine import children, tool
from tests.kernel.rpc_driver import Driver, mounted_below, running

_PACKAGES = Path(__file__).parents[2] / "csi"


@pytest.fixture(autouse=True)
def area(tmp_path: Path) -> Iterator[Path]:
    """An empty directory; a mount, loop device or child process that the test leaves there is removed, and fails it."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts and loop devices are made")
    yield tmp_path
    left = _mounts_below(tmp_path)
    devices = _loops_below(tmp_path)
    for target in reversed(left):
        tool("umount", "-l", target)
    for number in devices:
        loops.detach(number)
    assert not left, f"the test left mounts: {left}"
    assert not devices, f"the test left loop devices: {devices}"
    assert not children(), f"the test left child processes: {children()}"


def _mounts_below(path: Path) -> list[str]:
    seen = parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())
    return [mount.target for mount in seen if mount.target.startswith(f"{path}/")]


def _loops_below(path: Path) -> list[int]:
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            name = backing.read_text(encoding="utf-8")
        except OSError:
            continue
        if name.startswith(f"{path}/"):
            found.append(int(backing.parts[3].removeprefix("loop")))
    return found


@pytest.fixture
def in_namespace() -> Callable[..., str]:
    """Run a script in a mount namespace of its own and return what it printed."""

    def run(script: str, *arguments: object) -> str:
        done = subprocess.run(
            [
                *("/usr/bin/env", "unshare", "--mount", "--propagation", "private"),
                *(sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)),
            ],
            env={**os.environ, "PYTHONPATH": str(_PACKAGES)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


@pytest.fixture
async def driver(area: Path) -> AsyncIterator[Driver]:
    """The driver with one pool in the directory; what a test has published is unpublished."""
    async with running(area) as one:
        try:
            yield one
        finally:
            for target in reversed(mounted_below(area)):
                mounts.unmount(target)
