"""A volume becomes smaller where a quota holds its size, never below what is in it, and its room is given to others."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from moorage_csi.errors import DriverError, NotFoundError, PreconditionError
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.proto import moorage_pb2 as moorage
from moorage_csi.rpc.shrinking import Shrinker
from moorage_csi.rpc.volumes import Volumes
from moorage_csi.volumes.record import VolumeId
from tests.kernel.kinds import BTRFS, DIRECTORY, EXT4, QUOTAS, Kind, each
from tests.kernel.loop_filesystem import MIB, fill
from tests.kernel.machine import held_by_quotas
from tests.kernel.rpc_driver import NODE, Driver
from tests.kernel.test_rpc_snapshots import snapshot

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

SIZE = 64 * MIB
SMALL = 24 * MIB


async def shrink(driver: Driver, volume: str, size: int) -> int:
    service = Volumes(pools=driver.pools, node_name=NODE, guard=driver.guard)
    return (await service.ShrinkVolume(moorage.ShrinkVolumeRequest(volume_id=volume, size_bytes=size), None)).size_bytes


async def promised(driver: Driver) -> int:
    station = next(iter(driver.pools))
    opened = await station.open()
    return opened.pool.claims()[0]


@asynccontextmanager
async def made(kind: Kind, area: Path) -> AsyncIterator[tuple[Driver, str, Path]]:
    """A volume of 64 MiB with 8 MiB in it, in use."""
    async with kind.driver(area) as driver:
        volume = await kind.create(driver, size=SIZE)
        target = driver.target("pod")
        await driver.publish(volume, target)
        fill(target / "kept", 8 * MIB)
        yield driver, volume, target
        await driver.unpublish(volume, target)


@each(*QUOTAS, BTRFS)
async def test_a_volume_in_use_is_held_to_less_and_its_room_is_free(kind: Kind, area: Path) -> None:
    async with made(kind, area) as (driver, volume, target):
        before = await promised(driver)
        assert await shrink(driver, volume, SMALL) == SMALL
        assert await promised(driver) == before - (SIZE - SMALL)
        assert (await driver.stats(volume, target))["BYTES"].total == SMALL
        looked = await driver.controller.ControllerGetVolume(csi.ControllerGetVolumeRequest(volume_id=volume))
        assert looked.volume.capacity_bytes == SMALL
        assert not looked.status.volume_condition.abnormal, looked.status.volume_condition.message
        with held_by_quotas():
            assert 8 * MIB + fill(target / "more", end=kind.full) <= SMALL
        assert await shrink(driver, volume, SMALL) == SMALL
        assert await shrink(driver, volume, SIZE) == SMALL, "it never grows by this"


@each(*QUOTAS, BTRFS)
async def test_it_never_becomes_smaller_than_what_is_in_it(kind: Kind, area: Path) -> None:
    async with made(kind, area) as (driver, volume, target):
        with pytest.raises(PreconditionError, match="are in use, more than 4Mi: delete files"):
            await shrink(driver, volume, 4 * MIB)
        assert (await driver.stats(volume, target))["BYTES"].total == SIZE
        (target / "kept").unlink()
        os.sync()
        assert await shrink(driver, volume, 4 * MIB) == 4 * MIB


@each(EXT4, DIRECTORY)
async def test_what_no_quota_holds_is_refused_or_only_written_down(kind: Kind, area: Path) -> None:
    async with kind.driver(area) as driver:
        volume = await kind.create(driver)
        if kind is EXT4:
            with pytest.raises(PreconditionError, match="never becomes smaller"):
                await shrink(driver, volume, 128 * MIB)
        else:
            assert await shrink(driver, volume, SMALL) == SMALL


@each(BTRFS)
async def test_beside_a_snapshot_the_smaller_volume_can_be_written_anew(kind: Kind, area: Path) -> None:
    async with made(kind, area) as (driver, volume, target):
        await snapshot(driver, volume)
        assert await shrink(driver, volume, SMALL) == SMALL
        (target / "kept").unlink()
        os.sync()
        assert 0.9 * SMALL <= fill(target / "new", end=kind.full) <= SMALL + MIB


@each(*QUOTAS, BTRFS)
async def test_what_stops_between_the_limit_and_the_record_is_told_and_finished(kind: Kind, area: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(step: str) -> None:
        raise StoppedError(step)

    async with made(kind, area) as (driver, volume, _):
        station = next(iter(driver.pools))
        opened = await station.open()
        with pytest.raises(StoppedError, match="lowered"):
            await Shrinker(step=stop).shrink(station, opened.pool.records[VolumeId(volume)], SMALL)
        looked = await driver.controller.ControllerGetVolume(csi.ControllerGetVolumeRequest(volume_id=volume))
        assert looked.status.volume_condition.abnormal
        assert await shrink(driver, volume, SMALL) == SMALL
        looked = await driver.controller.ControllerGetVolume(csi.ControllerGetVolumeRequest(volume_id=volume))
        assert not looked.status.volume_condition.abnormal


@pytest.mark.parametrize(("size", "words"), [(0, "say how small"), (-1, "say how small"), (1, "at least")])
async def test_a_size_that_cannot_be_meant_is_refused(area: Path, size: int, words: str) -> None:
    async with DIRECTORY.driver(area) as driver:
        volume = await DIRECTORY.create(driver)
        with pytest.raises(DriverError, match=words):
            await shrink(driver, volume, size)
        with pytest.raises(NotFoundError, match="is not on"):
            await shrink(driver, "vol-" + "0" * 32, SMALL)
