"""What copies that share their data may still come to, tried on a disk that knows every block of theirs."""

import itertools
from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from moorage_csi.volumes.record import Record, State
from moorage_csi.volumes.room import Room, Stake, stake_of_remnant, stake_of_snapshot, stake_of_volume
from moorage_csi.volumes.snapshot import Snapshot, SnapshotState
from tests.unit.csi.pool_world import Taken, a_snapshot, a_volume

GIB = 1 << 30

_KEYS = st.integers(min_value=0, max_value=1 << 16)
_BLOCKS = st.integers(min_value=1, max_value=30)


@dataclass(slots=True)
class Thing:
    """A volume or snapshot: which block of the disk holds which of its own."""

    record: Record | Snapshot
    blocks: dict[int, int] = field(default_factory=dict)

    @property
    def taken(self) -> Taken:
        return Taken(size=self.record.size, allocated=len(self.blocks))


class Disk(RuleBasedStateMachine):
    """A disk that copies on write. Whatever was promised on it, all volumes can be written anew, and there is room."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count()
        self.alive: list[Thing] = []
        self.deleted: list[Thing] = []
        self.total = self.others = self.reserve = 0

    @initialize(total=st.integers(50, 200), others=st.integers(0, 50), reserve=st.integers(0, 20))
    def _begin(self, total: int, others: int, reserve: int) -> None:
        self.total, self.others, self.reserve = total, min(others, total), reserve

    @rule(size=_BLOCKS)
    def create(self, size: int) -> None:
        if not self._room().lacks(Stake(promised=size, unwritten=size)):
            self.alive.append(Thing(record=self._volume(size)))

    @precondition(lambda self: self._room().free)
    @rule()
    def take_all_that_is_free(self) -> None:
        self.alive.append(Thing(record=self._volume(self._room().free)))

    @precondition(lambda self: self.alive)
    @rule(key=_KEYS, more=st.integers(0, 5), shares=st.booleans())
    def clone_or_restore(self, key: int, more: int, shares: bool) -> None:
        source = self._one(key)
        size = source.record.size + more
        record = replace(self._volume(size), source=source.record.id, shares=shares)
        if self._ready(source) and not self._room().lacks(Stake(promised=size, unwritten=size)):
            self.alive.append(Thing(record=record, blocks=self._copied(source, shares=shares)))

    @precondition(lambda self: self._volumes())
    @rule(key=_KEYS, shares=st.booleans(), held=st.booleans())
    def snapshot(self, key: int, shares: bool, held: bool) -> None:
        source = self._volumes()[key % len(self._volumes())]
        holds = len(source.blocks) if held else source.record.size
        assert isinstance(source.record, Record)
        snapshot = a_snapshot(source.record, str(next(self.numbers)), holds=holds, shares=shares)
        if not self._room().lacks(Stake(promised=holds, unwritten=holds)):
            copied = Thing(record=snapshot, blocks=self._copied(source, shares=shares))
            self.alive.append(copied)
            if held:
                self._complete(copied)

    @precondition(lambda self: self._half_made())
    @rule(key=_KEYS)
    def complete(self, key: int) -> None:
        self._complete(self._half_made()[key % len(self._half_made())])

    @precondition(lambda self: self._volumes())
    @rule(key=_KEYS, blocks=st.lists(st.integers(0, 40), min_size=1, max_size=40))
    def write(self, key: int, blocks: list[int]) -> None:
        volume = self._volumes()[key % len(self._volumes())]
        volume.blocks |= {block: next(self.numbers) for block in blocks if block < volume.record.size}

    @precondition(lambda self: self._volumes())
    @rule(key=_KEYS)
    def write_all(self, key: int) -> None:
        volume = self._volumes()[key % len(self._volumes())]
        volume.blocks = {block: next(self.numbers) for block in range(volume.record.size)}

    @precondition(lambda self: self._volumes())
    @rule(key=_KEYS, block=st.integers(0, 40))
    def punch(self, key: int, block: int) -> None:
        self._volumes()[key % len(self._volumes())].blocks.pop(block, None)

    @precondition(lambda self: self._volumes())
    @rule(key=_KEYS, more=_BLOCKS)
    def promise_growth(self, key: int, more: int) -> None:
        volume = self._volumes()[key % len(self._volumes())]
        assert isinstance(volume.record, Record)
        if volume.record.growing_to is None and not self._room().lacks(Stake(promised=more, unwritten=more)):
            volume.record = replace(volume.record, growing_to=volume.record.size + more)

    @precondition(lambda self: self._volumes())
    @rule(key=_KEYS)
    def grown(self, key: int) -> None:
        volume = self._volumes()[key % len(self._volumes())]
        assert isinstance(volume.record, Record)
        if volume.record.growing_to is not None:
            volume.record = replace(volume.record, size=volume.record.growing_to, growing_to=None)

    @precondition(lambda self: self.alive)
    @rule(key=_KEYS)
    def delete(self, key: int) -> None:
        self.deleted.append(self.alive.pop(key % len(self.alive)))

    @precondition(lambda self: self.deleted)
    @rule(key=_KEYS)
    def remove(self, key: int) -> None:
        self.deleted.pop(key % len(self.deleted))

    @precondition(lambda self: self.deleted)
    @rule(key=_KEYS)
    def have_back(self, key: int) -> None:
        thing = self.deleted[key % len(self.deleted)]
        kept = stake_of_remnant(thing.record, thing.taken) if thing.record.shares else Stake()
        room = self._room()
        room = replace(room, unallocated=room.unallocated - kept.unwritten)
        if self._ready(thing) and not room.lacks(self._stake(thing)):
            self.deleted.remove(thing)
            self.alive.append(thing)

    @invariant()
    def all_that_was_promised_can_be_written(self) -> None:
        promised = sum(self._promised(thing) for thing in self._volumes())
        unchanging = [thing for thing in (*self.alive, *self.deleted) if thing not in self._volumes()]
        to_come = sum(
            thing.record.holds - len(thing.blocks)
            for thing in self._half_made()
            if isinstance(thing.record, Snapshot) and not thing.record.shares
        )
        assert promised == 0 or promised + len(_union(unchanging)) + to_come + self.others + self.reserve <= self.total

    def _room(self) -> Room:
        stakes = [self._stake(thing) for thing in self.alive]
        stakes += [stake_of_remnant(thing.record, thing.taken) for thing in self.deleted if thing.record.shares]
        whole = sum(stakes, Stake())
        return Room(
            total=self.total,
            available=self.total - self.others - len(_union([*self.alive, *self.deleted])),
            reserve=self.reserve,
            promised=whole.promised,
            unallocated=whole.unwritten,
            overcommit=1.0,
        )

    def _stake(self, thing: Thing) -> Stake:
        if isinstance(thing.record, Snapshot):
            return stake_of_snapshot(thing.record, thing.taken)
        return stake_of_volume(thing.record, thing.taken)

    def _promised(self, thing: Thing) -> int:
        assert isinstance(thing.record, Record)
        return thing.record.growing_to or thing.record.size

    def _volume(self, size: int) -> Record:
        return a_volume(str(next(self.numbers)), size=size, state=State.READY)

    def _copied(self, source: Thing, *, shares: bool) -> dict[int, int]:
        return dict(source.blocks) if shares else {block: next(self.numbers) for block in source.blocks}

    def _complete(self, thing: Thing) -> None:
        assert isinstance(thing.record, Snapshot)
        thing.record = replace(thing.record, holds=len(thing.blocks), state=SnapshotState.READY)

    def _one(self, key: int) -> Thing:
        return self.alive[key % len(self.alive)]

    def _volumes(self) -> list[Thing]:
        return [thing for thing in self.alive if isinstance(thing.record, Record)]

    def _half_made(self) -> list[Thing]:
        return [thing for thing in self.alive if not self._ready(thing)]

    def _ready(self, thing: Thing) -> bool:
        return thing.record.state in (State.READY, SnapshotState.READY)


def _union(things: list[Thing]) -> set[int]:
    return set().union(*(thing.blocks.values() for thing in things))


TestDisk = Disk.TestCase
TestDisk.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)


def _room_of(total: int, available: int, *stakes: Stake) -> Room:
    whole = sum(stakes, Stake())
    return Room(
        total=total,
        available=available,
        reserve=0,
        promised=whole.promised,
        unallocated=whole.unwritten,
        overcommit=1.0,
    )


def test_the_example_of_a_full_volume_and_its_clone() -> None:
    full = Taken(size=10 * GIB, allocated=10 * GIB)
    source = a_volume(size=10 * GIB, state=State.READY)
    clone = replace(a_volume("pvc-2", size=10 * GIB, state=State.READY), source=source.id, shares=True)
    alone = stake_of_volume(source, full)
    assert _room_of(100 * GIB, 90 * GIB, alone).free == 90 * GIB
    assert _room_of(100 * GIB, 90 * GIB, alone, stake_of_volume(clone, full)).free == 80 * GIB
    assert _room_of(100 * GIB, 90 * GIB, stake_of_volume(clone, full)).free == 80 * GIB


def test_a_snapshot_by_reflink_stands_in_the_way_of_its_source_until_it_is_removed() -> None:
    full = Taken(size=10 * GIB, allocated=10 * GIB)
    source = a_volume(size=10 * GIB, state=State.READY)
    snapshot = a_snapshot(source, holds=10 * GIB, shares=True, state=SnapshotState.READY)
    alone = stake_of_volume(source, full)
    # Others have 20: what is free on the disk decides.
    assert _room_of(100 * GIB, 70 * GIB, alone).free == 70 * GIB
    assert _room_of(100 * GIB, 70 * GIB, alone, stake_of_snapshot(snapshot, full)).free == 60 * GIB
    assert _room_of(100 * GIB, 70 * GIB, alone, stake_of_remnant(snapshot, full)).free == 60 * GIB
    # They have nothing: what is in the trash takes its room nevertheless.
    assert _room_of(100 * GIB, 90 * GIB, alone, stake_of_remnant(snapshot, full)).free == 80 * GIB


def test_a_snapshot_is_promised_what_it_holds_and_no_more() -> None:
    source = a_volume(size=10 * GIB, state=State.READY)
    copy = a_snapshot(source, holds=3 * GIB)
    written = Taken(size=10 * GIB, allocated=GIB)
    assert stake_of_snapshot(copy, None) == Stake(promised=3 * GIB, unwritten=3 * GIB)
    assert stake_of_snapshot(copy, written) == Stake(promised=3 * GIB, unwritten=2 * GIB)
    assert stake_of_snapshot(replace(copy, state=SnapshotState.READY), None) == Stake(promised=3 * GIB)
    shared = replace(copy, state=SnapshotState.READY, shares=True)
    assert stake_of_snapshot(shared, Taken(size=10 * GIB, allocated=3 * GIB)) == Stake(
        promised=3 * GIB, unwritten=3 * GIB
    )


def test_what_grows_is_promised_what_it_grows_to_and_what_has_grown_stays_promised() -> None:
    growing = a_volume(size=4 * GIB, growing_to=6 * GIB)
    written = Taken(size=4 * GIB, allocated=GIB)
    assert stake_of_volume(growing, written) == Stake(promised=6 * GIB, unwritten=5 * GIB)
    assert stake_of_volume(a_volume(size=4 * GIB), replace(written, size=6 * GIB)).promised == 6 * GIB


def test_a_damaged_record_may_be_a_copys() -> None:
    full = Taken(size=4 * GIB, allocated=4 * GIB)
    assert stake_of_volume(None, full) == Stake(promised=4 * GIB, unwritten=4 * GIB)
    assert stake_of_snapshot(None, full) == Stake(promised=4 * GIB, unwritten=4 * GIB)
    assert stake_of_volume(None, None) == stake_of_snapshot(None, None) == Stake()


def test_what_left_and_shares_counts_as_a_snapshot_would() -> None:
    source = a_volume(size=4 * GIB)
    assert stake_of_remnant(source, Taken(size=4 * GIB, allocated=GIB)) == Stake(unwritten=GIB)
    assert stake_of_remnant(source, None) == Stake(unwritten=4 * GIB)
    assert stake_of_remnant(a_snapshot(source, holds=3 * GIB), None) == Stake(unwritten=3 * GIB)
    assert stake_of_remnant(None, None) == Stake()
