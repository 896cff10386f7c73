"""How much of a pool may still be promised: arithmetic, and nothing is looked up here.

A volume that was copied by reflink, or as a subvolume, has its data on the disk without having taken any room for it:
that comes as the copy and its source are written anew, one after the other. So of a copy that ``shares`` nothing counts
as written. Its source counts as before. Together they can come to the source's size and the copy's, the disk has what
the source has written of that, and the rest is not written yet; with more copies, copies of copies and snapshots it is
the same sum.

An example: a disk of 100 Gi and on it a volume of 10 Gi, written to its end. 90 Gi are free and can be promised. A clone
by reflink takes nothing of the disk, and is promised 10 Gi that are not written yet: 80 Gi can be promised now, whatever
the two write meanwhile. If the clone counted as written too, 90 Gi could be promised, and 10 of them would be gone as
soon as either is written anew; if the source did not, it would be 70.

It holds too while a source is gone, where it is less than could be promised: the clone alone, of 100 Gi, leaves 80. And
it holds for what was deleted and lies in the trash, or was retained or archived. Nothing is promised to that any more:
it takes the room that the filesystem says it takes, and comes back to be promised when it is removed. But where it
shares, the volume that it shares with cannot be written anew in place, so it counts as a snapshot does.

Layers are another way to have data in common: they never change, so they take what they take, and nothing is promised to
them. But when a volume of layers is copied, what it has written becomes a layer, and it can write as much anew. So while
the copy is made it needs that much beside its own size. After that it counts of itself: with the source, which has not
written it yet, or, where the layer had to be a copy, as room that the disk does not have any more. An example: a disk of 100 Gi, on it
such a volume of 10 Gi, written to its end. A clone is promised 10 Gi and needs 20; 70 Gi can be promised then, for
there are 10 Gi in the layer, and either volume can write 10.
"""

from dataclasses import dataclass
from typing import Protocol

from moorage_csi.quantity import text
from moorage_csi.volumes.record import Record
from moorage_csi.volumes.snapshot import Snapshot, SnapshotState


class Footprint(Protocol):
    """What a volume may take and what it has taken of the pool, in bytes."""

    @property
    def size(self) -> int:
        """What it was promised."""

    @property
    def allocated(self) -> int:
        """What of it is on the disk already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stake:
    """What something has of a pool, in bytes: promised to it, and of that not written yet."""

    promised: int = 0
    unwritten: int = 0

    def __add__(self, other: "Stake") -> "Stake":
        return Stake(promised=self.promised + other.promised, unwritten=self.unwritten + other.unwritten)


def stake_of_volume(record: Record | None, found: Footprint | None) -> Stake:
    """A volume's; the record is None where it is damaged, ``found`` where nobody can tell.

    What cannot be told counts as not written, and so does a damaged volume's data: it may be a copy's.
    """
    promised = max(record.size, record.growing_to or 0) if record is not None else 0
    if found is None:
        return Stake(promised=promised, unwritten=promised)
    promised = max(promised, found.size)
    own = record is not None and not record.shares
    return Stake(promised=promised, unwritten=max(0, promised - found.allocated) if own else promised)


def stake_of_layer(source: Record, found: Footprint | None) -> Stake:
    """What a copy of a volume of layers needs beside its own size, as long as it is being made."""
    written = source.size if found is None else found.allocated
    return Stake(promised=written, unwritten=written)


def stake_of_snapshot(snapshot: Snapshot | None, found: Footprint | None) -> Stake:
    """A snapshot's. Once it is ready, ``found`` decides nothing: it never changes."""
    allocated = found.allocated if found is not None else 0
    if snapshot is None:
        return Stake(promised=allocated, unwritten=allocated)
    if snapshot.shares:
        return Stake(promised=snapshot.holds, unwritten=snapshot.holds)
    if snapshot.state is SnapshotState.CREATING:
        return Stake(promised=snapshot.holds, unwritten=max(0, snapshot.holds - allocated))
    return Stake(promised=snapshot.holds)


def stake_of_remnant(record: Record | Snapshot | None, found: Footprint | None) -> Stake:
    """Of something that has left its place and shares; the record is None where it has none any more."""
    if found is not None:
        return Stake(unwritten=found.allocated)
    if record is None:
        return Stake()
    return Stake(unwritten=record.holds if isinstance(record, Snapshot) else record.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The figures of a pool, in bytes.

    Two limits hold, and the tighter one counts. By the filesystem: what is free now, less the reserve,
    less what existing volumes may still claim of it because they are sparse. By the promises: the whole,
    less the reserve, less all sizes; it holds too where others' files, which take room today, may go.
    ``overcommit`` multiplies what there is in both, and never the promises.
    """

    total: int
    available: int
    reserve: int
    promised: int
    unallocated: int
    overcommit: float

    @property
    def by_filesystem(self) -> int:
        """Bytes that could be written if all that is promised were; below zero where it could not be."""
        return int(max(0, self.available - self.reserve) * self.overcommit) - self.unallocated

    @property
    def by_promises(self) -> int:
        """Bytes of the whole that are promised to nobody; below zero where more was promised."""
        return int(self.total * self.overcommit) - self.reserve - self.promised

    @property
    def free(self) -> int:
        """The size of the largest volume that may still be made; never negative."""
        return max(0, min(self.by_filesystem, self.by_promises))

    def lacks(self, stake: Stake) -> int:
        """Bytes by which it is too little to promise that; zero where it can be promised."""
        return max(0, stake.promised - self.by_promises, stake.unwritten - self.by_filesystem)

    def __str__(self) -> str:
        """The numbers, for the person who wonders why there is no room."""
        return (
            f"{text(self.free)} can be promised: {text(self.total)} in all, {text(self.available)} free on the disk, "
            f"{text(self.reserve)} reserved, {text(self.promised)} promised to volumes, of which "
            f"{text(self.unallocated)} not written yet, overcommit {self.overcommit:g}"
        )
