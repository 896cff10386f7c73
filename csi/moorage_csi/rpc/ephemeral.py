"""Volumes that stand in a pod itself, without a claim: made when the pod comes, and gone with it.

The kubelet publishes and unpublishes them like any other; nobody else is told. So publishing makes such a volume and
unpublishing deletes it. It is a volume with a record, an account and a limit like any other, and its record says
where its pod has it (``Record.ephemeral_at``): what a record does not say so of is never deleted here, whatever an id or an
attribute says.

A pod that goes while the driver is down, or is removed by force, may never be unpublished. Its folder proves it: the
kubelet keeps ``<kubelet>/pods/<uid>`` until all volumes of the pod are gone. Where that folder is gone, and nothing is mounted, the
volume goes too: at the start of the driver, and every ten minutes. Whatever cannot be looked at counts as being there.

A crash while one is made leaves what ``provisioning`` throws away; between making and publishing, a volume that the next
publish, the unpublish or the look at the pod's folder finds; while it is deleted, one whose deletion is finished by any of them.
"""

import asyncio
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from moorage_csi import contract, quantity
from moorage_csi.contract import Parameter
from moorage_csi.errors import DriverError, InFlightError, InvalidArgumentError, PreconditionError
from moorage_csi.host import paths, syscalls
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.rpc import validation
from moorage_csi.rpc.guard import Guard
from moorage_csi.rpc.pools import Pools, Station
from moorage_csi.rpc.provisioning import Provisioner
from moorage_csi.rpc.validation import Access, Creation, Range
from moorage_csi.volumes.ids import VolumeId
from moorage_csi.volumes.lane import Lane
from moorage_csi.volumes.record import Record

_log = logging.getLogger(__name__)

EPHEMERAL: Final = "csi.storage.k8s.io/ephemeral"
"""The kubelet's key of the volume context; it always says "true" of these, and "false" of all others."""

SIZE: Final = "size"
"""The attribute that says how large the volume is to be."""

SWEEP_SECONDS: Final = 600.0

_TRUE: Final = "true"
_POD_INFORMATION: Final = (
    EPHEMERAL,
    "csi.storage.k8s.io/pod.name",
    "csi.storage.k8s.io/pod.namespace",
    "csi.storage.k8s.io/pod.uid",
    "csi.storage.k8s.io/serviceAccount.name",
)
_PARAMETERS: Final = (Parameter.BACKEND, Parameter.POOL, Parameter.QUOTA, Parameter.MOUNT_PERMISSIONS, Parameter.FSTYPE)
_PODS: Final = "pods"


def wish_of(
    request: csi.NodePublishVolumeRequest, access: Access, *, target: str, kubelet_dir: str, pools: Sequence[str]
) -> Creation | None:
    """The volume that this pod is to have; None where the request is for another kind of volume.

    Raises:
        InvalidArgumentError: it contradicts itself, or asks for what there is not.
    """
    context = request.volume_context
    inline = context.get(EPHEMERAL) == _TRUE
    if inline is not validation.is_inline(request.volume_id):
        raise InvalidArgumentError(
            f"volume {request.volume_id!r} is {'called' if inline else 'not called'} {EPHEMERAL}, and its id is "
            f"{'not ' if inline else ''}that of a volume that stands in a pod: only the kubelet makes such an id, and it always "
            "says so"
        )
    if not inline:
        return None
    if pod_folder(target, kubelet_dir) is None:
        raise InvalidArgumentError(
            f"target_path {target!r} does not lie in {kubelet_dir}/{_PODS}/<uid>, where a pod has its own volumes"
        )
    if request.secrets:
        raise InvalidArgumentError(
            "nodePublishSecretRef is set, and a volume of this driver takes no secrets: leave it out"
        )
    if access.block:
        raise InvalidArgumentError("a volume that stands in a pod is a filesystem; for a block device make a claim")
    wished = validation.parameters(_parameters(context), pools=pools)
    if access.filesystem and wished.filesystem not in ("", access.filesystem):
        raise InvalidArgumentError(f"two filesystems are asked for: fsType {access.filesystem} and {wished.filesystem}")
    return Creation(
        id=validation.published_id(request.volume_id),
        name=request.volume_id,
        range=Range(required=_size(context), limit=None),
        access=replace(access, filesystem=access.filesystem or wished.filesystem),
        parameters=wished,
        ephemeral_at=target,
    )


def pod_folder(target: str, kubelet_dir: str) -> str | None:
    """The folder of the pod whose target this is; None where it is no pod's."""
    if not validation.beneath(target, kubelet_dir):
        return None
    match target.removeprefix(f"{kubelet_dir}/").split("/"):
        case [pods, uid, _, *_] if pods == _PODS:
            return f"{kubelet_dir}/{_PODS}/{uid}"
    return None


