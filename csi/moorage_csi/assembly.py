"""The driver behind the RPCs, put together from its settings: the pools, and the services that share them."""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Final

from moorage_csi.errors import DriverError
from moorage_csi.metrics import PoolFigures, VolumeFigures
from moorage_csi.rpc.controller import Controller
from moorage_csi.rpc.groups import GroupController
from moorage_csi.rpc.guard import Guard
from moorage_csi.rpc.node import Node
from moorage_csi.rpc.pools import OpenPool, Pools, Station
from moorage_csi.rpc.volumes import Volumes
from moorage_csi.settings import Settings

_log = logging.getLogger(__name__)

FIGURES_SECONDS: Final = 3.0
"""For reading a pool's figures, which asks its disk; Prometheus waits 10 seconds for the whole page."""


class Driver:
    """Pools, Controller, GroupController, Volumes and Node of this node. Made by ``open``."""

    def __init__(self, settings: Settings) -> None:
        self._guard = Guard()
        self._pools = Pools(settings.pools, node_name=settings.node_name)
        self.controller = Controller(pools=self._pools, node_name=settings.node_name, guard=self._guard)
        self.groups = GroupController(pools=self._pools, node_name=settings.node_name, guard=self._guard)
        self.volumes = Volumes(pools=self._pools, node_name=settings.node_name, guard=self._guard)
        self.node = Node(
            pools=self._pools,
            node_name=settings.node_name,
            kubelet_dir=str(settings.kubelet_dir),
            guard=self._guard,
            importable=settings.imports,
            max_volumes=settings.max_volumes,
        )

    @classmethod
    async def open(cls, settings: Settings) -> "Driver":
        """Open the pools that can be opened, and finish there what an earlier process left in the middle.

        A pool that cannot be opened is logged and tried again by every call that needs it; it never keeps the
        others, or the unpublishing of what is mounted, from being served.
        """
        driver = cls(settings)
        await driver._pools.start()
        await driver.groups.settle()
        driver.node.start()
        return driver

    def ready(self) -> bool:
        """Whether a pool is open; from memory."""
        return any(station.ready is not None for station in self._pools)

    async def figures(self) -> Sequence[PoolFigures]:
        """Every pool's figures; those of a disk that does not answer in time are left out."""
        return await asyncio.gather(*(self._figures_of(station) for station in self._pools))

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - a bound on waiting, not on the work
        """Wait up to ``timeout`` seconds for work that outlives its call; say whether all ended."""
        return await self._guard.drain(timeout)

    async def close(self) -> None:
        """Begin nothing more in the pools, and let go of them. What is mounted stays mounted.

        The kernel keeps all files of a process open until the last of its threads has ended, one that hangs with its disk
        too; the process that comes next needs the pools beside that one at once.
        """
        await self.node.close()
        self.groups.close()
        await self._pools.close()
        for station in self._pools:
            if station.idle:
                station.release()

    async def _figures_of(self, station: Station) -> PoolFigures:
        opened, known = station.ready, station.report()
        if opened is None:
            return PoolFigures(name=known.name)
        figures = PoolFigures(
            name=known.name,
            backend=known.backend,
            reason=known.backend_reason,
            promised=known.promised_bytes,
            volumes=known.volumes,
            snapshots=known.snapshots,
            trash=known.trash,
            problems=len(known.problems),
        )
        try:
            async with asyncio.timeout(FIGURES_SECONDS):
                room = await station.lane.run(opened.pool.room)
                each = await station.lane.run(lambda: tuple(_volumes_of(opened)))
        except (DriverError, OSError) as error:
            _log.warning("a pool's figures cannot be read", extra={"pool": known.name, "reason": str(error)})
            return figures
        return dataclasses.replace(figures, capacity=room.total, available=room.free, each=each)


def _volumes_of(opened: OpenPool) -> Iterator[VolumeFigures]:
    """Every volume's figures, each by a look at its storage that takes as long whatever is in it."""
    for record in tuple(opened.pool.records.values()):
        found = None
        # One that goes at this moment, or whose backend this release does not have.
        with contextlib.suppress(OSError, DriverError), opened.pool.folder(record.id) as folder:
            found = opened.backend_of(record).footprint(folder)
        yield VolumeFigures(
            volume=record.id,
            persistent_volume=record.volume_name,
            namespace=record.claim.namespace if record.claim else "",
            claim=record.claim.name if record.claim else "",
            size=record.size,
            allocated=found.allocated if found else None,
        )
