"""The ways out of a pool: the trash, what is retained for good, and the archive.

    <pool>/trash/<id>-<moment>.<hex>/          deleted; can be had back for the pool's ``trash_retention``
    <pool>/trash/<id>.<hex>/                   deleted; removed at once
    <pool>/retained/<id>.<hex>/                deleted with ``onDelete: retain``: ours no longer, kept for good
    <pool>/archived/<words>-<moment>.<hex>/    deleted with ``onDelete: archive``, under the names of namespace, claim
                                               and request; for the pool's ``archive_retention``, then into the trash

The record stays in the folder, so that what lies there can be told apart, and put back. What nobody was ever given, and
what a wipe took out of a volume, is not kept for anybody.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from moorage_csi.contract import ON_DELETE_ARCHIVE, ON_DELETE_RETAIN
from moorage_csi.host.paths import Directory
from moorage_csi.volumes.fields import DamagedRecordError
from moorage_csi.volumes.holding import SNAPSHOTS, VOLUMES
from moorage_csi.volumes.record import RECORD_NAME, Record, State
from moorage_csi.volumes.remains import Remains, Remnant
from moorage_csi.volumes.settings import PoolSettings
from moorage_csi.volumes.snapshot import UNGIVEN, Snapshot
from moorage_csi.volumes.trash import IDS, Trash

_log = logging.getLogger(__name__)

FOLDERS: Final = ("trash", "retained", "archived")

_WORDS: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_UNREADABLE: Final = re.compile(r"[^A-Za-z0-9.-]")
_LONGEST_WORD: Final = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """Something that left the pool and can be had back. ``where`` is its folder, ``left`` in seconds since the epoch."""

    where: str
    name: str
    left: float
    record: Record | Snapshot


class Exits:
    """Where what leaves one pool goes."""

    def __init__(
        self, root: Directory, settings: PoolSettings, *, clock: Callable[[], float], token: Callable[[int], str]
    ) -> None:
        """The folders exist in ``root``."""
        trash, retained, archived = map(root.child, FOLDERS)
        self.trash = Trash(trash, retention=settings.trash_retention, clock=clock, token=token)
        self._retained = Remains(retained, labels=IDS, retention=None, token=token)
        self._archived = Remains(archived, labels=_WORDS, retention=settings.archive_retention or None, token=token)
        self._clock = clock
        self._pool = settings.name
        self._told: set[str] = set()

    def close(self) -> None:
        """Let go of the folders."""
        for remains in self._all().values():
            remains.folder.close()

    def take_volume(self, record: Record, source: Directory, name: str) -> None:
        """Move a volume's folder out by the way that its class and its record say.

        Raises:
            FileNotFoundError: it has gone already.
        """
        given = record.state is not State.CREATING
        if given and record.on_delete == ON_DELETE_RETAIN:
            self._retained.put(source, name, record.id, shares=record.shares)
        elif given and record.on_delete == ON_DELETE_ARCHIVE:
            self._archived.put(source, name, readable_name_of(record), left=self._clock(), shares=record.shares)
        else:
            # A wipe that has begun is a promise that the data goes.
            wanted = given and record.state is not State.WIPING
            self.trash.put(source, name, record.id, left=self._clock() if wanted else None, shares=record.shares)

    def take_snapshot(self, snapshot: Snapshot, source: Directory, name: str) -> None:
        """Move a snapshot's folder out. FileNotFoundError where it has gone already."""
        given = snapshot.state not in UNGIVEN
        self.trash.put(source, name, snapshot.id, left=self._clock() if given else None, shares=snapshot.shares)

    def sweep(self) -> float | None:
        """Move what was archived long enough into the trash, where it is removed at once.

        Returns seconds until more is due, in the archive or in the trash; None where nothing waits for its time. What
        has no record to be trusted is told and left alone. May be repeated; in a shared pool every node does it.
        """
        now = self._clock()
        for one in self._archived.expired(now):
            record = self._record_in(self._archived, one)
            if record is None:
                self._tell(one)
                continue
            with suppress(FileNotFoundError):
                self.trash.put(self._archived.folder, one.name, record.id, shares=one.shares)
        waits = (remains.next_due(now) for remains in (self.trash, self._archived))
        return min((wait for wait in waits if wait is not None), default=None)

    def restorable(self) -> tuple[Left, ...]:
        """All that can be had back, the trash first."""
        return tuple(
            Left(where=where, name=one.name, left=one.left, record=record)
            for where, remains in self._all().items()
            for one in remains.remnants()
            if one.left is not None and (record := self._record_in(remains, one)) is not None
        )

    def folder_of(self, left: Left) -> Directory:
        """The folder in which it lies; not the caller's to close."""
        return self._all()[left.where].folder

    def sharing(self) -> Iterator[tuple[Directory, Record | Snapshot | None]]:
        """All that may have data of living volumes, each open for one turn, with its record where it has one still."""
        for remains in self._all().values():
            for one in remains.remnants():
                if one.shares:
                    with suppress(OSError), remains.folder.child(one.name) as folder:
                        yield folder, self._record_in(remains, one)

    def _all(self) -> dict[str, Remains]:
        return dict(zip(FOLDERS, (self.trash, self._retained, self._archived), strict=True))

    def _record_in(self, remains: Remains, one: Remnant) -> Record | Snapshot | None:
        """The record that lies in it, or None; where an id is the label, it must be the record of that."""
        with suppress(OSError, DamagedRecordError), remains.folder.child(one.name) as folder:
            record = record_in(folder)
            return None if IDS.fullmatch(one.label) and record.id != one.label else record
        return None

    def _tell(self, one: Remnant) -> None:
        if one.name not in self._told:
            self._told.add(one.name)
            _log.error(
                "left in the archive, its record cannot be trusted", extra={"pool": self._pool, "folder": one.name}
            )


def record_in(folder: Directory) -> Record | Snapshot:
    """The record of a volume or of a snapshot that lies in a folder.

    Raises:
        OSError: it cannot be read.
        DamagedRecordError: it is neither.
    """
    content = folder.read_bytes(RECORD_NAME)
    try:
        return VOLUMES.parse(content)
    except DamagedRecordError:
        return SNAPSHOTS.parse(content)


def readable_name_of(record: Record) -> str:
    """Namespace, claim and request name in letters that a shell leaves alone; the record has them whole."""
    claim = record.claim
    texts = (record.name,) if claim is None else (claim.namespace, claim.name, record.name)
    words = (_UNREADABLE.sub("-", text)[:_LONGEST_WORD].strip(".-") for text in texts)
    return "_".join(filter(None, words)) or record.id
