"""What a pool has of one kind, volumes or snapshots: folders with a record in each.

    <pool>/<kind>/<id>/record.json    and the data beside it
    <pool>/making/<id>.<hex>/         a folder before its record is in it

A folder is made aside, gets its record, and is renamed into its place; it leaves by a rename too. So every folder in
its place has a record, whenever the power fails, and one without is somebody else's. A record that cannot be trusted
makes its folder a problem: it is told, and left alone.

Nothing is accounted here, see ``pool``.
"""

import contextlib
import errno
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from moorage_csi.errors import PreconditionError
from moorage_csi.host.paths import Directory
from moorage_csi.volumes import record, snapshot
from moorage_csi.volumes.fields import DamagedRecordError
from moorage_csi.volumes.ids import SNAPSHOT_ID, VOLUME_ID, SnapshotId, VolumeId
from moorage_csi.volumes.record import RECORD_NAME, Record
from moorage_csi.volumes.snapshot import Snapshot

_log = logging.getLogger(__name__)

_PRIVATE: Final = 0o700
_LETTERS: Final = 4


class Owned(Protocol):
    """A record, as far as keeping it needs to know it."""

    @property
    def id(self) -> str:
        """The name of its folder."""


Id = TypeVar("Id", bound=str)
Rec = TypeVar("Rec", bound=Owned)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind(Generic[Id, Rec]):
    """What there is to know of a kind of things; ``noun`` is what a person calls one."""

    noun: str
    folder: str
    pattern: re.Pattern[str]
    identify: Callable[[str], Id]
    parse: Callable[[bytes], Rec]
    serialise: Callable[[Rec], bytes]


