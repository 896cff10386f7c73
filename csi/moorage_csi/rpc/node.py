"""The Node service: a volume appears at a pod's path, and goes from there again.

Three kinds do: those of the pools, which the Controller service makes; those that stand in a pod itself, which are made
when it comes and deleted when it goes (see ``ephemeral``); and directories of the host that are shown and no more (see
``imports``). Which one is meant follows from the id and the context, and what could mean two is refused.

There is no staging: a volume is mounted straight onto each target. What is mounted is asked of the kernel
at every call and remembered nowhere, so a retry, a restart of the driver or a reboot changes nothing about
the answer. Publish never formats; whatever does not look as the record says is refused with what to do.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
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
from moorage_csi.rpc import ephemeral, imports, validation
from moorage_csi.rpc.compatibility import refuse_unready, refuse_unusable
from moorage_csi.rpc.ephemeral import Ephemeral
from moorage_csi.rpc.expanding import Expander
from moorage_csi.rpc.explaining import ABSENT, explained
from moorage_csi.rpc.guard import Guard
from moorage_csi.rpc.imports import Imports
from moorage_csi.rpc.inventory import Inventory
from moorage_csi.rpc.owning import give_to_group
from moorage_csi.rpc.pools import Pools, Station
from moorage_csi.rpc.provisioning import Provisioner
from moorage_csi.rpc.shapes import shape_of
from moorage_csi.rpc.unoffered import unoffered
from moorage_csi.rpc.validation import Access, Creation
from moorage_csi.volumes.lane import Lane
from moorage_csi.volumes.record import Record, VolumeId

_log = logging.getLogger(__name__)

_Rpc = csi.NodeServiceCapability.RPC
_CAPABILITIES: Final = (
    _Rpc.EXPAND_VOLUME,
    _Rpc.GET_VOLUME_STATS,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
    _Rpc.VOLUME_CONDITION,
    _Rpc.VOLUME_MOUNT_GROUP,
)
_SAYS: Final = "NodeGetCapabilities"

_IMPORTED: Final = "The directory is there"


class Node(csi_pb2_grpc.NodeServicer):
    """Publishes the volumes of this node's pools beneath ``kubelet_dir``, and directories that lie in ``importable``.

    ``pools`` and ``guard`` are shared with the Controller service: a volume is never deleted while it is
    being published. ``max_volumes`` is what the scheduler is told, 0 for no limit.
    """

    def __init__(
        self,
        *,
        pools: Pools,
        node_name: str,
        kubelet_dir: str,
        guard: Guard,
        importable: Sequence[str] = (),
        max_volumes: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pools = pools
        self._node_name = node_name
        self._kubelet_dir = kubelet_dir.rstrip("/")
        self._guard = guard
        self._expander = Expander()
        self._inventory = Inventory(pools=pools, node_name=node_name)
        # For targets of volumes that no pool knows, whose own threads there are none of.
        self._lane = Lane("node")
        # A directory may lie on a server that does not answer.
        self._import_lane = Lane("imports")
        self._imports = Imports(roots=importable, pools=pools)
        self._max_volumes = max_volumes
        self._ephemeral = Ephemeral(
            pools=pools,
            provisioner=Provisioner(node_name=node_name, clock=clock),
            node_name=node_name,
            kubelet_dir=self._kubelet_dir,
            guard=guard,
            lane=self._lane,
        )
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in the event loop, to look after the volumes of pods that are gone."""
        self._watch = asyncio.create_task(self._ephemeral.watch())

    async def close(self) -> None:
        """End that, and begin nothing more in threads of this service's own."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        self._lane.close()
        self._import_lane.close()

    async def NodePublishVolume(  # noqa: N802 - the protocol's name
        self, request: csi.NodePublishVolumeRequest, context: object
    ) -> csi.NodePublishVolumeResponse:
        """Make the volume appear at the target, or find that it does, and give it to the group that is asked for.

        A retry after a crash finds the volume mounted there, or not mounted and no device left, or (block) a
        device that it takes over; a group is given anew where that has not ended (see ``owning``).
        """
        del context
        volume = validation.published_id(request.volume_id)
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
        wish = ephemeral.wish_of(request, access, target=target, kubelet_dir=self._kubelet_dir, pools=self._pools.names)
        path = None if wish is not None else imports.path_in(volume, request.volume_context)
        if wish is not None:
            await self._guard.run(volume, lambda: self._publish_own(wish, publication))
        elif path is not None:
            await self._guard.run(volume, lambda: self._import(volume, path, access, publication))
        else:
            await self._guard.run(volume, lambda: self._publish(volume, access, publication))
        return csi.NodePublishVolumeResponse()

    async def NodeUnpublishVolume(  # noqa: N802 - the protocol's name
        self, request: csi.NodeUnpublishVolumeRequest, context: object
    ) -> csi.NodeUnpublishVolumeResponse:
        """Take the volume away from the target and remove the target; gone already is success.

        It works for a volume whose record is damaged, whose pool is closed, or that nobody knows any more: a
        pod must be able to end. One that stands in the pod is deleted then. A retry after a crash goes on where it stopped.
        """
        del context
        volume = validation.published_id(request.volume_id)
        target = validation.target_path(request.target_path, kubelet_dir=self._kubelet_dir)
        ends = validation.is_inline(request.volume_id)
        await self._guard.run(volume, lambda: self._unpublish(volume, target, ends=ends), takes_away=ends)
        return csi.NodeUnpublishVolumeResponse()

    async def NodeGetVolumeStats(  # noqa: N802 - the protocol's name
        self, request: csi.NodeGetVolumeStatsRequest, context: object
    ) -> csi.NodeGetVolumeStatsResponse:
        """How full the published volume is, and how it is, in constant time; changes nothing."""
        del context
        volume = validation.published_id(request.volume_id)
        path = validation.volume_path(request.volume_path)
        imported = self._imports.may_have(volume)
        found = None if imported else await self._found(volume)
        if not validation.beneath(path, self._kubelet_dir):
            raise NotFoundError(f"volume_path {path!r} does not lie beneath {self._kubelet_dir}: nothing is there")
        try:
            if found is None:
                usage = await self._import_lane.run(lambda: self._imports.usage(volume, path, self._kubelet_dir))
                condition = csi.VolumeCondition(abnormal=False, message=_IMPORTED)
            else:
                usage = await self._usage_of(*found, path)
                condition = await self._inventory.condition(*found)
        except OSError as error:
            if error.errno in ABSENT:
                raise NotFoundError(f"volume {volume} is not published at {path!r}: {error}") from error
            raise UnavailableError(f"volume {volume} cannot be looked at: {error}") from error
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
        """The node's name, which is also the place where its volumes can be used, and how many of them at a time.

        Nothing of ours limits their number: the kernel makes loop devices as they are asked for (``max_loop`` of its module
        says how many there are from the beginning, and hinders only who opens a device that there is not).
        """
        del request, context
        return csi.NodeGetInfoResponse(
            node_id=self._node_name,
            max_volumes_per_node=self._max_volumes,
            accessible_topology=csi.Topology(segments={TOPOLOGY_KEY: self._node_name}),
        )

    NodeStageVolume = unoffered("NodeStageVolume", instead=_SAYS)
    NodeUnstageVolume = unoffered("NodeUnstageVolume", instead=_SAYS)

    async def _publish_own(self, wish: Creation, publication: Publication) -> None:
        """Publish the volume that stands in a pod, which is made first."""
        station, record = await self._ephemeral.made(wish)
        await self._show(station, record, wish.access, publication)

    async def _publish(self, volume: VolumeId, access: Access, publication: Publication) -> None:
        station, record = await self._found(volume)
        if record.ephemeral:
            raise PreconditionError(
                f"volume {volume} belongs to the pod that has it at {record.ephemeral_at}, and to no claim"
            )
        await self._show(station, record, access, publication)

    async def _import(self, volume: VolumeId, path: str, access: Access, publication: Publication) -> None:
        try:
            await self._import_lane.run(lambda: self._imports.publish(volume, path, access, publication))
        except OSError as error:
            raise explained(error, f"{path} cannot be published at {publication.target}") from error

    async def _show(self, station: Station, record: Record, access: Access, publication: Publication) -> None:
        refuse_unready(record)
        refuse_unusable(record, access, shared=station.settings.shared)
        record = await self._grown(station, record)
        opened = await station.open()
        backend = opened.backend_of(record)

        def publish() -> None:
            with opened.pool.folder(record.id) as folder:
                backend.publish(folder, shape_of(record), publication)

        try:
            await station.lane.run(publish)
            if access.group is not None:
                await give_to_group(station, record.id, publication, access.group)
        except OSError as error:
            raise explained(error, f"volume {record.id} cannot be published at {publication.target}") from error
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

    async def _usage_of(self, station: Station, record: Record, path: str) -> Usage:
        opened = await station.open()
        backend = opened.backend_of(record)

        def look() -> Usage:
            with opened.pool.folder(record.id) as folder:
                return backend.usage(folder, shape_of(record), path, self._kubelet_dir)

        return await station.lane.run(look)

    async def _unpublish(self, volume: VolumeId, target: str, *, ends: bool) -> None:
        try:
            found = await self._pools.find(volume)
        except DriverError:
            # Damaged, or its pool is closed: the target can be taken away all the same.
            found = None
        try:
            if found is None:
                lane = self._import_lane if self._imports.may_have(volume) else self._lane
                await lane.run(lambda: take_away(target, self._kubelet_dir))
            else:
                await self._withdraw(*found, target)
                # A record that does not say so of itself stays, and its pod can end all the same.
                if ends and found[1].ephemeral:
                    await self._ephemeral.end(*found)
        except OSError as error:
            raise explained(error, f"volume {volume} cannot be unpublished from {target}") from error

    async def _withdraw(self, station: Station, record: Record, target: str) -> None:
        opened = await station.open()
        backend = opened.backend_of(record)

        def withdraw() -> None:
            with contextlib.ExitStack() as stack:
                folder = None
                # It may be gone, or a link by now: the target can be taken away all the same.
                with contextlib.suppress(OSError):
                    folder = stack.enter_context(opened.pool.folder(record.id))
                backend.unpublish(folder, target, self._kubelet_dir)

        await station.lane.run(withdraw)

    async def _found(self, volume: VolumeId) -> tuple[Station, Record]:
        found = await self._pools.find(volume)
        if found is None:
            raise NotFoundError(f"volume {volume} is not on {self._node_name}")
        return found


def _usage(usage: Usage) -> list[csi.VolumeUsage]:
    amounts: list[tuple[csi.VolumeUsage.Unit.ValueType, Amount]] = [(csi.VolumeUsage.BYTES, usage.size)]
    if usage.inodes is not None:
        amounts.append((csi.VolumeUsage.INODES, usage.inodes))
    return [
        csi.VolumeUsage(unit=unit, total=amount.total, used=amount.used, available=amount.available)
        for unit, amount in amounts
    ]
