"""Promises of room: no byte is promised twice, by whatever road, and none is forgotten."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from moorage_csi.errors import ExhaustedError, NotFoundError, UnavailableError
from moorage_csi.host.paths import Directory
from moorage_csi.volumes.disk import Disks
from moorage_csi.volumes.pool import Pool
from moorage_csi.volumes.record import Record, State
from moorage_csi.volumes.snapshot import SnapshotState
from tests.unit.csi.pool_world import SIZE, Taken, World, a_snapshot, a_volume, make, measure, snap, write

DAY = 86400.0
DATA = b"precious" * 512


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(path=tmp_path / "pool")


@pytest.fixture
def pool(world: World) -> Iterator[Pool]:
    with world.open() as one:
        yield one


def _hesitant(folder: Directory, record: Record | None) -> Taken | None:
    """Between looking what there is and writing what is promised of it, give every other thread its turn."""
    time.sleep(0.001)
    return measure(folder, record)


def _racing(works: list[Callable[[], object]]) -> int:
    """Begin all at one moment, each in a thread; how many were not refused."""
    gate = threading.Barrier(len(works))
    done = []

    def run(work: Callable[[], object]) -> None:
        gate.wait()
        try:
            work()
        except ExhaustedError:
            return
        done.append(1)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(done)


def _promises(pool: Pool, kind: str, share: int, names: str, growing: list[Record]) -> list[Callable[[], object]]:
    """Ten or more promises of the same size, of one kind or of all."""
    source = growing[0]
    kinds: dict[str, list[Callable[[], object]]] = {
        "volumes": [partial(pool.begin, a_volume(f"{names}-{n}", size=share)) for n in range(12)],
        "snapshots": [partial(pool.begin_snapshot, a_snapshot(source, f"{names}-{n}", holds=share)) for n in range(12)],
        "grows": [partial(pool.promise_growth, one, one.size + share) for one in growing],
    }
    return kinds[kind] if kind != "all" else [work for works in kinds.values() for work in works[:4]]


KINDS = pytest.mark.parametrize("kind", ["volumes", "snapshots", "grows", "all"])


@KINDS
def test_no_byte_is_promised_twice_however_many_ask(tmp_path: Path, kind: str) -> None:
    disks = Disks()
    worlds = [
        World(path=tmp_path / name, settings={"name": name}, disks=disks, measure=_hesitant) for name in ("one", "two")
    ]
    with ExitStack() as stack:
        pools = [stack.enter_context(world.open()) for world in worlds]
        growing = [[make(pool, name=f"growing-{n}") for n in range(12)] for pool in pools]
        # Ten fit, and a half more, so that what others write on the disk meanwhile decides nothing.
        share = pools[0].room().free * 2 // 21
        works = [
            work
            for pool, some in zip(pools, growing, strict=True)
            for work in _promises(pool, kind, share, pool.name, some)
        ]
        assert len(works) == 24
        assert _racing(works) == 10


@KINDS
def test_no_byte_is_promised_twice_by_two_nodes_that_share_a_pool(tmp_path: Path, kind: str) -> None:
    worlds = [
        World(path=tmp_path / "pool", settings={"shared": True}, node=node, measure=_hesitant)
        for node in ("node-1", "node-2")
    ]
    with ExitStack() as stack:
        pools = [stack.enter_context(world.open()) for world in worlds]
        growing = [[make(pool, name=f"growing-{node}-{n}") for n in range(12)] for node, pool in enumerate(pools)]
        share = pools[0].room().free * 2 // 21
        works = [
            work
            for node, pool in enumerate(pools)
            for work in _promises(pool, kind, share, f"node-{node}", growing[node])
        ]
        assert len(works) == 24
        assert _racing(works) == 10


def test_a_snapshot_is_promised_its_bound_while_it_is_made_and_then_what_it_holds(pool: Pool) -> None:
    source = make(pool, DATA)
    before = pool.claims()
    begun = a_snapshot(source)
    pool.begin_snapshot(begun)
    assert pool.claims() == (before[0] + SIZE, before[1] + SIZE)
    with pool.snapshots.folder(begun.id) as folder:
        write(folder, DATA, SIZE)
    assert pool.claims() == (before[0] + SIZE, before[1] + SIZE - len(DATA))
    ready = pool.complete_snapshot(begun, holds=len(DATA))
    assert pool.claims() == (before[0] + len(DATA), before[1])
    assert ready.state is SnapshotState.READY
    assert pool.complete_snapshot(begun, holds=1) == ready


def test_a_snapshot_that_came_to_more_than_its_bound_is_ready_only_if_that_can_be_promised(pool: Pool) -> None:
    source = make(pool, DATA)
    begun = a_snapshot(source, holds=1)
    pool.begin_snapshot(begun)
    with pytest.raises(ExhaustedError, match="too much"):
        pool.complete_snapshot(begun, holds=pool.room().free * 2)
    assert pool.snapshots.find(begun.id) == begun
    pool.complete_snapshot(begun, holds=len(DATA))


def test_a_snapshot_that_is_deleted_or_gone_becomes_ready_no_more(pool: Pool) -> None:
    snapshot = snap(pool, make(pool))
    pool.snapshots.update(replace(snapshot, state=SnapshotState.DELETING))
    with pytest.raises(UnavailableError, match="deleting"):
        pool.complete_snapshot(snapshot, holds=1)
    pool.discard_snapshot(snapshot)
    with pytest.raises(NotFoundError, match=snapshot.id):
        pool.complete_snapshot(snapshot, holds=1)


def test_a_clone_that_shares_is_not_written_yet_and_its_source_is(pool: Pool) -> None:
    source = make(pool, DATA)
    before = pool.claims()
    make(pool, DATA, name="clone", source=source.id, shares=True)
    assert pool.claims() == (before[0] + SIZE, before[1] + SIZE)
    make(pool, DATA, name="copy", source=source.id)
    assert pool.claims() == (before[0] + 2 * SIZE, before[1] + 2 * SIZE - len(DATA))


@pytest.mark.parametrize("on_delete", ["delete", "retain", "archive"])
def test_what_is_deleted_is_promised_no_more_but_stands_in_the_way_while_it_shares(
    tmp_path: Path, on_delete: str
) -> None:
    world = World(path=tmp_path / "pool", settings={"trash_retention": DAY, "archive_retention": DAY})
    with world.open() as pool:
        source = make(pool, DATA)
        before = pool.claims()
        clone = make(pool, DATA, name="clone", source=source.id, shares=True, on_delete=on_delete)
        copy = make(pool, DATA, name="copy", source=source.id, on_delete=on_delete)
        shared = snap(pool, source, DATA, shares=True)
        for record in (clone, copy):
            pool.discard(record)
        pool.discard_snapshot(shared)
        assert pool.claims() == (before[0], before[1] + 2 * len(DATA))
    with world.open() as pool:
        assert pool.claims() == (before[0], before[1] + 2 * len(DATA))
        world.clock.now += DAY + 1
        pool.exits.sweep()
        assert pool.claims() == (before[0], before[1] + 2 * len(DATA))
        for name in pool.trash.names():
            pool.trash.remove(name)
        assert pool.claims() == (before[0], before[1] + (len(DATA) if on_delete == "retain" else 0))


def test_what_is_wiped_away_stands_in_the_way_too_while_it_shares(pool: Pool) -> None:
    clone = make(pool, DATA, source=a_volume("gone").id, shares=True)
    pool.strip(clone)
    assert pool.claims() == (SIZE, SIZE + len(DATA))
    pool.strip(clone)
    [name] = pool.trash.names()
    pool.trash.remove(name)
    assert pool.claims() == (SIZE, SIZE)


def test_a_grow_is_promised_before_it_begins_and_counted_once(pool: Pool) -> None:
    record = make(pool)
    growing = pool.promise_growth(record, 3 * SIZE)
    assert (growing.size, growing.growing_to) == (SIZE, 3 * SIZE)
    assert pool.claims() == (3 * SIZE, 3 * SIZE)
    with pool.folder(record.id) as folder:
        write(folder, b"", 3 * SIZE)
    assert pool.claims() == (3 * SIZE, 3 * SIZE)
    grown = pool.grown(growing)
    assert (grown.size, grown.growing_to) == (3 * SIZE, None)
    assert pool.grown(growing) == grown
    assert pool.find(record.id) == grown
    assert pool.claims() == (3 * SIZE, 3 * SIZE)


def test_a_grow_that_stopped_is_gone_on_with_and_never_made_smaller(world: World) -> None:
    with world.open() as pool:
        record = pool.promise_growth(make(pool), 4 * SIZE)
    with world.open() as pool:
        assert pool.find(record.id) == record
        assert pool.claims()[0] == 4 * SIZE
        assert pool.promise_growth(record, 2 * SIZE) == record
        assert pool.promise_growth(record, 4 * SIZE) == record
        assert pool.promise_growth(record, 5 * SIZE).growing_to == 5 * SIZE
        assert pool.grown(record).size == 5 * SIZE
        assert pool.promise_growth(record, SIZE).growing_to is None


def test_a_grow_for_which_there_is_no_room_changes_nothing(pool: Pool) -> None:
    record = make(pool)
    with pytest.raises(ExhaustedError, match="too much"):
        pool.promise_growth(record, pool.room().total)
    assert pool.find(record.id) == record


def test_a_grow_that_is_given_up_is_promised_no_more_but_for_what_has_grown(pool: Pool) -> None:
    record = pool.promise_growth(make(pool), 4 * SIZE)
    with pool.folder(record.id) as folder:
        write(folder, b"", 2 * SIZE)
    kept = pool.give_up_growth(record)
    assert (kept.size, kept.growing_to) == (SIZE, None)
    assert pool.give_up_growth(record) == kept
    assert pool.claims() == (2 * SIZE, 2 * SIZE)


@pytest.mark.parametrize("state", [State.CREATING, State.WIPING, State.DELETING])
def test_only_a_volume_that_is_ready_grows(pool: Pool, state: State) -> None:
    record = replace(make(pool), state=state, wiped_for=("uid",))
    pool.update(record)
    with pytest.raises(UnavailableError, match=state.value):
        pool.promise_growth(record, 2 * SIZE)
    assert pool.find(record.id) == record


def test_a_volume_that_has_gone_does_not_grow(pool: Pool) -> None:
    record = a_volume()
    with pytest.raises(NotFoundError, match=record.id):
        pool.promise_growth(record, 2 * SIZE)
    with pytest.raises(NotFoundError, match=record.id):
        pool.grown(record)
    with pytest.raises(NotFoundError, match=record.id):
        pool.give_up_growth(record)
