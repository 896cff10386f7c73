"""Subvolumes of btrfs: trees of their own inside one filesystem, which are copied and removed as a whole.

A snapshot costs the same however much it holds, and shares everything with its source until one of the two is written
to. It is a subvolume like its source, and outlives it.

Three things are not as one might think. A snapshot holds *one* subvolume: where another lies in it, the snapshot has
an empty directory, so who takes one asks ``nested`` first. Whoever may make a directory may also make a subvolume, a pod
in its volume too. And a subvolume that is made read-only later can still be written to through what is open; only one
that is read-only from the beginning never was different.

What a call has done is on the disk when it returns. Needs CAP_SYS_ADMIN and a kernel of 5.7 or later. How much a
subvolume may hold is the matter of ``qgroups``.
"""

import contextlib
import errno
import fcntl
import os
import struct
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from moorage_csi.host import syscalls
from moorage_csi.host.paths import Directory, checked_name

ROOT_INODE: Final = 256
"""The inode number of every subvolume's own directory, and of no other."""

_MAGIC: Final = 0x9123683E

_WAIT_SYNC: Final = 0x40089416
_SNAP_CREATE_V2: Final = 0x50009417
_START_SYNC: Final = 0x80089418
_SUBVOL_CREATE_V2: Final = 0x50009418
_SUBVOL_GETFLAGS: Final = 0x80089419
_SUBVOL_SETFLAGS: Final = 0x4008941A
_GET_SUBVOL_INFO: Final = 0x81F8943C
_SNAP_DESTROY_V2: Final = 0x5000943F
_TREE_SEARCH_V2: Final = 0xC0709411

_READ_ONLY: Final = 1 << 1
_BY_ID: Final = 1 << 4
_FLAGS: Final = struct.Struct("=Q")
_ARGUMENTS: Final = struct.Struct("=qQQ32x4040s")
"""struct btrfs_ioctl_vol_args_v2: descriptor, transaction, flags, unused, name (or the id, as eight bytes)."""

_INFO_SIZE: Final = 504
_INFO: Final = struct.Struct("=Q288x16s16s24xQ")
"""struct btrfs_ioctl_get_subvol_info_args: id, ..., uuid, uuid of its source, ..., transaction in which it was made, ..."""

_SEARCH: Final = struct.Struct("=7Q4I4QQ")
"""struct btrfs_ioctl_search_args_v2: tree, objects, offsets, transactions (from, to), kinds (from, to), items, ..., room."""
_SEARCH_ITEMS: Final = struct.Struct("=I")
_SEARCH_ITEMS_OFFSET: Final = 64
_SEARCH_ROOM: Final = 16 << 10
_FOUND: Final = struct.Struct("=QQQII")
"""struct btrfs_ioctl_search_header: transaction, object, offset, kind, length."""
_MOST: Final = 2**64 - 1
_MOST_ITEMS: Final = 2**32 - 1

_ROOT_TREE: Final = 1
_ROOT_REF: Final = 156

_INODE_ITEM: Final = 1
_GENERATION: Final = struct.Struct("<Q")
"""The beginning of struct btrfs_inode_item."""

_HANDLE: Final = struct.Struct("=QQI")
"""struct btrfs_fid: inode, subvolume, generation of the inode (newer kernels take 0 for any, 6.1 does not)."""
_HANDLE_KIND: Final = 0x4D
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class Subvolume:
    """What the kernel says about a subvolume."""

    id: int
    """Never used again, in the life of the filesystem."""
    uuid: str
    origin: str
    """The uuid of what it is a snapshot of; empty for one that began empty."""
    made: int
    """The number of the transaction in which it was made; greater is later."""
    read_only: bool


def is_btrfs(fd: int) -> bool:
    """Whether ``fd`` (O_PATH will do) lies on btrfs."""
    return syscalls.filesystem_magic(fd) == _MAGIC


