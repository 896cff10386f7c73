"""A process that changes a pool is killed (SIGKILL) before and after every change of the disk, and the pool opened again.

Each point is a forked child that kills itself there, until one comes through (see ``crash_points``). What a pool is left
with must be the old state or the new one, and doing the same again must lead to the new one.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from moorage_csi.errors import NotFoundError
from moorage_csi.volumes.exits import Left
from moorage_csi.volumes.pool import Pool
from moorage_csi.volumes.record import Record, State
from moorage_csi.volumes.snapshot import SnapshotState
from tests.kernel.crash_points import areas_of
from tests.unit.csi.pool_world import FILE, SIZE, World, a_snapshot, a_volume, make, snap, write

pytestmark = pytest.mark.timeout(180)

DAY: Final = 86400.0
DATA: Final = b"precious" * 512
STORED: Final = DATA + b"\0" * (SIZE - len(DATA))
OTHER: Final = b"other" * 512

_VICTIM = """
import json, os, sys
from pathlib import Path
from tests.kernel.crash_points import die_at
from tests.unit.csi import test_pool_crashes as tests

area, what = sys.argv[1], sys.argv[2]
areas = []
for fatal in range(1, 500):
    path = f"{area}/{what}-{fatal}"
    areas.append(path)
    os.mkdir(path)
    child = os.fork()
    if child == 0:
        tests.SCENARIOS[what](tests.world_in(Path(path)), lambda fatal=fatal: die_at(fatal))
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(json.dumps(areas))
"""


def world_in(area: Path) -> World:
    return World(path=area / "pool", settings={"trash_retention": DAY, "archive_retention": 5 * DAY})


def _snapshot(world: World, armed: Callable[[], None]) -> None:
    with world.open() as pool:
        source = make(pool, DATA)
        armed()
        _make_snapshot(pool, source)


def _make_snapshot(pool: Pool, source: Record) -> None:
    begun = a_snapshot(source, shares=True)
    pool.begin_snapshot(begun)
    with pool.snapshots.folder(begun.id) as folder:
        write(folder, OTHER, source.size)
    pool.complete_snapshot(begun, holds=len(OTHER))


def _grow(world: World, armed: Callable[[], None]) -> None:
    with world.open() as pool:
        record = make(pool, DATA)
        armed()
        _make_larger(pool, record)


def _make_larger(pool: Pool, record: Record) -> None:
    promised = pool.promise_growth(record, 2 * SIZE)
    with pool.folder(record.id) as folder:
        fd = folder.open_file(FILE, os.O_RDWR)
        os.ftruncate(fd, promised.growing_to or promised.size)
        os.close(fd)
    pool.grown(promised)


def _archive(world: World, armed: Callable[[], None]) -> None:
    with world.open() as pool:
        record = make(pool, DATA, on_delete="archive")
        snap(pool, record, OTHER)
        armed()
        pool.discard(record)


def _delete(world: World, armed: Callable[[], None]) -> None:
    with world.open() as pool:
        record = make(pool, DATA)
        snap(pool, record, OTHER)
        armed()
        pool.discard(record)


def _delete_snapshot(world: World, armed: Callable[[], None]) -> None:
    with world.open() as pool:
        snapshot = snap(pool, make(pool, DATA), OTHER)
        armed()
        pool.discard_snapshot(snapshot)


def _restore(world: World, armed: Callable[[], None]) -> None:
    with world.open() as pool:
        pool.discard(make(pool, DATA))
        [left] = pool.exits.restorable()
        armed()
        pool.restore(left)


def _remove(world: World, armed: Callable[[], None]) -> None:
    with world.open() as pool:
        pool.discard(make(pool, DATA, on_delete="archive"))
        pool.discard(make(pool, DATA, name="deleted"))
        world.clock.now += 6 * DAY
        armed()
        _empty(pool)


def _empty(pool: Pool) -> None:
    pool.exits.sweep()
    for name in pool.trash.names():
        pool.trash.remove(name)


def _open(world: World, armed: Callable[[], None]) -> None:
    armed()
    with world.open() as pool:
        pool.keep_backend("image")


SCENARIOS: Final = {
    "snapshot": _snapshot,
    "grow": _grow,
    "archive": _archive,
    "delete": _delete,
    "delete-snapshot": _delete_snapshot,
    "restore": _restore,
    "remove": _remove,
    "open": _open,
}


def _crashed(area: Path, what: str) -> Iterator[World]:
    for crashed in areas_of("-c", _VICTIM, str(area), what):
        yield world_in(crashed)


def _sound(pool: Pool, world: World) -> None:
    """What holds in a pool that was just opened, whatever happened before."""
    assert pool.problems == ()
    assert world.names("making") == []
    assert all(record.state is State.READY for record in pool.records.values())
    assert all(snapshot.state is SnapshotState.READY for snapshot in pool.snapshots.records.values())


def _restorable(pool: Pool, where: str) -> list[Left]:
    return [left for left in pool.exits.restorable() if left.where == where]


def test_a_snapshot_is_whole_or_gone_and_its_source_stays(tmp_path: Path) -> None:
    outcomes = set()
    for world in _crashed(tmp_path, "snapshot"):
        with world.open() as pool:
            _sound(pool, world)
            [source] = pool.records.values()
            found = pool.snapshots.find(a_snapshot(source).id)
            outcomes.add(found is not None)
            assert world.copies_of(STORED) == [f"volumes/{source.id}/{FILE}"]
            # What is half made was never given to anybody, and so it is not kept.
            assert pool.exits.restorable() == ()
            if found is None:
                _empty(pool)
                assert pool.claims() == (SIZE, SIZE - len(DATA))
                _make_snapshot(pool, source)
            assert pool.claims() == (SIZE + len(OTHER), SIZE + len(OTHER) - len(DATA))
            assert len(list(world.path.rglob(FILE))) == 2
    assert outcomes == {True, False}


def test_a_grow_is_promised_whenever_anything_may_have_grown(tmp_path: Path) -> None:
    outcomes = set()
    for world in _crashed(tmp_path, "grow"):
        with world.open() as pool:
            _sound(pool, world)
            [record] = pool.records.values()
            outcomes.add((record.size, record.growing_to))
            grown = (world.path / "volumes" / record.id / FILE).stat().st_size
            assert grown <= max(record.size, record.growing_to or 0) <= pool.claims()[0]
            assert record.size <= grown
            _make_larger(pool, record)
            assert pool.records[record.id].size == 2 * SIZE
            assert pool.claims() == (2 * SIZE, 2 * SIZE - len(DATA))
    assert outcomes == {(SIZE, None), (SIZE, 2 * SIZE), (2 * SIZE, None)}


@pytest.mark.parametrize(("what", "where"), [("archive", "archived"), ("delete", "trash")])
def test_a_deleted_volume_is_whole_in_one_place_and_its_snapshot_stays(tmp_path: Path, what: str, where: str) -> None:
    outcomes = set()
    for world in _crashed(tmp_path, what):
        with world.open() as pool:
            _sound(pool, world)
            assert len(world.copies_of(STORED)) == 1
            left = _restorable(pool, where)
            outcomes.add(bool(left))
            assert bool(left) is not bool(pool.records)
            if not left:
                [record] = pool.records.values()
                pool.discard(record)
            [left_one] = _restorable(pool, where)
            assert world.names("volumes") == []
            assert world.copies_of(STORED) == [f"{where}/{left_one.name}/{FILE}"]
            [snapshot] = pool.snapshots.records.values()
            assert world.copies_of(OTHER + b"\0" * (SIZE - len(OTHER))) == [f"snapshots/{snapshot.id}/{FILE}"]
    assert outcomes == {True, False}


def test_a_deleted_snapshot_is_whole_in_one_place_and_its_source_stays(tmp_path: Path) -> None:
    outcomes = set()
    for world in _crashed(tmp_path, "delete-snapshot"):
        with world.open() as pool:
            _sound(pool, world)
            assert len(world.copies_of(OTHER + b"\0" * (SIZE - len(OTHER)))) == 1
            assert bool(pool.snapshots.records) is not bool(_restorable(pool, "trash"))
            outcomes.add(bool(pool.snapshots.records))
            for snapshot in pool.snapshots.records.values():
                pool.discard_snapshot(snapshot)
            assert len(_restorable(pool, "trash")) == 1
            assert world.copies_of(STORED) == [f"volumes/{a_volume().id}/{FILE}"]
    assert outcomes == {True, False}


def test_what_is_had_back_is_whole_in_one_place(tmp_path: Path) -> None:
    outcomes = set()
    for world in _crashed(tmp_path, "restore"):
        with world.open() as pool:
            _sound(pool, world)
            left = pool.exits.restorable()
            outcomes.add(bool(left))
            assert bool(left) is not bool(pool.records)
            for one in left:
                assert pool.restore(one).id == a_volume().id
                with pytest.raises(NotFoundError):
                    pool.restore(one)
            assert world.copies_of(STORED) == [f"volumes/{a_volume().id}/{FILE}"]
    assert outcomes == {True, False}


def test_what_is_half_removed_is_given_back_to_nobody_and_goes(tmp_path: Path) -> None:
    for world in _crashed(tmp_path, "remove"):
        with world.open() as pool:
            _sound(pool, world)
            for left in pool.exits.restorable():
                assert (world.path / left.where / left.name / FILE).read_bytes() == STORED
            world.clock.now += 6 * DAY
            _empty(pool)
            assert world.names("trash") == world.names("archived") == []
            assert pool.claims() == (0, 0)


def test_a_pool_that_was_half_made_is_made(tmp_path: Path) -> None:
    for world in _crashed(tmp_path, "open"):
        with world.open() as pool:
            _sound(pool, world)
            make(pool, DATA)
        with world.open() as pool:
            assert len(pool.records) == 1
