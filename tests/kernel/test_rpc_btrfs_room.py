"""A volume on btrfs can be written anew from its first byte to its last, whatever copies of it hold on to the old ones.

Simple quotas count what a volume wrote for as long as anybody refers to it, so its limit has to be higher than its size
for as long as there are copies, and not for longer.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from moorage_csi.host import qgroups
from moorage_csi.proto import csi_pb2 as csi
from tests.kernel.kinds import BTRFS, counting
from tests.kernel.loop_filesystem import MIB, filesystem, fill
from tests.kernel.machine import tool
from tests.kernel.rpc_driver import Driver
from tests.kernel.test_rpc_snapshots import copy, snapshot

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

SIZE = 64 * MIB
DATA = 48 * MIB
DISK_QUOTA = 122
"""EDQUOT."""


@pytest.fixture
async def driver(area: Path) -> AsyncIterator[Driver]:
    with BTRFS.pool(area) as pool:
        fd = os.open(pool.parent, os.O_RDONLY)
        try:
            if qgroups.state(fd).quota is not qgroups.Quota.SIMPLE:
                pytest.skip("the kernel has no simple quotas of btrfs (6.7)")
        finally:
            os.close(fd)
        async with BTRFS.started(area, pool) as started:
            yield started


async def published(driver: Driver, name: str = "pvc-1") -> tuple[str, Path]:
    volume = await BTRFS.create(driver, name, size=SIZE)
    target = driver.target(name)
    await driver.publish(volume, target)
    fill(target / "old", DATA)
    return volume, target


def limit(driver: Driver, volume: str) -> int:
    fd = os.open(driver.volume_folder(volume) / "data", os.O_RDONLY)
    try:
        return qgroups.read_limit(fd).limit
    finally:
        os.close(fd)


async def written_anew(target: Path) -> None:
    """Replace all that is in the volume, and find its end where it was before."""
    (target / "old").unlink(missing_ok=True)
    os.sync()
    assert fill(target / "new", DATA) == DATA
    assert 0.9 * SIZE <= fill(target / "new", end=DISK_QUOTA) <= SIZE
    (target / "new").unlink()


async def deleted(driver: Driver, snapshot_id: str) -> None:
    await driver.controller.DeleteSnapshot(csi.DeleteSnapshotRequest(snapshot_id=snapshot_id))
    await driver.emptied()


async def lowered(driver: Driver, volume: str, *, to: int) -> None:
    """Wait until the limit is that; the kernel counts what is deleted a while longer, and then it is looked at again."""
    deadline = time.monotonic() + 20
    while limit(driver, volume) != to:
        assert time.monotonic() < deadline, limit(driver, volume)
        for station in driver.pools:
            station.discarded()
        await asyncio.sleep(0.1)


async def test_beside_a_snapshot_everything_can_be_written_anew_and_no_more_once_it_is_gone(driver: Driver) -> None:
    volume, target = await published(driver)
    taken = await snapshot(driver, volume)
    assert SIZE + DATA <= limit(driver, volume) <= SIZE + DATA + 2 * MIB
    await written_anew(target)
    await deleted(driver, taken.snapshot_id)
    await lowered(driver, volume, to=SIZE)
    assert fill(target / "full", end=DISK_QUOTA) <= SIZE
    await driver.unpublish(volume, target)


async def test_beside_a_clone_too_and_the_clone_has_its_own_size(driver: Driver) -> None:
    volume, target = await published(driver)
    made = (await copy(driver, volume=volume, size=SIZE)).volume_id
    other = driver.target("other")
    await driver.publish(made, other)
    assert limit(driver, made) == SIZE
    await written_anew(target)
    await driver.unpublish(made, other)
    await driver.delete(made)
    await driver.emptied()
    await lowered(driver, volume, to=SIZE)
    await driver.unpublish(volume, target)


async def test_what_a_restored_volume_holds_counts_also_once_its_snapshot_is_gone(driver: Driver) -> None:
    volume, target = await published(driver)
    taken = await snapshot(driver, volume)
    made = (await copy(driver, snapshot=taken.snapshot_id, size=SIZE)).volume_id
    await deleted(driver, taken.snapshot_id)
    await asyncio.sleep(0.5)
    await written_anew(target)
    await driver.delete(made)
    await driver.emptied()
    await lowered(driver, volume, to=SIZE)
    await driver.unpublish(volume, target)


async def test_many_snapshots_of_what_does_not_change_do_not_add_up(driver: Driver) -> None:
    volume, target = await published(driver)
    taken = [await snapshot(driver, volume, f"snap-{number}") for number in range(5)]
    assert limit(driver, volume) <= SIZE + DATA + 2 * MIB
    for each in taken[:4]:
        await deleted(driver, each.snapshot_id)
    await written_anew(target)
    await deleted(driver, taken[4].snapshot_id)
    await lowered(driver, volume, to=SIZE)
    await driver.unpublish(volume, target)


async def test_a_volume_that_grows_beside_a_snapshot_keeps_that_room_and_is_well(driver: Driver) -> None:
    volume, target = await published(driver)
    taken = await snapshot(driver, volume)
    await driver.controller.ControllerExpandVolume(
        csi.ControllerExpandVolumeRequest(volume_id=volume, capacity_range=csi.CapacityRange(required_bytes=2 * SIZE))
    )
    assert 2 * SIZE + DATA <= limit(driver, volume) <= 2 * SIZE + DATA + 2 * MIB
    looked = await driver.controller.ControllerGetVolume(csi.ControllerGetVolumeRequest(volume_id=volume))
    assert not looked.status.volume_condition.abnormal, looked.status.volume_condition.message
    await deleted(driver, taken.snapshot_id)
    await lowered(driver, volume, to=2 * SIZE)
    await driver.unpublish(volume, target)


@pytest.mark.parametrize("simple", [True, False], ids=["simple", "qgroups"])
async def test_a_subvolume_that_a_pod_makes_is_within_the_size_or_it_is_said(area: Path, simple: bool) -> None:
    with filesystem(area, "btrfs", size=1024 * MIB) as disk:
        if simple and counting(disk, simple=True) is not qgroups.Quota.SIMPLE:
            pytest.skip("the kernel has no simple quotas of btrfs (6.7)")
        counting(disk, simple=simple)
        async with BTRFS.started(area, disk / "pool") as driver:
            volume = await BTRFS.create(driver, size=SIZE)
            target = driver.target("pod")
            await driver.publish(volume, target)
            tool("btrfs", "-q", "subvolume", "create", target / "own")
            request = csi.ControllerGetVolumeRequest(volume_id=volume)
            condition = (await driver.controller.ControllerGetVolume(request)).status.volume_condition
            assert condition.abnormal is not simple, condition.message
            if simple:
                assert fill(target / "own/file", end=DISK_QUOTA) <= SIZE
            else:
                assert "1 subvolumes were made" in condition.message
            await driver.unpublish(volume, target)


def groups(driver: Driver) -> list[int]:
    """The numbers of the subvolumes that the kernel keeps anything for."""
    fd = os.open(driver.pool, os.O_RDONLY)
    try:
        return sorted({group & 2**48 - 1 for group, _ in qgroups._items(fd, 0, qgroups._INFO_ITEM)})
    finally:
        os.close(fd)


async def test_nothing_is_kept_for_the_limits_of_subvolumes_that_went_without_the_driver(driver: Driver) -> None:
    kept = await BTRFS.create(driver, "kept", size=SIZE)
    before = groups(driver)
    for number in range(3):
        volume = await BTRFS.create(driver, f"pvc-{number}", size=SIZE)
        tool("btrfs", "-q", "subvolume", "delete", "--commit-after", driver.volume_folder(volume) / "data")
        tool("btrfs", "subvolume", "sync", driver.pool)
        assert len(groups(driver)) == len(before) + 1, "the kernel keeps our group"
        await driver.delete(volume)
        deadline = time.monotonic() + 20
        while groups(driver) != before:
            assert time.monotonic() < deadline, groups(driver)
            await asyncio.sleep(0.05)
    assert limit(driver, kept) == SIZE


@pytest.mark.parametrize("became", ["directory", "link", "file"])
async def test_a_volume_whose_subvolume_became_something_else_says_so_and_can_be_deleted(
    driver: Driver, became: str
) -> None:
    volume = await BTRFS.create(driver, size=SIZE)
    data = driver.volume_folder(volume) / "data"
    data.rename(data.with_name("aside"))
    if became == "directory":
        data.mkdir()
        (data / "file").write_bytes(b"put back")
    elif became == "link":
        data.symlink_to("aside")
    else:
        data.write_bytes(b"file")
    request = csi.ControllerGetVolumeRequest(volume_id=volume)
    told = (await driver.controller.ControllerGetVolume(request)).status.volume_condition
    assert told.abnormal
    assert ("not a subvolume" if became == "directory" else "is not a directory") in told.message
    await driver.delete(volume)
    await driver.emptied()
    assert driver.left() == []
