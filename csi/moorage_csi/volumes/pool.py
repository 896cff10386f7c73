"""A pool: one folder of the node, what is in it, and how much of it is promised.

    <pool>/pool.json                    whose pool it is, and the backend that ``auto`` means in it
    <pool>/volumes/<id>/                a volume: its record and its data; appears whole, vanishes whole
    <pool>/snapshots/<id>/              a snapshot, likewise
    <pool>/making/<id>.<hex>/           the folder of either before its record is in it
    <pool>/trash, retained, archived    what was deleted, see ``exits``

Capacity is accounted, not looked at: a size that was promised is gone from the next promise, in the
same critical section that writes the record, however many requests race. See ``room``.
"""

import contextlib
import errno
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from moorage_csi.errors import NotFoundError, PreconditionError, UnavailableError
from moorage_csi.host.paths import Directory
from moorage_csi.volumes import exits, identity
from moorage_csi.volumes.account import Account, Measure
from moorage_csi.volumes.disk import Disk, Disks
from moorage_csi.volumes.exits import Exits, Left
from moorage_csi.volumes.fields import DamagedRecordError
from moorage_csi.volumes.growth import Growth
from moorage_csi.volumes.holding import SNAPSHOTS, VOLUMES, Holding, Place, Problem
from moorage_csi.volumes.identity import Identity
from moorage_csi.volumes.ids import VolumeId
from moorage_csi.volumes.record import GIVEN, RECORD_NAME, Record, State
from moorage_csi.volumes.room import Room, Stake, stake_of_remnant, stake_of_snapshot, stake_of_volume
from moorage_csi.volumes.settings import PoolSettings
from moorage_csi.volumes.snapshot import Snapshot, SnapshotState
from moorage_csi.volumes.trash import Trash

__all__ = ["Measure", "Pool", "PoolSettings", "Problem"]

_log = logging.getLogger(__name__)

_MAKING: Final = "making"
_FOLDERS: Final = (VOLUMES.folder, SNAPSHOTS.folder, _MAKING, *exits.FOLDERS)
_PRIVATE: Final = 0o700
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNFINISHED: Final = frozenset({SnapshotState.CREATING, SnapshotState.DELETING})


def nothing_kept(folder: Directory) -> None:
    """The kernel keeps nothing for what lies in the folder."""


def nothing_kept_for(what: Record | Snapshot, folder: Directory) -> None:
    """The same, of one of several."""


