"""What an inode is apart from its content: owner, mode, attributes, times, flags, and which one it is.

Everything is asked and set through a descriptor, O_PATH or not, so that symlinks, FIFOs and devices are treated like
files and are neither followed nor opened.
"""

import errno
import fcntl
import os
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

_GETFLAGS: Final = 0x80086601
_SETFLAGS: Final = 0x40086602
_GETVERSION: Final = 0x80087601
_WORD: Final = struct.Struct("=I4x")
"""These calls are declared with a long, and read and write the first half of it."""
_NO_COW: Final = 0x00800000
_NO_FLAGS: Final = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL)
_ACLS: Final = ("system.posix_acl_access", "system.posix_acl_default")


def path(fd: int) -> str:
    """A name for what a descriptor is open on, for calls that want a path; it is what it is, a symlink itself too."""
    return f"/proc/self/fd/{fd}"


def identity(fd: int, seen: os.stat_result) -> str:
    """A name for an inode that no later file gets while the copy goes on, as far as the filesystem can tell."""
    generation = 0
    if stat.S_ISREG(seen.st_mode):
        buffer = bytearray(_WORD.size)
        with suppress(OSError):
            fcntl.ioctl(fd, _GETVERSION, buffer)
            (generation,) = _WORD.unpack(buffer)
    return f"{seen.st_dev:x}-{seen.st_ino:x}-{generation:x}"


def keep_cow(source_fd: int, target_fd: int) -> None:
    """Give an empty file or directory the source's "no copy on write": such a file shares only with its like."""
    buffer = bytearray(_WORD.size)
    try:
        fcntl.ioctl(source_fd, _GETFLAGS, buffer)
        (flags,) = _WORD.unpack(buffer)
        if flags & _NO_COW:
            fcntl.ioctl(target_fd, _GETFLAGS, buffer)
            (own,) = _WORD.unpack(buffer)
            fcntl.ioctl(target_fd, _SETFLAGS, _WORD.pack(own | _NO_COW))
    except OSError as error:
        if error.errno not in _NO_FLAGS:
            raise


def dress(source_fd: int, target_fd: int, seen: os.stat_result) -> None:
    """Give the copy the owner, mode, attributes and times of the original.

    In this order: a change of owner takes capabilities and the set-id bits away, and anything at all changes the times.
    """
    copy = path(target_fd)
    os.chown(copy, seen.st_uid, seen.st_gid)
    if not stat.S_ISLNK(seen.st_mode):
        Path(copy).chmod(stat.S_IMODE(seen.st_mode))
    for name in _attributes(source_fd):
        try:
            value = os.getxattr(path(source_fd), name)
        except OSError as error:
            if error.errno == errno.ENODATA:
                continue
            raise
        os.setxattr(copy, name, value)
    os.utime(copy, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def strip_acls(fd: int) -> None:
    """Take the ACLs off a directory, so that what is made in it inherits none."""
    for name in set(_ACLS).intersection(_attributes(fd)):
        os.removexattr(path(fd), name)


def _attributes(fd: int) -> list[str]:
    try:
        return os.listxattr(path(fd))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise
