"""The pools of this node.

A pool that cannot be opened (a disk not mounted yet, a damaged ``pool.json``) takes nothing else with it:
the others serve, its own requests are told why, and the next request tries to open it again. As long as
one pool is closed, a volume that no other pool knows may be in it, so it is never called absent.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from moorage_csi.errors import DriverError, UnavailableError
from moorage_csi.rpc.openpool import OpenPool
from moorage_csi.rpc.station import PoolReport, Station
from moorage_csi.volumes.disk import Disks
from moorage_csi.volumes.ids import SnapshotId, VolumeId
from moorage_csi.volumes.pool import Pool, PoolSettings
from moorage_csi.volumes.record import Record
from moorage_csi.volumes.snapshot import Snapshot

Found = TypeVar("Found", Record, Snapshot)

__all__ = ["OpenPool", "PoolReport", "Pools", "Station"]

LOOK_PATIENCE: Final = 5.0
"""Seconds that a look into a pool that nodes share may take."""


class Pools:
    """All pools of this node, in the order of their settings; the first is the default.

    Belongs to the event loop in which it is made; ``settings`` must have at least one pool, and no name or
    path twice.
    """

    def __init__(self, settings: Sequence[PoolSettings], *, node_name: str) -> None:
        if not settings:
            raise ValueError("no pool is configured: volumes need at least one")
        for key in ("name", "path"):
            values = [getattr(one, key) for one in settings]
            if len(set(values)) != len(values):
                raise ValueError(f"two pools have the same {key}: {', '.join(values)}")
        disks = Disks()
        self._stations = {
            one.name: Station(one, node=node_name, disks=disks, siblings=len(settings) > 1) for one in settings
        }
        self._removals: list[asyncio.Task[None]] = []

    @property
    def names(self) -> tuple[str, ...]:
        """The pools' names."""
        return tuple(self._stations)

    def station(self, name: str | None) -> Station:
        """The pool of that name, which exists; None means the default one."""
        return next(iter(self._stations.values())) if name is None else self._stations[name]

    def __iter__(self) -> Iterator[Station]:
        """The pools in their order."""
        return iter(self._stations.values())

    async def start(self) -> None:
        """Open every pool and bring to an end what an earlier process left in the middle.

        Never raises for a pool that cannot be opened, and does not wait long for one whose disk hangs.
        """
        await asyncio.gather(*(self._open(station) for station in self))
        self._removals = [asyncio.create_task(station.remove_trash()) for station in self]

    async def close(self) -> None:
        """Stop removing trash and begin nothing more."""
        for task in self._removals:
            task.cancel()
        await asyncio.gather(*self._removals, return_exceptions=True)
        for station in self:
            station.close()

    async def find(self, volume: VolumeId, *, certain: bool = True) -> tuple[Station, Record] | None:
        """The pool that has the volume, and its record; None where no pool has it.

        Unless ``certain``, a pool that is not open counts as one that has it not.

        Raises:
            PreconditionError: a pool has it, and its record cannot be trusted.
            UnavailableError: no open pool has it, and there is one that cannot be opened.
        """
        return await self._search(volume, lambda pool: pool.find(volume), certain=certain)

    async def find_snapshot(self, snapshot: SnapshotId) -> tuple[Station, Snapshot] | None:
        """The pool that has the snapshot, and its record; otherwise like ``find``."""
        return await self._search(snapshot, lambda pool: pool.snapshots.find(snapshot), certain=True)

    async def _search(
        self, wanted: str, find: Callable[[Pool], Found | None], *, certain: bool
    ) -> tuple[Station, Found] | None:
        closed: DriverError | None = None
        # Those that answer from memory first: what is in one of them does not wait for one whose disk hangs.
        for station in sorted(self, key=lambda each: (each.ready is None, each.settings.shared)):
            try:
                opened = await station.open()
            except DriverError as error:
                closed = error
                continue
            try:
                found = await self._look(station, opened, find)
            except TimeoutError:
                closed = UnavailableError(f"pool {station.name} does not answer, its disk may hang")
                continue
            if found is not None:
                return station, found
        if certain and closed is not None:
            raise UnavailableError(f"{wanted} may be in a pool that is not open: {closed}") from closed
        return None

    def reports(self) -> tuple[PoolReport, ...]:
        """One report a pool; asks no disk."""
        return tuple(station.report() for station in self)

    async def _look(self, station: Station, opened: OpenPool, find: Callable[[Pool], Found | None]) -> Found | None:
        """Of a pool of this node alone from memory, of a shared one from its disk."""
        if not station.settings.shared:
            return find(opened.pool)
        async with asyncio.timeout(LOOK_PATIENCE):
            return await station.lane.run(lambda: find(opened.pool))

    async def _open(self, station: Station) -> None:
        with suppress(DriverError):
            await station.open()
        station.discarded()
