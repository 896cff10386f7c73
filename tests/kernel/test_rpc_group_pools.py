"""A group snapshot in several pools: told from all of them, and never from some."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.volumes.ids import SnapshotId
from moorage_csi.volumes.pool import PoolSettings
from moorage_csi.volumes.snapshot import SnapshotState
from tests.kernel.rpc_driver import refused, running
from tests.kernel.test_rpc_groups import SIZE, create, deleted, got, ids_of, taken
from tests.kernel.test_rpc_snapshots import copy, listed

pytestmark = pytest.mark.kernel


async def _with_states(area: Path, *states: SnapshotState) -> tuple[list[str], csi.VolumeGroupSnapshot]:
    """A group in two pools, of which the members' records say something else now."""
    async with running(area, _two_pools(area)) as driver:
        volumes = [
            (await driver.create(name, size=SIZE, parameters={"pool": pool})).volume_id
            for name, pool in (("one", "default"), ("two", "other"))
        ]
        group = await taken(driver, volumes)
        by_source = {each.source_volume_id: each.snapshot_id for each in group.snapshots}
        for volume, state, station in zip(volumes, states, driver.pools, strict=True):
            pool = (await station.open()).pool
            record = pool.snapshots.find(SnapshotId(by_source[volume]))
            assert record is not None
            pool.snapshots.update(replace(record, state=state))
    return volumes, group


def _two_pools(area: Path) -> list[PoolSettings]:
    places = {"default": area / "pool", "other": area / "behind" / "pool"}
    return [PoolSettings(name=name, path=str(path), trash_retention=3600) for name, path in places.items()]


@contextlib.contextmanager
def _closed(area: Path) -> Iterator[None]:
    """The other pool is a disk that is not there for the length of a block."""
    (area / "behind").rename(area / "away")
    try:
        yield
    finally:
        (area / "away").rename(area / "behind")


C, P, R = SnapshotState.CREATING, SnapshotState.COPIED, SnapshotState.READY


@pytest.mark.parametrize(("here", "there"), [(R, P), (P, R), (P, P), (C, P), (P, C), (C, C)])
async def test_a_group_is_what_all_pools_say_and_nothing_is_decided_before_they_are_open(
    area: Path, here: SnapshotState, there: SnapshotState
) -> None:
    (area / "behind").mkdir()
    volumes, group = await _with_states(area, here, there)
    with _closed(area):
        async with running(area, _two_pools(area)) as driver:
            if here is not C:
                # It may have been made, so that the member that is left here may be somebody's.
                assert any((driver.pool / "snapshots").iterdir())
            for call in (
                create(driver, volumes),
                deleted(driver, group.group_snapshot_id),
                got(driver, group.group_snapshot_id),
            ):
                with refused(grpc.StatusCode.UNAVAILABLE, "pool that is not open"):
                    await call
    async with running(area, _two_pools(area)) as driver:
        if R in (here, there):
            assert await got(driver, group.group_snapshot_id) == group
            assert sorted(await listed(driver)) == sorted(ids_of(group))
        else:
            assert await listed(driver) == []
            with refused(grpc.StatusCode.NOT_FOUND):
                await got(driver, group.group_snapshot_id)
            for station in driver.pools:
                assert not any((Path(station.settings.path) / "snapshots").iterdir())
                assert (await station.open()).pool.exits.restorable() == (), (
                    "nobody was given it, so nobody has it back"
                )
        again = await taken(driver, volumes)
        assert ids_of(again) == ids_of(group)
        await deleted(driver, group.group_snapshot_id, ids_of(group))
        assert await listed(driver) == []


async def test_a_pool_that_opens_later_settles_what_was_left(area: Path) -> None:
    (area / "behind").mkdir()
    volumes, group = await _with_states(area, P, R)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_closed(area))
        async with running(area, _two_pools(area)) as driver:
            with refused(grpc.StatusCode.UNAVAILABLE):
                await got(driver, group.group_snapshot_id)
            stack.close()
            assert await got(driver, group.group_snapshot_id) == group
            assert await create(driver, volumes) == group


async def test_a_group_of_which_all_records_are_damaged_is_left_alone(area: Path) -> None:
    async with running(area) as driver:
        volumes = [(await driver.create(name, size=SIZE)).volume_id for name in ("one", "two")]
        group = await taken(driver, volumes)
        (station,) = driver.pools
        pool = (await station.open()).pool
        for member in ids_of(group):
            (driver.pool / "snapshots" / member / "record.json").write_bytes(b"{")
        pool.load()
        before = driver.left()
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "cannot be trusted"):
            await create(driver, volumes)
        await deleted(driver, group.group_snapshot_id)
        assert driver.left() == before


async def test_members_that_were_given_never_go_by_themselves_and_are_not_a_group_any_more(area: Path) -> None:
    (area / "behind").mkdir()
    volumes, group = await _with_states(area, R, R)
    members = {each.source_volume_id: each.snapshot_id for each in group.snapshots}
    here, there = members[volumes[0]], members[volumes[1]]
    damaged = area / "behind" / "pool" / "snapshots" / there / "record.json"
    content = damaged.read_bytes()
    damaged.write_bytes(b"{")
    async with running(area, _two_pools(area)) as driver:
        for call in (
            create(driver, volumes),
            deleted(driver, group.group_snapshot_id),
            got(driver, group.group_snapshot_id),
        ):
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "cannot be trusted"):
                await call
        assert await listed(driver) == [here]
    damaged.write_bytes(content)
    async with running(area, _two_pools(area)) as driver:
        assert await got(driver, group.group_snapshot_id) == group
        station = driver.pools.station("other")
        pool = (await station.open()).pool
        record = pool.snapshots.find(SnapshotId(there))
        assert record is not None
        pool.discard_snapshot(record)
    async with running(area, _two_pools(area)) as driver:
        assert await listed(driver) == [here]
        assert not (await got(driver, group.group_snapshot_id)).ready_to_use
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "are left", "delete it"):
            await create(driver, volumes)
        await copy(driver, snapshot=here, size=SIZE)
        await deleted(driver, group.group_snapshot_id, [here, there])
        assert await listed(driver) == []
        assert (await taken(driver, volumes)).ready_to_use
