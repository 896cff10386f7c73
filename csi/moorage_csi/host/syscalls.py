"""System calls that Python has no name for, as plain functions that raise OSError.

Everything here goes by file descriptor. The calls of the mount API, ``openat2`` and ``quotactl_fd``
have the same number on every architecture (numbers are shared since 424), so x86_64 and aarch64
need no table; ``statx``, ``renameat2``, ``umount2`` and ``fallocate`` are taken from the C library.

The oldest kernel that has all but ``quotactl_fd`` (5.14) is 5.12.

The C library gives the thread its error number; ctypes keeps a copy for each thread, so the
functions may be called from a thread pool. The interpreter lock is released while a call runs.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)

AT_EMPTY_PATH: Final = 0x1000
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_RECURSIVE: Final = 0x8000
_AT_NO_AUTOMOUNT: Final = 0x800
_AT_STATX_DONT_SYNC: Final = 0x4000

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08

_OPEN_TREE_CLONE: Final = 0x1
_OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
_FSOPEN_CLOEXEC: Final = 0x1
_FSMOUNT_CLOEXEC: Final = 0x1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x04
_MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40

FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_CMD_CREATE: Final = 6

_CLONE_NEWNS: Final = 0x20000
_UMOUNT_NOFOLLOW: Final = 0x8
_RENAME_NOREPLACE: Final = 0x1

FALLOC_KEEP_SIZE: Final = 0x01
FALLOC_PUNCH_HOLE: Final = 0x02
FALLOC_ZERO_RANGE: Final = 0x10

_STATX_BASIC: Final = 0x7FF
_STATX_MNT_ID: Final = 0x1000
_STATX_ATTR_MOUNT_ROOT: Final = 0x2000
_STATX_SIZE: Final = 256

_STATFS_SIZE: Final = 256
_HANDLE: Final = struct.Struct("=Ii")
"""struct file_handle: the length of what follows, and its kind."""

_RETRIES: Final = 16
"""Bound on repeating a call that a signal or a rename elsewhere on the host interrupted."""


def _numbered(number: int, *argtypes: type[Any]) -> Callable[..., int]:
    """A prototype of ``syscall(2)`` for one number; each look-up by index makes a function of its own."""
    function = _LIBC["syscall"]
    function.restype = ctypes.c_long
    function.argtypes = (ctypes.c_long, *argtypes)

    def call(*args: object) -> int:
        return int(function(number, *args))

    return call


def _named(name: str, *argtypes: type[Any]) -> Callable[..., int]:
    function = _LIBC[name]
    function.restype = ctypes.c_int
    function.argtypes = argtypes
    return function


_INT: Final = ctypes.c_int
_UINT: Final = ctypes.c_uint
_TEXT: Final = ctypes.c_char_p
_BUFFER: Final = ctypes.c_void_p
_SIZE: Final = ctypes.c_size_t

_open_tree: Final = _numbered(428, _INT, _TEXT, _UINT)
_move_mount: Final = _numbered(429, _INT, _TEXT, _INT, _TEXT, _UINT)
_fsopen: Final = _numbered(430, _TEXT, _UINT)
_fsconfig: Final = _numbered(431, _INT, _UINT, _TEXT, _TEXT, _INT)
_fsmount: Final = _numbered(432, _INT, _UINT, _UINT)
_openat2: Final = _numbered(437, _INT, _TEXT, _BUFFER, _SIZE)
_mount_setattr: Final = _numbered(442, _INT, _TEXT, _UINT, _BUFFER, _SIZE)
_quotactl_fd: Final = _numbered(443, _UINT, _UINT, _UINT, _BUFFER)
_statx: Final = _named("statx", _INT, _TEXT, _INT, _UINT, _BUFFER)
_renameat2: Final = _named("renameat2", _INT, _TEXT, _INT, _TEXT, _UINT)
_umount2: Final = _named("umount2", _TEXT, _INT)
_fallocate: Final = _named("fallocate64", _INT, _INT, ctypes.c_int64, ctypes.c_int64)
_ioctl: Final = _named("ioctl", _INT, ctypes.c_ulong, _BUFFER)
_syncfs: Final = _named("syncfs", _INT)
_unshare: Final = _named("unshare", _INT)
_fstatfs: Final = _named("fstatfs64", _INT, _BUFFER)
_open_by_handle_at: Final = _named("open_by_handle_at", _INT, _BUFFER, _INT)


def _encoded(text: str) -> bytes:
    """Bytes for the kernel; a NUL would silently cut the text short, so it is refused here."""
    raw = os.fsencode(text)
    if b"\0" in raw:
        msg = f"{text!r} contains a NUL character, which no path, option or name may hold"
        raise ValueError(msg)
    return raw


def _checked(result: int, path: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def openat2(dir_fd: int, path: str, *, flags: int, resolve: int, mode: int = 0) -> int:
    """Open ``path`` from ``dir_fd`` under the kernel's own rules of resolution; returns a new descriptor.

    EAGAIN means that the kernel saw a rename while it walked, EINTR a signal: both are tried again
    a bounded number of times.
    """
    raw = _encoded(path)
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_RETRIES):
        result = _openat2(dir_fd, raw, how, len(how))
        if result >= 0 or ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            break
    return _checked(result, path)


@dataclass(frozen=True, slots=True)
class Statx:
    """What one ``statx`` told; ``mount_id`` is the id that ``/proc/self/mountinfo`` uses."""

    mode: int
    inode: int
    major: int
    minor: int
    mount_id: int
    is_mount_root: bool


def statx(dir_fd: int, path: str) -> Statx:
    """Look at ``path`` from ``dir_fd`` (an empty path: at the descriptor itself), never through a last symlink.

    Asks the kernel not to wake a network server or start an automount, so a dead mount can be looked at.
    """
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    flags = AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC | (0 if path else AT_EMPTY_PATH)
    _checked(_statx(dir_fd, _encoded(path), flags, _STATX_BASIC | _STATX_MNT_ID, buffer), path)
    (attributes,) = struct.unpack_from("=Q", buffer, 8)
    (mode,) = struct.unpack_from("=H", buffer, 28)
    (inode,) = struct.unpack_from("=Q", buffer, 32)
    major, minor, mount_id = struct.unpack_from("=IIQ", buffer, 136)
    return Statx(
        mode=mode,
        inode=inode,
        major=major,
        minor=minor,
        mount_id=mount_id,
        is_mount_root=bool(attributes & _STATX_ATTR_MOUNT_ROOT),
    )


def rename_no_replace(old_fd: int, old: str, new_fd: int, new: str) -> None:
    """Rename within one filesystem; EEXIST where the new name is taken, EINVAL where the filesystem cannot tell."""
    _checked(_renameat2(old_fd, _encoded(old), new_fd, _encoded(new), _RENAME_NOREPLACE), new)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Change what is allocated to a range of a file; EOPNOTSUPP where its filesystem cannot."""
    _checked(_fallocate(fd, mode, offset, length))


