"""Snapshots and copies: of one moment, whole, apart from their source for ever, and never lost with it."""

import asyncio
import fcntl
import os
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from moorage_csi.host import freezing
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.volumes.ids import SnapshotId
from moorage_csi.volumes.snapshot import SnapshotState
from tests.kernel.rpc_driver import DIRECTORY, MIB, Driver, capability, refused, running

pytestmark = pytest.mark.kernel

FREEZE = 0xC0045877
SIZE = 320 * MIB
KINDS = pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ({}, capability(filesystem="ext4")),
        ({}, capability(filesystem="xfs")),
        (DIRECTORY, capability()),
    ],
    ids=["image-ext4", "image-xfs", "directory"],
)


async def snapshot(driver: Driver, volume: str, name: str = "snap-1") -> csi.Snapshot:
    """A snapshot that is ready to use; asked for until it is, as callers do."""
    async with asyncio.timeout(30):
        while True:
            request = csi.CreateSnapshotRequest(source_volume_id=volume, name=name)
            taken = (await driver.controller.CreateSnapshot(request)).snapshot
            if taken.ready_to_use:
                return taken
            await asyncio.sleep(0.1)


async def copy(
    driver: Driver,
    *,
    snapshot: str = "",
    volume: str = "",
    name: str = "copy",
    size: int = SIZE,
    parameters: dict[str, str] | None = None,
    wanted: csi.VolumeCapability | None = None,
    limit: int = 0,
) -> csi.Volume:
    source = csi.VolumeContentSource()
    if snapshot:
        source.snapshot.snapshot_id = snapshot
    else:
        source.volume.volume_id = volume
    request = csi.CreateVolumeRequest(
        name=name,
        capacity_range=csi.CapacityRange(required_bytes=size, limit_bytes=limit),
        volume_capabilities=[wanted or capability()],
        parameters=parameters or {},
        volume_content_source=source,
    )
    return (await driver.controller.CreateVolume(request)).volume


async def listed(driver: Driver, *, source_volume_id: str = "", snapshot_id: str = "") -> list[str]:
    request = csi.ListSnapshotsRequest(source_volume_id=source_volume_id, snapshot_id=snapshot_id)
    answer = await driver.controller.ListSnapshots(request)
    return [entry.snapshot.snapshot_id for entry in answer.entries]


@KINDS
async def test_a_snapshot_is_what_was_there_and_a_copy_of_it_is_written_apart(
    area: Path, parameters: dict[str, str], wanted: csi.VolumeCapability
) -> None:
    async with running(area) as driver:
        volume = (await driver.create(size=SIZE, parameters=parameters, wanted=wanted)).volume_id
        target, other = driver.target("pod"), driver.target("other")
        await driver.publish(volume, target, wanted=wanted)
        (target / "kept").write_bytes(b"before" * 1000)
        taken = await snapshot(driver, volume)
        assert (taken.source_volume_id, taken.size_bytes) == (volume, SIZE)
        (target / "kept").write_bytes(b"after")
        (target / "later").write_bytes(b"later")
        made = await copy(driver, snapshot=taken.snapshot_id, parameters=parameters, wanted=wanted)
        assert made.content_source.snapshot.snapshot_id == taken.snapshot_id
        # Both are mounted at the same time, though their filesystems have one uuid.
        await driver.publish(made.volume_id, other, wanted=wanted)
        assert (other / "kept").read_bytes() == b"before" * 1000
        assert not (other / "later").exists()
        (other / "kept").write_bytes(b"the copy's")
        (other / "new").write_bytes(b"the copy's")
        assert (target / "kept").read_bytes() == b"after"
        assert not (target / "new").exists()
        again = await copy(driver, snapshot=taken.snapshot_id, parameters=parameters, wanted=wanted, name="third")
        third = driver.target("third")
        await driver.publish(again.volume_id, third, wanted=wanted)
        assert (third / "kept").read_bytes() == b"before" * 1000
        for one, where in ((volume, target), (made.volume_id, other), (again.volume_id, third)):
            await driver.unpublish(one, where)


