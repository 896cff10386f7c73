"""What volumes there are and how they are: for lists, and for whoever watches a volume's health.

Only what somebody was given is told. A volume whose record cannot be trusted is told as damaged, with nothing but its
id, and never left out: who compares the list with what there should be would take it for lost.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from moorage_csi.contract import TOPOLOGY_KEY
from moorage_csi.errors import NotFoundError, PreconditionError
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.rpc.compatibility import context_of
from moorage_csi.rpc.paging import page
from moorage_csi.rpc.pools import OpenPool, Pools, Station
from moorage_csi.rpc.shapes import shape_of
from moorage_csi.volumes.ids import SNAPSHOT_ID, VOLUME_ID, VolumeId
from moorage_csi.volumes.pool import Problem
from moorage_csi.volumes.record import GIVEN, Record, State
from moorage_csi.volumes.snapshot import Snapshot, SnapshotState

_Status = csi.ListVolumesResponse.VolumeStatus
_WELL: Final = "The volume is as it was made"


class Inventory:
    """Looks at the volumes of this node's pools; changes nothing.

    Args:
        pools: all of them.
        node_name: of this node.
    """

    def __init__(self, *, pools: Pools, node_name: str) -> None:
        self._pools = pools
        self._node_name = node_name

    async def page(self, *, token: str, most: int) -> csi.ListVolumesResponse:
        """One page of all volumes.

        Raises:
            UnavailableError: a pool is not open, and what is in it cannot be told: no list is better than half of one.
        """
        found: dict[str, tuple[Station, Record | Problem]] = {}
        for station in self._pools:
            opened = await station.open()
            known = await station.lane.run(lambda opened=opened: _known(opened))  # type: ignore[misc]
            found |= {each: (station, what) for each, what in known.items()}
        some, following = page(found, token=token, most=most, ids=VOLUME_ID)
        entries = [await self._entry(station, what) for station, what in some]
        return csi.ListVolumesResponse(entries=entries, next_token=following)

    async def look(self, volume: VolumeId) -> csi.ControllerGetVolumeResponse:
        """One volume and its condition.

        Raises:
            NotFoundError: no pool has it.
            UnavailableError: a pool that may have it is not open.
        """
        entry = await self._entry(*await self._found(volume))
        return csi.ControllerGetVolumeResponse(
            volume=entry.volume,
            status=csi.ControllerGetVolumeResponse.VolumeStatus(
                published_node_ids=entry.status.published_node_ids, volume_condition=entry.status.volume_condition
            ),
        )

    async def snapshots(self, *, token: str, most: int, source: str, wanted: str) -> csi.ListSnapshotsResponse:
        """One page of the snapshots; with ``source`` of that volume only, with ``wanted`` the one of that id.

        Those of a group are told when all of it is done; CSI, ListSnapshots: not before it is cut.

        Raises:
            UnavailableError: a pool is not open.
        """
        found: dict[str, Snapshot] = {}
        for station in self._pools:
            opened = await station.open()
            known = await station.lane.run(lambda opened=opened: known_snapshots(opened))  # type: ignore[misc]
            found |= {
                each.id: each
                for each in known
                if source in ("", each.source) and wanted in ("", each.id) and _is_told(each)
            }
        some, following = page(found, token=token, most=most, ids=SNAPSHOT_ID)
        entries = [csi.ListSnapshotsResponse.Entry(snapshot=snapshot_of(each)) for each in some]
        return csi.ListSnapshotsResponse(entries=entries, next_token=following)

    async def condition(self, station: Station, record: Record) -> csi.VolumeCondition:
        """How the volume is."""
        return (await self._entry(station, record)).status.volume_condition

    def volume(self, station: Station, record: Record) -> csi.Volume:
        """The volume as its callers know it."""
        volume = csi.Volume(volume_id=record.id, capacity_bytes=record.size, volume_context=context_of(record))
        source = record.source
        if source is not None and SNAPSHOT_ID.fullmatch(source):
            volume.content_source.snapshot.snapshot_id = source
        elif source is not None:
            volume.content_source.volume.volume_id = source
        if not station.settings.shared:
            volume.accessible_topology.add(segments={TOPOLOGY_KEY: self._node_name})
        return volume

    async def _found(self, volume: VolumeId) -> tuple[Station, Record | Problem]:
        try:
            found = await self._pools.find(volume)
        except PreconditionError:
            for station in self._pools:
                opened = await station.open()
                for problem in opened.pool.problems:
                    if problem.volume == volume:
                        return station, problem
            raise
        if found is None or found[1].state not in GIVEN:
            raise NotFoundError(f"volume {volume} is not on {self._node_name}")
        return found

    async def _entry(self, station: Station, what: Record | Problem) -> csi.ListVolumesResponse.Entry:
        if isinstance(what, Problem):
            told = f"{what.path} cannot be trusted, so the volume is left alone: {what.reason}"
            condition = csi.VolumeCondition(abnormal=True, message=told)
            return csi.ListVolumesResponse.Entry(
                volume=csi.Volume(volume_id=what.volume), status=_Status(volume_condition=condition)
            )
        opened = await station.open()
        fault, used = await station.lane.run(lambda: _looked_at(opened, what))
        return csi.ListVolumesResponse.Entry(
            volume=self.volume(station, what),
            status=_Status(
                published_node_ids=[self._node_name] if used else [],
                volume_condition=csi.VolumeCondition(abnormal=bool(fault), message=fault or _WELL),
            ),
        )


def snapshot_of(snapshot: Snapshot) -> csi.Snapshot:
    """The snapshot as its callers know it."""
    created = Timestamp()
    created.FromNanoseconds(int(snapshot.created * 1e9))
    return csi.Snapshot(
        snapshot_id=snapshot.id,
        source_volume_id=snapshot.source,
        size_bytes=snapshot.size,
        creation_time=created,
        ready_to_use=snapshot.state is SnapshotState.READY,
        group_snapshot_id=snapshot.group or "",
    )


def _is_told(snapshot: Snapshot) -> bool:
    if snapshot.group is not None:
        return snapshot.state is SnapshotState.READY
    return snapshot.state is not SnapshotState.DELETING


def known_snapshots(opened: OpenPool) -> Iterable[Snapshot]:
    """All of a pool's, in whatever state; of a shared one read anew. Blocks."""
    if opened.pool.settings.shared:
        opened.pool.load()
    return tuple(opened.pool.snapshots.records.values())


def _known(opened: OpenPool) -> Mapping[str, Record | Problem]:
    """The volumes that somebody was given, and those that cannot be read, by id."""
    if opened.pool.settings.shared:
        opened.pool.load()
    known: dict[str, Record | Problem] = {
        problem.volume: problem for problem in opened.pool.problems if VOLUME_ID.fullmatch(problem.volume)
    }
    return known | {str(each): record for each, record in opened.pool.records.items() if record.state in GIVEN}


def _looked_at(opened: OpenPool, record: Record) -> tuple[str, bool]:
    """What is wrong with a volume, and whether this node uses it."""
    if record.state is State.WIPING:
        return "a wipe of the volume has not ended: it can be used again once that is asked for again and ends", False
    backend = opened.backend_of(record)
    try:
        with opened.pool.folder(record.id) as folder:
            return backend.fault(folder, shape_of(record)), bool(backend.users(folder))
    except OSError as error:
        return f"the volume cannot be looked at: {error}", False
