"""What is listed, and how each volume is: nothing is left out, and what is wrong is said."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from moorage_csi.host import mounts
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.volumes.pool import PoolSettings
from tests.kernel.rpc_driver import DIRECTORY, NODE, Driver, capability, refused, running

pytestmark = pytest.mark.kernel


async def listed(driver: Driver, most: int = 0) -> AsyncIterator[csi.ListVolumesResponse.Entry]:
    token = ""
    while True:
        page = await driver.controller.ListVolumes(csi.ListVolumesRequest(max_entries=most, starting_token=token))
        assert not most or len(page.entries) <= most
        for entry in page.entries:
            yield entry
        token = page.next_token
        if not token:
            return


async def condition(driver: Driver, volume: str) -> csi.VolumeCondition:
    request = csi.ControllerGetVolumeRequest(volume_id=volume)
    found = await driver.controller.ControllerGetVolume(request)
    assert found.volume.volume_id == volume
    (alike,) = [entry async for entry in listed(driver) if entry.volume.volume_id == volume]
    assert alike.status.volume_condition == found.status.volume_condition
    assert list(alike.status.published_node_ids) == list(found.status.published_node_ids)
    return found.status.volume_condition


def break_ext4(device: str) -> None:
    """Have the kernel find an error in the ext4 on a device."""
    trigger = Path(f"/sys/fs/ext4/{device}/trigger_fs_error")
    if not trigger.exists():
        pytest.skip("the kernel has no trigger for errors of ext4")
    trigger.write_text("a test", encoding="ascii")


@pytest.mark.parametrize("most", [0, 1, 2, 5, 100])
async def test_every_volume_of_every_pool_is_listed_once_as_it_was_made(area: Path, most: int) -> None:
    settings = [PoolSettings(name=name, path=str(area / name)) for name in ("default", "other")]
    async with running(area, settings) as driver:
        made = [
            await driver.create(f"pvc-{number}", parameters={"pool": pool, **(DIRECTORY if number % 2 else {})})
            for number, pool in enumerate(["default", "other", "default", "other", "default"])
        ]
        found = [entry.volume async for entry in listed(driver, most)]
        assert found == sorted(made, key=lambda volume: volume.volume_id)
        await driver.delete(made[0].volume_id)
        assert {entry.volume.volume_id async for entry in listed(driver, most)} == {one.volume_id for one in made[1:]}


async def test_a_token_that_was_never_given_is_told_to_begin_anew(area: Path) -> None:
    async with running(area) as driver:
        with refused(grpc.StatusCode.ABORTED, "begin the list anew"):
            await driver.controller.ListVolumes(csi.ListVolumesRequest(starting_token="mine"))  # noqa: S106 (a page)


@pytest.mark.parametrize("parameters", [{}, DIRECTORY], ids=["image", "directory"])
async def test_a_volume_in_use_says_where(area: Path, parameters: dict[str, str]) -> None:
    async with running(area) as driver:
        volume = (await driver.create(parameters=parameters)).volume_id
        (entry,) = [entry async for entry in listed(driver)]
        assert list(entry.status.published_node_ids) == []
        assert not entry.status.volume_condition.abnormal
        target = driver.target("pod")
        await driver.publish(volume, target)
        (entry,) = [entry async for entry in listed(driver)]
        assert list(entry.status.published_node_ids) == [NODE]
        stats = await driver.node.NodeGetVolumeStats(
            csi.NodeGetVolumeStatsRequest(volume_id=volume, volume_path=str(target))
        )
        assert not stats.volume_condition.abnormal
        assert stats.volume_condition.message
        await driver.unpublish(volume, target)


async def test_a_damaged_record_is_listed_as_such_and_not_left_out(area: Path) -> None:
    async with running(area) as driver:
        volume = (await driver.create()).volume_id
        (driver.volume_folder(volume) / "record.json").write_bytes(b"{")
    async with running(area) as driver:
        told = await condition(driver, volume)
        assert told.abnormal
        assert "cannot be trusted" in told.message
        assert (driver.volume_folder(volume) / "record.json").read_bytes() == b"{"


@pytest.mark.parametrize(("parameters", "name"), [({}, "image"), (DIRECTORY, "data")], ids=["image", "directory"])
async def test_storage_that_is_gone_is_said(area: Path, parameters: dict[str, str], name: str) -> None:
    async with running(area) as driver:
        volume = (await driver.create(parameters=parameters)).volume_id
        folder = driver.volume_folder(volume)
        (folder / name).rename(folder / "elsewhere")
        told = await condition(driver, volume)
        assert told.abnormal
        assert "is missing" in told.message


async def test_an_image_that_was_cut_is_said(area: Path) -> None:
    async with running(area) as driver:
        volume = (await driver.create()).volume_id
        os.truncate(driver.volume_folder(volume) / "image", 4096)
        told = await condition(driver, volume)
        assert told.abnormal
        assert "has 4096 bytes" in told.message


async def test_a_filesystem_that_the_kernel_stopped_writing_to_is_said(area: Path) -> None:
    async with running(area) as driver:
        volume = (await driver.create(wanted=capability(filesystem="ext4"))).volume_id
        target = driver.target("pod")
        await driver.publish(volume, target)
        mount = mounts.mount_at(str(target), beneath=str(driver.kubelet))
        assert mount is not None
        assert not (await condition(driver, volume)).abnormal
        break_ext4(Path(mount.source).name)
        told = await condition(driver, volume)
        assert told.abnormal
        assert "found errors" in told.message
        await driver.unpublish(volume, target)


async def test_a_volume_that_is_not_here_is_not_found(area: Path) -> None:
    async with running(area) as driver:
        with refused(grpc.StatusCode.NOT_FOUND, "is not on"):
            await driver.controller.ControllerGetVolume(csi.ControllerGetVolumeRequest(volume_id="vol-" + "0" * 32))
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "volume_id is missing"):
            await driver.controller.ControllerGetVolume(csi.ControllerGetVolumeRequest())
