"""The Controller service: volumes of this node are made, deleted and counted here.

Each call validates, takes the volume's key, looks whether the work is done already, does it, answers. A
retry after a crash at any point finds either nothing, or the finished volume, or something half-made that
it throws away first; see ``provisioning``. What is not built is answered UNIMPLEMENTED, and no capability
speaks of it.
"""

import time
import uuid
from collections.abc import Callable, Iterable
from typing import Final

from google.protobuf.wrappers_pb2 import Int64Value

from moorage_csi.contract import TOPOLOGY_KEY
from moorage_csi.errors import (
    AlreadyExistsError,
    DriverError,
    ExhaustedError,
    InvalidArgumentError,
    NotFoundError,
)
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.proto import csi_pb2_grpc
from moorage_csi.rpc import validation
from moorage_csi.rpc.compatibility import context_of, refuse_other_context, refuse_unmodifiable, refuse_unusable
from moorage_csi.rpc.expanding import Expander
from moorage_csi.rpc.guard import Guard
from moorage_csi.rpc.inventory import Inventory, snapshot_of
from moorage_csi.rpc.modifying import Modifier
from moorage_csi.rpc.pools import OpenPool, Pools, Station
from moorage_csi.rpc.provisioning import Provisioner
from moorage_csi.rpc.snapshots import Snapshotter
from moorage_csi.rpc.sources import Sources
from moorage_csi.rpc.unoffered import unoffered
from moorage_csi.rpc.validation import Access, Creation, Range
from moorage_csi.volumes.record import Record, VolumeId

_Rpc = csi.ControllerServiceCapability.RPC
_CAPABILITIES: Final = (
    _Rpc.CLONE_VOLUME,
    _Rpc.CREATE_DELETE_SNAPSHOT,
    _Rpc.CREATE_DELETE_VOLUME,
    _Rpc.EXPAND_VOLUME,
    _Rpc.GET_CAPACITY,
    _Rpc.GET_SNAPSHOT,
    _Rpc.GET_VOLUME,
    _Rpc.LIST_SNAPSHOTS,
    _Rpc.LIST_VOLUMES,
    _Rpc.MODIFY_VOLUME,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
    _Rpc.VOLUME_CONDITION,
)

_SAYS: Final = "ControllerGetCapabilities"


