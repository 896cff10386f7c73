"""A pool: one folder of the node, the volumes in it, and how much of it is promised.

    <pool>/pool.json               whose pool it is, and the backend that ``auto`` means in it
    <pool>/volumes/<id>/           a volume: its record and its data; appears whole, vanishes whole
    <pool>/making/<id>.<hex>/      a volume's folder before its record is in it
    <pool>/trash/<id>.<hex>/       deleted, waiting to be removed
    <pool>/retained/<id>.<hex>/    deleted with ``onDelete: retain``: ours no longer, kept for good

A folder is made aside, gets its record, and is renamed into ``volumes``; it leaves by a rename too. So
every folder in ``volumes`` has a record, whenever the power fails, and one without is somebody else's.

Capacity is accounted, not looked at: a size that was promised is gone from the next promise, in the
same critical section that writes the record, however many requests race. See ``room.Room``.
"""

import contextlib
import errno
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

from moorage_csi import quantity
from moorage_csi.contract import ON_DELETE_RETAIN
from moorage_csi.errors import ExhaustedError, PreconditionError, UnavailableError
from moorage_csi.host.paths import Directory
from moorage_csi.volumes import identity
from moorage_csi.volumes import record as records
from moorage_csi.volumes.disk import Disk, Disks
from moorage_csi.volumes.identity import Identity
from moorage_csi.volumes.record import DamagedRecordError, Record, State, VolumeId
from moorage_csi.volumes.room import Footprint, Room
from moorage_csi.volumes.trash import Trash

_log = logging.getLogger(__name__)

_VOLUMES: Final = "volumes"
_FOLDERS: Final = (_VOLUMES, "making", "trash", "retained")
_PRIVATE: Final = 0o700
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_MOST_PERCENT: Final = 100

