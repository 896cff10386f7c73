"""A snapshot's record: what a volume's data was at one moment, and what is needed to make a volume of it.

A snapshot stands for itself. It outlives its source, so it repeats what a restore has to know and what a person has
to know who finds it when the cluster is lost. It never changes once it is ready.

One that is part of a group snapshot names all of the group, and is ``copied`` for a while: whole, and not yet anybody's,
see ``rpc.grouping``.
"""

import enum
import json
from dataclasses import dataclass
from typing import Any, Final

from moorage_csi.volumes.fields import DamagedRecordError, Fields
from moorage_csi.volumes.ids import GROUP_ID, SNAPSHOT_ID, VOLUME_ID, GroupId, SnapshotId, VolumeId
from moorage_csi.volumes.record import Claim, Mode, claim_in, document_of

SNAPSHOT_VERSION: Final = 1
"""The newest form, counted apart from that of volumes."""


class SnapshotState(enum.StrEnum):
    """How far a snapshot's life has come."""

    CREATING = "creating"
    COPIED = "copied"
    READY = "ready"
    DELETING = "deleting"


UNGIVEN: Final = frozenset({SnapshotState.CREATING, SnapshotState.COPIED})
"""States of a snapshot that nobody was given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One snapshot. Sizes in bytes, ``created`` in seconds since the epoch.

    ``name`` is the name in the create request, from which ``id`` follows. ``size`` is that of the source: what a volume
    made of it has at least. ``holds`` is what is promised to it: while it is being made the most that it can come to,
    then what it has on the disk, and never more, because it never changes. ``shares`` says that it was made without
    copying, so that what it holds may be its source's too, see ``room``. ``source`` may be gone by now, ``claim`` is
    the one that the source was made for. ``group`` is the id of the group snapshot that it is part of, and ``members`` are
    all of that group, itself too, in their order; then ``name`` is the group's.
    """

    id: SnapshotId
    name: str
    uuid: str
    node: str
    pool: str
    source: VolumeId
    claim: Claim | None
    size: int
    holds: int
    backend: str
    filesystem: str
    mode: Mode
    permissions: int
    quota: str
    state: SnapshotState
    created: float
    shares: bool
    group: GroupId | None = None
    members: tuple[SnapshotId, ...] = ()


def serialise(snapshot: Snapshot) -> bytes:
    """The bytes of a record file: JSON with sorted keys, so that equal snapshots are equal files."""
    document: dict[str, Any] = {
        "version": SNAPSHOT_VERSION,
        "id": snapshot.id,
        "name": snapshot.name,
        "uuid": snapshot.uuid,
        "node": snapshot.node,
        "pool": snapshot.pool,
        "source": snapshot.source,
        "claim": document_of(snapshot.claim),
        "sizeBytes": snapshot.size,
        "holdsBytes": snapshot.holds,
        "backend": snapshot.backend,
        "filesystem": snapshot.filesystem,
        "mode": snapshot.mode.value,
        "permissions": f"{snapshot.permissions:04o}",
        "quota": snapshot.quota,
        "state": snapshot.state.value,
        "created": snapshot.created,
        "shares": snapshot.shares,
        "group": snapshot.group,
        "members": list(snapshot.members),
    }
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"


def parse(content: bytes) -> Snapshot:
    """The snapshot in these bytes.

    Raises:
        DamagedRecordError: not JSON, a field missing, unknown or of another type, or a newer version.
    """
    _, fields = Fields.read(content, newest=SNAPSHOT_VERSION)
    snapshot = Snapshot(
        id=SnapshotId(fields.one_of("id", SNAPSHOT_ID)),
        name=fields.text("name"),
        uuid=fields.text("uuid"),
        node=fields.text("node"),
        pool=fields.text("pool"),
        source=VolumeId(fields.one_of("source", VOLUME_ID)),
        claim=claim_in(fields, "claim"),
        size=fields.number("sizeBytes", least=1),
        holds=fields.number("holdsBytes", least=0),
        backend=fields.text("backend"),
        filesystem=fields.text("filesystem"),
        mode=fields.word("mode", Mode),
        permissions=fields.permissions("permissions"),
        quota=fields.text("quota"),
        state=fields.word("state", SnapshotState),
        created=fields.moment("created"),
        shares=fields.take("shares", bool),
        group=_group(fields),
        members=_members(fields.take("members", list)),
    )
    fields.end()
    _refuse_senseless(snapshot)
    return snapshot


def _group(fields: Fields) -> GroupId | None:
    return None if fields.is_null("group") else GroupId(fields.one_of("group", GROUP_ID))


def _members(values: list[Any]) -> tuple[SnapshotId, ...]:
    if any(type(value) is not str or not SNAPSHOT_ID.fullmatch(value) for value in values):
        raise DamagedRecordError(f"field 'members' is {values!r}, not a list of ids of snapshots")
    return tuple(SnapshotId(value) for value in values)


def _refuse_senseless(snapshot: Snapshot) -> None:
    if (snapshot.group is None) is not (snapshot.id not in snapshot.members):
        raise DamagedRecordError(f"group is {snapshot.group}, and members are {list(snapshot.members)}")
    if snapshot.members and snapshot.group is None:
        raise DamagedRecordError("there are members, and no group")
    if snapshot.state is SnapshotState.COPIED and snapshot.group is None:
        raise DamagedRecordError("state is 'copied', which only a snapshot of a group is")