@KINDS
async def test_a_snapshot_outlives_its_source_and_a_copy_its_snapshot(
    area: Path, parameters: dict[str, str], wanted: csi.VolumeCapability
) -> None:
    async with running(area) as driver:
        volume = (await driver.create(size=SIZE, parameters=parameters, wanted=wanted)).volume_id
        target = driver.target("pod")
        await driver.publish(volume, target, wanted=wanted)
        (target / "kept").write_bytes(b"kept")
        await driver.unpublish(volume, target)
        taken = (await snapshot(driver, volume)).snapshot_id
        await driver.delete(volume)
        await driver.emptied()
        assert await listed(driver) == [taken]
    async with running(area) as driver:
        made = await copy(driver, snapshot=taken, parameters=parameters, wanted=wanted)
        await driver.controller.DeleteSnapshot(csi.DeleteSnapshotRequest(snapshot_id=taken))
        await driver.controller.DeleteSnapshot(csi.DeleteSnapshotRequest(snapshot_id=taken))
        await driver.emptied()
        assert await listed(driver) == []
        await driver.publish(made.volume_id, target, wanted=wanted)
        assert (target / "kept").read_bytes() == b"kept"
        await driver.unpublish(made.volume_id, target)
        await driver.delete(made.volume_id)
        await driver.emptied()
        assert driver.left() == []


@KINDS
async def test_a_copy_into_a_larger_claim_has_all_of_its_size(
    area: Path, parameters: dict[str, str], wanted: csi.VolumeCapability
) -> None:
    async with running(area) as driver:
        volume = (await driver.create(size=SIZE, parameters=parameters, wanted=wanted)).volume_id
        target = driver.target("pod")
        await driver.publish(volume, target, wanted=wanted)
        (target / "kept").write_bytes(b"kept")
        made = await copy(driver, volume=volume, size=2 * SIZE, parameters=parameters, wanted=wanted)
        assert made.capacity_bytes == 2 * SIZE
        assert made.content_source.volume.volume_id == volume
        other = driver.target("other")
        await driver.publish(made.volume_id, other, wanted=wanted)
        assert (other / "kept").read_bytes() == b"kept"
        if not parameters:
            total = (await driver.stats(made.volume_id, other))["BYTES"].total
            assert 0.85 * 2 * SIZE <= total <= 2 * SIZE
        await driver.unpublish(made.volume_id, other)
        await driver.unpublish(volume, target)


async def test_a_device_is_copied_as_it_was_written(area: Path) -> None:
    async with running(area) as driver:
        wanted = capability(block=True)
        volume = (await driver.create(size=SIZE, wanted=wanted)).volume_id
        target, other = driver.target("pod"), driver.target("other")
        await driver.publish(volume, target, wanted=wanted)
        target.write_bytes(b"on the device")
        await driver.unpublish(volume, target)
        taken = await snapshot(driver, volume)
        made = await copy(driver, snapshot=taken.snapshot_id, wanted=wanted)
        await driver.publish(made.volume_id, other, wanted=wanted)
        with other.open("rb") as device:
            assert device.read(13) == b"on the device"
        await driver.unpublish(made.volume_id, other)


@KINDS
async def test_nobody_stays_frozen(area: Path, parameters: dict[str, str], wanted: csi.VolumeCapability) -> None:
    async with running(area) as driver:
        volume = (await driver.create(size=SIZE, parameters=parameters, wanted=wanted)).volume_id
        target = driver.target("pod")
        await driver.publish(volume, target, wanted=wanted)
        for number in range(3):
            await snapshot(driver, volume, f"snap-{number}")
            (target / f"file-{number}").write_bytes(b"written")
        await driver.unpublish(volume, target)


