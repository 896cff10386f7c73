"""Loop devices that were left attached to files of a cluster or a test run.

The kernel names a backing file as the mount namespace of whoever attached it saw it, which says nothing outside of a
node. The device and inode number identify it everywhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOP_CLR_FD = 0x4C01
LOOP_GET_STATUS64 = 0x4C05
STATUS_BYTES = 232
"""The size of the kernel's struct loop_info64; it begins with the backing file's device and inode, 64 bits each."""


def attached() -> Iterator[tuple[Path, tuple[int, int]]]:
    """Yield each attached loop device with the device and inode number of its backing file."""
    for entry in Path("/sys/block").glob("loop*/loop"):
        device = Path("/dev") / entry.parent.name
        with contextlib.suppress(OSError):
            descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
            try:
                status = fcntl.ioctl(descriptor, LOOP_GET_STATUS64, bytes(STATUS_BYTES))
            finally:
                os.close(descriptor)
            yield device, struct.unpack_from("QQ", status)


def detach_below(directory: Path) -> list[Path]:
    """Detach every loop device whose backing file lies below a folder; return the devices. Idempotent."""
    left = list(attached())
    if not left:
        return []
    files = set(_files(directory))
    detached = []
    for device, backing in left:
        if backing in files:
            with contextlib.suppress(OSError):
                descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.ioctl(descriptor, LOOP_CLR_FD)
                finally:
                    os.close(descriptor)
            detached.append(device)
    return detached


def _files(directory: Path) -> Iterator[tuple[int, int]]:
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                status = (Path(folder) / name).lstat()
                if stat.S_ISREG(status.st_mode):
                    yield status.st_dev, status.st_ino
