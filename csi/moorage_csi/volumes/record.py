"""The ownership record: what a volume is, written beside its data.

Everything that may destroy data is decided from it and never from a guess: whether a filesystem may
be made (only before ``formatted``), whether a folder may go, for which claims the volume was wiped
already, to whom the data belonged when the cluster that knew it is lost. A record that cannot be read, or
that a newer release wrote, is therefore reported and left alone: ``parse`` raises, and nobody fills in what
is missing.
"""

import enum
import json
from dataclasses import dataclass
from typing import Any, Final

from moorage_csi.volumes.fields import DamagedRecordError, Fields
from moorage_csi.volumes.ids import SNAPSHOT_ID, SnapshotId, VolumeId
from moorage_csi.volumes.ids import VOLUME_ID as ID_PATTERN

__all__ = [
    "GIVEN",
    "ID_PATTERN",
    "RECORD_NAME",
    "RECORD_VERSION",
    "Claim",
    "DamagedRecordError",
    "Mode",
    "Record",
    "State",
    "VolumeId",
    "claim_in",
    "document_of",
    "parse",
    "serialise",
]

RECORD_VERSION: Final = 5
"""The newest form. Version 1 knows nothing of wiping, version 2 nothing of copying and growing, version 3 nothing of
volumes that end with their pod, version 4 nothing of modifying. A record is written in the oldest form that can say all of it, so that an older release
reads every volume it could have made."""

_WIPES: Final = 2
_COPIES: Final = 3
_ENDS: Final = 4
_MODIFIED: Final = 5

RECORD_NAME: Final = "record.json"


class State(enum.StrEnum):
    """How far a volume's life has come."""

    CREATING = "creating"
    READY = "ready"
    WIPING = "wiping"
    DELETING = "deleting"


GIVEN: Final = frozenset({State.READY, State.WIPING})
"""States of a volume that somebody was given: it stays until it is deleted, whatever stops in the middle."""