def subvolume(fd: int) -> Subvolume | None:
    """The subvolume whose own directory ``fd`` is open on; None for any other directory, and on any other filesystem."""
    if os.fstat(fd).st_ino != ROOT_INODE or not is_btrfs(fd):
        return None
    buffer = bytearray(_INFO_SIZE)
    fcntl.ioctl(fd, _GET_SUBVOL_INFO, buffer)
    number, own, origin, made = _INFO.unpack_from(buffer)
    return Subvolume(
        id=number,
        uuid=str(uuid.UUID(bytes=own)),
        origin=str(uuid.UUID(bytes=origin)) if any(origin) else "",
        made=made,
        read_only=_is_read_only(fd),
    )


def make(folder: Directory, name: str, mode: int = 0o750) -> None:
    """Make an empty subvolume that has exactly ``mode``, whatever the umask.

    EEXIST where the name is taken. A crash leaves nothing, or an empty subvolume that may have another mode: destroy it.
    """
    _create(folder, name, _SUBVOL_CREATE_V2, source=0, flags=0)
    with folder.child(name) as made:
        os.fchmod(made.fd, mode)
    commit(folder.fd)


def snapshot(source: Directory, folder: Directory, name: str, *, read_only: bool) -> None:
    """Take a snapshot of a subvolume, used or not: all of it as it is at one moment, without what is ``nested`` in it.

    ``folder`` lies on the same filesystem (EXDEV). With ``read_only`` there is no moment at which it could be written
    to. EINVAL where ``source`` is not a subvolume's own directory: of another, some kernels would take the whole subvolume
    it lies in. EEXIST where the name is taken. A crash leaves nothing or all of it.
    """
    _its_id(source.fd)
    _create(folder, name, _SNAP_CREATE_V2, source=source.fd, flags=_READ_ONLY if read_only else 0)
    commit(folder.fd)
    with folder.child(name) as made:
        if _is_read_only(made.fd) != read_only:
            raise OSError(errno.EINVAL, f"the filesystem did not keep read-only={read_only}", name)


def set_read_only(fd: int, *, read_only: bool) -> None:
    """Let a subvolume be written to, or not; read back, and free to repeat.

    Whoever has a file of it open for writing goes on writing: make what must never change read-only in ``snapshot``.
    """
    _its_id(fd)
    flags = _flags(fd)
    wanted = flags | _READ_ONLY if read_only else flags & ~_READ_ONLY
    if wanted == flags:
        return
    fcntl.ioctl(fd, _SUBVOL_SETFLAGS, _FLAGS.pack(wanted))
    commit(fd)
    if _is_read_only(fd) != read_only:
        raise OSError(errno.EINVAL, f"the filesystem did not keep read-only={read_only}")


def nested(fd: int) -> tuple[int, ...]:
    """The ids of the subvolumes that lie in this one, directly or in a directory of it; those within them are theirs."""
    return tuple(child for child, _ in items(fd, tree=_ROOT_TREE, object_id=_its_id(fd), kind=_ROOT_REF))


def destroy(folder: Directory, name: str, *, batch: Callable[[], None] | None = None) -> None:
    """Remove a subvolume, read-only or not, and every subvolume in it; absent is success.

    The names are gone on return, for good; the kernel gives the space back later, by itself. ``batch`` is called
    after every subvolume that went: it may sleep to hold a rate, or raise to cancel. After that, and after a crash, calling it again
    goes on.

    The kernel does not mind whether it is in use. A mount of it shows an empty directory from then on, what is open can
    be read and written until it is closed, and what was mounted in it is unmounted: the caller has looked before.

    EINVAL for a directory that is not a subvolume, ENOTDIR or ELOOP for what is not a directory, EBUSY where something is
    mounted on it.
    """
    try:
        opened = folder.child(checked_name(name), same_mount=True)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise OSError(errno.EBUSY, "is a mount point, nothing was removed: unmount it first", name) from error
        raise
    with opened as doomed:
        number = _its_id(doomed.fd)
        _destroy_nested(folder.fd, number, batch or _nothing)
    with contextlib.suppress(FileNotFoundError):
        syscalls.ioctl(folder.fd, _SNAP_DESTROY_V2, bytearray(_ARGUMENTS.pack(0, 0, 0, os.fsencode(name))))
    commit(folder.fd)
    (batch or _nothing)()


