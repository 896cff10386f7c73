"""Records survive the disk, and nothing else passes for one."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage_csi.host.paths import READ_LIMIT
from moorage_csi.rpc.validation import LONGEST_NAME, MOST_WIPES
from moorage_csi.volumes.ids import SnapshotId
from moorage_csi.volumes.record import Claim, DamagedRecordError, Mode, Record, State, VolumeId, parse, serialise

_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)

_UIDS = st.lists(_TEXT.filter(bool), max_size=3).map(tuple)

_VOLUME_IDS = st.from_regex(r"vol-[0-9a-f]{32}", fullmatch=True).map(VolumeId)
_SNAPSHOT_IDS = st.from_regex(r"snap-[0-9a-f]{32}", fullmatch=True).map(SnapshotId)

_made = st.builds(
    Record,
    id=_VOLUME_IDS,
    name=_TEXT,
    uuid=_TEXT,
    node=_TEXT,
    claim=st.none() | st.builds(Claim, namespace=_TEXT, name=_TEXT),
    volume_name=_TEXT,
    pool=_TEXT,
    size=st.integers(min_value=1, max_value=1 << 62),
    backend=st.sampled_from(["image", "directory"]),
    filesystem=st.sampled_from(["", "ext4", "xfs"]),
    mode=st.sampled_from(Mode),
    permissions=st.integers(min_value=0, max_value=0o777),
    formatted=st.booleans(),
    state=st.sampled_from(State),
    quota=st.sampled_from(["enforced", "best-effort", "none"]),
    on_delete=st.sampled_from(["delete", "retain", "archive"]),
    created=st.floats(min_value=0, max_value=1e11),
    wiped_for=_UIDS,
    source=st.none() | _VOLUME_IDS | _SNAPSHOT_IDS,
    shares=st.booleans(),
    growing_to=st.none() | st.integers(min_value=1 << 62, max_value=1 << 63).map(lambda size: size + 1),
    ephemeral_at=st.none() | _TEXT.map("/{}".format),
    first_on_delete=st.sampled_from([None, "delete", "retain", "archive"]),
)

a_record = _made.filter(
    lambda record: (
        (record.state is not State.WIPING or record.wiped_for)
        and record.source != record.id
        and record.first_on_delete != record.on_delete
    )
)

EXAMPLE = Record(
    id=VolumeId("vol-" + "0" * 32),
    name="pvc-1",
    uuid="u",
    node="n",
    claim=None,
    volume_name="",
    pool="default",
    size=4096,
    backend="image",
    filesystem="ext4",
    mode=Mode.FILESYSTEM,
    permissions=0o770,
    formatted=True,
    state=State.READY,
    quota="enforced",
    on_delete="delete",
    created=1.5,
)

WIPED = replace(EXAMPLE, wiped_for=("uid-1", "uid-2"))
COPIED = replace(WIPED, source=SnapshotId("snap-" + "1" * 32), shares=True, growing_to=8192)

OF_A_POD = replace(EXAMPLE, ephemeral_at="/var/lib/kubelet/pods/0f2/volumes/kubernetes.io~csi/scratch/mount")

MODIFIED = replace(EXAMPLE, on_delete="retain", first_on_delete="delete")

_WRITTEN_BY_0_1 = b"""{
  "backend": "image",
  "claim": {
    "name": "db",
    "namespace": "shop"
  },
  "created": 1.5,
  "filesystem": "ext4",
  "formatted": true,
  "id": "vol-00000000000000000000000000000000",
  "mode": "filesystem",
  "name": "pvc-1",
  "node": "n",
  "onDelete": "delete",
  "parent": null,
  "permissions": "0770",
  "pool": "default",
  "quota": "enforced",
  "sizeBytes": 4096,
  "state": "ready",
  "uuid": "u",
  "version": 1,
  "volumeName": ""
}
"""


@given(a_record)
def test_a_record_that_is_written_is_the_record_that_is_read(record: Record) -> None:
    assert parse(serialise(record)) == record


def test_every_field_is_in_the_file() -> None:
    assert len(json.loads(serialise(MODIFIED))) == len(fields(Record)) + 1


def test_what_the_first_release_wrote_is_read_and_written_as_it_did() -> None:
    record = replace(EXAMPLE, claim=Claim(namespace="shop", name="db"))
    assert parse(_WRITTEN_BY_0_1) == record
    assert serialise(record) == _WRITTEN_BY_0_1


@pytest.mark.parametrize(
    "changes",
    [
        {"source": VolumeId("vol-" + "1" * 32)},
        {"source": SnapshotId("snap-" + "1" * 32)},
        {"shares": True},
        {"growing_to": 4097},
    ],
)
def test_only_a_volume_that_was_copied_or_grows_needs_a_release_that_knows_of_it(changes: dict[str, Any]) -> None:
    for plain in (EXAMPLE, WIPED):
        assert json.loads(serialise(plain))["version"] < 3
        changed = replace(plain, **changes)
        assert json.loads(serialise(changed))["version"] == 3
        assert parse(serialise(changed)) == changed


def test_only_a_volume_that_ends_with_its_pod_needs_a_release_that_knows_of_it() -> None:
    for plain in (EXAMPLE, WIPED, COPIED):
        assert json.loads(serialise(plain))["version"] < 4
        assert not parse(serialise(plain)).ephemeral
    assert json.loads(serialise(OF_A_POD))["version"] == 4
    assert parse(serialise(OF_A_POD)).ephemeral


@pytest.mark.parametrize("value", [True, False, 1, "", "pods/0f2", []])
def test_a_place_of_a_pod_that_makes_no_sense_is_refused(value: object) -> None:
    document = json.loads(serialise(OF_A_POD)) | {"ephemeralAt": value}
    with pytest.raises(DamagedRecordError, match="ephemeralAt"):
        parse(json.dumps(document).encode())


def test_only_a_volume_that_was_modified_needs_a_release_that_knows_of_it() -> None:
    for plain in (EXAMPLE, WIPED, COPIED, OF_A_POD):
        assert json.loads(serialise(plain))["version"] < 5
        assert parse(serialise(plain)).made_on_delete == plain.on_delete
    assert json.loads(serialise(MODIFIED))["version"] == 5
    assert (parse(serialise(MODIFIED)), MODIFIED.made_on_delete) == (MODIFIED, "delete")


@pytest.mark.parametrize("value", [None, "", "retain", 1, []])
def test_a_first_word_that_makes_no_sense_is_refused(value: object) -> None:
    document = json.loads(serialise(MODIFIED)) | {"firstOnDelete": value}
    with pytest.raises(DamagedRecordError, match="firstOnDelete"):
        parse(json.dumps(document).encode())


_NO_SOURCES: list[object] = [1, "", "vol-1", "../etc", "snap-" + "g" * 32, EXAMPLE.id, []]
_NO_BOOLEANS: list[object] = [None, 0, "true"]
_NO_GROWTHS: list[object] = [0, -1, 4096, 4095, True, "8192", 8192.0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("source", value) for value in _NO_SOURCES),
        *(("shares", value) for value in _NO_BOOLEANS),
        *(("growingToBytes", value) for value in _NO_GROWTHS),
    ],
)
def test_a_word_of_copying_or_growing_that_makes_no_sense_is_refused(key: str, value: object) -> None:
    document = json.loads(serialise(COPIED)) | {key: value}
    with pytest.raises(DamagedRecordError, match=key):
        parse(json.dumps(document).encode())


def test_an_older_version_says_nothing_of_what_came_later() -> None:
    first = json.loads(serialise(EXAMPLE))
    for key, value in (("source", None), ("shares", False), ("growingToBytes", None)):
        with pytest.raises(DamagedRecordError, match=key):
            parse(json.dumps(first | {key: value}).encode())
    with pytest.raises(DamagedRecordError, match="parent"):
        parse(json.dumps(first | {"parent": "vol-" + "1" * 32}).encode())
    with pytest.raises(DamagedRecordError, match="parent"):
        parse(json.dumps(json.loads(serialise(COPIED)) | {"parent": None}).encode())


def test_a_volume_that_was_never_wiped_can_be_read_by_a_release_that_knows_nothing_of_it() -> None:
    document = json.loads(serialise(EXAMPLE))
    assert document["version"] == 1
    assert "wipedFor" not in document
    assert parse(serialise(EXAMPLE)).wiped_for == ()
    assert json.loads(serialise(WIPED))["version"] == 2


@pytest.mark.parametrize("wiped_for", [None, [], [1], [""], ["a", None], "a", {}])
def test_a_list_of_wipes_that_is_none_is_refused(wiped_for: object) -> None:
    document = json.loads(serialise(WIPED))
    with pytest.raises(DamagedRecordError, match="wipedFor"):
        parse(json.dumps(document | {"wipedFor": wiped_for}).encode())


def test_a_wipe_for_nobody_is_refused() -> None:
    with pytest.raises(DamagedRecordError, match="wiping"):
        parse(serialise(replace(EXAMPLE, state=State.WIPING)))


def test_a_record_that_has_all_its_wipes_can_still_be_read_from_the_disk() -> None:
    uids = tuple(f"{number:0{LONGEST_NAME}}" for number in range(MOST_WIPES))
    assert len(serialise(replace(COPIED, wiped_for=uids))) < READ_LIMIT


@given(st.binary(max_size=200))
def test_bytes_that_are_no_record_are_refused(content: bytes) -> None:
    with pytest.raises(DamagedRecordError):
        parse(content)


@pytest.mark.parametrize(
    "content",
    [b"[" * 500_000, _WRITTEN_BY_0_1.replace(b"1.5", b"NaN"), _WRITTEN_BY_0_1.replace(b"1.5", b"1" * 400)],
    ids=["deep", "not a number", "without end"],
)
def test_bytes_that_break_a_reader_are_refused(content: bytes) -> None:
    with pytest.raises(DamagedRecordError):
        parse(content)


@given(st.integers(min_value=0, max_value=len(serialise(EXAMPLE)) - 2))
def test_a_record_that_was_cut_off_is_refused(length: int) -> None:
    with pytest.raises(DamagedRecordError):
        parse(serialise(EXAMPLE)[:length])


def _other_kinds() -> list[tuple[str, object]]:
    """Every field with values that it cannot have."""
    texts = {"name", "uuid", "node", "volumeName", "pool", "backend", "filesystem", "quota", "onDelete"}
    cases: list[tuple[str, object]] = []
    for key in sorted(json.loads(serialise(EXAMPLE))):
        wrong: list[object] = [[], {}]
        wrong += [] if key in ("claim", "parent") else [None]
        wrong += [] if key == "formatted" else [True]
        wrong += [] if key in texts else ["no such word"]
        wrong += [] if key == "created" else [-1]
        cases += [(key, value) for value in wrong]
    return cases


@pytest.mark.parametrize(("key", "value"), _other_kinds())
def test_a_field_of_another_kind_is_refused(key: str, value: object) -> None:
    document = json.loads(serialise(EXAMPLE))
    with pytest.raises(DamagedRecordError):
        parse(json.dumps(document | {key: value}).encode())


def test_a_missing_and_an_unknown_field_are_refused() -> None:
    document = json.loads(serialise(COPIED))
    with pytest.raises(DamagedRecordError, match="encrypted"):
        parse(json.dumps(document | {"encrypted": True}).encode())
    for key in document:
        with pytest.raises(DamagedRecordError, match=key):
            parse(json.dumps({other: value for other, value in document.items() if other != key}).encode())


def test_a_record_of_a_newer_release_is_told_as_such() -> None:
    document = json.loads(serialise(EXAMPLE)) | {"version": 6}
    with pytest.raises(DamagedRecordError, match="version 6 was written by a newer release"):
        parse(json.dumps(document).encode())


def test_an_id_that_could_be_a_path_is_refused() -> None:
    with pytest.raises(DamagedRecordError, match="id"):
        parse(serialise(replace(EXAMPLE, id=VolumeId("../../etc"))))