class Mode(enum.StrEnum):
    """What a pod sees: a mounted filesystem or a device."""

    FILESYSTEM = "filesystem"
    BLOCK = "block"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The claim for which the volume was made."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One volume. Sizes in bytes, ``created`` in seconds since the epoch.

    ``name`` is the name in the create request, from which ``id`` follows. ``filesystem`` is empty for a
    block device and for a directory, which lives on the pool's own. ``formatted`` becomes true in the same
    write that makes the volume ready, and false only in a wipe, once the old storage is out of the folder.
    ``quota`` is the word of ``contract.Context.QUOTA``.
    ``wiped_for`` are the uids of all the claims after which it was wiped, oldest first; while the state is
    ``wiping``, the last one's wipe has not ended.

    ``source`` is the volume or snapshot that it was copied from, which may be gone by now. ``shares`` says that the
    copy was made without copying, by reflink or as a subvolume: what it has on the disk may be its source's too, see
    ``room``. It is never set on a source because something was copied from it. ``growing_to`` is the size that the
    volume is being given, which is promised already; None while nothing grows.

    ``ephemeral_at`` is the path at which the one pod has it for which it was made, and with which it ends; None for a volume
    that a claim may have.

    ``first_on_delete`` is the ``on_delete`` that it was made with, where it has another one now; None where it has that one.
    """

    id: VolumeId
    name: str
    uuid: str
    node: str
    claim: Claim | None
    volume_name: str
    pool: str
    size: int
    backend: str
    filesystem: str
    mode: Mode
    permissions: int
    formatted: bool
    state: State
    quota: str
    on_delete: str
    created: float
    wiped_for: tuple[str, ...] = ()
    source: VolumeId | SnapshotId | None = None
    shares: bool = False
    growing_to: int | None = None
    ephemeral_at: str | None = None
    first_on_delete: str | None = None

    @property
    def made_on_delete(self) -> str:
        """The ``on_delete`` that it was made with, whatever it has now."""
        return self.first_on_delete or self.on_delete

    @property
    def ephemeral(self) -> bool:
        """Whether it ends with its pod. Nothing that was made for a claim ever becomes so."""
        return self.ephemeral_at is not None


def serialise(record: Record) -> bytes:
    """The bytes of a record file: JSON with sorted keys, so that equal records are equal files."""
    version = _oldest_for(record)
    document: dict[str, Any] = {
        "version": version,
        "id": record.id,
        "name": record.name,
        "uuid": record.uuid,
        "node": record.node,
        "claim": document_of(record.claim),
        "volumeName": record.volume_name,
        "pool": record.pool,
        "sizeBytes": record.size,
        "backend": record.backend,
        "filesystem": record.filesystem,
        "mode": record.mode.value,
        "permissions": f"{record.permissions:04o}",
        "formatted": record.formatted,
        "state": record.state.value,
        "quota": record.quota,
        "onDelete": record.on_delete,
        "created": record.created,
    }
    if version >= _WIPES:
        document["wipedFor"] = list(record.wiped_for)
    if version >= _COPIES:
        document |= {"source": record.source, "shares": record.shares, "growingToBytes": record.growing_to}
    else:
        document["parent"] = None
    if version >= _ENDS:
        document["ephemeralAt"] = record.ephemeral_at
    if version >= _MODIFIED:
        document["firstOnDelete"] = record.first_on_delete
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"


def parse(content: bytes) -> Record:
    """The record in these bytes.

    Raises:
        DamagedRecordError: not JSON, a field missing, unknown or of another type, or a newer version.
    """
    version, fields = Fields.read(content, newest=RECORD_VERSION)
    if version < _COPIES:
        # A word that older releases keep free; none of them copies, so none has written anything else.
        fields.take("parent", type(None))
    copies = version >= _COPIES
    record = Record(
        id=VolumeId(fields.one_of("id", ID_PATTERN)),
        name=fields.text("name"),
        uuid=fields.text("uuid"),
        node=fields.text("node"),
        claim=claim_in(fields, "claim"),
        volume_name=fields.text("volumeName"),
        pool=fields.text("pool"),
        size=fields.number("sizeBytes", least=1),
        backend=fields.text("backend"),
        filesystem=fields.text("filesystem"),
        mode=fields.word("mode", Mode),
        permissions=fields.permissions("permissions"),
        formatted=fields.take("formatted", bool),
        state=fields.word("state", State),
        quota=fields.text("quota"),
        on_delete=fields.text("onDelete"),
        created=fields.moment("created"),
        wiped_for=_uids(fields.take("wipedFor", list), none=copies) if version >= _WIPES else (),
        source=_source(fields) if copies else None,
        shares=fields.take("shares", bool) if copies else False,
        growing_to=_growth(fields) if copies else None,
        ephemeral_at=fields.text("ephemeralAt") if version >= _ENDS and not fields.is_null("ephemeralAt") else None,
        first_on_delete=fields.text("firstOnDelete") if version >= _MODIFIED else None,
    )
    fields.end()
    _refuse_senseless(record)
    return record


def document_of(claim: Claim | None) -> dict[str, Any] | None:
    """The claim as it is written."""
    return None if claim is None else {"namespace": claim.namespace, "name": claim.name}


def claim_in(fields: Fields, key: str) -> Claim | None:
    """The claim in a field. DamagedRecordError where there is neither one nor null."""
    if fields.is_null(key):
        return None
    inner = Fields(fields.take(key, dict))
    claim = Claim(namespace=inner.text("namespace"), name=inner.text("name"))
    inner.end()
    return claim


def _oldest_for(record: Record) -> int:
    if record.first_on_delete is not None:
        return _MODIFIED
    if record.ephemeral_at is not None:
        return _ENDS
    if record.source is not None or record.shares or record.growing_to is not None:
        return _COPIES
    return _WIPES if record.wiped_for else 1


def _refuse_senseless(record: Record) -> None:
    if record.state is State.WIPING and not record.wiped_for:
        raise DamagedRecordError("state is 'wiping', and no claim is named for which")
    if record.growing_to is not None and record.growing_to <= record.size:
        raise DamagedRecordError(f"growingToBytes is {record.growing_to}, and sizeBytes {record.size}")
    if record.ephemeral_at is not None and not record.ephemeral_at.startswith("/"):
        raise DamagedRecordError(f"ephemeralAt is {record.ephemeral_at!r}, not an absolute path")
    if record.first_on_delete in ("", record.on_delete):
        raise DamagedRecordError(f"firstOnDelete is {record.first_on_delete!r}, and onDelete {record.on_delete!r}")
    if record.source == record.id:
        raise DamagedRecordError(f"source is {record.source}, the volume itself")


def _source(fields: Fields) -> VolumeId | SnapshotId | None:
    if fields.is_null("source"):
        return None
    source = fields.one_of("source", ID_PATTERN, SNAPSHOT_ID)
    return VolumeId(source) if ID_PATTERN.fullmatch(source) else SnapshotId(source)


def _growth(fields: Fields) -> int | None:
    return None if fields.is_null("growingToBytes") else fields.number("growingToBytes", least=1)


def _uids(values: list[Any], *, none: bool) -> tuple[str, ...]:
    if not (values or none) or any(type(value) is not str or not value for value in values):
        raise DamagedRecordError(f"field 'wipedFor' is {values!r}, not a list of uids")
    return tuple(values)
