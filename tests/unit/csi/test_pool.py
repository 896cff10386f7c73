"""A pool on the disk: what cannot be trusted is left alone, and nothing of what was given is lost."""

import errno
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from moorage_csi.errors import PreconditionError
from moorage_csi.host.paths import Directory
from moorage_csi.volumes.pool import Pool
from moorage_csi.volumes.snapshot import SnapshotState
from tests.unit.csi.pool_world import FILE, SIZE, World, a_snapshot, a_volume, failing_syncs, make, snap

DAY = 86400.0
DATA = b"precious" * 512


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(path=tmp_path / "pool")


@pytest.fixture
def pool(world: World) -> Iterator[Pool]:
    with world.open() as one:
        yield one


def _damages(content: bytes, other: bytes) -> dict[str, bytes | None]:
    document = json.loads(content)
    return {
        "cut off": content[: len(content) // 2],
        "empty": b"",
        "newer": json.dumps(document | {"version": 99, "state": "creating"}).encode(),
        "another's": other,
        "missing": None,
        "unknown field": json.dumps(document | {"encrypted": True, "state": "deleting"}).encode(),
    }


BEGIN_AGAIN: dict[str, Callable[[Pool], None]] = {
    "volumes": lambda pool: pool.begin(a_volume()),
    "snapshots": lambda pool: pool.begin_snapshot(a_snapshot(a_volume())),
}


@pytest.mark.parametrize("damage", ["cut off", "empty", "newer", "another's", "missing", "unknown field"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", ["volumes", "snapshots"])
def test_a_damaged_record_is_told_and_nothing_beside_it_is_touched(
    tmp_path: Path, kind: str, shared: bool, damage: str
) -> None:
    world = World(path=tmp_path / "pool", settings={"shared": shared})
    with world.open() as pool:
        source = make(pool, DATA)
        other = make(pool, DATA, name="pvc-2")
        snapshot = snap(pool, source, DATA)
        second = snap(pool, source, DATA, name="snapshot-2")
    one, two = (source.id, other.id) if kind == "volumes" else (snapshot.id, second.id)
    file = world.path / kind / one / "record.json"
    content = _damages(file.read_bytes(), (world.path / kind / two / "record.json").read_bytes())[damage]
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    before = {path: path.read_bytes() for path in file.parent.rglob("*") if path.is_file()}
    with world.open() as pool:
        assert [(problem.volume, problem.kind) for problem in pool.problems] == [(one, kind[:-1])]
        with pytest.raises(PreconditionError, match=f"{one}.*cannot be trusted.*left alone"):
            _ = pool.find(source.id) if kind == "volumes" else pool.snapshots.find(snapshot.id)
        with pytest.raises(FileExistsError):
            BEGIN_AGAIN[kind](pool)
        if kind == "volumes":
            with pytest.raises(PreconditionError):
                pool.promise_growth(source, 2 * SIZE)
            with pytest.raises(PreconditionError):
                pool.grown(source)
        # It counts, though nobody can know how much of its data is its own.
        assert pool.claims()[1] >= len(DATA)
        world.clock.now += 10 * DAY
        assert pool.exits.sweep() is None
        assert pool.trash.names() == ()
        assert world.names("making") == []
    assert {path: path.read_bytes() for path in file.parent.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_not_ours_is_a_problem_among_snapshots_too(world: World) -> None:
    with world.open():
        pass
    (world.path / "snapshots" / "somebody-elses").mkdir()
    with world.open() as pool:
        [problem] = pool.problems
        assert (problem.volume, problem.kind) == ("somebody-elses", "snapshot")
        assert "somebody else's" in problem.reason
        assert problem.path == f"{world.path}/snapshots/somebody-elses/record.json"
    assert world.names("snapshots") == ["somebody-elses"]


def test_a_snapshot_is_found_by_an_id_of_its_kind_only(pool: Pool) -> None:
    snapshot = snap(pool, make(pool))
    assert pool.snapshots.find(snapshot.id) == snapshot
    for other in ("../volumes", "snap-1", snapshot.source, ""):
        assert pool.snapshots.find(other) is None  # type: ignore[arg-type]
        with pytest.raises(FileNotFoundError), pool.snapshots.folder(other):  # type: ignore[arg-type]
            pass
    assert pool.find(snapshot.id) is None  # type: ignore[arg-type]


def test_snapshots_without_volumes_are_half_a_disk(world: World) -> None:
    with world.open() as pool:
        snap(pool, make(pool), DATA)
    (world.path / "pool.json").unlink()
    for path in sorted((world.path / "volumes").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (world.path / "volumes").rmdir()
    with pytest.raises(PreconditionError, match=r"pool\.json is missing"), world.open():
        pass


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("on_delete", ["delete", "retain", "archive"])
def test_a_snapshot_outlives_its_source(tmp_path: Path, on_delete: str, shared: bool) -> None:
    world = World(path=tmp_path / "pool", settings={"shared": shared})
    with world.open() as pool:
        source = make(pool, b"source", on_delete=on_delete)
        snapshot = snap(pool, source, DATA)
        clone = make(pool, DATA, name="clone", source=snapshot.id, on_delete=on_delete)
        pool.discard(source)
        for name in pool.trash.names():
            pool.trash.remove(name)
    with world.open() as pool:
        assert pool.find(source.id) is None
        assert pool.snapshots.find(snapshot.id) == snapshot
        assert pool.find(clone.id) == clone
        assert world.copies_of(DATA + b"\0" * (SIZE - len(DATA))) == sorted(
            [f"volumes/{clone.id}/{FILE}", f"snapshots/{snapshot.id}/{FILE}"]
        )
        again = make(pool, b"again", on_delete=on_delete)
        assert pool.snapshots.find(snapshot.id) == snapshot
        assert again.id == source.id


def test_what_a_volume_wrote_may_be_held_by_its_copies_and_by_theirs_until_they_are_removed(world: World) -> None:
    with world.open() as pool:
        source, other = make(pool), make(pool, name="other")
        assert not pool.may_be_held(source.id)
        snapshot = snap(pool, source, shares=True)
        clone = make(pool, name="clone", source=snapshot.id, shares=True)
        assert [pool.may_be_held(each.id) for each in (source, other, clone)] == [True, False, False]
        pool.discard_snapshot(snapshot)
        for name in pool.trash.names():
            pool.trash.remove(name)
        assert pool.may_be_held(source.id), "by the clone"
        pool.discard(clone)
        assert pool.may_be_held(source.id), "by what is in the trash"
        for name in pool.trash.names():
            pool.trash.remove(name)
        assert not pool.may_be_held(source.id)


def test_a_copy_that_has_data_of_its_own_holds_nothing(world: World) -> None:
    with world.open() as pool:
        source = make(pool)
        make(pool, name="clone", source=source.id)
        assert not pool.may_be_held(source.id)


def test_a_record_that_is_full_of_copies_keeps_what_it_had(world: World) -> None:
    with world.open() as pool:
        copied = make(pool, source=a_volume("gone").id, shares=True)
    with world.open() as pool:
        assert pool.find(copied.id) == copied


def test_half_made_snapshots_go_and_deletions_are_finished(world: World) -> None:
    with world.open() as pool:
        source = make(pool, DATA)
        ready = snap(pool, source, DATA)
        pool.begin_snapshot(a_snapshot(source, "half-made"))
        deleting = snap(pool, source, DATA, name="deleting")
        pool.snapshots.update(replace(deleting, state=SnapshotState.DELETING))
        (world.path / "making" / "snap-x.0").mkdir()
    with world.open() as pool:
        assert dict(pool.snapshots.records) == {ready.id: ready}
        assert dict(pool.records) == {source.id: source}
        assert world.names("making") == []
        assert len(pool.trash.names()) == 2


def test_in_a_shared_pool_only_what_this_node_began_is_touched(tmp_path: Path) -> None:
    worlds = [World(path=tmp_path / "pool", settings={"shared": True}, node=node) for node in ("node-1", "node-2")]
    with worlds[0].open() as pool:
        source = make(pool)
        mine = a_snapshot(source, "mine", node="node-1")
        theirs = a_snapshot(source, "theirs", node="node-2")
        for snapshot in (mine, theirs):
            pool.begin_snapshot(snapshot)
    with worlds[0].open() as pool:
        assert dict(pool.snapshots.records) == {theirs.id: theirs}


def test_what_cannot_be_cleared_holds_up_nothing_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with world.open() as pool:
        source = make(pool)
        stuck, other = (a_snapshot(source, name) for name in ("stuck", "other"))
        for snapshot in (stuck, other):
            pool.begin_snapshot(snapshot)
    real = Directory.rename

    def rename(self: Directory, name: str, other: Directory, new_name: str) -> None:
        if name == stuck.id:
            raise OSError(errno.EIO, "bad disk")
        real(self, name, other, new_name)

    monkeypatch.setattr(Directory, "rename", rename)
    with world.open() as pool:
        assert set(pool.snapshots.records) == {stuck.id}


def test_a_disk_that_fails_on_the_way_in_leaves_nothing_that_is_not_known(
    pool: Pool, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = a_snapshot(make(pool))
    outcomes = []

    def after() -> None:
        known = [snapshot.id for snapshot in pool.snapshots.records.values()]
        assert world.names("snapshots") == known
        assert world.names("making") == []
        outcomes.append(bool(known))
        pool.discard_snapshot(begun)

    assert failing_syncs(monkeypatch, lambda: pool.begin_snapshot(begun), after) == len(outcomes) == 6
    assert set(outcomes) == {True, False}
