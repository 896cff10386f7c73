"""A volume becomes larger, in use or not, keeps its data, and never says a size that it has not."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from moorage_csi.backends.fitting import GROWING
from moorage_csi.host import growing
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.volumes.pool import PoolSettings
from tests.kernel.rpc_driver import DIRECTORY, MIB, Driver, capability, refused, running

pytestmark = pytest.mark.kernel

SMALL, LARGE = 320 * MIB, 704 * MIB
CONTENT = b"what was there before"
KINDS = pytest.mark.parametrize("filesystem", ["ext4", "xfs"])


async def expand(driver: Driver, volume: str, size: int, *, limit: int = 0) -> csi.ControllerExpandVolumeResponse:
    return await driver.controller.ControllerExpandVolume(
        csi.ControllerExpandVolumeRequest(
            volume_id=volume, capacity_range=csi.CapacityRange(required_bytes=size, limit_bytes=limit)
        )
    )


async def expand_node(driver: Driver, volume: str, path: Path) -> int:
    request = csi.NodeExpandVolumeRequest(volume_id=volume, volume_path=str(path))
    return (await driver.node.NodeExpandVolume(request)).capacity_bytes


async def total(driver: Driver, volume: str, path: Path) -> int:
    return (await driver.stats(volume, path))["BYTES"].total


async def sized(driver: Driver, volume: str) -> int:
    found = await driver.controller.ControllerGetVolume(csi.ControllerGetVolumeRequest(volume_id=volume))
    return found.volume.capacity_bytes


@KINDS
async def test_a_volume_that_nobody_uses_grows_and_keeps_its_data(area: Path, filesystem: str) -> None:
    async with running(area) as driver:
        wanted = capability(filesystem=filesystem)
        volume = (await driver.create(size=SMALL, wanted=wanted)).volume_id
        target = driver.target("pod")
        await driver.publish(volume, target, wanted=wanted)
        (target / "kept").write_bytes(CONTENT)
        await driver.unpublish(volume, target)
        grown = await expand(driver, volume, LARGE)
        assert grown.capacity_bytes == LARGE
        # xfs grows only while it is mounted, which publishing does.
        assert grown.node_expansion_required is (filesystem == "xfs")
        await driver.publish(volume, target, wanted=wanted)
        assert 0.85 * LARGE <= await total(driver, volume, target) <= LARGE
        assert (target / "kept").read_bytes() == CONTENT
        (target / "new").write_bytes(b"\1" * (SMALL + 64 * MIB))
        assert await sized(driver, volume) == LARGE
        assert await expand_node(driver, volume, target) == LARGE
        again = await expand(driver, volume, LARGE)
        assert (again.capacity_bytes, again.node_expansion_required) == (LARGE, False)
        await driver.unpublish(volume, target)


@KINDS
async def test_a_volume_in_use_grows_or_says_that_it_cannot_yet(area: Path, filesystem: str) -> None:
    async with running(area) as driver:
        wanted = capability(filesystem=filesystem)
        volume = (await driver.create(size=SMALL, wanted=wanted)).volume_id
        target = driver.target("pod")
        await driver.publish(volume, target, wanted=wanted)
        (target / "kept").write_bytes(CONTENT)
        before = await total(driver, volume, target)
        grown = await expand(driver, volume, LARGE)
        if grown.node_expansion_required:
            assert filesystem == "ext4", "xfs grows anywhere while it is mounted"
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "end the pods that use the volume"):
                await expand_node(driver, volume, target)
            assert await total(driver, volume, target) == before
            assert await sized(driver, volume) == SMALL, "a size that is not there yet is not said"
            await driver.unpublish(volume, target)
            await driver.publish(volume, target, wanted=wanted)
        assert 0.85 * LARGE <= await total(driver, volume, target) <= LARGE
        assert await sized(driver, volume) == LARGE
        assert (target / "kept").read_bytes() == CONTENT
        await driver.unpublish(volume, target)


async def test_a_block_volume_grows_under_its_user(area: Path) -> None:
    async with running(area) as driver:
        wanted = capability(block=True)
        volume = (await driver.create(size=SMALL, wanted=wanted)).volume_id
        target = driver.target("pod")
        await driver.publish(volume, target, wanted=wanted)
        fd = os.open(target, os.O_RDWR)
        try:
            os.pwrite(fd, CONTENT, 0)
            grown = await expand(driver, volume, LARGE)
            assert (grown.capacity_bytes, grown.node_expansion_required) == (LARGE, False)
            assert os.lseek(fd, 0, os.SEEK_END) == LARGE
            assert os.pread(fd, len(CONTENT), 0) == CONTENT
        finally:
            os.close(fd)
        await driver.unpublish(volume, target)


async def test_a_directory_that_holds_no_size_grows_by_its_word(area: Path) -> None:
    async with running(area) as driver:
        volume = (await driver.create(size=SMALL, parameters=DIRECTORY)).volume_id
        grown = await expand(driver, volume, LARGE)
        assert (grown.capacity_bytes, grown.node_expansion_required) == (LARGE, False)
        assert await sized(driver, volume) == LARGE


async def test_more_than_there_is_is_refused_and_changes_nothing(area: Path) -> None:
    async with running(area) as driver:
        volume = (await driver.create(size=SMALL)).volume_id
        free = (await driver.controller.GetCapacity(csi.GetCapacityRequest())).available_capacity
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "has no room for"):
            await expand(driver, volume, SMALL + free + MIB)
        assert await sized(driver, volume) == SMALL
        assert (driver.volume_folder(volume) / "image").stat().st_size == SMALL
        assert (await driver.controller.GetCapacity(csi.GetCapacityRequest())).available_capacity >= free - MIB


async def test_what_died_half_grown_is_whole_before_more_fails_for_good(
    area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(*_: object, keep: Callable[[bytes], None], **__: object) -> None:
        with (driver.volume_folder(volume) / "image").open("rb") as image:
            keep(os.pread(image.fileno(), 1024, 1024))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def full(fd: int, size: int) -> None:
        if size > LARGE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        truncate(fd, size)

    truncate = os.ftruncate
    async with running(area) as driver:
        volume = (await driver.create(size=SMALL)).volume_id
        with monkeypatch.context() as patched, refused(grpc.StatusCode.UNAVAILABLE, "cannot grow"):
            patched.setattr(growing, "grow_image", die)
            await expand(driver, volume, LARGE)
        assert (driver.volume_folder(volume) / GROWING).exists()
        with monkeypatch.context() as patched, refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "keeps its size"):
            patched.setattr(os, "ftruncate", full)
            await expand(driver, volume, LARGE + 64 * MIB)
        assert await sized(driver, volume) == LARGE
        target = driver.target("pod")
        await driver.publish(volume, target)
        assert 0.85 * LARGE <= await total(driver, volume, target) <= LARGE
        await driver.unpublish(volume, target)


async def test_what_grew_is_promised(area: Path) -> None:
    async with running(area, [PoolSettings(name="default", path=str(area / "pool"))]) as driver:
        volume = (await driver.create(size=SMALL)).volume_id
        before = (await driver.controller.GetCapacity(csi.GetCapacityRequest())).available_capacity
        await expand(driver, volume, LARGE)
        after = (await driver.controller.GetCapacity(csi.GetCapacityRequest())).available_capacity
        assert abs((before - after) - (LARGE - SMALL)) < 32 * MIB


async def test_nothing_is_made_smaller(area: Path) -> None:
    async with running(area) as driver:
        volume = (await driver.create(size=LARGE)).volume_id
        same = await expand(driver, volume, SMALL)
        assert (same.capacity_bytes, same.node_expansion_required) == (LARGE, False)
        with refused(grpc.StatusCode.OUT_OF_RANGE, "cannot shrink"):
            await expand(driver, volume, SMALL, limit=SMALL)


async def test_what_is_asked_in_vain(area: Path) -> None:
    async with running(area) as driver:
        absent = "vol-" + "0" * 32
        with refused(grpc.StatusCode.NOT_FOUND, absent):
            await expand(driver, absent, LARGE)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "capacity_range is missing"):
            await driver.controller.ControllerExpandVolume(csi.ControllerExpandVolumeRequest(volume_id=absent))
        with refused(grpc.StatusCode.NOT_FOUND, absent):
            await expand_node(driver, absent, driver.target("pod"))
        volume = (await driver.create(size=SMALL)).volume_id
        with refused(grpc.StatusCode.NOT_FOUND, "does not lie beneath"):
            await expand_node(driver, volume, Path("/etc"))
