"""The same volumes, snapshots and copies in pools on btrfs and xfs, which can do more than a plain filesystem."""

import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from moorage_csi.host import qgroups
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.volumes.pool import PoolSettings
from tests.kernel.kinds import counting
from tests.kernel.loop_filesystem import MIB, disk_use, filesystem, fill
from tests.kernel.rpc_driver import Driver, capability, refused, running
from tests.kernel.test_rpc_snapshots import copy, snapshot

pytestmark = pytest.mark.kernel

DISK = 2048 * MIB
SIZE = 64 * MIB
BTRFS = {"backend": "btrfs"}
AUTO = {"backend": "auto"}


@asynccontextmanager
async def on(area: Path, disk: Path) -> AsyncIterator[Driver]:
    async with running(area, [PoolSettings(name="default", path=str(disk / "pool"))]) as driver:
        yield driver


@pytest.fixture(params=["simple", "qgroups"])
def counted(area: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    with filesystem(area, "btrfs", size=DISK) as disk:
        simple = request.param == "simple"
        if counting(disk, simple=simple) is not qgroups.Quota.SIMPLE and simple:
            pytest.skip("the kernel has no simple quotas of btrfs (6.7)")
        yield disk


async def test_a_pool_that_counts_makes_subvolumes_by_itself_and_holds_their_size(area: Path, counted: Path) -> None:
    async with on(area, counted) as driver:
        volume = await driver.create(size=SIZE, parameters=AUTO)
        assert (volume.volume_context["backend"], volume.volume_context["quota"]) == ("btrfs", "enforced")
        target = driver.target("pod")
        await driver.publish(volume.volume_id, target)
        written = fill(target / "file", end=122)
        assert 0.9 * SIZE <= written <= SIZE
        (target / "file").unlink()
        os.sync()
        usage = (await driver.stats(volume.volume_id, target))["BYTES"]
        assert usage.total == SIZE
        assert usage.used + usage.available == SIZE
        await driver.unpublish(volume.volume_id, target)
        await driver.delete(volume.volume_id)
        await driver.emptied()
        assert driver.left() == []


async def test_a_snapshot_takes_no_space_and_no_time_and_is_written_apart(area: Path, counted: Path) -> None:
    async with on(area, counted) as driver:
        volume = (await driver.create(size=SIZE, parameters=AUTO)).volume_id
        target, other = driver.target("pod"), driver.target("other")
        await driver.publish(volume, target)
        for number in range(500):
            (target / f"file-{number}").write_bytes(b"x" * 65536)
        before = disk_use(counted)
        began = time.monotonic()
        taken = await snapshot(driver, volume)
        made = await copy(driver, snapshot=taken.snapshot_id, size=2 * SIZE)
        seconds = time.monotonic() - began
        assert disk_use(counted) - before < 4 * MIB
        assert seconds < 5, "it copied"
        assert made.capacity_bytes == 2 * SIZE
        (target / "file-0").write_bytes(b"the source's")
        await driver.publish(made.volume_id, other)
        assert (other / "file-0").read_bytes() == b"x" * 65536
        (other / "file-1").write_bytes(b"the copy's")
        assert (target / "file-1").read_bytes() == b"x" * 65536
        await driver.unpublish(volume, target)
        await driver.delete(volume)
        await driver.emptied()
        assert (other / "file-2").read_bytes() == b"x" * 65536
        await driver.unpublish(made.volume_id, other)
        await driver.delete(made.volume_id)
        await driver.controller.DeleteSnapshot(csi.DeleteSnapshotRequest(snapshot_id=taken.snapshot_id))
        await driver.emptied()
        assert driver.left() == []


async def test_a_subvolume_grows_under_its_user(area: Path, counted: Path) -> None:
    async with on(area, counted) as driver:
        volume = (await driver.create(size=SIZE, parameters=AUTO)).volume_id
        target = driver.target("pod")
        await driver.publish(volume, target)
        fill(target / "file", end=122)
        grown = await driver.controller.ControllerExpandVolume(
            csi.ControllerExpandVolumeRequest(
                volume_id=volume, capacity_range=csi.CapacityRange(required_bytes=2 * SIZE)
            )
        )
        assert (grown.capacity_bytes, grown.node_expansion_required) == (2 * SIZE, False)
        assert fill(target / "more", end=122) >= 0.8 * SIZE
        await driver.unpublish(volume, target)


async def test_without_counting_a_size_is_refused_or_is_no_promise(area: Path) -> None:
    with filesystem(area, "btrfs", size=DISK) as disk:
        async with on(area, disk) as driver:
            assert (await driver.create(size=SIZE, parameters=AUTO)).volume_context["backend"] == "image"
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "btrfs quota enable"):
                await driver.create("other", size=SIZE, parameters=BTRFS)
            made = await driver.create("third", size=SIZE, parameters={**BTRFS, "quota": "best-effort"})
            assert made.volume_context["quota"] == "best-effort"


async def test_a_pool_on_another_filesystem_has_no_subvolumes(area: Path) -> None:
    async with running(area) as driver:
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "backend btrfs is not possible"):
            await driver.create(parameters=BTRFS)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
@pytest.mark.parametrize("inside", ["ext4", "xfs"])
async def test_an_image_is_copied_in_no_time_where_data_can_be_shared(area: Path, kind: str, inside: str) -> None:
    with filesystem(area, kind, size=DISK) as disk:
        async with on(area, disk) as driver:
            wanted = capability(filesystem=inside)
            image = {"backend": "image"}
            size = 320 * MIB
            volume = (await driver.create(size=size, wanted=wanted, parameters=image)).volume_id
            target, other = driver.target("pod"), driver.target("other")
            await driver.publish(volume, target, wanted=wanted)
            (target / "kept").write_bytes(b"x" * (128 * MIB))
            os.sync()
            before = disk_use(disk)
            taken = await snapshot(driver, volume)
            made = await copy(driver, snapshot=taken.snapshot_id, wanted=wanted, parameters=image, size=size)
            assert disk_use(disk) - before < 16 * MIB, "it shares nothing"
            (target / "kept").write_bytes(b"after")
            await driver.publish(made.volume_id, other, wanted=wanted)
            assert (other / "kept").stat().st_size == 128 * MIB
            await driver.unpublish(volume, target)
            await driver.unpublish(made.volume_id, other)
