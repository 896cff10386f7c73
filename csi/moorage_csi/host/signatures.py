"""Recognising what is on a file or device by the marks that every format leaves at a fixed place.

Read directly, without a program in between whose failure could be taken for an empty disk.
"""

import contextlib
import os
import struct
from collections.abc import Iterator
from typing import Final

EXT4: Final = "ext4"
XFS: Final = "xfs"

_READ: Final = 0x11000
"""Bytes from the start that hold every superblock and signature known below."""

_EXT_MAGIC: Final = (0x438, b"\x53\xef")
_SIGNATURES: Final = (
    (XFS, 0, b"XFSB"),
    ("crypto_LUKS", 0, b"LUKS\xba\xbe"),
    ("squashfs", 0, b"hsqs"),
    ("btrfs", 0x10040, b"_BHRfS_M"),
    ("f2fs", 0x400, b"\x10\x20\xf5\xf2"),
    ("erofs", 0x400, b"\xe2\xe1\xf5\xe0"),
    ("LVM2_member", 0x218, b"LVM2 001"),
    ("swap", 0xFF6, b"SWAPSPACE2"),
    ("bcache", 0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    ("linux_raid_member", 0x1000, b"\xfc\x4e\x2b\xa9"),
    ("linux_raid_member", 0, b"\xfc\x4e\x2b\xa9"),
    ("iso9660", 0x8001, b"CD001"),
    ("ntfs", 3, b"NTFS    "),
    ("exfat", 3, b"EXFAT   "),
    ("vfat", 0x52, b"FAT32   "),
    ("vfat", 0x36, b"FAT1"),
    ("partition-table", 0x200, b"EFI PART"),
    ("partition-table", 0x1000, b"EFI PART"),
    ("partition-table", 0x1FE, b"\x55\xaa"),
)
"""In the order of asking: what contains a boot sector comes before the bare boot sector."""

_EXT_FEATURES: Final = struct.Struct("<III")
_EXT_FEATURES_OFFSET: Final = 0x45C
_HAS_JOURNAL: Final = 0x4
_EXT3_INCOMPATIBLE: Final = 0x2 | 0x4 | 0x8 | 0x10
_EXT3_READ_ONLY: Final = 0x1 | 0x2 | 0x4


def detect(path: str | int) -> str | None:
    """The name of the filesystem, container or partition table at the start of a file or device; None for none known.

    Names are those of blkid, and ``partition-table`` for any of these. None does not say that the file is empty, and
    must never be a reason to format. Raises OSError when it cannot be read, which is not None either.
    """
    with opened(path, os.O_RDONLY) as fd:
        start = os.pread(fd, _READ, 0)
    offset, magic = _EXT_MAGIC
    if start[offset : offset + len(magic)] == magic:
        return _ext_generation(start)
    for name, offset, magic in _SIGNATURES:
        if start[offset : offset + len(magic)] == magic:
            return name
    return None


def _ext_generation(start: bytes) -> str:
    compatible, incompatible, read_only = _EXT_FEATURES.unpack_from(start, _EXT_FEATURES_OFFSET)
    if incompatible & ~_EXT3_INCOMPATIBLE or read_only & ~_EXT3_READ_ONLY:
        return EXT4
    return "ext3" if compatible & _HAS_JOURNAL else "ext2"


@contextlib.contextmanager
def opened(path: str | int, flags: int) -> Iterator[int]:
    """A descriptor of ``path``, closed afterwards; a descriptor is taken as it is, and stays open."""
    if isinstance(path, int):
        yield path
        return
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
