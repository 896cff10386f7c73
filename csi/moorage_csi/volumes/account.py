"""The account of one pool: what is promised of it, and the one place in which more is.

What can be promised is worked out from the records and from what lies on the disk, anew for every promise, so there is
no figure that a crash could leave wrong.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

from moorage_csi import quantity
from moorage_csi.contract import BACKEND_LAYERED
from moorage_csi.errors import ExhaustedError
from moorage_csi.host.paths import Directory
from moorage_csi.volumes import identity
from moorage_csi.volumes.disk import Disk
from moorage_csi.volumes.exits import Exits
from moorage_csi.volumes.holding import Holding
from moorage_csi.volumes.ids import SnapshotId, VolumeId
from moorage_csi.volumes.record import Record, State
from moorage_csi.volumes.room import (
    Footprint,
    Room,
    Stake,
    stake_of_layer,
    stake_of_remnant,
    stake_of_snapshot,
    stake_of_volume,
)
from moorage_csi.volumes.settings import PoolSettings
from moorage_csi.volumes.snapshot import Snapshot

Measure: TypeAlias = Callable[[Directory, Record | None], Footprint | None]
"""Tells what a folder takes; the record is None where it is damaged or no volume's, the answer where nobody can tell."""


class Account:
    """What one pool has promised. A tenant of its disk from ``join`` on, see ``disk``."""

    def __init__(
        self,
        settings: PoolSettings,
        *,
        root: Directory,
        node: str,
        disk: Disk,
        measure: Measure,
        volumes: Holding[VolumeId, Record],
        snapshots: Holding[SnapshotId, Snapshot],
        exits: Exits,
    ) -> None:
        self._settings = settings
        self._root = root
        self._node = node
        self._disk = disk
        self._measure = measure
        self._volumes = volumes
        self._snapshots = snapshots
        self._exits = exits

    def join(self) -> None:
        """Count among the pools of the disk from now on."""
        self._disk.join(self)

    def leave(self) -> None:
        """Count no more."""
        self._disk.leave(self)

    @property
    def has_neighbours(self) -> bool:
        """Whether other pools lie on the same disk."""
        return self._disk.tenants > 1

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the other nodes of a shared pool out for as long as the block lasts; waits for one that is at it."""
        if not self._settings.shared:
            yield
            return
        fd = identity.lock_shared(self._root)
        try:
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def promising(self) -> Iterator[None]:
        """The critical section of promising: of this disk, and of all nodes where they share the pool.

        What is afforded in it has to be written in it, as a record.
        """
        with self._disk.lock:
            if not self._settings.shared:
                yield
                return
            with self.alone():
                self._volumes.load()
                self._snapshots.load()
                yield

    def afford(self, wanted: Stake, *, given_back: Stake | None = None) -> None:
        """Refuse, as ExhaustedError, what the pool cannot promise. ``given_back`` is counted now, and not then."""
        room = self.room()
        if given_back is not None:
            room = replace(room, unallocated=room.unallocated - given_back.unwritten)
        if lacking := room.lacks(wanted):
            raise ExhaustedError(
                f"pool {self._settings.name} on {self._node} has no room for {quantity.text(wanted.promised)}, "
                f"{quantity.text(lacking)} too much: {room}"
            )

    def room(self) -> Room:
        """How much may be promised at this moment, all pools on the filesystem counted."""
        figures = os.fstatvfs(self._root.fd)
        total = figures.f_blocks * figures.f_frsize
        promised, unallocated = self._disk.claims()
        return Room(
            total=total,
            available=figures.f_bavail * figures.f_frsize,
            reserve=self._settings.reserve_of(total),
            promised=promised,
            unallocated=unallocated,
            overcommit=self._settings.overcommit,
        )

    def beside(self, record: Record) -> Stake:
        """What making this volume needs beside its size: nothing, but for a copy of a volume of layers, see ``room``."""
        if record.backend != BACKEND_LAYERED or record.source is None:
            return Stake()
        source = self._volumes.records.get(VolumeId(record.source))
        return Stake() if source is None else stake_of_layer(source, self._found_in(self._volumes, source.id, source))

    def claims(self) -> tuple[int, int]:
        """Bytes promised to this pool's volumes and snapshots, and bytes of them that are not written yet."""
        total = Stake()
        for name, record in self._volumes.known():
            total += stake_of_volume(record, self._found_in(self._volumes, name, record))
            if record is not None and record.state is State.CREATING:
                total += self.beside(record)
        for name, snapshot in self._snapshots.known():
            total += stake_of_snapshot(snapshot, self._found_in(self._snapshots, name, None))
        # After the others, so that what leaves meanwhile is counted twice rather than not at all.
        for folder, old in self._exits.sharing():
            total += stake_of_remnant(old, self.found(folder, old))
        return total.promised, total.unwritten

    def found(self, folder: Directory, record: Record | Snapshot | None) -> Footprint | None:
        """What a folder takes; None where that cannot be told."""
        with contextlib.suppress(OSError, ValueError):
            return self._measure(folder, record if isinstance(record, Record) else None)
        return None

    def _found_in(self, holding: Holding[Any, Any], name: str, record: Record | None) -> Footprint | None:
        with contextlib.suppress(OSError, ValueError), holding.opened(name) as folder:
            return self.found(folder, record)
        return None
