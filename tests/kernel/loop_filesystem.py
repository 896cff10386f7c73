"""A filesystem of its own, on a loop file, for the length of a block."""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moorage_csi.host import loops, quotas
from tests.kernel.machine import sparse, tool

MIB = 1 << 20

_MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-m", "reflink=1"),
    "xfs-plain": ("mkfs.xfs", "-q", "-f", "-m", "reflink=0"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
    "ext4-quota": ("mkfs.ext4", "-q", "-F", "-O", "quota,project"),
    "xfs-quota": ("mkfs.xfs", "-q", "-f", "-m", "reflink=1"),
}
"""Each takes 320 MiB."""

_OPTIONS = {"ext4-quota": "loop,prjquota", "xfs-quota": "loop,prjquota"}


@contextmanager
def filesystem(area: Path, kind: str, *, size: int = 320 * MIB, options: str = "") -> Iterator[Path]:
    """The mount point; the test is skipped where the tool or the kernel does not have the filesystem."""
    options = options or _OPTIONS.get(kind, "loop")
    image = sparse(area / f"{kind}.img", size)
    tool(*_MAKE[kind], image)
    target = area / kind
    target.mkdir()
    done = tool("mount", "-o", options, image, target, check=False)
    if done.returncode:
        pytest.skip(f"the kernel does not mount {kind.removesuffix('-quota')} with the options {options}")
    try:
        if kind in _OPTIONS and (reason := quotas.project_quota_supported(str(target))) is not None:
            pytest.skip(f"no project quota of {kind.removesuffix('-quota')}: {reason}")
        yield target
    finally:
        _unmount(target)
        _let_go(image)
        image.unlink()


def _unmount(target: Path) -> None:
    """Unmount, and wait for a driver that was stopped and whose thread still removes what was deleted."""
    deadline = time.monotonic() + 20
    while tool("umount", target, check=False).returncode and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not target.is_mount()


def _let_go(image: Path) -> None:
    """Wait until the loop device is free: another mount namespace that began meanwhile may have had a copy of the mount."""
    seen = image.stat()
    deadline = time.monotonic() + 10
    while loops.find(seen.st_dev, seen.st_ino) and time.monotonic() < deadline:
        time.sleep(0.02)


def fill(path: Path, size: int = 1 << 40, *, step: int = 64 << 10, end: int | None = None) -> int:
    """Append to a file until it has ``size`` bytes or there is no room; returns what it has, all of it on the disk.

    With ``end`` the room must end, with this error number.
    """
    ended = None
    try:
        with path.open("ab", buffering=0) as file:
            while file.tell() < size:
                file.write(b"x" * min(step, size - file.tell()))
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        ended = error.errno
    assert ended == end
    return path.stat().st_size if path.exists() else 0


def disk_use(path: Path) -> int:
    """Bytes of the filesystem at ``path`` that are taken, after everything was written."""
    os.sync()
    seen = os.statvfs(path)
    return (seen.f_blocks - seen.f_bfree) * seen.f_frsize
