"""The Volumes service: what the operator asks of a volume and the CSI has no word for (``proto/moorage.proto``).

Each call validates, takes the volume's key, looks whether the work is done already, does it, answers.
"""

from moorage_csi.errors import InvalidArgumentError, NotFoundError
from moorage_csi.proto import moorage_pb2 as moorage
from moorage_csi.proto import moorage_pb2_grpc
from moorage_csi.rpc import validation
from moorage_csi.rpc.guard import Guard
from moorage_csi.rpc.pools import Pools
from moorage_csi.rpc.recovery import Recovery, item_of
from moorage_csi.rpc.shrinking import Shrinker
from moorage_csi.rpc.wiping import Wiper
from moorage_csi.volumes.record import Record, VolumeId


class Volumes(moorage_pb2_grpc.VolumesServicer):
    """Answers for the pools of one node. ``pools`` and ``guard`` are shared with Controller and Node.

    So a volume is never wiped while it is being made, published or deleted.
    """

    def __init__(self, *, pools: Pools, node_name: str, guard: Guard) -> None:
        self._pools = pools
        self._node_name = node_name
        self._guard = guard
        self._wiper = Wiper(node_name=node_name)
        self._shrinker = Shrinker()
        self._recovery = Recovery(pools=pools, node_name=node_name)

    async def WipeVolume(  # noqa: N802 - the protocol's name
        self, request: moorage.WipeVolumeRequest, context: object
    ) -> moorage.WipeVolumeResponse:
        """Replace a volume's content by nothing, once for each claim that it was released by; see ``wiping``.

        A retry after a crash finds the volume as it was, or ``wiping`` and finishes that, or wiped for this uid.
        """
        del context
        volume = validation.volume_id(request.volume_id)
        released_uid = validation.released_uid(request.released_uid)
        await self._guard.run(volume, lambda: self._wipe(volume, released_uid), takes_away=True)
        return moorage.WipeVolumeResponse()

    async def ShrinkVolume(  # noqa: N802 - the protocol's name
        self, request: moorage.ShrinkVolumeRequest, context: object
    ) -> moorage.ShrinkVolumeResponse:
        """Hold a volume to a smaller size; see ``shrinking``. A retry after a crash finishes what was begun."""
        del context
        volume = validation.volume_id(request.volume_id)
        if request.size_bytes <= 0:
            raise InvalidArgumentError(f"size_bytes is {request.size_bytes}: say how small the volume is to be")
        record = await self._guard.run(volume, lambda: self._shrink(volume, request.size_bytes))
        return moorage.ShrinkVolumeResponse(size_bytes=record.size)

    async def ListDeleted(  # noqa: N802 - the protocol's name
        self, request: moorage.ListDeletedRequest, context: object
    ) -> moorage.ListDeletedResponse:
        """What was deleted on this node and can be had back; changes nothing."""
        del request, context
        entry = moorage.ListDeletedResponse.Entry
        return moorage.ListDeletedResponse(
            entries=[
                entry(item=item_of(left.record), deleted_at=left.left, where=left.where)
                for _, left in await self._recovery.deleted()
            ]
        )

    async def RestoreDeleted(  # noqa: N802 - the protocol's name
        self, request: moorage.RestoreDeletedRequest, context: object
    ) -> moorage.RestoreDeletedResponse:
        """Take back what was deleted; see ``recovery``. A retry after a crash finds it where it lay, or back."""
        del context
        wanted = validation.deleted_id(request.id)
        back = await self._guard.run(wanted, lambda: self._recovery.restore(wanted))
        return moorage.RestoreDeletedResponse(item=item_of(back))

    async def _shrink(self, volume: VolumeId, size: int) -> Record:
        found = await self._pools.find(volume)
        if found is None:
            raise NotFoundError(f"volume {volume} is not on {self._node_name}")
        return await self._shrinker.shrink(*found, size)

    async def _wipe(self, volume: VolumeId, released_uid: str) -> None:
        found = await self._pools.find(volume)
        if found is None:
            raise NotFoundError(f"volume {volume} is not on {self._node_name}")
        station, _ = found
        await self._wiper.wipe(station, volume, released_uid=released_uid)