async def test_the_same_name_is_the_same_snapshot_and_of_no_other_volume(area: Path) -> None:
    async with running(area) as driver:
        one = (await driver.create("one", size=SIZE)).volume_id
        two = (await driver.create("two", size=SIZE)).volume_id
        first = await snapshot(driver, one, "name")
        assert await snapshot(driver, one, "name") == first
        with refused(grpc.StatusCode.ALREADY_EXISTS, "take another name"):
            await snapshot(driver, two, "name")
        second = await snapshot(driver, two, "other")
        assert sorted(await listed(driver)) == sorted([first.snapshot_id, second.snapshot_id])
        assert await listed(driver, source_volume_id=two) == [second.snapshot_id]
        assert await listed(driver, snapshot_id=first.snapshot_id) == [first.snapshot_id]
        assert await listed(driver, snapshot_id="snap-" + "0" * 32) == []
        got = await driver.controller.GetSnapshot(csi.GetSnapshotRequest(snapshot_id=first.snapshot_id))
        assert got.snapshot == first


async def test_a_copy_is_what_its_source_is(area: Path) -> None:
    async with running(area) as driver:
        volume = (await driver.create(size=SIZE, wanted=capability(filesystem="xfs"))).volume_id
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "cannot have ext4"):
            await copy(driver, volume=volume, wanted=capability(filesystem="ext4"))
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "is of mode filesystem"):
            await copy(driver, volume=volume, wanted=capability(block=True))
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "is of backend image"):
            await copy(driver, volume=volume, parameters=DIRECTORY)
        with refused(grpc.StatusCode.OUT_OF_RANGE, "may have"):
            await copy(driver, volume=volume, size=SIZE // 2, limit=SIZE // 2)
        with refused(grpc.StatusCode.NOT_FOUND, "is not on"):
            await copy(driver, volume="vol-" + "0" * 32)
        with refused(grpc.StatusCode.NOT_FOUND, "is not on"):
            await copy(driver, snapshot="snap-" + "0" * 32)
        await copy(driver, volume=volume)
        await copy(driver, volume=volume)
        await driver.create("empty", size=SIZE)
        with refused(grpc.StatusCode.ALREADY_EXISTS, "it is made empty"):
            await copy(driver, volume=volume, name="empty")


async def test_what_is_being_copied_is_not_taken_away(area: Path) -> None:
    async with running(area) as driver:
        volume = (await driver.create(size=SIZE)).volume_id
        with driver.guard.reading(volume), refused(grpc.StatusCode.ABORTED, "is being copied"):
            await driver.delete(volume)
        await driver.delete(volume)


async def test_a_filesystem_that_was_left_frozen_is_thawed_at_the_start(area: Path) -> None:
    """A plug-in that is killed between freezing and thawing leaves the record of the snapshot that it had begun."""
    async with running(area) as driver:
        volume = (await driver.create(size=SIZE)).volume_id
        target = driver.target("pod")
        await driver.publish(volume, target)
        taken = await snapshot(driver, volume)
        (station,) = driver.pools
        pool = (await station.open()).pool
        record = pool.snapshots.find(SnapshotId(taken.snapshot_id))
        assert record is not None
        pool.snapshots.update(replace(record, state=SnapshotState.CREATING))
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, FREEZE, 0)
        async with running(area) as driver:
            assert not freezing.thaw(fd), "it was thawed by the start"
            (target / "file").write_bytes(b"written")
            assert await listed(driver) == [], "what was begun is thrown away"
    finally:
        freezing.thaw(fd)
        os.close(fd)
    async with running(area) as driver:
        await driver.unpublish(volume, target)


async def test_what_is_archived_lies_under_a_name_that_a_person_can_read(area: Path) -> None:
    parameters = {
        **DIRECTORY,
        "onDelete": "archive",
        "csi.storage.k8s.io/pvc/name": "data",
        "csi.storage.k8s.io/pvc/namespace": "shop",
    }
    async with running(area) as driver:
        volume = (await driver.create(size=SIZE, parameters=parameters)).volume_id
        target = driver.target("pod")
        await driver.publish(volume, target)
        (target / "kept").write_bytes(b"kept")
        await driver.unpublish(volume, target)
        await driver.delete(volume)
        await driver.emptied()
        (archived,) = (driver.pool / "archived").iterdir()
        assert archived.name.startswith("shop_data_pvc-1-")
        assert (archived / "data" / "kept").read_bytes() == b"kept"
