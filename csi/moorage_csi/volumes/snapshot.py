"""A snapshot's record: what a volume's data was at one moment, and what is needed to make a volume of it.

A snapshot stands for itself. It outlives its source, so it repeats what a restore has to know and what a person has
to know who finds it when the cluster is lost. It never changes once it is ready.
"""

import enum
import json
from dataclasses import dataclass
from typing import Any, Final

from moorage_csi.volumes.fields import DamagedRecordError, Fields
from moorage_csi.volumes.ids import SNAPSHOT_ID, VOLUME_ID, SnapshotId, VolumeId
from moorage_csi.volumes.record import Claim, Mode, claim_in, document_of

SNAPSHOT_VERSION: Final = 1
"""The newest form, counted apart from that of volumes."""


class SnapshotState(enum.StrEnum):
    """How far a snapshot's life has come."""

    CREATING = "creating"
    READY = "ready"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One snapshot. Sizes in bytes, ``created`` in seconds since the epoch.

    ``name`` is the name in the create request, from which ``id`` follows. ``size`` is that of the source: what a volume
    made of it has at least. ``holds`` is what is promised to it: while it is being made the most that it can come to,
    then what it has on the disk, and never more, because it never changes. ``shares`` says that it was made without
    copying, so that what it holds may be its source's too, see ``room``. ``source`` may be gone by now, ``claim`` is
    the one that the source was made for. ``group`` is the id of the group snapshot that it is part of.
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
    group: str | None = None


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
    )
    fields.end()
    return snapshot


def _group(fields: Fields) -> str | None:
    if fields.is_null("group"):
        return None
    group = fields.text("group")
    if not group:
        raise DamagedRecordError("field 'group' is empty; a snapshot of no group has null there")
    return group
