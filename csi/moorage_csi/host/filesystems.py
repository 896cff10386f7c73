"""Filesystems on images: making, recognising and measuring them.

``make`` is the one dangerous function of the driver. It writes over whatever is there; whether it may is decided
by the volume's record, never by what ``detect`` sees, because a filesystem with a damaged superblock looks like
nothing at all.

Everything works on the image file itself, through a descriptor: no loop device is needed, and no path is looked
up twice. Needs e2fsprogs 1.47 and xfsprogs 5.19 or later.
"""

import asyncio
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moorage_csi.host import commands, copying, syscalls
from moorage_csi.host.signatures import EXT4, XFS, detect, opened

__all__ = [
    "EXT4",
    "EXT4_BYTES_PER_INODE",
    "XFS",
    "Usage",
    "detect",
    "ext4_errors",
    "make",
    "minimum",
    "usage",
]

EXT4_BYTES_PER_INODE: Final = 16384
"""An ext4 that ``make`` makes has an inode for each so many of its bytes."""

_MIB: Final = 1 << 20
_MINIMUM: Final = {
    EXT4: 64 * _MIB,
    XFS: 300 * _MIB,
}
_LABEL_LIMIT: Final = {EXT4: 16, XFS: 12}

_EXT4_FEATURES: Final = "^orphan_file"
"""Kernels before 5.15 cannot write a filesystem that has it."""
_EXT4_BLOCK: Final = 4096
_EXT4_INODE: Final = 256
_EXT4_JOURNAL_SHARE: Final = 64
_EXT4_JOURNAL_MIB: Final = (4, 128)
"""Least (1024 blocks, which the kernel asks for) and most."""

_SYS_EXT4: Final = Path("/sys/fs/ext4")
_ZEROING: Final = (syscalls.FALLOC_ZERO_RANGE, syscalls.FALLOC_PUNCH_HOLE)


def minimum(filesystem: str) -> int:
    """Bytes of the smallest image that ``make`` is meant for; ValueError for an unknown filesystem.

    ext4: 64 MiB, the smallest power of two of which 90 % can be written to by a pod (90.1 % measured; 32 MiB:
    83.8 %; 1 GiB: 95.1 %), with 4 KiB blocks, so that a volume may grow to any size. What is missing is the journal
    (4 MiB at least), the inode tables, and the 2 % that the kernel keeps back.
    xfs: 300 MiB, below which mkfs.xfs refuses. Its log takes 64 MiB, which are written at once: 73 % of 300 MiB and 90 % of
    1 GiB can be written to.
    """
    return _known(filesystem, _MINIMUM)


def _known(filesystem: str, table: dict[str, int]) -> int:
    if filesystem not in table:
        msg = f"filesystem {filesystem!r} is not one of {', '.join(table)}"
        raise ValueError(msg)
    return table[filesystem]


async def make(*, path: str | int, filesystem: str, uuid: str, label: str = "") -> None:
    """Make a filesystem on an image file, given by its path or by a descriptor open for writing.

    **Whatever is in the file is lost.** What an interrupted run left is erased first, so that a retry is as good as the
    first time; until it returns, the file holds nothing. It runs to its end even if the caller is cancelled, and the
    result is on the disk when it returns. ``uuid`` is the filesystem's own, which makes a repeated run give the same.

    Raises CommandError with what mkfs said, ValueError for an unknown filesystem or a label that is too long.
    """
    if len(os.fsencode(label)) > _known(filesystem, _LABEL_LIMIT):
        msg = f"label {label!r} is too long for {filesystem}: at most {_LABEL_LIMIT[filesystem]} bytes"
        raise ValueError(msg)
    await commands.finish(_make(path, filesystem, uuid, label))


async def _make(path: str | int, filesystem: str, uuid: str, label: str) -> None:
    with opened(path, os.O_RDWR) as fd:
        zeroed = await asyncio.to_thread(_zero, fd)
        if filesystem == EXT4:
            arguments = _ext4_arguments(os.fstat(fd).st_size, uuid, label, zeroed=zeroed)
        else:
            arguments = _xfs_arguments(uuid, label)
        await commands.run(
            [*arguments, f"/proc/self/fd/{fd}"],
            timeout=None,
            shielded=True,
            keep_fds=[fd],
            advice="the image holds no filesystem yet: free space in the pool or choose a larger size, and the next try starts over",
        )
        await asyncio.to_thread(os.fsync, fd)


def _ext4_arguments(size: int, uuid: str, label: str, *, zeroed: bool) -> list[str]:
    least, most = _EXT4_JOURNAL_MIB
    journal = min(max(size // _EXT4_JOURNAL_SHARE // _MIB, least), most)
    tables = "assume_storage_prezeroed=1" if zeroed else "lazy_itable_init=1"
    return [
        # Errors stop the writing: to go on, as is the default, makes small damage large.
        *("mkfs.ext4", "-F", "-q", "-m", "0", "-e", "remount-ro", "-U", uuid, "-L", label, "-O", _EXT4_FEATURES),
        *("-b", str(_EXT4_BLOCK), "-I", str(_EXT4_INODE), "-i", str(EXT4_BYTES_PER_INODE)),
        *("-J", f"size={journal}", "-E", f"nodiscard,{tables}"),
    ]


def _xfs_arguments(uuid: str, label: str) -> list[str]:
    """``nrext64`` would shut out kernels before 5.19; 4096-byte sectors fit every backing file."""
    return [
        *("mkfs.xfs", "-f", "-q", "-K", "-m", f"uuid={uuid},reflink=1", "-i", "nrext64=0"),
        *("-s", "size=4096", *(("-L", label) if label else ())),
    ]


def _zero(fd: int) -> bool:
    """Make the whole file read as zeros without writing them; False where its filesystem cannot.

    Allocated ranges stay allocated where that is possible, holes stay holes.
    """
    for start, end in list(copying.data_ranges(fd, os.fstat(fd).st_size)):
        for mode in _ZEROING:
            try:
                syscalls.fallocate(fd, mode | syscalls.FALLOC_KEEP_SIZE, start, end - start)
                break
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
        else:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes and inodes of a mounted filesystem; ``available`` is what an ordinary user can still write."""

    total: int
    available: int
    used: int
    inodes_total: int
    inodes_free: int
    inodes_used: int


def usage(fd: int) -> Usage:
    """How full the filesystem is that ``fd`` (O_PATH will do) lies on; takes the same time however many files it has."""
    seen = os.fstatvfs(fd)
    return Usage(
        total=seen.f_blocks * seen.f_frsize,
        available=seen.f_bavail * seen.f_frsize,
        used=(seen.f_blocks - seen.f_bfree) * seen.f_frsize,
        inodes_total=seen.f_files,
        inodes_free=seen.f_ffree,
        inodes_used=seen.f_files - seen.f_ffree,
    )


def ext4_errors(device: str) -> int:
    """How many errors the kernel has found in the mounted ext4 on a device (``loop0``) since the last fsck; 0 for any other.

    Kernels before 6.14 refuse all writes after an error and still show the filesystem as writable.
    """
    try:
        return int((_SYS_EXT4 / device / "errors_count").read_text(encoding="ascii"))
    except (FileNotFoundError, NotADirectoryError):
        return 0
