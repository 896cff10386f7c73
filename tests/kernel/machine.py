"""What the tests ask of the machine below the code under test."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moorage_csi.host.mountinfo import parse_mountinfo


def tool(
    name: str, *arguments: str | Path, check: bool = True, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program of the system; the test is skipped where it is not installed."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run([path, *arguments], check=False, capture_output=True, text=True, input=text)
    assert not check or done.returncode == 0, f"{name}: {done.stderr or done.stdout}"
    return done


@contextmanager
def mounted(target: Path, *arguments: str | Path) -> Iterator[Path]:
    """Mount by mount(8) with these arguments, and unmount at the end."""
    tool("mount", *arguments, target)
    try:
        yield target
    finally:
        tool("umount", target)


@contextmanager
def opened(path: Path, flags: int = os.O_PATH | os.O_DIRECTORY) -> Iterator[int]:
    """A descriptor for the length of a block."""
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


_CAP_SYS_RESOURCE = 24
_CAPABILITY_VERSION = 0x20080522


@contextmanager
def held_by_quotas() -> Iterator[None]:
    """Take CAP_SYS_RESOURCE from this thread for a block: who has it, as no pod does, may pass the quotas of ext4."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
    before = sets[0]
    sets[0] = before & ~(1 << _CAP_SYS_RESOURCE)
    assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        sets[0] = before
        assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())


def sparse(path: Path, size: int) -> Path:
    """A file of this size that holds nothing."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def names(path: Path) -> list[str]:
    """The entries of a directory, sorted."""
    return sorted(entry.name for entry in path.iterdir())


def place_in_filesystem(path: Path) -> str:
    """The path as mountinfo tells the root of a bind mount of it: from the root of the filesystem that it lies on."""
    seen = parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())
    above = [mount for mount in seen if path.is_relative_to(mount.target)]
    # Of mounts that hide each other the last one is seen.
    nearest = max(enumerate(above), key=lambda numbered: (len(numbered[1].target), numbered[0]))[1]
    return str(Path(nearest.root) / path.relative_to(nearest.target))


def descriptors() -> list[str]:
    """The numbers of this process's open descriptors, the one that looks included."""
    return names(Path("/proc/self/fd"))


def children() -> list[int]:
    """Every child of this process, zombies too."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += [int(word) for word in (task / "children").read_text(encoding="ascii").split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
