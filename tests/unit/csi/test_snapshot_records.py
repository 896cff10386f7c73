"""A snapshot's record survives the disk, and nothing else passes for one."""

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage_csi.volumes import record
from moorage_csi.volumes.fields import DamagedRecordError
from moorage_csi.volumes.ids import (
    GROUP_ID,
    SNAPSHOT_ID,
    SnapshotId,
    VolumeId,
    group_id_for,
    member_id_for,
    snapshot_id_for,
)
from moorage_csi.volumes.record import Claim, Mode
from moorage_csi.volumes.snapshot import Snapshot, SnapshotState, parse, serialise
from tests.unit.csi.pool_world import a_snapshot, a_volume

_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)

a_made_one = st.builds(
    Snapshot,
    id=st.from_regex(SNAPSHOT_ID, fullmatch=True).map(SnapshotId),
    name=_TEXT,
    uuid=_TEXT,
    node=_TEXT,
    pool=_TEXT,
    source=st.from_regex(r"vol-[0-9a-f]{32}", fullmatch=True).map(VolumeId),
    claim=st.none() | st.builds(Claim, namespace=_TEXT, name=_TEXT),
    size=st.integers(min_value=1, max_value=1 << 62),
    holds=st.integers(min_value=0, max_value=1 << 62),
    backend=_TEXT,
    filesystem=_TEXT,
    mode=st.sampled_from(Mode),
    permissions=st.integers(min_value=0, max_value=0o777),
    quota=_TEXT,
    state=st.just(SnapshotState.READY),
    created=st.floats(min_value=0, max_value=1e11),
    shares=st.booleans(),
)

OTHER = member_id_for("group", VolumeId("vol-" + "1" * 32))
ALONE = a_snapshot(a_volume())
EXAMPLE = replace(ALONE, group=group_id_for("group"), members=(ALONE.id, OTHER), state=SnapshotState.COPIED)


@given(a_made_one, st.sampled_from(SnapshotState), st.booleans())
def test_a_snapshot_that_is_written_is_the_snapshot_that_is_read(
    alone: Snapshot, state: SnapshotState, grouped: bool
) -> None:
    members = (OTHER, alone.id) if grouped else ()
    snapshot = replace(alone, group=group_id_for("group") if grouped else None, members=members)
    if grouped or state is not SnapshotState.COPIED:
        snapshot = replace(snapshot, state=state)
    assert parse(serialise(snapshot)) == snapshot


def test_every_field_is_in_the_file() -> None:
    assert len(json.loads(serialise(EXAMPLE))) == len(fields(Snapshot)) + 1


@given(_TEXT)
def test_an_id_follows_from_the_name_and_can_be_no_path(name: str) -> None:
    assert SNAPSHOT_ID.fullmatch(snapshot_id_for(name))
    assert snapshot_id_for(name) == snapshot_id_for(name)
    assert snapshot_id_for(name) != snapshot_id_for(f"{name}.")
    assert GROUP_ID.fullmatch(group_id_for(name))
    member = member_id_for(name, VolumeId("vol-1"))
    assert SNAPSHOT_ID.fullmatch(member)
    assert member not in (snapshot_id_for(f"{name}vol-1"), member_id_for(f"{name}.", VolumeId("vol-1")))


def test_a_volume_is_no_snapshot_and_a_snapshot_is_no_volume() -> None:
    with pytest.raises(DamagedRecordError):
        parse(record.serialise(a_volume()))
    with pytest.raises(DamagedRecordError):
        record.parse(serialise(EXAMPLE))


@given(st.integers(min_value=0, max_value=len(serialise(EXAMPLE)) - 2))
def test_a_record_that_was_cut_off_is_refused(length: int) -> None:
    with pytest.raises(DamagedRecordError):
        parse(serialise(EXAMPLE)[:length])


def test_a_record_of_a_newer_release_is_told_as_such() -> None:
    document = json.loads(serialise(EXAMPLE)) | {"version": 2}
    with pytest.raises(DamagedRecordError, match="version 2 was written by a newer release; this one reads 1"):
        parse(json.dumps(document).encode())


def test_only_a_snapshot_of_a_group_is_copied_before_it_is_ready() -> None:
    document = json.loads(serialise(EXAMPLE)) | {"group": None, "members": []}
    with pytest.raises(DamagedRecordError, match="copied"):
        parse(json.dumps(document).encode())
    assert parse(json.dumps(document | {"state": "ready"}).encode()) == replace(ALONE, state=SnapshotState.READY)


def test_a_missing_and_an_unknown_field_are_refused() -> None:
    document = json.loads(serialise(EXAMPLE))
    with pytest.raises(DamagedRecordError, match="encrypted"):
        parse(json.dumps(document | {"encrypted": True}).encode())
    for key in document:
        with pytest.raises(DamagedRecordError, match=key):
            parse(json.dumps({other: value for other, value in document.items() if other != key}).encode())


WRONG: dict[str, list[object]] = {
    "id": ["snap-1", "../../etc", "vol-" + "0" * 32, None],
    "source": [None, "", "snap-" + "0" * 32, "vol-1", "/"],
    "sizeBytes": [0, -1, True, 1.0, None],
    "holdsBytes": [-1, True, None],
    "state": ["wiping", None],
    "shares": [0, None],
    "group": ["", 1, None, "group-1", "grp-1"],
    "members": [None, [], ["snap-1"], [1], {}, [OTHER]],
    "claim": [[], {"namespace": "shop"}, "shop/db"],
    "permissions": ["770", 504],
    "mode": ["tape"],
    "created": ["now"],
    "name": [None],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_field_of_another_kind_is_refused(key: str, value: object) -> None:
    with pytest.raises(DamagedRecordError):
        parse(json.dumps(json.loads(serialise(EXAMPLE)) | {key: value}).encode())
