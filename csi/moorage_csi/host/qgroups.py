"""Quotas of btrfs: a size for a subvolume that the kernel holds.

btrfs counts in one of two ways, which an administrator or ``enable`` chooses once for the filesystem. They differ in what
a size means as soon as something is shared.

*Qgroups* count for a subvolume all that it refers to, shared or not (``max_rfer``). A size is what it is on a disk
of that size: a clone begins as full as its source, and what is overwritten or deleted is free again, whatever
snapshots there are. (The other limit there is, ``max_excl``, is none: a clone would grow by what happens to its
source.) But the kernel limits no subvolume that a pod makes within its volume, which no right is needed for; ``btrfs.nested``
tells. And the counting can become inconsistent, which is seen here and repaired by ``enable``.

*Simple quotas* (kernel 6.7) count an extent for whom it was written by, as long as anybody refers to it. That is
cheap and cannot become inconsistent, and subvolumes within a volume are counted with it, because they inherit the
group that ``set_limit`` puts it in. A size is what a volume may take of the filesystem *for itself*:

- a clone begins empty, and may take its whole size beside what it shares. It shows as much as its size and what it
  shared at its making, together; it never takes more of the filesystem than its size.
- what a snapshot holds on to stays counted for the volume that wrote it, also when that one has deleted it. A volume can
  rely on its size only if its limit is raised by what it had used when each of its snapshots was taken, and lowered when one is
  deleted. Those bytes are the snapshot's, in the books of whoever promises space.
- what a deleted volume wrote and others still refer to is counted for nobody who could be limited, and takes space.

Either way the limit includes the subvolume's metadata (16 KiB when it is empty), so a little less than the size
can be written, never more. Limits are set by ``max_rfer``, to the byte, and are read back.
"""

import contextlib
import enum
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from moorage_csi.host import btrfs
from moorage_csi.host.paths import Directory
from moorage_csi.host.quotas import Limit

_QUOTA_CTL: Final = 0xC0109428
_QGROUP_ASSIGN: Final = 0x40189429
_QGROUP_CREATE: Final = 0x4010942A
_QGROUP_LIMIT: Final = 0x8030942B
_QUOTA_RESCAN: Final = 0x4040942C
_QUOTA_RESCAN_STATUS: Final = 0x8040942D

_ENABLE: Final = 1
_ENABLE_SIMPLE: Final = 4
_CONTROL: Final = struct.Struct("=QQ")
_ASSIGN: Final = struct.Struct("=QQQ")
"""struct btrfs_ioctl_qgroup_assign_args: put in or take out, member, group."""
_CREATE: Final = struct.Struct("=QQ")
"""struct btrfs_ioctl_qgroup_create_args: make or remove, group."""
_LIMIT: Final = struct.Struct("=Q5Q")
"""struct btrfs_ioctl_qgroup_limit_args: group, which are set, max_rfer, max_excl, two that nobody uses."""
_RESCAN: Final = struct.Struct("=Q56x")
_MAX_RFER: Final = 1
_NO_LIMIT: Final = 2**64 - 1

_QUOTA_TREE: Final = 8
_ROOT_TREE: Final = 1
_ROOT_ITEM: Final = 132
_STATUS_ITEM: Final = 240
_INFO_ITEM: Final = 242
_LIMIT_ITEM: Final = 244
_RELATION_ITEM: Final = 246
_STATUS: Final = struct.Struct("=8x8xQ8x")
"""struct btrfs_qgroup_status_item: version, generation, flags, progress; then, in simple quotas, when they were enabled."""
_ENABLED: Final = struct.Struct("=Q")
_INFO: Final = struct.Struct("=8xQ")
_LIMITS: Final = struct.Struct("=QQ")

_STATUS_ON: Final = 1
_STATUS_INCONSISTENT: Final = 1 << 2
_STATUS_SIMPLE: Final = 1 << 3

_LEVEL_SHIFT: Final = 48
_LEVEL: Final = 0x4D4F
"""Our groups are ``19791/<subvolume>``: the level is high, so that a person's own groups do not meet them."""
_FIRST_SUBVOLUME: Final = 256


class Quota(enum.Enum):
    """How a filesystem counts."""

    OFF = "off"
    QGROUP = "qgroup"
    SIMPLE = "simple"


@dataclass(frozen=True, slots=True)
class State:
    """What the kernel says of its counting. ``since`` is the transaction from which on simple quotas count."""

    quota: Quota
    consistent: bool
    since: int


def state(fd: int) -> State:
    """How the filesystem of ``fd`` counts now; OFF where it is not btrfs. Changes nothing."""
    if not btrfs.is_btrfs(fd):
        return State(Quota.OFF, consistent=True, since=0)
    try:
        _, status = next(_items(fd, 0, _STATUS_ITEM))
    except (FileNotFoundError, StopIteration):
        return State(Quota.OFF, consistent=True, since=0)
    (flags,) = _STATUS.unpack_from(status)
    if not flags & _STATUS_ON:
        return State(Quota.OFF, consistent=True, since=0)
    if flags & _STATUS_SIMPLE:
        (since,) = _ENABLED.unpack_from(status, _STATUS.size)
        return State(Quota.SIMPLE, consistent=True, since=since)
    return State(Quota.QGROUP, consistent=not flags & _STATUS_INCONSISTENT, since=0)