class Controller(csi_pb2_grpc.ControllerServicer):
    """Answers for the pools of one node. ``pools`` and ``guard`` are shared with the Node service."""

    def __init__(
        self,
        *,
        pools: Pools,
        node_name: str,
        guard: Guard,
        clock: Callable[[], float] = time.time,
        new_uuid: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._pools = pools
        self._node_name = node_name
        self._guard = guard
        self._sources = Sources(pools=pools, node_name=node_name, guard=guard)
        self._provisioner = Provisioner(node_name=node_name, clock=clock, new_uuid=new_uuid)
        self._snapshotter = Snapshotter(
            pools=pools, sources=self._sources, node_name=node_name, guard=guard, clock=clock, new_uuid=new_uuid
        )
        self._expander = Expander()
        self._modifier = Modifier()
        self._inventory = Inventory(pools=pools, node_name=node_name)

    async def CreateVolume(  # noqa: N802 - the protocol's name
        self, request: csi.CreateVolumeRequest, context: object
    ) -> csi.CreateVolumeResponse:
        """Make a volume, or answer with the one that is there; see ``provisioning``.

        The id follows from the name alone, so a retry after a crash at any step means the same volume.
        """
        del context
        wish = validation.creation(request, pools=self._pools.names)
        station = self._pools.station(wish.parameters.pool)
        if not station.settings.shared and not self._here(request.accessibility_requirements.requisite):
            raise ExhaustedError(
                f"pool {station.name} of {self._node_name} makes volumes for {TOPOLOGY_KEY}={self._node_name} alone, and "
                "accessibility_requirements.requisite does not name it: ask the plugin of a node that it names"
            )
        record = await self._guard.run(wish.id, lambda: self._create(station, wish))
        return csi.CreateVolumeResponse(volume=self._inventory.volume(station, record))

    async def DeleteVolume(  # noqa: N802 - the protocol's name
        self, request: csi.DeleteVolumeRequest, context: object
    ) -> csi.DeleteVolumeResponse:
        """Delete a volume. One that no pool has is deleted already, also under an id that we never gave.

        A retry after a crash finds the volume as it was, or ``deleting`` and finishes that, or no volume.
        """
        del context
        volume = validation.volume_id(request.volume_id)
        await self._guard.run(volume, lambda: self._delete(volume), takes_away=True)
        return csi.DeleteVolumeResponse()

    async def ValidateVolumeCapabilities(  # noqa: N802 - the protocol's name
        self, request: csi.ValidateVolumeCapabilitiesRequest, context: object
    ) -> csi.ValidateVolumeCapabilitiesResponse:
        """Say whether the volume can be used in all these ways; changes nothing."""
        del context
        volume = validation.volume_id(request.volume_id)
        if not request.volume_capabilities:
            raise InvalidArgumentError("volume_capabilities are missing: say which are to be confirmed")
        found = await self._pools.find(volume)
        if found is None:
            raise NotFoundError(f"volume {volume} is not on {self._node_name}")
        station, record = found
        try:
            refuse_unusable(record, validation.access(request.volume_capabilities), shared=station.settings.shared)
            refuse_other_context(request.volume_context, context_of(record))
            if validation.mutable_parameters(request.mutable_parameters) is not None:
                refuse_unmodifiable(record)
        except DriverError as error:
            return csi.ValidateVolumeCapabilitiesResponse(message=str(error))
        return csi.ValidateVolumeCapabilitiesResponse(
            confirmed=csi.ValidateVolumeCapabilitiesResponse.Confirmed(
                volume_context=request.volume_context,
                volume_capabilities=request.volume_capabilities,
                parameters=request.parameters,
                mutable_parameters=request.mutable_parameters,
            )
        )

    async def GetCapacity(  # noqa: N802 - the protocol's name
        self, request: csi.GetCapacityRequest, context: object
    ) -> csi.GetCapacityResponse:
        """How large a volume may still be made: zero on other nodes, and for what the pool cannot make."""
        del context
        parameters = validation.parameters(request.parameters, pools=self._pools.names)
        station = self._pools.station(parameters.pool)
        asked = [request.accessible_topology] if request.HasField("accessible_topology") else []
        if not station.settings.shared and not self._here(asked):
            return csi.GetCapacityResponse(available_capacity=0)
        access = (
            validation.access(request.volume_capabilities, default_filesystem=parameters.filesystem)
            if request.volume_capabilities
            else Access(
                block=False,
                filesystem=parameters.filesystem,
                options=(),
                many_nodes=False,
                reader_only=False,
                exclusive=False,
            )
        )
        opened = await station.open()
        minimum = _minimum(opened, parameters.backend, access)
        if minimum is None:
            return csi.GetCapacityResponse(available_capacity=0)
        room = await station.lane.run(opened.pool.room)
        free = room.free - room.free % validation.SIZE_STEP
        return csi.GetCapacityResponse(
            available_capacity=free,
            maximum_volume_size=Int64Value(value=free),
            minimum_volume_size=Int64Value(value=minimum),
        )

    async def CreateSnapshot(  # noqa: N802 - the protocol's name
        self, request: csi.CreateSnapshotRequest, context: object
    ) -> csi.CreateSnapshotResponse:
        """Take a snapshot, or answer with the one that is there, or say that it is not ready to use yet.

        A retry after a crash at any step finds nothing, the finished snapshot, or a torso that it throws away first.
        """
        del context
        name = validation.snapshot_name(request)
        snapshot = await self._snapshotter.take(name, validation.source_volume_id(request.source_volume_id))
        return csi.CreateSnapshotResponse(snapshot=snapshot_of(snapshot))

    async def DeleteSnapshot(  # noqa: N802 - the protocol's name
        self, request: csi.DeleteSnapshotRequest, context: object
    ) -> csi.DeleteSnapshotResponse:
        """Delete a snapshot; one that no pool has is deleted already. What was made of it stays.

        A retry after a crash finds it as it was, or ``deleting`` and finishes that, or none.
        """
        del context
        await self._snapshotter.delete(validation.snapshot_id(request.snapshot_id))
        return csi.DeleteSnapshotResponse()

    async def ListSnapshots(  # noqa: N802 - the protocol's name
        self, request: csi.ListSnapshotsRequest, context: object
    ) -> csi.ListSnapshotsResponse:
        """The snapshots on this node, by pages, all or those of one volume or one id; changes nothing."""
        del context
        return await self._inventory.snapshots(
            token=request.starting_token,
            most=request.max_entries,
            source=request.source_volume_id,
            wanted=request.snapshot_id,
        )

    async def GetSnapshot(  # noqa: N802 - the protocol's name
        self, request: csi.GetSnapshotRequest, context: object
    ) -> csi.GetSnapshotResponse:
        """One snapshot; changes nothing."""
        del context
        wanted = validation.snapshot_id(request.snapshot_id)
        found = await self._pools.find_snapshot(wanted)
        if found is None:
            raise NotFoundError(f"snapshot {wanted} is not on {self._node_name}")
        return csi.GetSnapshotResponse(snapshot=snapshot_of(found[1]))

    async def ControllerExpandVolume(  # noqa: N802 - the protocol's name
        self, request: csi.ControllerExpandVolumeRequest, context: object
    ) -> csi.ControllerExpandVolumeResponse:
        """Make a volume larger, in use or not; what the node has still to do is said.

        A retry after a crash at any step finds in the record what it is growing to, and goes on; see ``expanding``.
        """
        del context
        volume = validation.volume_id(request.volume_id)
        if not request.HasField("capacity_range"):
            raise InvalidArgumentError("capacity_range is missing: say how large the volume is to be")
        wish = validation.capacity_range(request.capacity_range)
        record = await self._guard.run(volume, lambda: self._expand(volume, wish))
        return csi.ControllerExpandVolumeResponse(
            capacity_bytes=record.growing_to or record.size, node_expansion_required=record.growing_to is not None
        )

    async def ControllerModifyVolume(  # noqa: N802 - the protocol's name
        self, request: csi.ControllerModifyVolumeRequest, context: object
    ) -> csi.ControllerModifyVolumeResponse:
        """Change what becomes of a volume when it is deleted, in use or not; see ``modifying``.

        A retry after a crash finds the volume as it was, or as it is to be.
        """
        del context
        volume = validation.volume_id(request.volume_id)
        on_delete = validation.modification(request.mutable_parameters)
        await self._guard.run(volume, lambda: self._modify(volume, on_delete))
        return csi.ControllerModifyVolumeResponse()

    async def ListVolumes(  # noqa: N802 - the protocol's name
        self, request: csi.ListVolumesRequest, context: object
    ) -> csi.ListVolumesResponse:
        """The volumes of this node, by pages, with their condition and whether they are in use; changes nothing."""
        del context
        return await self._inventory.page(token=request.starting_token, most=request.max_entries)

    async def ControllerGetVolume(  # noqa: N802 - the protocol's name
        self, request: csi.ControllerGetVolumeRequest, context: object
    ) -> csi.ControllerGetVolumeResponse:
        """One volume, with its condition; changes nothing."""
        del context
        return await self._inventory.look(validation.volume_id(request.volume_id))

    async def ControllerGetCapabilities(  # noqa: N802 - the protocol's name
        self, request: csi.ControllerGetCapabilitiesRequest, context: object
    ) -> csi.ControllerGetCapabilitiesResponse:
        """What this service can do."""
        del request, context
        return csi.ControllerGetCapabilitiesResponse(
            capabilities=[
                csi.ControllerServiceCapability(rpc=csi.ControllerServiceCapability.RPC(type=one))
                for one in _CAPABILITIES
            ]
        )

    ControllerPublishVolume = unoffered("ControllerPublishVolume", instead=_SAYS)
    ControllerUnpublishVolume = unoffered("ControllerUnpublishVolume", instead=_SAYS)

    async def _create(self, station: Station, wish: Creation) -> Record:
        found = await self._pools.find(wish.id, certain=False)
        if found is not None and found[0] is not station:
            raise AlreadyExistsError(
                f"volume {wish.name} is in pool {found[0].name}, and is asked for in pool {station.name}: delete it first"
            )
        source = wish.source
        if source is None:
            return await self._provisioner.create(station, wish)
        with self._sources.kept(source):
            return await self._provisioner.create(station, wish, find_source=lambda: self._sources.find(source))

    async def _delete(self, volume: VolumeId) -> None:
        found = await self._pools.find(volume)
        if found is not None:
            await self._provisioner.delete(*found)

    async def _expand(self, volume: VolumeId, wish: Range) -> Record:
        found = await self._pools.find(volume)
        if found is None:
            raise NotFoundError(f"volume {volume} is not on {self._node_name}")
        return await self._expander.expand(*found, wish)

    async def _modify(self, volume: VolumeId, on_delete: str) -> None:
        found = await self._pools.find(volume)
        if found is None:
            raise NotFoundError(f"volume {volume} is not on {self._node_name}")
        await self._modifier.modify(found[0], volume, on_delete=on_delete)

    def _here(self, topologies: Iterable[csi.Topology]) -> bool:
        """Whether one of these places is this node; no place at all means anywhere."""
        places = list(topologies)
        return not places or any(
            place.segments.get(TOPOLOGY_KEY, self._node_name) == self._node_name for place in places
        )


def _minimum(opened: OpenPool, backend: str, access: Access) -> int | None:
    """The smallest volume of this kind; None where the pool can make none of it."""
    try:
        found = opened.backend_for(backend, block=access.block, many_nodes=access.many_nodes)
        return found.minimum("" if access.block else found.filesystem(access.filesystem))
    except InvalidArgumentError:
        return None
