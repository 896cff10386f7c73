"""The Node service: a volume appears at a pod's path, and goes from there again.

There is no staging: a volume is mounted straight onto each target. What is mounted is asked of the kernel
at every call and remembered nowhere, so a retry, a restart of the driver or a reboot changes nothing about
the answer. Publish never formats; whatever does not look as the record says is refused with what to do.
"""

import contextlib
import errno
import logging
from typing import Final

from moorage_csi.backends.backend import Amount, Publication, Usage
from moorage_csi.backends.targets import take_away
from moorage_csi.contract import TOPOLOGY_KEY
from moorage_csi.errors import (
    DriverError,
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.proto import csi_pb2_grpc
from moorage_csi.rpc import validation
from moorage_csi.rpc.compatibility import refuse_unready, refuse_unusable
from moorage_csi.rpc.expanding import Expander
from moorage_csi.rpc.guard import Guard
from moorage_csi.rpc.inventory import Inventory
from moorage_csi.rpc.pools import Pools, Station
from moorage_csi.rpc.provisioning import shape_of
from moorage_csi.rpc.unoffered import unoffered
from moorage_csi.rpc.validation import Access
from moorage_csi.volumes.lane import Lane
from moorage_csi.volumes.record import Record, VolumeId

_log = logging.getLogger(__name__)

_Rpc = csi.NodeServiceCapability.RPC
_CAPABILITIES: Final = (_Rpc.EXPAND_VOLUME, _Rpc.GET_VOLUME_STATS, _Rpc.SINGLE_NODE_MULTI_WRITER, _Rpc.VOLUME_CONDITION)
_SAYS: Final = "NodeGetCapabilities"

_LINKS: Final = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EXDEV})
_ABSENT: Final = _LINKS | {errno.ENOENT}