def subvolume_quota_supported(path: str) -> str | None:
    """Why the kernel cannot hold a size for subvolumes on the filesystem at ``path``; None when it can.

    Changes nothing. Raises OSError when ``path`` cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not btrfs.is_btrfs(fd):
            return "the filesystem has no subvolumes: btrfs has"
        return _missing(state(fd))
    except PermissionError:
        return "the process may not ask for quotas: it needs CAP_SYS_ADMIN"
    finally:
        os.close(fd)


def _missing(seen: State) -> str | None:
    if seen.quota is Quota.OFF:
        return "the filesystem has no quotas switched on: run 'btrfs quota enable --simple' on it (kernel 6.7), or without --simple"
    if not seen.consistent:
        return "the filesystem's quotas are inconsistent, or still being counted: run 'btrfs quota rescan -w' on it"
    return None


def enable(fd: int, *, simple: bool = True, pause: Callable[[], None]) -> Quota:
    """Have the filesystem count, and be consistent; returns how it counts, which is not always what was asked for.

    A way of counting that is on stays. ``simple`` is taken where the kernel has it, else qgroups. Those first count
    what is there: ``pause`` is called between two looks at that, and sleeps, or raises to give up, which leaves them on and
    inconsistent until the kernel is done or this is called again. Simple quotas never count what was written before, and
    kernels before 6.7 cannot mount the filesystem for writing any more, not even when they are switched off again.

    Raises:
        OSError: EINVAL where it is inconsistent even after it was counted anew, and what else the kernel says.
    """
    if state(fd).quota is Quota.OFF:
        _switch_on(fd, simple=simple)
    counted_anew = False
    while True:
        if _is_counting(fd):
            pause()
            continue
        btrfs.commit(fd)
        seen = state(fd)
        if seen.quota is Quota.OFF:
            raise OSError(errno.EINVAL, "the filesystem did not switch its quotas on")
        if seen.consistent:
            return seen.quota
        if counted_anew:
            raise OSError(errno.EINVAL, "the filesystem's quotas are inconsistent, even after they were counted anew")
        counted_anew = True
        with contextlib.suppress(BlockingIOError):
            _count_anew(fd)


def _switch_on(fd: int, *, simple: bool) -> None:
    if simple:
        try:
            fcntl.ioctl(fd, _QUOTA_CTL, bytearray(_CONTROL.pack(_ENABLE_SIMPLE, 0)))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return
    fcntl.ioctl(fd, _QUOTA_CTL, bytearray(_CONTROL.pack(_ENABLE, 0)))


def _is_counting(fd: int) -> bool:
    buffer = bytearray(_RESCAN.size)
    fcntl.ioctl(fd, _QUOTA_RESCAN_STATUS, buffer)
    (flags,) = _RESCAN.unpack(buffer)
    return bool(flags)


def _count_anew(fd: int) -> None:
    try:
        fcntl.ioctl(fd, _QUOTA_RESCAN, bytearray(_RESCAN.pack(0)))
    except OSError as error:
        if error.errno != errno.EINPROGRESS:
            raise


def set_limit(folder: Directory, name: str, size: int) -> None:
    """Let a subvolume hold at most ``size`` bytes (0: as many as it wants), on the disk and read back; free to repeat.

    What the bytes are of is said above. A limit below what is used stops all writing until enough was deleted (with
    ``unlink``: btrfs refuses to truncate then). For simple quotas it is called before anything lies in the subvolume: only what
    is made later within it is counted with it. ``folder`` must lie outside of the subvolume, because the kernel lets
    nobody raise the limit of a full one from within.

    Raises:
        OSError: EINVAL where the kernel does not count, not consistently, or not from the subvolume's beginning, and
            where it did not keep the limit.
    """
    with folder.child(name) as volume:
        seen = state(folder.fd)
        reason = _missing(seen)
        if reason is not None:
            raise OSError(errno.EINVAL, reason)
        one = _subvolume(volume.fd)
        if seen.quota is Quota.SIMPLE and one.made < seen.since:
            raise OSError(
                errno.EINVAL, f"subvolume {one.id} was made before the filesystem counted, so what it holds is unknown"
            )
        group = _grouped(folder.fd, one.id) if seen.quota is Quota.SIMPLE else one.id
        _limit(folder.fd, group, size or _NO_LIMIT)
        btrfs.commit(folder.fd)
        if read_limit(volume.fd).limit != size:
            raise OSError(errno.EINVAL, f"the filesystem did not keep the limit of {size} bytes for subvolume {one.id}")


def _limit(fd: int, group: int, size: int) -> None:
    fcntl.ioctl(fd, _QGROUP_LIMIT, bytearray(_LIMIT.pack(group, _MAX_RFER, size, 0, 0, 0)))


def _grouped(fd: int, number: int) -> int:
    """Put a subvolume into the group that bears its number; what a pod makes in it joins the group by itself."""
    group = _group_of(number)
    with contextlib.suppress(FileExistsError):
        fcntl.ioctl(fd, _QGROUP_CREATE, _CREATE.pack(1, group))
    with contextlib.suppress(FileExistsError):
        fcntl.ioctl(fd, _QGROUP_ASSIGN, _ASSIGN.pack(1, number, group))
    return group


def read_limit(fd: int) -> Limit:
    """What the kernel holds for the subvolume that ``fd`` is open on, and what it has counted until its last commit (at most 30 s ago, as a rule).

    ``btrfs.commit`` before makes it exact. ESRCH where the filesystem does not count.
    """
    seen = state(fd)
    if seen.quota is Quota.OFF:
        raise OSError(errno.ESRCH, "the filesystem has no quotas switched on")
    number = _subvolume(fd).id
    if seen.quota is Quota.SIMPLE and _item(fd, number, _RELATION_ITEM, _group_of(number)) is not None:
        return _held(fd, _group_of(number))
    held = _held(fd, number)
    # Without the group the limit would be one that a subvolume within this one escapes.
    return Limit(limit=0, used=held.used) if seen.quota is Quota.SIMPLE else held


def _held(fd: int, group: int) -> Limit:
    info, limits = _item(fd, 0, _INFO_ITEM, group), _item(fd, 0, _LIMIT_ITEM, group)
    (used,) = _INFO.unpack_from(info) if info is not None else (0,)
    flags, limit = _LIMITS.unpack_from(limits) if limits is not None else (0, 0)
    return Limit(limit=limit if flags & _MAX_RFER else 0, used=used)


def drop_limit(folder: Directory, name: str) -> None:
    """Give back what the kernel keeps for a subvolume's limit, which is about to be destroyed; free to repeat.

    It can grow without limit from then on. What is left when it is not called, ``clear_stale`` finds.
    """
    with folder.child(name) as volume:
        number = _subvolume(volume.fd).id
    kind = state(folder.fd).quota
    if kind is Quota.SIMPLE:
        _dissolve(folder.fd, _group_of(number))
    elif kind is Quota.QGROUP:
        _limit(folder.fd, number, _NO_LIMIT)


def clear_stale(fd: int) -> int:
    """Remove what the kernel keeps for subvolumes that are gone, where it does not do so itself; returns how many.

    Nothing that still counts is removed: the kernel refuses it.
    """
    if state(fd).quota is Quota.OFF:
        return 0
    stale = [group for group, _ in _items(fd, 0, _INFO_ITEM) if _is_stale(fd, group)]
    if not stale:
        return 0
    # One that is being made may have its group first, and has all of it after this.
    btrfs.commit(fd)
    return sum(_dissolve(fd, group) for group in stale if _is_stale(fd, group))


def _is_stale(fd: int, group: int) -> bool:
    level, number = group >> _LEVEL_SHIFT, group & (1 << _LEVEL_SHIFT) - 1
    return level in (0, _LEVEL) and number >= _FIRST_SUBVOLUME and not _exists(fd, number)


def _dissolve(fd: int, group: int) -> bool:
    """Take everything out of a group and remove it; False where it is absent, or the kernel says that it still counts."""
    for member, _ in list(_items(fd, group, _RELATION_ITEM)):
        if member >> _LEVEL_SHIFT < group >> _LEVEL_SHIFT:
            with contextlib.suppress(FileNotFoundError):
                fcntl.ioctl(fd, _QGROUP_ASSIGN, _ASSIGN.pack(0, member, group))
    try:
        fcntl.ioctl(fd, _QGROUP_CREATE, _CREATE.pack(0, group))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EBUSY):
            return False
        raise
    return True


def _group_of(number: int) -> int:
    return _LEVEL << _LEVEL_SHIFT | number


def _subvolume(fd: int) -> btrfs.Subvolume:
    seen = btrfs.subvolume(fd)
    if seen is None:
        raise OSError(errno.EINVAL, "is not the directory of a btrfs subvolume")
    return seen


def _exists(fd: int, number: int) -> bool:
    return next(btrfs.items(fd, tree=_ROOT_TREE, object_id=number, kind=_ROOT_ITEM), None) is not None


def _items(fd: int, object_id: int, kind: int) -> Iterator[tuple[int, bytes]]:
    return btrfs.items(fd, tree=_QUOTA_TREE, object_id=object_id, kind=kind)


def _item(fd: int, object_id: int, kind: int, offset: int) -> bytes | None:
    found = btrfs.items(fd, tree=_QUOTA_TREE, object_id=object_id, kind=kind, first=offset, last=offset)
    return next((content for _, content in found), None)
