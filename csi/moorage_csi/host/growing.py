"""Making a filesystem as large as the device or image that it lies on; never smaller.

A mounted one is grown by ioctl, on a descriptor of the mount: no program, and no device to be found. ext4 can also be
grown while it is not mounted, and has to be where the kernel forbids the other (it asks for CAP_SYS_RESOURCE); xfs only
grows while it is mounted, so that is done after the mount.

Growing is done again without harm: what has the size already is left alone. The kernel journals it, so whoever stops in
the middle leaves the old size or the new one. The tool for what is not mounted does not: killed in the middle it leaves
all data where it was, and a filesystem that is whole only after a repair.
"""

import fcntl
import os
import struct
from collections.abc import Callable
from typing import Final

from moorage_csi.host import commands
from moorage_csi.host.signatures import EXT4, XFS

__all__ = ["grow_image", "grow_mounted", "grows_unmounted", "has_grown"]

_XFS_GEOMETRY: Final = 0x8100587E
_XFS_GEOMETRY_SIZE: Final = 256
_XFS_GEOMETRY_FIELDS: Final = struct.Struct("=8IQ")
"""struct xfs_fsop_geom: blocksize, rtextsize, agblocks, agcount, logblocks, sectsize, inodesize, imaxpct, datablocks."""
_XFS_GROW: Final = 0x4010586E
_XFS_GROW_FIELDS: Final = struct.Struct("=QI4x")
"""struct xfs_growfs_data: blocks, share of inodes in per cent."""
_EXT4_RESIZE: Final = 0x40086610
_EXT4_BLOCKS: Final = struct.Struct("=Q")

_TIMEOUT: Final = 3600.0
_SUPERBLOCK: Final = 1024
"""Where it begins, and what it takes."""
_WORD: Final = struct.Struct("<I")
_BLOCKS_LOW: Final = 0x4
_BLOCK_SCALE: Final = 0x18
_BLOCKS_HIGH: Final = 0x150
"""struct ext4_super_block: s_blocks_count_lo, s_log_block_size (1024 bytes, shifted), s_blocks_count_hi."""
_MOST_SCALE: Final = 6
_PREEN: Final = "-p"
_REPAIR: Final = "-y"
_FSCK_FINE: Final = (0, 1)
_XFS_LEAST_GROUP: Final = 64
"""Blocks: a group that would be smaller is not added, so a size may be short by as much."""


def _kept_nowhere(before: bytes | None) -> None:
    """Nothing is kept: whoever dies in the middle leaves a torso."""


def grows_unmounted(filesystem: str) -> bool:
    """Whether ``grow_image`` is for it."""
    return filesystem == EXT4


async def grow_image(
    fd: int,
    filesystem: str,
    *,
    lock: int,
    kept: bytes | None = None,
    keep: Callable[[bytes | None], None] = _kept_nowhere,
) -> None:
    """Grow the ext4 filesystem on an image that nothing uses, to the size of the image; on the disk when it returns.

    It is checked first, because the tool insists; it runs to its end even if the caller is cancelled.

    Args:
        fd: open on the image for writing.
        filesystem: what is on it.
        lock: the descriptor by which the caller has it locked (flock). The tools have it too, and so it stays locked as
            long as one of them is at work, even where the driver dies and they do not.
        kept: what was kept last, and has to be used up, where an earlier call died. With that, whatever it left is
            repaired; otherwise only what needs no decision.
        keep: called with what has to be kept before the first change, and with None when the filesystem is whole; durable.

    Raises:
        CommandError: it is damaged, or there is no room.
        ValueError: for a filesystem that only grows while it is mounted.
    """
    if not grows_unmounted(filesystem):
        msg = f"{filesystem} grows only while it is mounted"
        raise ValueError(msg)
    await commands.finish(_grow_ext4(fd, lock, kept, keep))