class Node(csi_pb2_grpc.NodeServicer):
    """Publishes the volumes of this node's pools beneath ``kubelet_dir``.

    ``pools`` and ``guard`` are shared with the Controller service: a volume is never deleted while it is
    being published.
    """

    def __init__(self, *, pools: Pools, node_name: str, kubelet_dir: str, guard: Guard) -> None:
        self._pools = pools
        self._node_name = node_name
        self._kubelet_dir = kubelet_dir.rstrip("/")
        self._guard = guard
        self._expander = Expander()
        self._inventory = Inventory(pools=pools, node_name=node_name)
        # For targets of volumes that no pool knows, whose own threads there are none of.
        self._lane = Lane("node")

    async def NodePublishVolume(  # noqa: N802 - the protocol's name
        self, request: csi.NodePublishVolumeRequest, context: object
    ) -> csi.NodePublishVolumeResponse:
        """Make the volume appear at the target, or find that it does.

        A retry after a crash finds the volume mounted there, or not mounted and no device left, or (block) a
        device that it takes over.
        """
        del context
        volume = validation.volume_id(request.volume_id)
        target = validation.target_path(request.target_path, kubelet_dir=self._kubelet_dir)
        if not request.HasField("volume_capability"):
            raise InvalidArgumentError("volume_capability is missing: say whether block or mount, and who may use it")
        access = validation.access([request.volume_capability])
        publication = Publication(
            target=target,
            kubelet_dir=self._kubelet_dir,
            readonly=request.readonly or access.reader_only,
            exclusive=access.exclusive,
            options=access.options,
        )
        await self._guard.run(volume, lambda: self._publish(volume, access, publication))
        return csi.NodePublishVolumeResponse()

    async def NodeUnpublishVolume(  # noqa: N802 - the protocol's name
        self, request: csi.NodeUnpublishVolumeRequest, context: object
    ) -> csi.NodeUnpublishVolumeResponse:
        """Take the volume away from the target and remove the target; gone already is success.

        It works for a volume whose record is damaged, whose pool is closed, or that nobody knows any more: a
        pod must be able to end. A retry after a crash goes on where it stopped.
        """
        del context
        volume = validation.volume_id(request.volume_id)
        target = validation.target_path(request.target_path, kubelet_dir=self._kubelet_dir)
        await self._guard.run(volume, lambda: self._unpublish(volume, target))
        return csi.NodeUnpublishVolumeResponse()

    async def NodeGetVolumeStats(  # noqa: N802 - the protocol's name
        self, request: csi.NodeGetVolumeStatsRequest, context: object
    ) -> csi.NodeGetVolumeStatsResponse:
        """How full the published volume is, and how it is, in constant time; changes nothing."""
        del context
        volume = validation.volume_id(request.volume_id)
        path = validation.volume_path(request.volume_path)
        station, record = await self._found(volume)
        if not validation.beneath(path, self._kubelet_dir):
            raise NotFoundError(f"volume_path {path!r} does not lie beneath {self._kubelet_dir}: nothing is there")
        opened = await station.open()
        backend = opened.backend_of(record)

        def look() -> Usage:
            with opened.pool.folder(volume) as folder:
                return backend.usage(folder, shape_of(record), path, self._kubelet_dir)

        try:
            usage = await station.lane.run(look)
        except OSError as error:
            if error.errno in _ABSENT:
                raise NotFoundError(f"volume {volume} is not published at {path!r}: {error}") from error
            raise UnavailableError(f"volume {volume} cannot be looked at: {error}") from error
        condition = await self._inventory.condition(station, record)
        return csi.NodeGetVolumeStatsResponse(usage=_usage(usage), volume_condition=condition)

    async def NodeExpandVolume(  # noqa: N802 - the protocol's name
        self, request: csi.NodeExpandVolumeRequest, context: object
    ) -> csi.NodeExpandVolumeResponse:
        """Make the filesystem of a volume that is in use as large as its storage, or find that it is.

        A retry after a crash finds it as large, or not yet; growing a filesystem is journalled by the kernel.
        """
        del context
        volume = validation.volume_id(request.volume_id)
        path = validation.volume_path(request.volume_path)
        if not validation.beneath(path, self._kubelet_dir):
            raise NotFoundError(f"volume_path {path!r} does not lie beneath {self._kubelet_dir}: nothing is there")
        record = await self._guard.run(volume, lambda: self._grow(volume))
        return csi.NodeExpandVolumeResponse(capacity_bytes=record.size)

    async def NodeGetCapabilities(  # noqa: N802 - the protocol's name
        self, request: csi.NodeGetCapabilitiesRequest, context: object
    ) -> csi.NodeGetCapabilitiesResponse:
        """What this service can do."""
        del request, context
        return csi.NodeGetCapabilitiesResponse(
            capabilities=[
                csi.NodeServiceCapability(rpc=csi.NodeServiceCapability.RPC(type=one)) for one in _CAPABILITIES
            ]
        )

    async def NodeGetInfo(  # noqa: N802 - the protocol's name
        self, request: csi.NodeGetInfoRequest, context: object
    ) -> csi.NodeGetInfoResponse:
        """The node's name, which is also the place where its volumes can be used; there is no limit on their number."""
        del request, context
        return csi.NodeGetInfoResponse(
            node_id=self._node_name,
            accessible_topology=csi.Topology(segments={TOPOLOGY_KEY: self._node_name}),
        )

    NodeStageVolume = unoffered("NodeStageVolume", instead=_SAYS)
    NodeUnstageVolume = unoffered("NodeUnstageVolume", instead=_SAYS)

    async def _publish(self, volume: VolumeId, access: Access, publication: Publication) -> None:
        station, record = await self._found(volume)
        refuse_unready(record)
        refuse_unusable(record, access, shared=station.settings.shared)
        record = await self._grown(station, record)
        opened = await station.open()
        backend = opened.backend_of(record)

        def publish() -> None:
            with opened.pool.folder(volume) as folder:
                backend.publish(folder, shape_of(record), publication)

        try:
            await station.lane.run(publish)
        except OSError as error:
            raise _explained(error, f"volume {volume} cannot be published at {publication.target}") from error
        if not publication.readonly:
            await self._grown(station, record)

    async def _grown(self, station: Station, record: Record) -> Record:
        """Go on with a volume that is growing; one that cannot now is published as it is."""
        try:
            return await self._expander.finish(station, record)
        except DriverError as error:
            _log.warning("volume does not grow now", extra={"volume": record.id, "reason": str(error)})
            return record

    async def _grow(self, volume: VolumeId) -> Record:
        station, record = await self._found(volume)
        refuse_unready(record)
        grown = await self._expander.spread(station, record)
        if grown.growing_to is not None:
            raise PreconditionError(
                f"volume {volume} is not mounted for writing on {self._node_name}, and its filesystem grows only there"
            )
        return grown

    async def _unpublish(self, volume: VolumeId, target: str) -> None:
        try:
            found = await self._pools.find(volume)
        except DriverError:
            # Damaged, or its pool is closed: the target can be taken away all the same.
            found = None
        try:
            if found is None:
                await self._lane.run(lambda: take_away(target, self._kubelet_dir))
            else:
                await self._withdraw(*found, target)
        except OSError as error:
            raise _explained(error, f"volume {volume} cannot be unpublished from {target}") from error

    async def _withdraw(self, station: Station, record: Record, target: str) -> None:
        opened = await station.open()
        backend = opened.backend_of(record)

        def withdraw() -> None:
            with contextlib.suppress(FileNotFoundError), opened.pool.folder(record.id) as folder:
                backend.unpublish(folder, target, self._kubelet_dir)
                return
            backend.unpublish(None, target, self._kubelet_dir)

        await station.lane.run(withdraw)

    async def _found(self, volume: VolumeId) -> tuple[Station, Record]:
        found = await self._pools.find(volume)
        if found is None:
            raise NotFoundError(f"volume {volume} is not on {self._node_name}")
        return found


def _explained(error: OSError, what: str) -> DriverError:
    """What the kernel refused, for a person; nothing was begun, or the next call finds it."""
    if error.errno in _LINKS:
        return PreconditionError(f"{what}: there is a link or a file where a folder belongs in that path ({error})")
    if error.errno == errno.ENOENT:
        return PreconditionError(f"{what}: a file or folder that has to exist does not ({error})")
    return UnavailableError(f"{what}: {error}")


def _usage(usage: Usage) -> list[csi.VolumeUsage]:
    amounts: list[tuple[csi.VolumeUsage.Unit.ValueType, Amount]] = [(csi.VolumeUsage.BYTES, usage.size)]
    if usage.inodes is not None:
        amounts.append((csi.VolumeUsage.INODES, usage.inodes))
    return [
        csi.VolumeUsage(unit=unit, total=amount.total, used=amount.used, available=amount.available)
        for unit, amount in amounts
    ]
