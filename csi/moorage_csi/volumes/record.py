"""The ownership record: what a volume is, written beside its data.

Everything that may destroy data is decided from it and never from a guess: whether a filesystem may
be made (only before ``formatted``), whether a folder may go, for which claims the volume was wiped
already, to whom the data belonged when the cluster that knew it is lost. A record that cannot be read, or
that a newer release wrote, is therefore reported and left alone: ``parse`` raises, and nobody fills in what
is missing.
"""

import enum
import json
import re
from dataclasses import dataclass
from typing import Any, Final, NewType, TypeVar

VolumeId = NewType("VolumeId", str)

RECORD_VERSION: Final = 2
"""The newest form. Version 1 knows nothing of wiping; a volume that was never wiped is still written so, and an
older release reads it."""

RECORD_NAME: Final = "record.json"

ID_PATTERN: Final = re.compile(r"vol-[0-9a-f]{32}")
"""What an id of ours looks like; only such a string is ever used as the name of a folder."""


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


Word = TypeVar("Word", bound=enum.StrEnum)


class DamagedRecordError(Exception):
    """The bytes are not a record of this release; the message says in what way."""


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
    ``quota`` is the word of ``contract.Context.QUOTA``. ``parent`` is the volume or snapshot it was made from.
    ``wiped_for`` are the uids of all the claims after which it was wiped, oldest first; while the state is
    ``wiping``, the last one's wipe has not ended.
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
    parent: str | None = None
    wiped_for: tuple[str, ...] = ()


def serialise(record: Record) -> bytes:
    """The bytes of a record file: JSON with sorted keys, so that equal records are equal files."""
    claim = record.claim
    document: dict[str, Any] = {
        "version": RECORD_VERSION if record.wiped_for else 1,
        "id": record.id,
        "name": record.name,
        "uuid": record.uuid,
        "node": record.node,
        "claim": None if claim is None else {"namespace": claim.namespace, "name": claim.name},
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
        "parent": record.parent,
    }
    if record.wiped_for:
        document["wipedFor"] = list(record.wiped_for)
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"


def parse(content: bytes) -> Record:
    """The record in these bytes.

    Raises:
        DamagedRecordError: not JSON, a field missing, unknown or of another type, or a newer version.
    """
    try:
        document = json.loads(content)
    except ValueError as error:
        raise DamagedRecordError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise DamagedRecordError(f"a JSON {type(document).__name__} where an object belongs")
    version = document.pop("version", None)
    if type(version) is not int or version < 1:
        raise DamagedRecordError(f"version is {version!r}, not a number from 1")
    if version > RECORD_VERSION:
        raise DamagedRecordError(f"version {version} was written by a newer release; this one reads {RECORD_VERSION}")
    fields = _Fields(document)
    record = Record(
        id=VolumeId(fields.text("id")),
        name=fields.text("name"),
        uuid=fields.text("uuid"),
        node=fields.text("node"),
        claim=_claim(fields.take("claim", dict, type(None))),
        volume_name=fields.text("volumeName"),
        pool=fields.text("pool"),
        size=fields.take("sizeBytes", int),
        backend=fields.text("backend"),
        filesystem=fields.text("filesystem"),
        mode=fields.word("mode", Mode),
        permissions=_octal(fields.text("permissions")),
        formatted=fields.take("formatted", bool),
        state=fields.word("state", State),
        quota=fields.text("quota"),
        on_delete=fields.text("onDelete"),
        created=float(fields.take("created", int, float)),
        parent=fields.take("parent", str, type(None)),
        wiped_for=_uids(fields.take("wipedFor", list)) if version > 1 else (),
    )
    fields.end()
    if not ID_PATTERN.fullmatch(record.id):
        raise DamagedRecordError(f"id {record.id!r} is not one that this driver gives")
    if record.size <= 0:
        raise DamagedRecordError(f"sizeBytes is {record.size}")
    if record.state is State.WIPING and not record.wiped_for:
        raise DamagedRecordError("state is 'wiping', and no claim is named for which")
    return record


def _claim(document: dict[str, Any] | None) -> Claim | None:
    if document is None:
        return None
    fields = _Fields(document)
    claim = Claim(namespace=fields.text("namespace"), name=fields.text("name"))
    fields.end()
    return claim


def _uids(values: list[Any]) -> tuple[str, ...]:
    if not values or any(type(value) is not str or not value for value in values):
        raise DamagedRecordError(f"field 'wipedFor' is {values!r}, not a list of uids")
    return tuple(values)


def _octal(text: str) -> int:
    if not re.fullmatch(r"0[0-7]{3}", text):
        raise DamagedRecordError(f"permissions are {text!r}, not octal such as '0770'")
    return int(text, 8)


class _Fields:
    """Takes fields out of a JSON object, strictly: each once, of the right type, none left over."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._left = dict(document)

    def take(self, key: str, *types: type) -> Any:
        if key not in self._left:
            raise DamagedRecordError(f"field {key!r} is missing")
        value = self._left.pop(key)
        # ``type`` and not isinstance: JSON's true is an int to Python, and a size is never true.
        if type(value) not in types:
            raise DamagedRecordError(f"field {key!r} is {value!r}, of type {type(value).__name__}")
        return value

    def text(self, key: str) -> str:
        value: str = self.take(key, str)
        return value

    def word(self, key: str, words: type[Word]) -> Word:
        value = self.text(key)
        try:
            return words(value)
        except ValueError as error:
            raise DamagedRecordError(f"field {key!r} is {value!r}, not one of {', '.join(words)}") from error

    def end(self) -> None:
        if self._left:
            raise DamagedRecordError(f"unknown fields {', '.join(sorted(self._left))}")
