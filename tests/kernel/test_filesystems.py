"""A filesystem is as large as it was said to be, and never taken for something else."""

import asyncio
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moorage_csi.host import commands, filesystems, loops, mounts
from tests.kernel.machine import descriptors, names, opened, sparse, tool

pytestmark = pytest.mark.kernel

MIB = 1 << 20
GIB = 1 << 30
KINDS = ["ext4", "xfs"]
IDENTITY = str(uuid.UUID(int=42))


@contextmanager
def mounted(image: Path, filesystem: str) -> Iterator[Path]:
    target = image.with_suffix(".mount")
    target.mkdir(exist_ok=True)
    with (
        opened(image, os.O_RDWR) as backing,
        opened(target) as fd,
        loops.attach(backing_fd=backing, name="test") as loop,
    ):
        mounts.filesystem_mount(device=loop.path, filesystem=filesystem, target_fd=fd)
    try:
        yield target
    finally:
        mounts.unmount(str(target))


def refuse_damage(image: Path, filesystem: str) -> None:
    tool(*{"ext4": ("e2fsck", "-f", "-n"), "xfs": ("xfs_repair", "-n", "-f")}[filesystem], image)


def usage(path: Path) -> filesystems.Usage:
    with opened(path, os.O_PATH) as fd:
        return filesystems.usage(fd)