VOLUMES: Final[Kind[VolumeId, Record]] = Kind(
    noun="volume",
    folder="volumes",
    pattern=VOLUME_ID,
    identify=VolumeId,
    parse=record.parse,
    serialise=record.serialise,
)
SNAPSHOTS: Final[Kind[SnapshotId, Snapshot]] = Kind(
    noun="snapshot",
    folder="snapshots",
    pattern=SNAPSHOT_ID,
    identify=SnapshotId,
    parse=snapshot.parse,
    serialise=snapshot.serialise,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something in the pool that nobody but a person may touch.

    ``volume`` is the name of its folder, of a snapshot too; ``kind`` says which of them it is among.
    """

    volume: str
    path: str
    reason: str
    kind: str = VOLUMES.noun


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The pool around a holding: its name and path for people, and what its folders need."""

    pool: str
    path: str
    shared: bool
    making: Directory
    token: Callable[[int], str]


class Holding(Generic[Id, Rec]):
    """The things of one kind in one pool. Its methods block; they may be called from several threads."""

    def __init__(self, kind: Kind[Id, Rec], *, root: Directory, place: Place) -> None:
        """Use ``load`` before anything else. The kind's folder exists in ``root``."""
        self.kind = kind
        self._place = place
        self._folder = root.child(kind.folder)
        self._records: dict[Id, Rec] = {}
        self._problems: dict[str, Problem] = {}

    def close(self) -> None:
        """Let go of the folder."""
        self._folder.close()

    @property
    def records(self) -> Mapping[Id, Rec]:
        """The records as last read, by id."""
        return dict(self._records)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What was found and left alone."""
        return tuple(self._problems.values())

    def known(self) -> tuple[tuple[str, Rec | None], ...]:
        """All folders by name, also those that are a problem, which have no record."""
        return (*self._records.items(), *((name, None) for name in tuple(self._problems)))

    def load(self) -> None:
        """Read every record anew. What is none of ours, or is damaged, becomes a problem."""
        names = self._folder.names()
        for gone in {name for name, _ in self.known()}.difference(names):
            self._take(gone, None)
        for name in names:
            self._take(name, self._look(name))

    def find(self, wanted: Id) -> Rec | None:
        """The record of that id, or None where this pool has none.

        A pool of this node alone is answered from memory; in a shared one other nodes write too.

        Raises:
            PreconditionError: there is a folder of that name, and its record cannot be trusted.
        """
        if not self.kind.pattern.fullmatch(wanted):
            return None
        if self._place.shared:
            self._take(wanted, self._look(wanted))
        if (problem := self._problems.get(wanted)) is not None:
            noun = self.kind.noun
            raise PreconditionError(
                f"{noun} {wanted}: {problem.path} cannot be trusted, so the {noun} is left alone: {problem.reason}; "
                "restore the file, or move the folder out of the pool"
            )
        return self._records.get(wanted)

    @contextlib.contextmanager
    def folder(self, wanted: Id) -> Iterator[Directory]:
        """The folder of that id, open for as long as the block lasts. FileNotFoundError where there is none."""
        if not self.kind.pattern.fullmatch(wanted):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), wanted)
        with self.opened(wanted) as folder:
            yield folder

    def opened(self, name: str) -> Directory:
        """A folder by its name, somebody else's too, to be looked at; the caller closes it."""
        return self._folder.child(name)

    def begin(self, new: Rec) -> None:
        """Make the folder with the record in it, durably.

        A crash before the last rename leaves a folder in ``making``, which the next start removes; a crash
        after it leaves the record. An error leaves nothing, or, from a disk that fails after the rename, the record,
        which is known.

        Raises:
            FileExistsError: the id has a folder already.
        """
        making = self._place.making
        aside = f"{new.id}.{self._place.token(_LETTERS)}"
        try:
            making.make_directory(aside, _PRIVATE)
            with making.child(aside) as folder:
                folder.write_atomic(RECORD_NAME, self.kind.serialise(new))
            making.rename(aside, self._folder, new.id)
        except BaseException:
            with contextlib.suppress(OSError):
                making.remove_tree(aside)
            self._know(new)
            raise
        self._records[self.kind.identify(new.id)] = new

    def update(self, changed: Rec) -> None:
        """Replace the record, durably: after a crash it is the old one or the new one, whole."""
        with self.opened(changed.id) as folder:
            folder.write_atomic(RECORD_NAME, self.kind.serialise(changed))
        self._records[self.kind.identify(changed.id)] = changed

    def give_up(self, gone: Rec, put: Callable[[Directory, str], object]) -> None:
        """Let ``put`` move the folder, of which it gets the parent and the name, out of here. Gone already: no change."""
        with contextlib.suppress(FileNotFoundError):
            put(self._folder, gone.id)
        self._records.pop(self.kind.identify(gone.id), None)

    def take_back(self, source: Directory, name: str, old: Rec) -> None:
        """Move the entry ``name`` of ``source`` here, with this record in it, durably.

        A crash before the rename leaves it in ``source`` with the new record, from where it can be taken back again.

        Raises:
            FileNotFoundError: it is not there any more.
            FileExistsError: the id has a folder.
        """
        with source.child(name) as folder:
            folder.write_atomic(RECORD_NAME, self.kind.serialise(old))
        try:
            source.rename(name, self._folder, old.id)
        except OSError:
            self._know(old)
            raise
        self._records[self.kind.identify(old.id)] = old

    def _know(self, arrived: Rec) -> None:
        """Remember what is in its place, though the disk says that moving it there failed."""
        if self._look(arrived.id) == arrived:
            self._records[self.kind.identify(arrived.id)] = arrived

    def _look(self, name: str) -> Rec | Problem | None:
        """What lies in one folder on the disk: one of the kind, something not to be touched, or nothing."""
        if not self.kind.pattern.fullmatch(name):
            return self._problem(name, "this driver gives no such name, so it is somebody else's")
        try:
            with self.opened(name) as folder:
                found = self.kind.parse(folder.read_bytes(RECORD_NAME))
        except FileNotFoundError:
            return self._problem(name, "the record is missing") if self._folder.exists(name) else None
        except OSError as error:
            return self._problem(name, f"it cannot be read: {error.strerror}")
        except DamagedRecordError as error:
            return self._problem(name, str(error))
        return found if found.id == name else self._problem(name, f"it is the record of {found.id}")

    def _take(self, name: str, found: Rec | Problem | None) -> None:
        """Remember what was found, without a moment in which one that is there is not known."""
        key = self.kind.identify(name)
        if found is not None and not isinstance(found, Problem):
            self._records[key] = found
            self._problems.pop(name, None)
            return
        if found is None:
            self._problems.pop(name, None)
        elif self._problems.get(name) != found:
            self._problems[name] = found
            _log.error(
                "left alone, its record cannot be trusted",
                extra={
                    "pool": self._place.pool,
                    "kind": self.kind.noun,
                    "folder": name,
                    "path": found.path,
                    "reason": found.reason,
                },
            )
        self._records.pop(key, None)

    def _problem(self, name: str, reason: str) -> Problem:
        path = f"{self._place.path.rstrip('/')}/{self.kind.folder}/{name}/{RECORD_NAME}"
        return Problem(volume=name, path=path, reason=reason, kind=self.kind.noun)