def commit(fd: int) -> None:
    """Put on the disk what was done to subvolumes and limits; what is still to be written to files may follow later."""
    transaction = bytearray(_FLAGS.size)
    fcntl.ioctl(fd, _START_SYNC, transaction)
    fcntl.ioctl(fd, _WAIT_SYNC, transaction)


def items(
    fd: int, *, tree: int, object_id: int, kind: int, first: int = 0, last: int = _MOST
) -> Iterator[tuple[int, bytes]]:
    """The items of one object and kind in a tree of the filesystem, as offset and content, by offset.

    ENOENT where there is no such tree. Items that come or go meanwhile may be seen or not.
    """
    while first <= last:
        found = _search(fd, tree=tree, object_id=object_id, kind=kind, first=first, last=last)
        if not found:
            return
        yield from found
        first = found[-1][0] + 1


def _search(fd: int, *, tree: int, object_id: int, kind: int, first: int, last: int) -> list[tuple[int, bytes]]:
    span = (object_id, object_id, first, last, 0, _MOST)
    key = _SEARCH.pack(tree, *span, kind, kind, _MOST_ITEMS, 0, 0, 0, 0, 0, _SEARCH_ROOM)
    buffer = bytearray(key) + bytes(_SEARCH_ROOM)
    syscalls.ioctl(fd, _TREE_SEARCH_V2, buffer)
    (count,) = _SEARCH_ITEMS.unpack_from(buffer, _SEARCH_ITEMS_OFFSET)
    found = []
    position = _SEARCH.size
    for _ in range(count):
        _, _, offset, _, length = _FOUND.unpack_from(buffer, position)
        position += _FOUND.size
        found.append((offset, bytes(buffer[position : position + length])))
        position += length
    return found


def _nothing() -> None:
    """The batch of a caller who does not mind the rate."""


def _destroy_nested(fd: int, number: int, batch: Callable[[], None]) -> None:
    """Remove what lies in a subvolume, the innermost first, by id: no path is walked, and no id is ever another's."""
    chain = [number]
    while chain:
        child = next(items(fd, tree=_ROOT_TREE, object_id=chain[-1], kind=_ROOT_REF), None)
        if child is not None:
            chain.append(child[0])
            continue
        gone = chain.pop()
        if chain:
            _destroy_by_id(fd, gone, within=chain[-1])
            batch()


def _destroy_by_id(fd: int, number: int, *, within: int) -> None:
    """Its owner may have made the subvolume around it read-only, which forbids to remove anything from it."""
    arguments = bytearray(_ARGUMENTS.pack(0, 0, _BY_ID, number.to_bytes(8, "little")))
    try:
        syscalls.ioctl(fd, _SNAP_DESTROY_V2, arguments)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        (_, inode) = next(items(fd, tree=within, object_id=ROOT_INODE, kind=_INODE_ITEM))
        (generation,) = _GENERATION.unpack_from(inode)
        handle = _HANDLE.pack(ROOT_INODE, within, generation & 2**32 - 1)
        around = syscalls.open_by_handle(fd, _HANDLE_KIND, handle, flags=_DIRECTORY)
        try:
            set_read_only(around, read_only=False)
        finally:
            os.close(around)
        syscalls.ioctl(fd, _SNAP_DESTROY_V2, arguments)


def _create(folder: Directory, name: str, command: int, *, source: int, flags: int) -> None:
    arguments = _ARGUMENTS.pack(source, 0, flags, os.fsencode(checked_name(name)))
    syscalls.ioctl(folder.fd, command, bytearray(arguments))


def _its_id(fd: int) -> int:
    seen = subvolume(fd)
    if seen is None:
        raise OSError(errno.EINVAL, "is not the directory of a btrfs subvolume")
    return seen.id


def _is_read_only(fd: int) -> bool:
    return bool(_flags(fd) & _READ_ONLY)


def _flags(fd: int) -> int:
    buffer = bytearray(_FLAGS.size)
    fcntl.ioctl(fd, _SUBVOL_GETFLAGS, buffer)
    (flags,) = _FLAGS.unpack(buffer)
    return int(flags)
