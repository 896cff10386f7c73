"""Project quotas: a size for a directory that the kernel holds.

A project is a number on inodes; a directory with it, and with the flag that makes new entries inherit it, is limited as
a whole. Needs a kernel with quota support (``quotactl_fd``, 5.14), and ext4 or xfs mounted with ``prjquota``. Nothing
is assumed: ``project_quota_supported`` asks the kernel, and every setting is read back.
"""

import ctypes
import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from typing import Final

from moorage_csi.host import syscalls

_FS_IOC_FSGETXATTR: Final = 0x801C581F
_FS_IOC_FSSETXATTR: Final = 0x401C5820
_XFLAG_PROJINHERIT: Final = 0x200
_XATTR: Final = struct.Struct("=5I8s")
"""struct fsxattr: xflags, extsize, nextents, projid, cowextsize, padding."""

_PROJECT: Final = 2
_Q_GETQUOTA: Final = 0x800007 << 8 | _PROJECT
_Q_SETQUOTA: Final = 0x800008 << 8 | _PROJECT
_Q_XGETQSTATV: Final = 0x5808 << 8 | _PROJECT

_DQBLK: Final = struct.Struct("=8QI4x")
"""struct if_dqblk: hard and soft limit (KiB), space (bytes), three of inodes, two times, which are valid."""
_LIMITS_VALID: Final = 1
_LIMIT_UNIT: Final = 1024

_STATE_SIZE: Final = 256
_STATE_VERSION: Final = 1
_STATE_FLAGS: Final = struct.Struct("=H")
_STATE_FLAGS_OFFSET: Final = 2
_ACCOUNTED: Final = 1 << 4
_ENFORCED: Final = 1 << 5

_NO_PROJECTS: Final = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True, slots=True)
class Limit:
    """Bytes: what a project may use (0: no limit) and what it uses."""

    limit: int
    used: int


def project_quota_supported(path: str) -> str | None:
    """Why the kernel cannot hold a size for directories on the filesystem at ``path``; None when it can.

    Changes nothing. Raises OSError when ``path`` cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _missing(fd)
    finally:
        os.close(fd)


def _missing(fd: int) -> str | None:
    try:
        _attributes(fd)
    except OSError as error:
        if error.errno in _NO_PROJECTS:
            return "the filesystem keeps no project ids: ext4 (with the project feature) and xfs do"
        raise
    buffer = ctypes.create_string_buffer(_STATE_SIZE)
    buffer[0] = bytes([_STATE_VERSION])
    try:
        syscalls.quotactl_fd(fd, _Q_XGETQSTATV, 0, buffer)
    except OSError as error:
        return _refused(error)
    (flags,) = _STATE_FLAGS.unpack_from(buffer, _STATE_FLAGS_OFFSET)
    if not flags & _ACCOUNTED:
        return "the filesystem does not count project usage: mount it with prjquota"
    if not flags & _ENFORCED:
        return "the filesystem counts project usage but enforces no limit: mount it with prjquota, not pqnoenforce"
    return None


def _refused(error: OSError) -> str:
    if error.errno == errno.ENOSYS:
        return "this kernel has no quotas for this filesystem, or is older than 5.14"
    if error.errno == errno.EPERM:
        return "the process may not ask for quotas: it needs CAP_SYS_ADMIN"
    return f"the filesystem has no quotas switched on ({error.strerror}): mount it with prjquota"


def assign_project(fd: int, project_id: int) -> None:
    """Give a directory its project, and make everything created below inherit it; repeating it is free.

    Meant for an empty directory: what is in it already keeps the project it has. OSError EINVAL if the filesystem does not
    keep what it was told.
    """
    xflags, extent_size, extents, _, cow_extent_size, padding = _attributes(fd)
    wanted = (xflags | _XFLAG_PROJINHERIT, extent_size, extents, project_id, cow_extent_size, padding)
    fcntl.ioctl(fd, _FS_IOC_FSSETXATTR, _XATTR.pack(*wanted))
    now, _, _, project, _, _ = _attributes(fd)
    if project != project_id or not now & _XFLAG_PROJINHERIT:
        raise OSError(errno.EINVAL, f"the filesystem did not keep project id {project_id}")


def project_of(fd: int) -> int:
    """The project id of an open file or directory; 0 for none, and where the filesystem keeps no project ids."""
    try:
        _, _, _, project, _, _ = _attributes(fd)
    except OSError as error:
        if error.errno in _NO_PROJECTS:
            return 0
        raise
    return project


def set_limit(fd: int, project_id: int, limit: int) -> None:
    """Let the project use at most ``limit`` bytes (rounded up to 1 KiB; 0: no limit), read back; repeating it is free."""
    blocks = -(-limit // _LIMIT_UNIT)
    buffer = ctypes.create_string_buffer(_DQBLK.pack(blocks, blocks, 0, 0, 0, 0, 0, 0, _LIMITS_VALID), _DQBLK.size)
    syscalls.quotactl_fd(fd, _Q_SETQUOTA, project_id, buffer)
    if read_limit(fd, project_id).limit != blocks * _LIMIT_UNIT:
        raise OSError(errno.EINVAL, f"the filesystem did not keep the limit of {limit} bytes for project {project_id}")


def read_limit(fd: int, project_id: int) -> Limit:
    """What the kernel holds for the project. ESRCH where project quotas are not switched on."""
    buffer = ctypes.create_string_buffer(_DQBLK.size)
    try:
        syscalls.quotactl_fd(fd, _Q_GETQUOTA, project_id, buffer)
    except FileNotFoundError:
        # So says xfs of a project that has never had anything; ext4 answers with zeroes.
        return Limit(limit=0, used=0)
    hard, _, space, *_ = _DQBLK.unpack(buffer)
    return Limit(limit=hard * _LIMIT_UNIT, used=space)


def _attributes(fd: int) -> tuple[int, int, int, int, int, bytes]:
    buffer = bytearray(_XATTR.size)
    fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, buffer)
    xflags, extent_size, extents, project, cow_extent_size, padding = _XATTR.unpack(buffer)
    return xflags, extent_size, extents, project, cow_extent_size, padding
