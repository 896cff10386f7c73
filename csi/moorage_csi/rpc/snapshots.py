"""Taking and deleting snapshots: the steps, their order, and what is left if they stop between two.

Taking: promise what the source has on the disk at the most and write the snapshot's record (``creating``) · copy the
storage, of one moment where the backend can · write the record (``ready``, with what it holds). Whatever stops before
the last write leaves a record in state ``creating``: the next attempt, or the next start, throws it away and begins
anew, so a snapshot is never of two moments.

Where data is shared a copy takes milliseconds. Where it is not, the caller is told after a while that the snapshot is
not ready to use, and asks again; the copy goes on meanwhile.

Deleting: write the record (``deleting``) · rename the folder into the trash. Volumes that were made of it stand for
themselves. One that is part of a group goes with the group alone, see ``grouping``.

Both run with the snapshot's key held, and its source is kept from being taken away, see ``guard``.
"""

import asyncio
import errno
import functools
import logging
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from moorage_csi import contract
from moorage_csi.backends.backend import Footprint, Shape
from moorage_csi.errors import (
    AlreadyExistsError,
    DriverError,
    ExhaustedError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from moorage_csi.rpc.compatibility import refuse_unready
from moorage_csi.rpc.guard import Guard
from moorage_csi.rpc.pools import OpenPool, Pools, Station
from moorage_csi.rpc.provisioning import no_step
from moorage_csi.rpc.shapes import shape_of
from moorage_csi.rpc.sources import Sources
from moorage_csi.volumes.ids import SnapshotId, VolumeId, snapshot_id_for
from moorage_csi.volumes.record import Record
from moorage_csi.volumes.snapshot import Snapshot, SnapshotState

_log = logging.getLogger(__name__)

PATIENCE: Final = 2.0
"""Seconds after which the caller is told that a snapshot is not ready yet."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Snapshotter:
    """Takes and deletes the snapshots of this node's volumes.

    ``step`` is called after every step with its name: the seam at which tests stop the process.
    """

    def __init__(
        self,
        *,
        pools: Pools,
        sources: Sources,
        node_name: str,
        guard: Guard,
        clock: Callable[[], float],
        new_uuid: Callable[[], uuid.UUID],
        step: Callable[[str], None] = no_step,
    ) -> None:
        self._pools = pools
        self._sources = sources
        self._node_name = node_name
        self._guard = guard
        self._clock = clock
        self._new_uuid = new_uuid
        self._step = step

    async def take(self, name: str, source: VolumeId) -> Snapshot:
        """Take a snapshot of a volume, or find it taken, or being taken.

        Raises:
            AlreadyExistsError: the name is that of a snapshot of another volume.
            NotFoundError: there is no such volume on this node.
            ExhaustedError: the pool has no room; nothing is left.
            PreconditionError: it would not be of one moment, because the volume is in use; nothing is left.
        """
        wanted = snapshot_id_for(name)
        if not self._guard.runs(wanted):
            taking = asyncio.ensure_future(self._guard.run(wanted, lambda: self._take(name, source)))
            # Where this caller has gone by then, whoever asks next is told how it ended.
            taking.add_done_callback(lambda ended: None if ended.cancelled() else ended.exception())
            done, _ = await asyncio.wait([taking], timeout=PATIENCE)
            if done:
                return taking.result()
        found = await self._pools.find_snapshot(wanted)
        if found is None:
            raise UnavailableError(f"snapshot {name} is being taken: ask again")
        refuse_other_source(found[1], source)
        if found[1].state is SnapshotState.DELETING:
            raise UnavailableError(f"snapshot {name} is being deleted: ask again when that has ended")
        return found[1]

    async def delete(self, wanted: SnapshotId) -> None:
        """Delete a snapshot; absent is deleted.

        Raises:
            InvalidArgumentError: it is part of a group.
        """
        await self._guard.run(wanted, lambda: self._delete(wanted), takes_away=True)

    async def _take(self, name: str, source: VolumeId) -> Snapshot:
        wanted = snapshot_id_for(name)
        existing = await self._pools.find_snapshot(wanted)
        if existing is not None:
            station, snapshot = existing
            refuse_other_source(snapshot, source)
            if snapshot.state is SnapshotState.READY:
                return snapshot
            await self._throw_away(station, snapshot)
        with self._sources.kept(source):
            found = await self._pools.find(source)
            if found is None:
                raise NotFoundError(f"volume {source} is not on {self._node_name}")
            refuse_unready(found[1])
            return await self._make(*found, name)

    async def _make(self, station: Station, record: Record, name: str) -> Snapshot:
        opened = await station.open()
        holds = await station.lane.run(lambda: allocated(opened, record))
        snapshot = planned(
            opened,
            record,
            id=snapshot_id_for(name),
            name=name,
            uuid=self._new_uuid(),
            node=self._node_name,
            holds=holds,
            created=self._clock(),
        )
        await station.lane.run(lambda: opened.pool.begin_snapshot(snapshot))
        self._step("begun")
        try:
            await station.copying.run(lambda: self._copy(station, opened, record, snapshot))
            self._step("copied")
            ready = await station.lane.run(lambda: complete(opened, record, snapshot))
        except BaseException as error:
            try:
                await self._throw_away(station, snapshot)
            except (OSError, DriverError) as second:
                raise UnavailableError(
                    f"snapshot {name} failed ({error}), and what was begun could not be removed ({second}): ask again"
                ) from error
            if isinstance(error, OSError):
                raise told(error, f"snapshot {name}") from error
            raise
        self._step("ready")
        _log.info(
            "snapshot taken",
            extra={"snapshot": ready.id, "volume": record.id, "pool": station.name, "bytes": ready.holds},
        )
        return ready

    def _copy(self, station: Station, opened: OpenPool, record: Record, snapshot: Snapshot) -> None:
        with opened.pool.folder(record.id) as origin, opened.pool.snapshots.folder(snapshot.id) as folder:
            backend = opened.backend_of(record)
            opened.book_copy(record, origin)
            backend.copy(origin, folder, unlimited(record), pace=station.pace)

    async def _delete(self, wanted: SnapshotId) -> None:
        found = await self._pools.find_snapshot(wanted)
        if found is None:
            return
        station, snapshot = found
        if snapshot.group is not None:
            raise InvalidArgumentError(
                f"snapshot {wanted} is part of group snapshot {snapshot.group} and cannot be deleted alone: delete that one"
            )
        await self._throw_away(station, snapshot)
        _log.info("snapshot deleted", extra={"snapshot": wanted, "pool": station.name})

    async def _throw_away(self, station: Station, snapshot: Snapshot) -> None:
        await throw_away(station, snapshot)
        self._step("discarded")


def refuse_other_source(snapshot: Snapshot, source: VolumeId) -> None:
    """Refuse a name that is that of a snapshot of another volume; CSI, CreateSnapshot: ALREADY_EXISTS."""
    if snapshot.source != source:
        raise AlreadyExistsError(
            f"snapshot {snapshot.name} is of volume {snapshot.source}, and is asked for of {source}: take another name"
        )


def planned(
    opened: OpenPool,
    record: Record,
    *,
    id: SnapshotId,  # noqa: A002 - the record's word
    name: str,
    uuid: uuid.UUID,
    node: str,
    holds: int,
    created: float,
) -> Snapshot:
    """The record of a snapshot of that volume, before anything of it is made."""
    return Snapshot(
        id=id,
        name=name,
        uuid=str(uuid),
        node=node,
        pool=opened.pool.name,
        source=record.id,
        claim=record.claim,
        size=record.growing_to or record.size,
        holds=holds,
        backend=record.backend,
        filesystem=record.filesystem,
        mode=record.mode,
        permissions=record.permissions,
        quota=record.quota,
        state=SnapshotState.CREATING,
        created=created,
        shares=opened.no_reflink is None,
    )


def allocated(opened: OpenPool, record: Record) -> int:
    """Bytes that the volume has on the disk; its size where that cannot be told. Blocks."""
    found: Footprint | None = None
    with opened.pool.folder(record.id) as folder:
        found = opened.backend_of(record).footprint(folder)
    return record.size if found is None else min(found.allocated, record.size)


def complete(
    opened: OpenPool, record: Record, snapshot: Snapshot, *, state: SnapshotState = SnapshotState.READY
) -> Snapshot:
    """Write that a snapshot is copied, and what it holds; returns that record. Blocks; see ``Pool.complete_snapshot``."""
    with opened.pool.snapshots.folder(snapshot.id) as folder:
        found = opened.backend_of(record).footprint(folder)
    return opened.pool.complete_snapshot(
        snapshot, holds=snapshot.holds if found is None else found.allocated, state=state
    )


def unlimited(record: Record) -> Shape:
    """The shape of a snapshot: it never grows, so nothing holds its size."""
    return replace(shape_of(record), quota=contract.QUOTA_NONE)


async def throw_away(station: Station, snapshot: Snapshot) -> None:
    """Take a snapshot out of its pool, in whatever state; absent is taken out."""
    opened = await station.open()

    def take_out() -> None:
        opened.pool.discard_snapshot(snapshot, retire=functools.partial(opened.retire, snapshot))

    await station.lane.run(take_out)
    station.discarded()


def told(error: OSError, what: str) -> DriverError:
    """The error as callers have to hear it, now that all was undone."""
    if error.errno in _FULL:
        return ExhaustedError(f"the disk ran full while {what} was taken, and nothing of it is left: {error}")
    return InternalError(f"{what} could not be taken, and nothing of it is left: {error}")
