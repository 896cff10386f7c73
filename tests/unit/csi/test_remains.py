"""What has left a pool: told by its name, removed when its time has come, and never while somebody has it back."""

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage_csi.host.paths import Directory
from moorage_csi.volumes.exits import readable_name_of
from moorage_csi.volumes.record import Claim
from moorage_csi.volumes.remains import Remains, Remnant
from moorage_csi.volumes.trash import IDS, Trash
from tests.unit.csi.pool_world import Clock, a_volume

ID = "vol-" + "0" * 32
_TEXT = st.text(max_size=300)


def _token(count: int) -> str:
    return os.urandom(count).hex()


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Directory]:
    for name in ("from", "trash"):
        (tmp_path / name).mkdir()
    with Directory.open(tmp_path) as directory:
        yield directory


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _trash(root: Directory, clock: Clock, *, retention: float) -> Trash:
    return Trash(root.child("trash"), retention=retention, clock=clock, token=_token)


def _put(root: Directory, trash: Remains, *, left: float | None, shares: bool = False, files: int = 1) -> str:
    root.child("from").make_directory("one")
    with root.child("from/one") as folder:
        for number in range(files):
            folder.write_atomic(str(number), b"data")
    return trash.put(root.child("from"), "one", ID, left=left, shares=shares)


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("left", [None, 0.0, 1_700_000_000.0])
def test_a_name_tells_what_was_put(root: Directory, clock: Clock, left: float | None, shares: bool) -> None:
    trash = _trash(root, clock, retention=60)
    name = _put(root, trash, left=left, shares=shares)
    [one] = trash.remnants()
    assert (one.name, one.label, one.left, one.shares) == (name, ID, left, shares)
    assert ("20231114T221320Z" in name) is (left == 1_700_000_000.0)


def test_a_deleted_volume_stays_for_its_time_and_not_a_moment_less(root: Directory, clock: Clock) -> None:
    trash = _trash(root, clock, retention=60)
    clock.now += 0.25
    name = _put(root, trash, left=clock.now)
    assert trash.names() == ()
    assert trash.next_due(clock.now) == 60.75
    clock.now += 60
    assert trash.names() == ()
    clock.now += 0.75
    assert trash.names() == (name,)
    assert trash.next_due(clock.now) is None


@pytest.mark.parametrize("offset", [-1e6, 0, 1e6])
def test_without_a_retention_it_goes_at_once_whatever_the_clock_says(
    root: Directory, clock: Clock, offset: float
) -> None:
    trash = _trash(root, clock, retention=0)
    name = _put(root, trash, left=clock.now + 0.5)
    clock.now += offset
    assert trash.names() == (name,)


def test_what_nobody_wants_back_goes_at_once(root: Directory, clock: Clock) -> None:
    trash = _trash(root, clock, retention=60)
    name = _put(root, trash, left=None)
    assert trash.names() == (name,)


def test_what_an_older_release_put_there_is_removed(root: Directory, clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "trash" / f"{ID}.0123abcd").mkdir()
    assert _trash(root, clock, retention=60).names() == (f"{ID}.0123abcd",)


def test_a_folder_that_keeps_for_ever_gives_nothing_to_be_removed(root: Directory, clock: Clock) -> None:
    kept = Remains(root.child("trash"), labels=IDS, retention=None, token=_token)
    _put(root, kept, left=None)
    _put(root, kept, left=0.0)
    assert kept.expired(1e12) == ()
    assert kept.next_due(0) is None
    assert len(kept.remnants()) == 2


@pytest.mark.parametrize(
    "name",
    [
        "not-ours",
        ID,
        f"{ID}.0123abc",
        f"{ID}.0123abcd.tmp",
        f"{ID}.0123ABCD",
        f"{ID}x.0123abcd",
        f"{ID}-20231314T221320Z.0123abcd",
        f"{ID}-20231114T221320Z",
        f"snap-{'0' * 31}.0123abcd",
        f".{ID}.0123abcd",
    ],
)
def test_what_others_put_there_is_never_looked_at(root: Directory, clock: Clock, tmp_path: Path, name: str) -> None:
    (tmp_path / "trash" / name).mkdir()
    trash = _trash(root, clock, retention=0)
    assert trash.names() == ()
    assert trash.remnants() == ()


def test_what_still_has_its_moment_is_whole(root: Directory, clock: Clock) -> None:
    trash = _trash(root, clock, retention=60)
    name = _put(root, trash, left=clock.now, files=5, shares=True)
    clock.now += 60
    seen: list[Remnant] = []

    def look() -> None:
        seen.extend(trash.remnants())
        raise InterruptedError

    with pytest.raises(InterruptedError):
        trash.remove(name, batch=look)
    assert [(one.left, one.shares) for one in seen] == [(None, True)]
    [left] = trash.names()
    trash.remove(left)
    trash.remove(left)
    trash.remove(name)
    assert trash.folder.names() == []


def test_a_removal_and_somebody_who_wants_it_back_never_both_have_it(
    root: Directory, clock: Clock, tmp_path: Path
) -> None:
    trash = _trash(root, clock, retention=60)
    for number in range(40):
        name = _put(root, trash, left=clock.now, files=3)
        gate = threading.Barrier(2)

        def remove(name: str = name, gate: threading.Barrier = gate) -> None:
            gate.wait()
            trash.remove(name)

        thread = threading.Thread(target=remove)
        thread.start()
        gate.wait()
        try:
            trash.folder.rename(name, root.child("from"), f"back-{number}")
            back = True
        except FileNotFoundError:
            back = False
        thread.join()
        assert len(list((tmp_path / "from" / f"back-{number}").glob("*"))) == (3 if back else 0)
        assert trash.folder.names() == []


def test_all_that_is_gathered_goes_together(root: Directory, clock: Clock, tmp_path: Path) -> None:
    trash = _trash(root, clock, retention=60)
    for name in ("image", "data", "record.json"):
        (tmp_path / "from" / name).write_text(name)
    trash.gather(root.child("from"), ["image", "data"], ID, shares=True)
    assert root.child("from").names() == ["record.json"]
    [name] = trash.names()
    assert name.startswith(ID)
    assert name.endswith(".shared")
    assert trash.folder.child(name).names() == ["data", "image"]


@given(_TEXT, st.none() | st.builds(Claim, namespace=_TEXT, name=_TEXT))
def test_a_readable_name_is_a_file_name_whatever_the_names_are(name: str, claim: Claim | None) -> None:
    words = readable_name_of(a_volume(name, claim=claim))
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", words)
    assert len(words) <= 255 - len("-20231114T221320Z.0123abcd.shared")


def test_a_readable_name_says_whose_it_was() -> None:
    assert readable_name_of(a_volume("pvc-1")) == "shop_db_pvc-1"
    assert readable_name_of(a_volume("pvc-1", claim=None)) == "pvc-1"
    assert readable_name_of(a_volume("../..", claim=None)) == a_volume("../..").id