def umount(path: str) -> None:
    """Take the topmost mount off ``path``; never lazily, never through a last symlink."""
    _checked(_umount2(_encoded(path), _UMOUNT_NOFOLLOW), path)


def open_tree(fd: int, *, recursive: bool) -> int:
    """Clone the mount under ``fd`` into a detached one; closing the descriptor dissolves it."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    return _checked(_open_tree(fd, b"", flags))


def mount_setattr(fd: int, *, set_flags: int, clear_flags: int, propagation: int, recursive: bool) -> None:
    """Change the per-mount attributes of the mount under ``fd``, all at once or none."""
    attributes = struct.pack("=QQQQ", set_flags, clear_flags, propagation, 0)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _checked(_mount_setattr(fd, b"", flags, attributes, len(attributes)))


def move_mount(mount_fd: int, target_fd: int) -> None:
    """Attach a detached mount on top of what ``target_fd`` is open on."""
    _checked(_move_mount(mount_fd, b"", target_fd, b"", _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH))


def fsopen(filesystem: str) -> int:
    """Begin to configure a filesystem of this type; ENODEV where the kernel does not know it."""
    return _checked(_fsopen(_encoded(filesystem), _FSOPEN_CLOEXEC), filesystem)


def fsconfig(fs_fd: int, command: int, key: str | None = None, value: str | None = None) -> None:
    """Give one parameter to a filesystem context, or the command to create the superblock."""
    key_raw = None if key is None else _encoded(key)
    value_raw = None if value is None else _encoded(value)
    _checked(_fsconfig(fs_fd, command, key_raw, value_raw, 0), key)


def fsmount(fs_fd: int, *, attributes: int) -> int:
    """A detached mount of the configured filesystem; closing the descriptor dissolves it."""
    return _checked(_fsmount(fs_fd, _FSMOUNT_CLOEXEC, attributes))


def unshare_mounts() -> None:
    """Give the calling thread alone a copy of the mount table and a working directory of its own, until it ends."""
    _checked(_unshare(_CLONE_NEWNS))


def quotactl_fd(fd: int, command: int, identity: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
    """Ask or tell the quota of the filesystem that ``fd`` lies on (kernel 5.14)."""
    _checked(_quotactl_fd(fd, command, identity, buffer))


def ioctl(fd: int, request: int, buffer: bytearray) -> int:
    """Like ``fcntl.ioctl``, which keeps the interpreter lock where a buffer to be written to has more than 1024 bytes.

    That would stop every thread for as long as the kernel waits for a disk. The kernel's answer is in the buffer.
    """
    return _checked(_ioctl(fd, request, (ctypes.c_char * len(buffer)).from_buffer(buffer)))


def syncfs(fd: int) -> None:
    """Put on the disk all that was written to the filesystem ``fd`` lies on, by anybody; EIO where some of it was lost."""
    _checked(_syncfs(fd))


def filesystem_magic(fd: int) -> int:
    """The number by which the kernel tells one kind of filesystem from another; an O_PATH descriptor will do."""
    buffer = ctypes.create_string_buffer(_STATFS_SIZE)
    _checked(_fstatfs(fd, buffer))
    (magic,) = struct.unpack_from("@l", buffer)
    return int(magic) & 0xFFFFFFFF


def open_by_handle(fd: int, kind: int, handle: bytes, *, flags: int) -> int:
    """Open what ``handle`` names on the filesystem of ``fd``, without a path; ESTALE where it is gone."""
    buffer = ctypes.create_string_buffer(_HANDLE.pack(len(handle), kind) + handle)
    return _checked(_open_by_handle_at(fd, buffer, flags | os.O_CLOEXEC))
