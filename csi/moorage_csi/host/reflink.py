"""Copies of files that share their data with the original until one of the two is written to.

xfs (made with reflink=1) and btrfs can; a copy costs milliseconds and no space. FICLONE is used because it fails where
it cannot share: ``copy_file_range`` would copy instead, and say nothing.
"""

import errno
import fcntl
import os
from typing import Final

from moorage_csi.host.paths import Directory

_FICLONE: Final = 0x40049409
UNABLE: Final = (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EXDEV, errno.EINVAL)
"""What the kernel says where two files cannot share, on one filesystem (the first three) or because they differ: they lie
on two, or only one of them is of btrfs' kind without checksums."""

_PROBE: Final = b"reflink\n" * 512


def clone_file(source_fd: int, target_fd: int) -> None:
    """Make the target hold what the source holds at this moment, sharing all of it; what the target held is lost.

    The source may be in use: its dirty pages are written first, and no write is seen in half. The target is on the disk
    after ``os.fsync``. An errno of ``UNABLE`` says that these two cannot share; the target is empty then.
    """
    os.ftruncate(target_fd, 0)
    fcntl.ioctl(target_fd, _FICLONE, source_fd)


def reflink_supported(folder: Directory) -> str | None:
    """Why files in this folder cannot share their data; None when they can.

    Found out by doing it, with two small files whose names are gone as soon as they are open. Raises OSError where no
    file can be made, ENOSPC for instance.
    """
    source = _nameless(folder)
    try:
        target = _nameless(folder)
        try:
            return _tried(source, target)
        finally:
            os.close(target)
    finally:
        os.close(source)


def _tried(source: int, target: int) -> str | None:
    os.write(source, _PROBE)
    try:
        clone_file(source, target)
    except OSError as error:
        if error.errno in UNABLE:
            return f"the filesystem cannot share data between files ({error.strerror}): xfs made with reflink=1 and btrfs can"
        raise
    if os.pread(target, len(_PROBE) + 1, 0) != _PROBE:
        return "the filesystem says that it shares data between files, but the copy differs"
    return None


def _nameless(folder: Directory) -> int:
    name = f".reflink-{os.urandom(6).hex()}"
    fd = folder.open_file(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        folder.unlink(name)
    except BaseException:
        os.close(fd)
        raise
    return fd
