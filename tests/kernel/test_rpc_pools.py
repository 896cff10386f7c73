"""Pools over gRPC: what is kept and left alone in them, and what keeps them apart from each other."""

import asyncio
import json
from pathlib import Path

import grpc
import pytest

from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.volumes.pool import PoolSettings
from tests.kernel.rpc_driver import (
    DIRECTORY,
    refused,
    running,
)

pytestmark = pytest.mark.kernel


async def test_retained_data_outlives_the_volume_and_is_never_removed(area: Path) -> None:
    async with running(area) as driver:
        volume = (await driver.create(parameters={**DIRECTORY, "onDelete": "retain"})).volume_id
        (driver.volume_folder(volume) / "data" / "file").write_text("kept")
        await driver.delete(volume)
        await driver.delete(volume)
        [kept] = (driver.pool / "retained").iterdir()
        assert kept.name.startswith(volume)
        again = (await driver.create(parameters={**DIRECTORY, "onDelete": "retain"})).volume_id
        assert again == volume
        assert list((driver.volume_folder(volume) / "data").iterdir()) == []
        await driver.delete(volume)
    async with running(area) as driver:
        assert (kept / "data" / "file").read_text() == "kept"
        assert len(list((driver.pool / "retained").iterdir())) == 2


async def test_a_record_that_cannot_be_trusted_is_left_alone(area: Path) -> None:
    async with running(area) as driver:
        volumes = [(await driver.create(f"pvc-{n}", parameters=DIRECTORY)).volume_id for n in range(6)]
        target = driver.target("pod")
        await driver.publish(volumes[0], target)
    folders = [area / "pool" / "volumes" / volume for volume in volumes]
    newer = json.loads((folders[1] / "record.json").read_text()) | {"version": 99, "state": "deleting"}
    (folders[0] / "record.json").write_text('{"version": 1, "state": "creating"')
    (folders[1] / "record.json").write_text(json.dumps(newer))
    (folders[2] / "record.json").unlink()
    (folders[3] / "record.json").write_bytes((folders[5] / "record.json").read_bytes())
    (folders[4] / "record.json").write_bytes(b"")
    (area / "pool" / "volumes" / "somebody-elses").mkdir()
    before = {path: path.read_bytes() for path in (area / "pool" / "volumes").rglob("*") if path.is_file()}
    async with running(area) as driver:
        for volume, words in (
            (volumes[0], ["not JSON"]),
            (volumes[1], ["version 99", "newer release"]),
            (volumes[2], ["record is missing"]),
            (volumes[3], ["the record of", volumes[5]]),
            (volumes[4], ["not JSON"]),
        ):
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "record.json", volume, *words):
                await driver.delete(volume)
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "record.json"):
                await driver.publish(volume, driver.target("other"))
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "record.json"):
            await driver.create("pvc-0", parameters=DIRECTORY)
        # A pod must be able to end all the same.
        await driver.unpublish(volumes[0], target)
        assert not target.exists()
        await driver.publish(volumes[5], target)
        await driver.unpublish(volumes[5], target)
        [report] = driver.pools.reports()
        assert {problem.volume for problem in report.problems} == {*volumes[:5], "somebody-elses"}
        assert report.volumes == 1
    assert {path: path.read_bytes() for path in (area / "pool" / "volumes").rglob("*") if path.is_file()} == before


async def test_a_pool_file_that_cannot_be_trusted_closes_its_pool_and_no_other(area: Path) -> None:
    settings = [PoolSettings(name=name, path=str(area / name)) for name in ("good", "bad")]
    async with running(area, settings) as driver:
        volume = (await driver.create("pvc-bad", parameters={"pool": "bad", **DIRECTORY})).volume_id
    whole = (area / "bad" / "pool.json").read_text()
    for damage in ("", "{}", json.dumps(json.loads(whole) | {"version": 2}), None):
        if damage is None:
            (area / "bad" / "pool.json").unlink()
        else:
            (area / "bad" / "pool.json").write_text(damage)
        async with running(area, settings) as driver:
            made = (await driver.create("pvc-good", parameters=DIRECTORY)).volume_id
            await driver.delete(made)
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "pool.json"):
                await driver.create("pvc-other", parameters={"pool": "bad", **DIRECTORY})
            # It may be in the pool that is closed: deleted is what it must not be called.
            with refused(grpc.StatusCode.UNAVAILABLE, volume, "pool.json"):
                await driver.delete(volume)
            with refused(grpc.StatusCode.UNAVAILABLE, "pool.json"):
                await driver.publish(volume, driver.target("one"))
            assert [report.opened for report in driver.pools.reports()] == [True, False]
            (area / "bad" / "pool.json").write_text(whole)
            await driver.delete(volume)
            await driver.create("pvc-bad", parameters={"pool": "bad", **DIRECTORY})


async def test_one_pool_that_hangs_holds_up_no_other(area: Path) -> None:
    settings = [PoolSettings(name=name, path=str(area / name)) for name in ("good", "slow")]
    async with running(area, settings) as driver:
        slow = driver.pools.station("slow")
        release = asyncio.Event()
        loop = asyncio.get_running_loop()

        def hang() -> None:
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result(30)

        hanging = [asyncio.create_task(slow.lane.run(hang)) for _ in range(8)]
        try:
            with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
                await driver.controller.GetCapacity(csi.GetCapacityRequest(parameters={"pool": "slow"}), timeout=0.3)
            volume = (await driver.create()).volume_id
            await driver.publish(volume, driver.target("one"))
            await driver.unpublish(volume, driver.target("one"))
            await driver.delete(volume)
        finally:
            release.set()
            await asyncio.gather(*hanging)


async def test_a_second_driver_is_kept_out_of_a_pool(area: Path) -> None:
    (area / "second").mkdir()
    settings = [PoolSettings(name="default", path=str(area / "pool"))]
    async with running(area, settings), running(area / "second", settings) as second:
        with refused(grpc.StatusCode.UNAVAILABLE, "in use by another process"):
            await second.create()


async def test_a_pool_whose_parent_is_not_there_opens_when_it_comes(area: Path) -> None:
    settings = [PoolSettings(name="default", path=str(area / "disk" / "pool"))]
    async with running(area, settings) as driver:
        with refused(grpc.StatusCode.UNAVAILABLE, str(area / "disk" / "pool"), "parent"):
            await driver.create()
        (area / "disk").mkdir()
        await driver.create()
