"""What was deleted and can be had back, and having it back; see ``volumes/exits`` for where it lies until then.

Taking back is one rename. It runs with the id's key held, so that nothing of that id is made meanwhile, and it is found
done where it is: a retry after a crash finds the volume where it lay, or back.
"""

import logging

from moorage_csi.errors import AlreadyExistsError, NotFoundError, UnavailableError
from moorage_csi.proto import moorage_pb2 as moorage
from moorage_csi.rpc.compatibility import context_of, refuse_unready, refuse_unready_snapshot
from moorage_csi.rpc.pools import Pools, Station
from moorage_csi.volumes.exits import Left
from moorage_csi.volumes.ids import SNAPSHOT_ID, SnapshotId, VolumeId
from moorage_csi.volumes.record import Mode, Record
from moorage_csi.volumes.snapshot import Snapshot

_log = logging.getLogger(__name__)


class Recovery:
    """The ways back into this node's pools. A pool that cannot be opened has nothing to give back."""

    def __init__(self, *, pools: Pools, node_name: str) -> None:
        self._pools = pools
        self._node_name = node_name

    async def deleted(self) -> list[tuple[Station, Left]]:
        """All that can be had back, the last deleted first."""
        found: list[tuple[Station, Left]] = []
        for station in self._pools:
            opened = station.ready
            if opened is not None:
                exits = opened.pool.exits
                found += [(station, left) for left in await station.lane.run(exits.restorable)]
        # The names tell whole seconds; of two that left in one, the younger left last.
        return sorted(found, key=lambda each: (each[1].left, each[1].record.created), reverse=True)

    async def restore(self, wanted: VolumeId | SnapshotId) -> Record | Snapshot:
        """Take back what was deleted under this id, or find it there. The caller holds its key.

        Raises:
            NotFoundError: nothing of this id can be had back.
            AlreadyExistsError: the id has been given anew, and what has it now stays.
            ExhaustedError: its room was promised to others meanwhile.
            PreconditionError: its record cannot be trusted; it stays where it lies.
        """
        there = await self._there(wanted)
        left = [each for each in await self.deleted() if each[1].record.id == wanted]
        if there is not None and left:
            raise AlreadyExistsError(
                f"{wanted} has been made anew since, and what was deleted can only come back under that id: delete the new one "
                "first; the old one stays for the pool's trashRetention"
            )
        if there is not None:
            return there
        if left:
            return await self._take_back(*left[0])
        raise NotFoundError(
            f"nothing that was deleted as {wanted} can be had back on {self._node_name}: it was removed after the pool's "
            "trashRetention, or it was deleted on another node"
        )

    async def _there(self, wanted: VolumeId | SnapshotId) -> Record | Snapshot | None:
        if SNAPSHOT_ID.fullmatch(wanted):
            snapshot = await self._pools.find_snapshot(SnapshotId(wanted))
            if snapshot is None:
                return None
            refuse_unready_snapshot(snapshot[1])
            return snapshot[1]
        volume = await self._pools.find(VolumeId(wanted))
        if volume is None:
            return None
        refuse_unready(volume[1])
        return volume[1]

    async def _take_back(self, station: Station, left: Left) -> Record | Snapshot:
        opened = await station.open()
        try:
            back = await station.lane.run(lambda: opened.pool.restore(left, revive=opened.limit))
        except FileExistsError as error:
            raise AlreadyExistsError(f"{left.record.id} is there again: {error}") from error
        except OSError as error:
            raise UnavailableError(f"{left.record.id} cannot be taken back: {error}; it stays where it is") from error
        _log.info("taken back", extra={"id": back.id, "pool": station.name, "request_name": back.name})
        return back


def item_of(what: Record | Snapshot) -> moorage.Item:
    """The protocol's form of a volume or a snapshot."""
    item = moorage.Item(
        id=what.id,
        pool=what.pool,
        node=what.node,
        name=what.name,
        size_bytes=what.size,
        block=what.mode is Mode.BLOCK,
        filesystem=what.filesystem,
    )
    if what.claim is not None:
        item.claim_namespace, item.claim_name = what.claim.namespace, what.claim.name
    if isinstance(what, Snapshot):
        item.source_volume_id = what.source
    else:
        item.context.update(context_of(what))
    return item