@pytest.mark.parametrize(
    ("kind", "size", "share"),
    [
        ("ext4", filesystems.minimum("ext4"), 0.90),
        ("ext4", GIB, 0.95),
        ("ext4", 100 * GIB, 0.96),
        ("xfs", filesystems.minimum("xfs"), 0.72),
        ("xfs", GIB, 0.89),
        ("xfs", 100 * GIB, 0.97),
    ],
)
async def test_what_was_promised_can_be_written(area: Path, kind: str, size: int, share: float) -> None:
    image = sparse(area / "image", size)
    await filesystems.make(path=str(image), filesystem=kind, uuid=IDENTITY)
    assert image.stat().st_size == size
    written = image.stat().st_blocks * 512
    assert written < (80 * MIB if kind == "xfs" else max(size // 1000, 2 * MIB))
    with mounted(image, kind) as target:
        seen = usage(target)
        assert seen.available / size >= share
        assert seen.available <= seen.total <= size
        assert seen.inodes_used + seen.inodes_free == seen.inodes_total
        assert seen.inodes_total >= size // (32 * 1024)


def fill(path: Path, size: int) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(size // MIB + 1):
            file.write(b"\1" * MIB)
            os.fsync(file.fileno())


async def test_the_size_is_a_wall(area: Path) -> None:
    image = sparse(area / "image", filesystems.minimum("ext4"))
    await filesystems.make(path=str(image), filesystem="ext4", uuid=IDENTITY)
    with mounted(image, "ext4") as target:
        available = usage(target).available
        with pytest.raises(OSError, match="No space left"):
            fill(target / "file", filesystems.minimum("ext4"))
        assert (target / "file").stat().st_size >= available * 0.97
        assert usage(target).available < MIB


@pytest.mark.parametrize("kind", KINDS)
async def test_uuid_and_label_are_those_asked_for_and_by_descriptor_too(area: Path, kind: str) -> None:
    image = sparse(area / "image", filesystems.minimum(kind))
    fd = os.open(image, os.O_RDWR)
    await filesystems.make(path=fd, filesystem=kind, uuid=IDENTITY, label="moorage")
    os.close(fd)
    shown = tool("blkid", "-p", "-o", "export", image).stdout
    assert f"\nUUID={IDENTITY}\n" in shown
    assert "\nLABEL=moorage\n" in shown
    assert f"\nTYPE={kind}\n" in f"\n{shown}"
    assert filesystems.detect(str(image)) == kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", ["garbage", "ext4", "xfs"])
async def test_a_second_try_is_as_good_as_a_first(area: Path, kind: str, before: str) -> None:
    """An interrupted mkfs leaves anything at all; ``make`` is told that the tables read as zeros, so they must."""
    image = sparse(area / "image", filesystems.minimum("xfs"))
    if before == "garbage":
        with image.open("r+b") as file:
            for place in range(0, filesystems.minimum("xfs"), 8 * MIB):
                file.seek(place)
                file.write(os.urandom(MIB))
    else:
        await filesystems.make(path=str(image), filesystem=before, uuid=str(uuid.UUID(int=7)))
    await filesystems.make(path=str(image), filesystem=kind, uuid=IDENTITY)
    assert filesystems.detect(str(image)) == kind
    refuse_damage(image, kind)
    with mounted(image, kind) as target:
        assert set(names(target)) <= {"lost+found"}
        (target / "file").write_bytes(b"x" * MIB)


async def test_nothing_of_what_was_there_is_left_for_an_inode_table(area: Path) -> None:
    """mkfs is told that it may leave the tables as they are, because they read as zeros."""
    image = area / "image"
    garbage = b"\xa5" * 4096
    image.write_bytes(garbage * (filesystems.minimum("ext4") // len(garbage)))
    await filesystems.make(path=str(image), filesystem="ext4", uuid=IDENTITY)
    assert garbage not in image.read_bytes()
    tool("e2fsck", "-f", "-n", image)


async def test_an_allocated_image_stays_allocated(area: Path) -> None:
    image = area / "image"
    size = filesystems.minimum("ext4")
    fd = os.open(image, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, size)
    os.pwrite(fd, os.urandom(MIB), 32 * MIB)
    try:
        await filesystems.make(path=fd, filesystem="ext4", uuid=IDENTITY)
    finally:
        os.close(fd)
    assert image.stat().st_blocks * 512 >= size


async def test_an_image_below_the_minimum_of_xfs_is_refused_in_mkfs_words(area: Path) -> None:
    image = sparse(area / "image", 200 * MIB)
    with pytest.raises(commands.CommandError, match="300MB"):
        await filesystems.make(path=str(image), filesystem="xfs", uuid=IDENTITY)


async def test_what_cannot_be_is_refused_before_anything_is_touched(area: Path) -> None:
    image = area / "image"
    image.write_bytes(b"data")
    with pytest.raises(ValueError, match="not one of ext4, xfs"):
        await filesystems.make(path=str(image), filesystem="btrfs", uuid=IDENTITY)
    with pytest.raises(ValueError, match="at most 12 bytes"):
        await filesystems.make(path=str(image), filesystem="xfs", uuid=IDENTITY, label="x" * 13)
    with pytest.raises(ValueError, match="not one of"):
        filesystems.minimum("ntfs")
    assert image.read_bytes() == b"data"


@pytest.mark.parametrize("after", [0.0, 0.005])
async def test_making_goes_on_to_its_end_when_the_caller_is_cancelled(area: Path, after: float) -> None:
    image = sparse(area / "image", 4 * GIB)
    making = asyncio.ensure_future(filesystems.make(path=str(image), filesystem="ext4", uuid=IDENTITY))
    await asyncio.sleep(0)
    await asyncio.sleep(after)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert filesystems.detect(str(image)) == "ext4"
    refuse_damage(image, "ext4")


async def test_making_leaves_no_descriptor_open(area: Path) -> None:
    image = sparse(area / "image", filesystems.minimum("ext4"))
    await filesystems.make(path=str(image), filesystem="ext4", uuid=IDENTITY)
    before = descriptors()
    await filesystems.make(path=str(image), filesystem="ext4", uuid=IDENTITY)
    assert descriptors() == before


async def test_an_older_kernel_can_mount_what_is_made_and_xfs_can_clone(area: Path) -> None:
    ext4 = sparse(area / "ext4", filesystems.minimum("ext4"))
    xfs = sparse(area / "xfs", filesystems.minimum("xfs"))
    await filesystems.make(path=str(ext4), filesystem="ext4", uuid=IDENTITY)
    await filesystems.make(path=str(xfs), filesystem="xfs", uuid=IDENTITY)
    shown = tool("dumpe2fs", "-h", ext4).stdout
    features = next(line for line in shown.splitlines() if line.startswith("Filesystem features:")).split()
    assert {"has_journal", "extent", "metadata_csum", "64bit"} <= set(features)
    assert "orphan_file" not in features
    shown = tool("xfs_db", "-r", "-f", "-c", "info", xfs).stdout
    assert {"reflink=1", "nrext64=0", "crc=1"} <= set(shown.replace(",", " ").split())


async def test_a_copy_of_an_xfs_mounts_beside_its_source_only_with_nouuid(area: Path) -> None:
    source = sparse(area / "source", filesystems.minimum("xfs"))
    await filesystems.make(path=str(source), filesystem="xfs", uuid=IDENTITY)
    tool("cp", "--sparse=always", source, area / "copy")
    (area / "target").mkdir()
    with (
        mounted(source, "xfs"),
        opened(area / "copy", os.O_RDWR) as backing,
        loops.attach(backing_fd=backing, name="copy") as loop,
        opened(area / "target") as fd,
    ):
        with pytest.raises(OSError, match="xfs on"):
            mounts.filesystem_mount(device=loop.path, filesystem="xfs", target_fd=fd)
        mounts.filesystem_mount(device=loop.path, filesystem="xfs", options=["nouuid"], target_fd=fd)
        os.close(os.open(area / "target" / "file", os.O_CREAT | os.O_WRONLY))
    mounts.unmount(str(area / "target"))


# Recognising.


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["mkfs.ext2", "-q", "-F"], "ext2"),
        (["mkfs.ext3", "-q", "-F"], "ext3"),
        (["mkfs.ext4", "-q", "-F"], "ext4"),
        (["mkfs.xfs", "-q", "-f"], "xfs"),
        (["mkfs.btrfs", "-q", "-f"], "btrfs"),
        (["mkswap"], "swap"),
        (["mkfs.vfat"], "vfat"),
        (
            ["cryptsetup", "luksFormat", "--type", "luks2", "--pbkdf", "pbkdf2", "-q", "--key-file", "/etc/hostname"],
            "crypto_LUKS",
        ),
    ],
)
def test_a_filesystem_is_recognised(area: Path, argv: list[str], expected: str) -> None:
    image = sparse(area / "image", 320 * MIB)
    tool(*argv, image)
    assert filesystems.detect(str(image)) == expected


@pytest.mark.parametrize(("place", "magic"), [(510, b"\x55\xaa"), (512, b"EFI PART"), (4096, b"EFI PART")])
def test_a_partition_table_is_recognised(area: Path, place: int, magic: bytes) -> None:
    image = sparse(area / "image", 32 * MIB)
    with image.open("r+b") as file:
        file.seek(place)
        file.write(magic)
    assert filesystems.detect(str(image)) == "partition-table"


@pytest.mark.parametrize("size", [0, 1, 1024, 1 << 20])
def test_nothing_known_is_none(area: Path, size: int) -> None:
    assert filesystems.detect(str(sparse(area / "image", size))) is None


def test_what_cannot_be_read_is_an_error_and_not_none(area: Path) -> None:
    with pytest.raises(FileNotFoundError):
        filesystems.detect(str(area / "absent"))
    with pytest.raises(IsADirectoryError):
        filesystems.detect(str(area))
