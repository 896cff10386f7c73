"""A filesystem grows to what its image has become, with all that was in it, and never beyond."""

import asyncio
import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moorage_csi.host import commands, filesystems, growing, loops, mounts
from tests.kernel.machine import opened, sparse

pytestmark = pytest.mark.kernel

MIB = 1 << 20
IDENTITY = str(uuid.UUID(int=42))
SMALL, LARGE = 320 * MIB, 960 * MIB
CONTENT = b"what was there before"


@contextmanager
def attached(image: Path, filesystem: str) -> Iterator[tuple[Path, int]]:
    """The image mounted; and the number of its loop device."""
    target = image.with_suffix(".mount")
    target.mkdir(exist_ok=True)
    with (
        opened(image, os.O_RDWR) as backing,
        opened(target) as fd,
        loops.attach(backing_fd=backing, name="test") as loop,
    ):
        mounts.filesystem_mount(device=loop.path, filesystem=filesystem, target_fd=fd)
        try:
            yield target, loop.number
        finally:
            mounts.unmount(str(target))


def made(area: Path, filesystem: str) -> Path:
    image = sparse(area / "image", SMALL)
    asyncio.run(filesystems.make(path=str(image), filesystem=filesystem, uuid=IDENTITY))
    with attached(image, filesystem) as (target, _):
        (target / "kept").write_bytes(CONTENT)
    return image


def total(target: Path) -> int:
    with opened(target) as fd:
        return filesystems.usage(fd).total


def grown(target: Path, filesystem: str, size: int) -> None:
    """Grow it while it is mounted; skip where the kernel lets nobody."""
    with opened(target, os.O_RDONLY | os.O_DIRECTORY) as fd:
        try:
            growing.grow_mounted(fd, filesystem, size)
        except PermissionError:
            pytest.skip(f"the kernel does not let {filesystem} grow while it is mounted: CAP_SYS_RESOURCE is missing")


def test_an_image_that_nobody_uses_grows_and_keeps_its_data(area: Path) -> None:
    image = made(area, "ext4")
    os.truncate(image, LARGE)
    with opened(image, os.O_RDWR) as fd:
        for _ in range(2):
            asyncio.run(growing.grow_image(fd, "ext4", lock=fd))
    with attached(image, "ext4") as (target, _):
        assert LARGE * 0.9 <= total(target) <= LARGE
        assert (target / "kept").read_bytes() == CONTENT


@pytest.mark.parametrize("filesystem", ["xfs", "ext4"])
def test_it_grows_while_it_is_mounted_and_keeps_its_data(area: Path, filesystem: str) -> None:
    image = made(area, filesystem)
    with attached(image, filesystem) as (target, loop):
        before = total(target)
        os.truncate(image, LARGE)
        loops.set_capacity(loop)
        grown(target, filesystem, LARGE)
        assert LARGE * 0.85 <= total(target) <= LARGE
        assert total(target) > before
        grown(target, filesystem, LARGE)
        assert (target / "kept").read_bytes() == CONTENT
        (target / "new").write_bytes(b"\1" * (SMALL + 16 * MIB))
    with attached(image, filesystem) as (target, _):
        assert (target / "kept").read_bytes() == CONTENT
        assert (target / "new").stat().st_size == SMALL + 16 * MIB


def test_it_does_not_grow_beyond_its_device(area: Path) -> None:
    image = made(area, "xfs")
    with attached(image, "xfs") as (target, _):
        before = total(target)
        with opened(target, os.O_RDONLY | os.O_DIRECTORY) as fd, pytest.raises(OSError, match=r".") as refused:
            growing.grow_mounted(fd, "xfs", LARGE)
        assert refused.value.errno in (errno.EINVAL, errno.EIO, errno.ENXIO)
        assert total(target) == before


@pytest.mark.parametrize("extra", [4096, 63 * 4096, 64 * 4096, MIB, 7 * MIB + 4096])
def test_a_rest_too_small_for_a_group_is_left_out(area: Path, extra: int) -> None:
    image = made(area, "xfs")
    with attached(image, "xfs") as (target, loop):
        before = total(target)
        os.truncate(image, SMALL + extra)
        loops.set_capacity(loop)
        grown(target, "xfs", SMALL + extra)
        assert before <= total(target) <= before + extra


def test_it_is_never_made_smaller(area: Path) -> None:
    image = made(area, "xfs")
    with attached(image, "xfs") as (target, _):
        before = total(target)
        grown(target, "xfs", SMALL // 2)
        assert total(target) == before


def test_a_damaged_filesystem_is_not_grown(area: Path) -> None:
    image = made(area, "ext4")
    with image.open("r+b") as file:
        file.seek(1024)
        file.write(b"\0" * 1024)
    os.truncate(image, LARGE)
    with opened(image, os.O_RDWR) as fd, pytest.raises(commands.CommandError, match="e2fsck"):
        asyncio.run(growing.grow_image(fd, "ext4", lock=fd))


def test_xfs_says_that_it_grows_only_while_it_is_mounted(area: Path) -> None:
    assert not growing.grows_unmounted("xfs")
    image = sparse(area / "image", SMALL)
    with opened(image, os.O_RDWR) as fd, pytest.raises(ValueError, match="only while it is mounted"):
        asyncio.run(growing.grow_image(fd, "xfs", lock=fd))