Measure: TypeAlias = Callable[[Directory, Record | None], Footprint | None]
"""Tells what a volume's folder takes; the record is None where it is damaged, the answer where nobody can tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """One pool as the administrator describes it.

    ``reserve``: what is never promised, in bytes or in per cent of the filesystem, the larger of the two.
    ``overcommit``: how many times over the rest may be promised. ``shared``: every node sees this folder.
    """

    name: str
    path: str
    reserve_bytes: int = 0
    reserve_percent: float = 0.0
    overcommit: float = 1.0
    shared: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, as ValueError."""
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"pool name {self.name!r} is not lower-case letters, digits and dashes, 63 at most")
        if not self.path.startswith("/") or ".." in self.path.split("/") or not self.path.strip("/"):
            raise ValueError(f"pool {self.name}: path {self.path!r} is not an absolute path below /")
        if self.reserve_bytes < 0 or not 0 <= self.reserve_percent < _MOST_PERCENT:
            raise ValueError(
                f"pool {self.name}: a reserve of {self.reserve_bytes} bytes and {self.reserve_percent}% is not "
                "between nothing and all"
            )
        if not (math.isfinite(self.overcommit) and self.overcommit >= 1):
            raise ValueError(
                f"pool {self.name}: overcommit {self.overcommit} is below 1; to promise less than there is, use reserve"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something in the pool that nobody but a person may touch."""

    volume: str
    path: str
    reason: str


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
        token: Callable[[int], str],
    ) -> None:
        """Use ``open``; this takes over ``root``, whose folders exist."""
        self.settings = settings
        self.identity = identity
        self._node = node
        self._root = root
        self._disk = disk
        self._measure = measure
        self._token = token
        self._volumes, self._making, self._trash_folder, self._retained_folder = map(root.child, _FOLDERS)
        self.trash = Trash(self._trash_folder, token=token)
        self._retained = Trash(self._retained_folder, token=token)
        self._records: dict[VolumeId, Record] = {}
        self._problems: dict[str, Problem] = {}

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
            begun = root.exists(_VOLUMES)
            found = identity.load(root, path=settings.path, begun=begun, clock=clock)
            for name in _FOLDERS:
                if not root.exists(name):
                    root.make_directory(name, _PRIVATE, exist_ok=True)
            disk = disks.of(os.fstat(root.fd).st_dev)
            pool = cls(settings, root=root, identity=found, node=node, disk=disk, measure=measure, token=token)
            pool.load()
            disk.join(pool)
        except BaseException:
            root.close()
            raise
        return pool

    def close(self) -> None:
        """Let go of the folder; another process may open it."""
        self._disk.leave(self)
        for folder in (self._volumes, self._making, self._trash_folder, self._retained_folder, self._root):
            folder.close()

    @property
    def name(self) -> str:
        """The pool's name in a class's ``pool`` parameter."""
        return self.settings.name

    @property
    def root(self) -> Directory:
        """The pool's folder, to find out what its filesystem can do; not the caller's to close."""
        return self._root

    @property
    def records(self) -> Mapping[VolumeId, Record]:
        """The records as last read, by id."""
        return dict(self._records)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What was found and left alone."""
        return tuple(self._problems.values())

    def keep_backend(self, backend: str) -> None:
        """Write into the pool what ``auto`` means in it from now on. The same word again writes nothing."""
        if self.identity.backend != backend:
            self.identity = replace(self.identity, backend=backend)
            identity.save(self._root, self.identity)

    def find(self, volume: VolumeId) -> Record | None:
        """The volume's record, or None where this pool has no such volume.

        A pool of this node alone is answered from memory; in a shared one other nodes write too.

        Raises:
            PreconditionError: there is a folder of that name, and its record cannot be trusted.
        """
        if not records.ID_PATTERN.fullmatch(volume):
            return None
        if self.settings.shared:
            self._take(volume, self._look(volume))
        if (problem := self._problems.get(volume)) is not None:
            raise PreconditionError(
                f"volume {volume}: {problem.path} cannot be trusted, so the volume is left alone: {problem.reason}; "
                "restore the file, or move the folder out of the pool"
            )
        return self._records.get(volume)

    @contextlib.contextmanager
    def folder(self, volume: VolumeId) -> Iterator[Directory]:
        """The volume's folder, open for as long as the block lasts. FileNotFoundError where there is none."""
        if not records.ID_PATTERN.fullmatch(volume):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), volume)
        with self._volumes.child(volume) as folder:
            yield folder

    def begin(self, record: Record) -> None:
        """Promise the record's size and make the volume's folder with the record in it, durably.

        A crash before the last rename leaves a folder in ``making``, which the next start removes; a crash
        after it leaves a record in state ``creating``. An error leaves nothing.

        Raises:
            ExhaustedError: the pool has not that much room.
            FileExistsError: the id has a folder already.
        """
        with self._promising():
            room = self.room()
            if record.size > room.free:
                raise ExhaustedError(
                    f"pool {self.name} on {self._node} has no room for {quantity.text(record.size)}, "
                    f"{quantity.text(record.size - room.free)} too much: {room}"
                )
            aside = f"{record.id}.{self._token(4)}"
            self._making.make_directory(aside, _PRIVATE)
            try:
                with self._making.child(aside) as folder:
                    folder.write_atomic(records.RECORD_NAME, records.serialise(record))
                self._making.rename(aside, self._volumes, record.id)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._making.remove_tree(aside)
                raise
            self._records[record.id] = record

    def update(self, record: Record) -> None:
        """Replace the volume's record, durably: after a crash it is the old one or the new one, whole."""
        with self._volumes.child(record.id) as folder:
            folder.write_atomic(records.RECORD_NAME, records.serialise(record))
        self._records[record.id] = record

    def strip(self, record: Record) -> None:
        """Move all that the volume's folder holds beside its record into the trash, durably. Nothing there: no change.

        A crash between two moves leaves the rest for the next call.
        """
        with self._volumes.child(record.id) as folder:
            for name in folder.names():
                if name != records.RECORD_NAME:
                    self.trash.put(folder, name, record.id)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the other nodes of a shared pool from promising and wiping for as long as the block lasts.

        Waits for one that is at it. The lock goes with the process. A pool of this node alone needs none.
        """
        if not self.settings.shared:
            yield
            return
        fd = identity.lock_shared(self._root)
        try:
            yield
        finally:
            os.close(fd)

    def discard(self, record: Record) -> None:
        """Take the volume out of the pool: into the trash, or among the retained if its class says so.

        What never became ready holds nobody's data and is never retained. A crash before the rename leaves
        the record in state ``deleting``, which the next start or call finishes; after it, nothing is left
        to do. Gone already: nothing happens.
        """
        if record.state in records.GIVEN:
            try:
                self.update(replace(record, state=State.DELETING))
            except FileNotFoundError:
                pass
            except OSError as error:
                # A full pool must be able to lose a volume. The rename alone decides; the state only says
                # to a person who looks meanwhile what is going on.
                if error.errno not in _FULL:
                    raise
        keep = record.on_delete == ON_DELETE_RETAIN and record.state is not State.CREATING
        with contextlib.suppress(FileNotFoundError):
            (self._retained if keep else self.trash).put(self._volumes, record.id, record.id)
        self._records.pop(record.id, None)

    def room(self) -> Room:
        """How much may be promised at this moment, all pools on the filesystem counted."""
        figures = os.fstatvfs(self._root.fd)
        total = figures.f_blocks * figures.f_frsize
        promised, unallocated = self._disk.claims()
        return Room(
            total=total,
            available=figures.f_bavail * figures.f_frsize,
            reserve=max(self.settings.reserve_bytes, int(total * self.settings.reserve_percent / _MOST_PERCENT)),
            promised=promised,
            unallocated=unallocated,
            overcommit=self.settings.overcommit,
        )

    def claims(self) -> tuple[int, int]:
        """Bytes promised to this pool's volumes, and bytes of them that are not written yet."""
        each = [self._figures_of(name) for name in (*self._records, *self._problems)]
        return sum(size for size, _ in each), sum(max(0, size - allocated) for size, allocated in each)

    def load(self) -> None:
        """Read every record anew. What is no volume of ours, or is damaged, becomes a problem."""
        names = self._volumes.names()
        for gone in {*self._records, *self._problems}.difference(names):
            self._take(gone, None)
        for name in names:
            self._take(name, self._look(name))

    def settle(self) -> None:
        """Bring to an end what an earlier process of this node left in the middle.

        Volumes that never became ready go to the trash, deletions that began are finished, half-made folders
        are removed. A wipe that began stays as it is until it is asked for again: the volume is somebody's. It may
        itself be interrupted and repeated. In a shared pool only what this node began is touched: another node may
        be at work.
        """
        for record in tuple(self._records.values()):
            if record.state in records.GIVEN or (self.settings.shared and record.node != self._node):
                continue
            _log.warning(
                "brought to an end what was left in the middle",
                extra={"pool": self.name, "volume": record.id, "state": record.state.value},
            )
            with self._tolerating(record.id):
                self.discard(record)
        if not self.settings.shared:
            for name in self._making.names():
                with self._tolerating(name):
                    self._making.remove_tree(name)

    @contextlib.contextmanager
    def _tolerating(self, name: str) -> Iterator[None]:
        """Leave what cannot be cleared to the next start, or to the next request for it: the rest is served."""
        try:
            yield
        except OSError as error:
            _log.warning("a leftover stays for now", extra={"pool": self.name, "volume": name, "reason": str(error)})

    @contextlib.contextmanager
    def _promising(self) -> Iterator[None]:
        """The critical section of promising: of this disk, and of all nodes where they share the pool."""
        with self._disk.lock:
            if not self.settings.shared:
                yield
                return
            with self.alone():
                self.load()
                yield

    def _look(self, name: str) -> Record | Problem | None:
        """What lies in one folder on the disk: a volume, something not to be touched, or nothing."""
        if not records.ID_PATTERN.fullmatch(name):
            return self._problem(name, "this driver gives no such name, so it is somebody else's")
        try:
            with self._volumes.child(name) as folder:
                record = records.parse(folder.read_bytes(records.RECORD_NAME))
        except FileNotFoundError:
            return self._problem(name, "the record is missing") if self._volumes.exists(name) else None
        except OSError as error:
            return self._problem(name, f"it cannot be read: {error.strerror}")
        except DamagedRecordError as error:
            return self._problem(name, str(error))
        return record if record.id == name else self._problem(name, f"it is the record of {record.id}")

    def _take(self, name: str, found: Record | Problem | None) -> None:
        """Remember what was found, without a moment in which a volume that is there is not known."""
        volume = VolumeId(name)
        if isinstance(found, Record):
            self._records[volume] = found
            self._problems.pop(name, None)
            return
        if found is None:
            self._problems.pop(name, None)
        elif self._problems.get(name) != found:
            self._problems[name] = found
            _log.error(
                "a volume is left alone",
                extra={"pool": self.name, "volume": name, "path": found.path, "reason": found.reason},
            )
        self._records.pop(volume, None)

    def _problem(self, name: str, reason: str) -> Problem:
        path = f"{self.settings.path.rstrip('/')}/{_VOLUMES}/{name}/{records.RECORD_NAME}"
        return Problem(volume=name, path=path, reason=reason)

    def _figures_of(self, name: str) -> tuple[int, int]:
        """Size and allocation of a volume; where that cannot be told, its size counts as not written yet."""
        record = self._records.get(VolumeId(name))
        measured = None
        with contextlib.suppress(OSError, ValueError), self._volumes.child(name) as folder:
            measured = self._measure(folder, record)
        size = record.size if record is not None else 0
        return (size, 0) if measured is None else (max(size, measured.size), measured.allocated)