async def _grow_ext4(fd: int, lock: int, kept: bytes | None, keep: Callable[[bytes | None], None]) -> None:
    if kept is None:
        if fills(fd):
            return
        await _check(fd, lock, _PREEN)
    else:
        await _repair(fd, lock, kept)
    before = os.pread(fd, _SUPERBLOCK, _SUPERBLOCK)
    keep(before)
    try:
        await commands.run(
            ["resize2fs", f"/proc/self/fd/{fd}"],
            timeout=_TIMEOUT,
            shielded=True,
            keep_fds=[fd, lock],
            advice="free space in the pool, and ask again",
        )
    except commands.CommandError:
        await _repair(fd, lock, before)
        keep(None)
        raise
    os.fsync(fd)
    keep(None)


def fills(fd: int) -> bool:
    """Whether the ext4 filesystem on an image is as large as the image, by its superblock; a torn one says that it is not."""
    first = os.pread(fd, _SUPERBLOCK, _SUPERBLOCK)
    if len(first) < _SUPERBLOCK:
        return False
    low, high, scale = (int(_WORD.unpack_from(first, at)[0]) for at in (_BLOCKS_LOW, _BLOCKS_HIGH, _BLOCK_SCALE))
    if scale > _MOST_SCALE:
        return False
    block = 1024 << scale
    return (high << 32 | low) == os.fstat(fd).st_size // block


async def _repair(fd: int, lock: int, before: bytes) -> None:
    """Make a filesystem whole that was half grown, from the superblock it had before.

    The tool changes the superblock piece by piece, and in the middle of that its checksum fits nothing: then it cannot even
    be checked, and a small filesystem has no second one. With the first all else follows from a check.
    """
    os.pwrite(fd, before, _SUPERBLOCK)
    await _check(fd, lock, _REPAIR)
    os.fsync(fd)


async def _check(fd: int, lock: int, how: str) -> None:
    await commands.run(
        ["e2fsck", "-f", how, f"/proc/self/fd/{fd}"],
        timeout=_TIMEOUT,
        shielded=True,
        expected=_FSCK_FINE,
        keep_fds=[fd, lock],
        advice="the filesystem has to be repaired by hand with e2fsck before it can grow",
    )


def grow_mounted(fd: int, filesystem: str, size: int) -> None:
    """Grow a mounted filesystem to ``size`` bytes, which its device has; ``fd`` is any directory in it.

    Raises:
        OSError: EPERM where the kernel lets nobody grow it while it is mounted, ENOSPC, EIO.
        ValueError: for a filesystem that is not known.
    """
    if filesystem == XFS:
        _grow_xfs(fd, size)
    elif filesystem == EXT4:
        blocks = size // os.fstatvfs(fd).f_frsize
        fcntl.ioctl(fd, _EXT4_RESIZE, _EXT4_BLOCKS.pack(blocks))
    else:
        msg = f"filesystem {filesystem!r} cannot be grown"
        raise ValueError(msg)


def has_grown(fd: int, filesystem: str, size: int) -> bool:
    """Whether a mounted filesystem has nothing to grow to ``size`` bytes, where a look tells that; False for ext4."""
    return filesystem == XFS and _xfs_larger(fd, size) is None


def _grow_xfs(fd: int, size: int) -> None:
    larger = _xfs_larger(fd, size)
    if larger is not None:
        fcntl.ioctl(fd, _XFS_GROW, larger)


def _xfs_larger(fd: int, size: int) -> bytes | None:
    """What to ask for, where something is missing; a rest that is too small for a group of its own is not worth one."""
    buffer = bytearray(_XFS_GEOMETRY_SIZE)
    fcntl.ioctl(fd, _XFS_GEOMETRY, buffer)
    block, _, group, _, _, _, _, inodes, blocks = _XFS_GEOMETRY_FIELDS.unpack_from(buffer)
    wanted = size // block
    rest = wanted % group
    if 0 < rest < _XFS_LEAST_GROUP:
        wanted -= rest
    return _XFS_GROW_FIELDS.pack(wanted, inodes) if wanted > blocks else None