def pod_is_gone(target: str, kubelet_dir: str) -> bool:
    """Whether the folder of the pod whose target this is does not exist. Blocks; anything else than that is no."""
    folder = pod_folder(target, kubelet_dir)
    if folder is None:
        return False
    try:
        with paths.target_parent(folder, kubelet_dir) as (pods, name):
            try:
                syscalls.statx(pods, name)
            except FileNotFoundError:
                return True
    except (OSError, ValueError) as error:
        # No pods folder at all: the kubelet's disk is not mounted yet, or it is another kubelet's.
        _log.warning("a pod's folder cannot be looked at", extra={"folder": folder, "reason": str(error)})
    return False


class Ephemeral:
    """Makes and deletes the volumes of pods. ``guard`` is that of the Node service, whose calls hold the volume's key.

    Args:
        pools: all of this node.
        provisioner: makes and deletes.
        node_name: of this node; in a pool that nodes share, each deletes its own.
        kubelet_dir: the kubelet's root directory, without a slash at its end.
        guard: shared with all services.
        lane: threads in which the kubelet's directory is looked at.
    """

    def __init__(
        self, *, pools: Pools, provisioner: Provisioner, node_name: str, kubelet_dir: str, guard: Guard, lane: Lane
    ) -> None:
        self._pools = pools
        self._provisioner = provisioner
        self._node_name = node_name
        self._kubelet_dir = kubelet_dir
        self._guard = guard
        self._lane = lane

    async def made(self, wish: Creation) -> tuple[Station, Record]:
        """Make the volume, or find it made; see ``Provisioner.create`` for the errors."""
        found = await self._pools.find(wish.id, certain=False)
        station = self._pools.station(wish.parameters.pool) if found is None else found[0]
        return station, await self._provisioner.create(station, wish)

    async def end(self, station: Station, record: Record) -> None:
        """Delete the volume, whose pod has it no more; in use all the same, it stays for the next look."""
        if not record.ephemeral:
            raise PreconditionError(f"volume {record.id} does not end with a pod, and stays")
        try:
            await self._provisioner.delete(station, record)
        except PreconditionError as error:
            _log.warning("a pod's volume is not deleted yet", extra={"volume": record.id, "reason": str(error)})

    async def watch(self, *, every: float = SWEEP_SECONDS) -> None:
        """Delete the volumes of pods that are gone, now and every so many seconds; runs until it is cancelled."""
        while True:
            await self.sweep()
            await asyncio.sleep(every)

    async def sweep(self) -> None:
        """Delete the volumes of pods that are gone. What cannot be deleted now is logged and left to the next time."""
        for station in self._pools:
            for record in self._candidates(station):
                try:
                    if await self._is_gone(record):
                        ending = functools.partial(self._end_gone, record.id)
                        await self._guard.run(record.id, ending, takes_away=True)
                except InFlightError:
                    continue
                except (DriverError, OSError) as error:
                    _log.warning("a pod's volume is not deleted", extra={"volume": record.id, "reason": str(error)})

    def _candidates(self, station: Station) -> list[Record]:
        opened = station.ready
        records = () if opened is None else tuple(opened.pool.records.values())
        return [record for record in records if record.ephemeral and record.node == self._node_name]

    async def _end_gone(self, volume: VolumeId) -> None:
        """Delete it if, with its key held, its pod is still gone."""
        found = await self._pools.find(volume)
        if found is None or not found[1].ephemeral or not await self._is_gone(found[1]):
            return
        _log.info("the pod of a volume is gone", extra={"volume": volume, "target": found[1].ephemeral_at})
        await self.end(*found)

    async def _is_gone(self, record: Record) -> bool:
        target = record.ephemeral_at
        return target is not None and await self._lane.run(lambda: pod_is_gone(target, self._kubelet_dir))


def _parameters(context: Mapping[str, str]) -> dict[str, str]:
    """What the pod's author wrote, apart from the size; each key is one that there is."""
    written = {key: value for key, value in context.items() if key not in _POD_INFORMATION}
    written.pop(SIZE, None)
    for key in written:
        if key not in _PARAMETERS:
            raise InvalidArgumentError(
                f"volumeAttributes {key!r} is not known for a volume that stands in a pod; known are "
                f"{', '.join(sorted((SIZE, *_PARAMETERS)))}"
            )
    return written | {Parameter.ON_DELETE: contract.ON_DELETE_DELETE}


def _size(context: Mapping[str, str]) -> int:
    text = context.get(SIZE)
    if text is None:
        return validation.DEFAULT_SIZE
    try:
        size = quantity.parse(text)
    except quantity.QuantityError as error:
        raise InvalidArgumentError(f"volumeAttributes {SIZE}: {error}") from error
    if size <= 0:
        raise InvalidArgumentError(f"volumeAttributes {SIZE} is {text!r}; it has to be more than nothing")
    return size