class Pool:
    """An open pool. Its methods block; they may be called from several threads."""

    def __init__(
        self,
        settings: PoolSettings,
        *,
        root: Directory,
        identity: Identity,
        node: str,
        disk: Disk,
        measure: Measure,
        clock: Callable[[], float],
        token: Callable[[int], str],
    ) -> None:
        """Use ``open``; this takes over ``root``, whose folders exist."""
        self.settings = settings
        self.identity = identity
        self._node = node
        self._root = root
        self._making = root.child(_MAKING)
        place = Place(pool=settings.name, path=settings.path, shared=settings.shared, making=self._making, token=token)
        self.volumes = Holding(VOLUMES, root=root, place=place)
        self.snapshots = Holding(SNAPSHOTS, root=root, place=place)
        self.exits = Exits(root, settings, clock=clock, token=token)
        self._account = Account(
            settings,
            root=root,
            node=node,
            disk=disk,
            measure=measure,
            volumes=self.volumes,
            snapshots=self.snapshots,
            exits=self.exits,
        )
        self._growth = Growth(self.volumes, self._account)

    @classmethod
    def open(
        cls,
        settings: PoolSettings,
        *,
        node: str,
        disks: Disks,
        measure: Measure,
        clock: Callable[[], float],
        token: Callable[[int], str],
    ) -> "Pool":
        """Open the pool and read its records; make it on first use, in a parent folder that must exist.

        Every step may be repeated: a crash in the middle leaves what the next call completes.

        Raises:
            UnavailableError: the folder cannot be opened or made, or another process has it.
            PreconditionError: ``pool.json`` is damaged, or gone while there are volumes.
        """
        try:
            with contextlib.suppress(FileExistsError):
                Path(settings.path).mkdir(_PRIVATE)
            root = Directory.open(settings.path)
        except OSError as error:
            raise UnavailableError(
                f"pool {settings.name}: {settings.path} cannot be opened: {error.strerror}; its parent must exist"
            ) from error
        try:
            if not settings.shared:
                identity.occupy(root, path=settings.path)
            begun = root.exists(VOLUMES.folder) or root.exists(SNAPSHOTS.folder)
            found = identity.load(root, path=settings.path, begun=begun, clock=clock)
            for name in _FOLDERS:
                if not root.exists(name):
                    root.make_directory(name, _PRIVATE, exist_ok=True)
            disk = disks.of(os.fstat(root.fd).st_dev)
            pool = cls(
                settings,
                root=root,
                identity=found,
                node=node,
                disk=disk,
                measure=measure,
                clock=clock,
                token=token,
            )
            pool.load()
            pool._account.join()
        except BaseException:
            root.close()
            raise
        return pool

    def close(self) -> None:
        """Let go of the folder; another process may open it."""
        self._account.leave()
        for part in (self.volumes, self.snapshots, self.exits, self._making, self._root):
            part.close()

    @property
    def name(self) -> str:
        """The pool's name in a class's ``pool`` parameter."""
        return self.settings.name

    @property
    def root(self) -> Directory:
        """The pool's folder, to find out what its filesystem can do; not the caller's to close."""
        return self._root

    @property
    def trash(self) -> Trash:
        """What is deleted."""
        return self.exits.trash

    @property
    def records(self) -> Mapping[VolumeId, Record]:
        """The volumes' records as last read, by id."""
        return self.volumes.records

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What was found and left alone, among volumes and snapshots."""
        return (*self.volumes.problems, *self.snapshots.problems)

    def keep_backend(self, name: str) -> None:
        """Let ``auto`` mean this backend from now on, unless one is kept already."""
        if self.identity.backend is None:
            self.identity = replace(self.identity, backend=name)
            identity.save(self._root, self.identity)

    def find(self, volume: VolumeId) -> Record | None:
        """The volume's record, or None where this pool has no such volume; see ``Holding.find``."""
        return self.volumes.find(volume)

    def folder(self, volume: VolumeId) -> contextlib.AbstractContextManager[Directory]:
        """The volume's folder, open for as long as the block lasts. FileNotFoundError where there is none."""
        return self.volumes.folder(volume)

    def begin(self, record: Record) -> None:
        """Promise the record's size and make the volume's folder with the record in it, durably.

        A copy says in its record whether it ``shares``, before the first byte of it is there. Crashes and errors leave
        what ``Holding.begin`` leaves.

        Raises:
            ExhaustedError: the pool has not that much room.
            FileExistsError: the id has a folder already.
        """
        with self._account.promising():
            self._account.afford(Stake(promised=record.size, unwritten=record.size) + self._account.beside(record))
            self.volumes.begin(record)

    def begin_snapshot(self, snapshot: Snapshot) -> None:
        """Promise what the snapshot ``holds`` at the most and make its folder; like ``begin``."""
        with self._account.promising():
            self._account.afford(Stake(promised=snapshot.holds, unwritten=snapshot.holds))
            self.snapshots.begin(snapshot)

    def complete_snapshot(
        self, snapshot: Snapshot, *, holds: int, state: SnapshotState = SnapshotState.READY
    ) -> Snapshot:
        """Write that the snapshot is ready and holds so many bytes, which are promised from now on; returns that record.

        One of a group becomes ``copied`` first. One that is ready already is returned as it is. A crash leaves it as it
        was, or ready.

        Raises:
            NotFoundError: the pool has it no more.
            ExhaustedError: it holds more than was promised, and the pool has not that much room.
            UnavailableError: it is being deleted.
        """
        with self._account.promising():
            known = self.snapshots.find(snapshot.id)
            if known is None:
                raise NotFoundError(f"snapshot {snapshot.id} is not in pool {self.name} any more")
            if known.state is SnapshotState.READY:
                return known
            if known.state is SnapshotState.DELETING:
                raise UnavailableError(f"snapshot {known.id} is {known.state}: ask again when that has ended")
            more = max(0, holds - known.holds)
            self._account.afford(Stake(promised=more, unwritten=more))
            ready = replace(known, state=state, holds=holds)
            self.snapshots.update(ready)
            return ready

    def promise_growth(self, record: Record, size: int) -> Record:
        """Promise what the volume lacks of ``size`` bytes; see ``Growth.promise``."""
        return self._growth.promise(record, size)

    def grown(self, record: Record) -> Record:
        """Write that the volume has the size that it was growing to; see ``Growth.done``."""
        return self._growth.done(record)

    def shrunk(self, record: Record, size: int) -> Record:
        """Write that the volume is held to fewer bytes; see ``Growth.shrunk``."""
        return self._growth.shrunk(record, size)

    def give_up_growth(self, record: Record) -> Record:
        """Write that the volume keeps its size; see ``Growth.give_up``."""
        return self._growth.give_up(record)

    def update(self, record: Record) -> None:
        """Replace the volume's record, durably: after a crash it is the old one or the new one, whole."""
        self.volumes.update(record)

    def strip(self, record: Record) -> None:
        """Move all that the volume's folder holds beside its record into the trash, durably. Nothing there: no change.

        A crash between two moves leaves the rest for the next call.
        """
        with self.volumes.folder(record.id) as folder:
            names = [name for name in folder.names() if name != RECORD_NAME]
            if names:
                self.trash.gather(folder, names, record.id, shares=record.shares)

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Keep the other nodes of a shared pool from promising and wiping for as long as the block lasts.

        Waits for one that is at it. The lock goes with the process. A pool of this node alone needs none.
        """
        return self._account.alone()

    def discard(self, record: Record, *, retire: Callable[[Directory], None] = nothing_kept) -> None:
        """Take the volume out of the pool, by the way that its class says; see ``exits``. Its snapshots stay.

        ``retire`` gives back what the kernel keeps for the volume in the folder that it gets; it is called when the record
        says that the volume goes, and not before: one without its limit must never be anybody's.

        What never became ready holds nobody's data and is kept nowhere. A crash before the rename leaves
        the record in state ``deleting``, which the next start or call finishes, or ``wiping``; after it, nothing is
        left to do. Gone already: nothing happens.
        """
        if record.state is State.READY:
            with self._saying():
                self.volumes.update(replace(record, state=State.DELETING))
        with contextlib.suppress(FileNotFoundError), self.volumes.folder(record.id) as folder:
            retire(folder)
        self.volumes.give_up(record, lambda folder, name: self.exits.take_volume(record, folder, name))

    def discard_snapshot(self, snapshot: Snapshot, *, retire: Callable[[Directory], None] = nothing_kept) -> None:
        """Take the snapshot out of the pool, into the trash; otherwise like ``discard``."""
        if snapshot.state is SnapshotState.READY:
            with self._saying():
                self.snapshots.update(replace(snapshot, state=SnapshotState.DELETING))
        with contextlib.suppress(FileNotFoundError), self.snapshots.folder(snapshot.id) as folder:
            retire(folder)
        self.snapshots.give_up(snapshot, lambda folder, name: self.exits.take_snapshot(snapshot, folder, name))

    def restore(
        self, left: Left, *, revive: Callable[[Record, Directory], None] = nothing_kept_for
    ) -> Record | Snapshot:
        """Take back what was deleted, one of ``exits.restorable()``: whole, under its id, and promised again.

        ``revive`` takes back what was given back for a volume when it went (see ``discard``), before it is anybody's again.
        A crash leaves it where it was, or back; it may be repeated. Returns its record.

        Raises:
            NotFoundError: it is not there any more.
            FileExistsError: the id has a folder; what was made under it meanwhile stays.
            ExhaustedError: its room was promised to others meanwhile.
        """
        source = self.exits.folder_of(left)
        try:
            with self._account.promising():
                with source.child(left.name) as folder:
                    old = exits.record_in(folder)
                    found = self._account.found(folder, old)
                kept = stake_of_remnant(old, found) if old.shares else Stake()
                if isinstance(old, Snapshot):
                    snapshot = replace(old, state=SnapshotState.READY)
                    self._account.afford(stake_of_snapshot(snapshot, found), given_back=kept)
                    self.snapshots.take_back(source, left.name, snapshot)
                    return snapshot
                # One of a pod, which went without it, would go again: taken back it is a volume like any other.
                volume = replace(old, ephemeral_at=None)
                if volume.state is State.DELETING:
                    volume = replace(volume, state=State.READY)
                self._account.afford(stake_of_volume(volume, found), given_back=kept)
                with source.child(left.name) as folder:
                    revive(volume, folder)
                self.volumes.take_back(source, left.name, volume)
                return volume
        except FileNotFoundError as error:
            raise NotFoundError(f"{left.where}/{left.name} is not in pool {self.name} any more") from error
        except DamagedRecordError as error:
            raise PreconditionError(
                f"{self.settings.path}/{left.where}/{left.name}/{RECORD_NAME} cannot be trusted, so it stays there: {error}"
            ) from error

    def may_be_held(self, volume: VolumeId) -> bool:
        """Whether anything beside the volume may still have what it wrote, without having copied it.

        That is a copy of it, or a copy of such a copy, wherever it is on its way out of the pool. Whatever cannot be told
        counts: a source that is gone, a damaged record, another pool on the disk.
        """
        if self.problems or self._account.has_neighbours:
            return True
        volumes, snapshots = self.volumes.records, self.snapshots.records
        sources: dict[str, str | None] = {key: record.source for key, record in volumes.items()}
        sources |= {key: snapshot.source for key, snapshot in snapshots.items()}
        sharing: list[Record | Snapshot | None] = [each for each in volumes.values() if each.shares]
        sharing += [each for each in snapshots.values() if each.shares]
        sharing += [old for _, old in self.exits.sharing()]
        return any(old is None or (old.id != volume and _leads_to(old.source, volume, sources)) for old in sharing)

    def room(self) -> Room:
        """How much may be promised at this moment, all pools on the filesystem counted."""
        return self._account.room()

    def claims(self) -> tuple[int, int]:
        """Bytes promised to this pool's volumes and snapshots, and bytes of them that are not written yet."""
        return self._account.claims()

    def load(self) -> None:
        """Read every record anew. What is nothing of ours, or is damaged, becomes a problem."""
        self.volumes.load()
        self.snapshots.load()

    def settle(self, *, retire: Callable[[Record | Snapshot, Directory], None] = nothing_kept_for) -> None:
        """Bring to an end what an earlier process of this node left in the middle; ``retire`` as in ``discard``.

        Volumes and snapshots that never became ready go to the trash, deletions that began are finished, half-made
        folders are removed. What becomes of a snapshot that is copied, other pools decide too, see ``rpc.membership``.
        A wipe or a grow that began stays as it is until it is asked for again: the volume is somebody's. It may itself be
        interrupted and repeated. In a shared pool only what this node began is touched: another node may be at work.
        """
        for record in self.volumes.records.values():
            if record.state not in GIVEN and self._is_mine(record):
                with self._settling(record):
                    self.discard(record, retire=functools.partial(retire, record))
        for snapshot in self.snapshots.records.values():
            if snapshot.state in _UNFINISHED and self._is_mine(snapshot):
                with self._settling(snapshot):
                    self.discard_snapshot(snapshot, retire=functools.partial(retire, snapshot))
        if not self.settings.shared:
            for name in self._making.names():
                with self._tolerating(name):
                    self._making.remove_tree(name)

    def _is_mine(self, record: Record | Snapshot) -> bool:
        return not self.settings.shared or record.node == self._node

    @contextlib.contextmanager
    def _settling(self, record: Record | Snapshot) -> Iterator[None]:
        _log.warning(
            "brought to an end what was left in the middle",
            extra={"pool": self.name, "id": record.id, "state": record.state.value},
        )
        with self._tolerating(record.id):
            yield

    @contextlib.contextmanager
    def _tolerating(self, name: str) -> Iterator[None]:
        """Leave what cannot be cleared to the next start, or to the next request for it: the rest is served."""
        try:
            yield
        except OSError as error:
            _log.warning("left over for now", extra={"pool": self.name, "folder": name, "reason": str(error)})

    @contextlib.contextmanager
    def _saying(self) -> Iterator[None]:
        """Write that something is being deleted, if that can be written.

        A full pool must be able to lose a volume. The rename alone decides; the state only says to a person who looks
        meanwhile what is going on.
        """
        try:
            yield
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in _FULL:
                raise


def _leads_to(source: str | None, volume: VolumeId, sources: Mapping[str, str | None]) -> bool:
    """Whether that was copied from the volume, directly or not; so it may be where the way ends at one that is gone."""
    seen: set[str] = set()
    while source is not None and source != volume and source in sources and source not in seen:
        seen.add(source)
        source = sources[source]
    return source is not None
