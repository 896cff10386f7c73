"""What lies in the trash goes, slowly, and what cannot go holds up nothing else."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from moorage_csi.rpc import station as stations
from moorage_csi.rpc.wiping import Wiper
from moorage_csi.volumes.ids import VolumeId
from moorage_csi.volumes.pool import PoolSettings
from tests.kernel.rpc_driver import DIRECTORY, NODE, Driver, refused, running

pytestmark = pytest.mark.kernel


@pytest.fixture
async def driver(area: Path) -> AsyncIterator[Driver]:
    async with running(area) as one:
        yield one


def _immutable(path: Path, *, on: bool) -> bool:
    chattr = shutil.which("chattr")
    if chattr is None:
        return False
    return subprocess.run([chattr, "+i" if on else "-i", path], check=False, capture_output=True).returncode == 0


async def test_a_file_that_cannot_be_removed_is_tried_again_and_holds_up_no_other(driver: Driver) -> None:
    stuck = (await driver.create("pvc-1", parameters=DIRECTORY)).volume_id
    other = (await driver.create("pvc-2", parameters=DIRECTORY)).volume_id
    immutable = driver.volume_folder(stuck) / "data" / "immutable"
    immutable.touch()
    if not _immutable(immutable, on=True):
        pytest.skip("needs a filesystem with the immutable attribute")
    try:
        await driver.delete(stuck)
        await driver.delete(other)
        await driver.create("pvc-1", parameters=DIRECTORY)
        with pytest.raises(AssertionError, match="left in the trash"):
            await driver.emptied(within=1)
        [left] = (driver.pool / "trash").iterdir()
        assert left.name.startswith(stuck)
        assert driver.pools.reports()[0].trash == 1
    finally:
        for path in (driver.pool / "trash").rglob("immutable"):
            _immutable(path, on=False)
    await driver.emptied()


async def test_removal_keeps_to_its_rate_and_goes_on_after_a_restart(
    area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stations, "REMOVALS_PER_SECOND", 1000)
    files = 700
    async with running(area) as driver:
        volume = (await driver.create(parameters=DIRECTORY)).volume_id
        for number in range(files):
            (driver.volume_folder(volume) / "data" / str(number)).touch()
        await driver.delete(volume)
        await asyncio.sleep(0.2)
    left = sum(1 for _ in (area / "pool" / "trash").rglob("*"))
    assert files / 4 < left < files
    async with running(area) as driver:
        began = time.monotonic()
        await driver.emptied()
        assert time.monotonic() - began > left / 1000 / 2


async def test_what_others_put_into_the_trash_folder_stays(driver: Driver) -> None:
    (driver.pool / "trash" / "not-ours").mkdir()
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    await driver.delete(volume)
    with pytest.raises(AssertionError, match="not-ours"):
        await driver.emptied(within=1)
    assert [path.name for path in (driver.pool / "trash").iterdir()] == ["not-ours"]


@pytest.mark.parametrize("parameters", [DIRECTORY, {}], ids=["directory", "image"])
async def test_what_was_deleted_by_mistake_is_had_back_with_its_data(area: Path, parameters: dict[str, str]) -> None:
    settings = [PoolSettings(name="default", path=str(area / "pool"), trash_retention=3600)]
    async with running(area, settings) as driver:
        volume = (await driver.create(parameters=parameters)).volume_id
        target = driver.target("pod")
        await driver.publish(volume, target)
        (target / "file").write_text("precious")
        await driver.unpublish(volume, target)
        await driver.delete(volume)
        await driver.delete(volume)
        with pytest.raises(AssertionError, match="left in the trash"):
            await driver.emptied(within=0.3)
        with refused(grpc.StatusCode.NOT_FOUND, volume):
            await driver.publish(volume, target)
    async with running(area, settings) as driver:
        [station] = driver.pools
        pool = station.opened().pool
        [left] = pool.exits.restorable()
        pool.restore(left)
        target = driver.target("again")
        await driver.publish(volume, target)
        assert (target / "file").read_text() == "precious"
        await driver.unpublish(volume, target)
        await driver.delete(volume)
        [left] = pool.exits.restorable()
    # With the retention gone from the settings, what lies there goes.
    async with running(area) as driver:
        await driver.emptied()
        assert driver.left() == []


async def test_what_is_wiped_away_is_kept_for_nobody(area: Path) -> None:
    settings = [PoolSettings(name="default", path=str(area / "pool"), trash_retention=3600)]
    async with running(area, settings) as driver:
        volume = (await driver.create(parameters=DIRECTORY)).volume_id
        (driver.volume_folder(volume) / "data" / "file").write_text("the former claim's")
        [station] = driver.pools
        await Wiper(node_name=NODE).wipe(station, VolumeId(volume), released_uid="uid-1")
        await driver.emptied()
        assert list((driver.volume_folder(volume) / "data").iterdir()) == []
