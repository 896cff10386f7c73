"""The GroupController service: snapshots of several volumes of this node at one moment.

Each call validates, takes the group's key, looks whether the work is done already, does it, answers. A retry after a
crash at any point finds no group, or the whole group, or what it throws away first; see ``grouping``.
"""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Final

from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.proto import csi_pb2_grpc
from moorage_csi.rpc import validation
from moorage_csi.rpc.grouping import Grouper
from moorage_csi.rpc.guard import Guard
from moorage_csi.rpc.inventory import snapshot_of
from moorage_csi.rpc.membership import is_ready
from moorage_csi.rpc.pools import Pools
from moorage_csi.volumes.ids import GroupId, SnapshotId
from moorage_csi.volumes.snapshot import Snapshot

_Rpc = csi.GroupControllerServiceCapability.RPC
_CAPABILITIES: Final = (_Rpc.CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT,)


class GroupController(csi_pb2_grpc.GroupControllerServicer):
    """Answers for the pools of one node. ``pools`` and ``guard`` are shared with Controller and Node."""

    def __init__(
        self,
        *,
        pools: Pools,
        node_name: str,
        guard: Guard,
        clock: Callable[[], float] = time.time,
        new_uuid: Callable[[], uuid.UUID] = uuid.uuid4,
    ) -> None:
        self._grouper = Grouper(pools=pools, node_name=node_name, guard=guard, clock=clock, new_uuid=new_uuid)

    async def settle(self) -> None:
        """Bring to an end what an earlier process left in the middle; for the start, when the pools are open."""
        await self._grouper.settle()

    def close(self) -> None:
        """Begin nothing more."""
        self._grouper.close()

    async def GroupControllerGetCapabilities(  # noqa: N802 - the protocol's name
        self, request: csi.GroupControllerGetCapabilitiesRequest, context: object
    ) -> csi.GroupControllerGetCapabilitiesResponse:
        """What this service can do."""
        del request, context
        return csi.GroupControllerGetCapabilitiesResponse(
            capabilities=[
                csi.GroupControllerServiceCapability(rpc=csi.GroupControllerServiceCapability.RPC(type=one))
                for one in _CAPABILITIES
            ]
        )

    async def CreateVolumeGroupSnapshot(  # noqa: N802 - the protocol's name
        self, request: csi.CreateVolumeGroupSnapshotRequest, context: object
    ) -> csi.CreateVolumeGroupSnapshotResponse:
        """Take a group snapshot, or answer with the one that is there, or say that it is not ready to use yet.

        A retry after a crash at any step finds nothing, the finished group, or torsos that it throws away first.
        """
        del context
        name = validation.group_name(request)
        members = await self._grouper.take(name, validation.source_volume_ids(request.source_volume_ids))
        return csi.CreateVolumeGroupSnapshotResponse(group_snapshot=_group_of(members))

    async def DeleteVolumeGroupSnapshot(  # noqa: N802 - the protocol's name
        self, request: csi.DeleteVolumeGroupSnapshotRequest, context: object
    ) -> csi.DeleteVolumeGroupSnapshotResponse:
        """Delete a group snapshot with all its members; one that no pool has is deleted already.

        A retry after a crash finds all members, or those that are left and deletes them, or none.
        """
        del context
        group, listed = _asked(request.group_snapshot_id, request.snapshot_ids)
        await self._grouper.delete(group, listed)
        return csi.DeleteVolumeGroupSnapshotResponse()

    async def GetVolumeGroupSnapshot(  # noqa: N802 - the protocol's name
        self, request: csi.GetVolumeGroupSnapshotRequest, context: object
    ) -> csi.GetVolumeGroupSnapshotResponse:
        """One group snapshot; begins nothing."""
        del context
        group, listed = _asked(request.group_snapshot_id, request.snapshot_ids)
        return csi.GetVolumeGroupSnapshotResponse(group_snapshot=_group_of(await self._grouper.look(group, listed)))


def _asked(group: str, listed: Sequence[str]) -> tuple[GroupId, frozenset[SnapshotId]]:
    return validation.group_id(group), validation.member_ids(listed)


def _group_of(members: Sequence[Snapshot]) -> csi.VolumeGroupSnapshot:
    """The protocol's form of a group, of which there is at least one member."""
    told = [snapshot_of(member) for member in members]
    first = min(told, key=lambda each: each.creation_time.ToNanoseconds())
    return csi.VolumeGroupSnapshot(
        group_snapshot_id=first.group_snapshot_id,
        snapshots=told,
        creation_time=first.creation_time,
        ready_to_use=is_ready(members),
    )
