"""What a volume or snapshot is made from: a volume or a snapshot of this node, found by its id and kept while it is read."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from moorage_csi.errors import NotFoundError
from moorage_csi.host.paths import Directory
from moorage_csi.rpc.compatibility import refuse_unready, refuse_unready_snapshot
from moorage_csi.rpc.guard import Guard
from moorage_csi.rpc.pools import OpenPool, Pools
from moorage_csi.volumes.ids import SNAPSHOT_ID, SnapshotId, VolumeId
from moorage_csi.volumes.record import Mode, Record
from moorage_csi.volumes.snapshot import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Data to be copied, ready, in an open pool of this node."""

    pool: OpenPool
    what: Record | Snapshot

    @property
    def size(self) -> int:
        """What a copy has at least, in bytes: what it has or, where it is growing, may have already."""
        return (self.what.growing_to if isinstance(self.what, Record) else None) or self.what.size

    @property
    def block(self) -> bool:
        """Whether it is a device."""
        return self.what.mode is Mode.BLOCK

    @contextlib.contextmanager
    def folder(self) -> Iterator[Directory]:
        """Its folder, open for as long as the block lasts."""
        what = self.what
        held = (
            self.pool.pool.snapshots.folder(what.id) if isinstance(what, Snapshot) else self.pool.pool.folder(what.id)
        )
        with held as folder:
            yield folder


class Sources:
    """Finds sources among the pools of this node, and keeps them from being deleted or wiped while they are read."""

    def __init__(self, *, pools: Pools, node_name: str, guard: Guard) -> None:
        self._pools = pools
        self._node_name = node_name
        self._guard = guard

    @contextlib.contextmanager
    def kept(self, source: VolumeId | SnapshotId) -> Iterator[None]:
        """Keep it for as long as the block lasts.

        Raises:
            InFlightError: it is being taken away at this moment.
        """
        with self._guard.reading(source):
            yield

    async def find(self, source: VolumeId | SnapshotId) -> Source:
        """The volume or snapshot of that id.

        Raises:
            NotFoundError: it is not on this node; CSI, CreateVolume and CreateSnapshot: NOT_FOUND.
            UnavailableError: it is not ready, or may be in a pool that is not open.
        """
        if SNAPSHOT_ID.fullmatch(source):
            return await self.find_snapshot(SnapshotId(source))
        found = await self._pools.find(VolumeId(source))
        if found is None:
            raise NotFoundError(f"volume {source}, of which a copy is asked for, is not on {self._node_name}")
        station, record = found
        refuse_unready(record)
        return Source(pool=await station.open(), what=record)

    async def find_snapshot(self, wanted: SnapshotId) -> Source:
        """The snapshot of that id; otherwise like ``find``."""
        found = await self._pools.find_snapshot(wanted)
        if found is None:
            raise NotFoundError(f"snapshot {wanted} is not on {self._node_name}")
        station, snapshot = found
        refuse_unready_snapshot(snapshot)
        return Source(pool=await station.open(), what=snapshot)
