"""The ways out of a pool, and back: the trash, the archive, and what is retained."""

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from moorage_csi.errors import ExhaustedError, NotFoundError, PreconditionError
from moorage_csi.host.paths import Directory
from moorage_csi.volumes.exits import Left
from moorage_csi.volumes.pool import Pool, PoolSettings
from moorage_csi.volumes.record import State
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


def _only(pool: Pool) -> Left:
    [left] = pool.exits.restorable()
    return left


@pytest.mark.parametrize("kind", ["volume", "snapshot"])
def test_what_was_deleted_by_mistake_can_be_had_back(tmp_path: Path, kind: str) -> None:
    world = World(path=tmp_path / "pool", settings={"trash_retention": DAY})
    with world.open() as pool:
        source = make(pool, DATA if kind == "volume" else b"")
        snapshot = snap(pool, source, DATA if kind == "snapshot" else b"")
        thing = source if kind == "volume" else snapshot
        if kind == "volume":
            pool.discard(source)
        else:
            pool.discard_snapshot(snapshot)
        assert pool.trash.names() == ()
        world.clock.now += DAY - 1
    with world.open() as pool:
        left = _only(pool)
        assert (left.where, left.record.id, left.left) == ("trash", thing.id, world.clock.now - DAY + 1)
        assert pool.restore(left) == thing
        assert pool.exits.restorable() == ()
        with pytest.raises(NotFoundError, match=left.name):
            pool.restore(left)
    with world.open() as pool:
        assert pool.find(source.id) == source
        assert pool.snapshots.find(snapshot.id) == snapshot
        assert len(world.copies_of(DATA + b"\0" * (SIZE - len(DATA)))) == 1


def test_what_was_made_meanwhile_is_not_replaced_by_what_is_had_back(tmp_path: Path) -> None:
    world = World(path=tmp_path / "pool", settings={"trash_retention": DAY})
    with world.open() as pool:
        pool.discard(make(pool, b"old"))
        new = make(pool, b"new")
        with pytest.raises(FileExistsError):
            pool.restore(_only(pool))
        assert pool.find(new.id) == new
        pool.discard(new)
        assert len(pool.exits.restorable()) == 2


@pytest.mark.parametrize(("shares", "unwritten"), [(False, 32 << 20), (True, 64 << 20)])
def test_what_is_had_back_must_fit_and_counts_what_it_has_written_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: bool, unwritten: int
) -> None:
    world = World(path=tmp_path / "pool", settings={"trash_retention": DAY})
    with world.open() as pool:
        record = make(pool, os.urandom(32 << 20), size=64 << 20, shares=shares)
        pool.discard(record)
        real = os.fstatvfs
        spare = unwritten - (1 << 20)

        def nearly_full(fd: int) -> os.statvfs_result:
            # By the filesystem there is so much left; the whole is as large as ever.
            figures = list(real(fd))
            figures[4] = spare // figures[1]
            return os.statvfs_result(figures)

        monkeypatch.setattr(os, "fstatvfs", nearly_full)
        left = _only(pool)
        with pytest.raises(ExhaustedError, match="1Mi too much"):
            pool.restore(left)
        assert _only(pool) == left
        spare = unwritten
        assert pool.restore(left) == record
        assert pool.room().free == 0


def test_a_wipe_that_had_begun_is_never_undone(tmp_path: Path) -> None:
    world = World(path=tmp_path / "pool", settings={"trash_retention": DAY})
    with world.open() as pool:
        record = replace(make(pool, DATA), state=State.WIPING, wiped_for=("uid",))
        pool.update(record)
        pool.discard(record)
        assert pool.exits.restorable() == ()
        assert len(pool.trash.names()) == 1


def test_what_nobody_was_given_is_kept_for_nobody(tmp_path: Path) -> None:
    world = World(path=tmp_path / "pool", settings={"trash_retention": DAY})
    with world.open() as pool:
        source = make(pool)
        for on_delete in ("delete", "retain", "archive"):
            begun = a_volume(on_delete, on_delete=on_delete)
            pool.begin(begun)
            pool.discard(begun)
        pool.begin_snapshot(a_snapshot(source))
        pool.discard_snapshot(a_snapshot(source))
        assert len(pool.trash.names()) == 4
        assert world.names("retained") == world.names("archived") == []


def test_an_archived_volume_is_readable_and_can_be_had_back(tmp_path: Path) -> None:
    world = World(path=tmp_path / "pool")
    with world.open() as pool:
        record = make(pool, DATA, on_delete="archive")
        pool.discard(record)
        [name] = world.names("archived")
        assert name.startswith("shop_db_pvc-1-20231114T221320Z.")
        assert (world.path / "archived" / name / FILE).read_bytes().startswith(DATA)
        assert pool.claims() == (0, 0)
        world.clock.now += 1000 * DAY
        assert pool.exits.sweep() is None
        assert world.names("archived") == [name]
        left = _only(pool)
        assert left.where == "archived"
        assert pool.restore(left) == record


def test_an_archive_with_a_retention_ends_in_the_trash_when_its_time_has_come(tmp_path: Path) -> None:
    world = World(path=tmp_path / "pool", settings={"archive_retention": DAY, "trash_retention": 3 * DAY})
    with world.open() as pool:
        pool.discard(make(pool, DATA, on_delete="archive"))
        pool.discard(make(pool, name="deleted"))
        assert pool.exits.sweep() == DAY
        world.clock.now += DAY - 1
        assert pool.exits.sweep() == 1
        assert len(world.names("archived")) == 1
        world.clock.now += 1
        assert pool.exits.sweep() == 2 * DAY
        assert world.names("archived") == []
        [name] = pool.trash.names()
        assert name.startswith(a_volume().id)


def test_what_lies_in_the_archive_without_a_record_stays_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(path=tmp_path / "pool", settings={"archive_retention": DAY})
    with world.open() as pool:
        pool.discard(make(pool, DATA, on_delete="archive"))
        [name] = world.names("archived")
        (world.path / "archived" / name / "record.json").write_text("{}")
        (world.path / "archived" / "old-20000101T000000Z.0123abcd").mkdir()
        (world.path / "archived" / "notes.txt").touch()
        before = world.names("archived")
        world.clock.now += 10 * DAY
        assert pool.exits.sweep() is None
        assert pool.exits.sweep() is None
        assert world.names("archived") == before
        assert pool.exits.restorable() == ()
        told = [record for record in caplog.records if "archive" in record.message]
        assert len(told) == 2
        with pytest.raises(PreconditionError, match="cannot be trusted"):
            pool.restore(Left(where="archived", name=name, left=0, record=a_volume()))


def test_a_record_of_another_in_the_trash_gives_nothing_back(tmp_path: Path) -> None:
    world = World(path=tmp_path / "pool", settings={"trash_retention": DAY})
    with world.open() as pool:
        pool.discard(make(pool, DATA))
        other = make(pool, name="other")
        [name] = world.names("trash")
        content = (world.path / "volumes" / other.id / "record.json").read_bytes()
        (world.path / "trash" / name / "record.json").write_bytes(content)
        assert pool.exits.restorable() == ()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_pool_can_lose_a_volume_and_a_snapshot(
    pool: Pool, world: World, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    source = make(pool, DATA)
    snapshot = snap(pool, source, DATA)

    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Directory, "write_atomic", full)
    pool.discard_snapshot(snapshot)
    pool.discard(source)
    assert world.names("volumes") == world.names("snapshots") == []
    pool.discard_snapshot(snapshot)
    pool.discard(source)


def test_a_disk_that_fails_loses_nothing(pool: Pool, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = snap(pool, make(pool), DATA)

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Directory, "write_atomic", broken)
    with pytest.raises(OSError, match="error"):
        pool.discard_snapshot(snapshot)
    assert world.names("snapshots") == [snapshot.id]


@pytest.mark.parametrize(
    "wrong", [{"trash_retention": -1.0}, {"trash_retention": float("nan")}, {"archive_retention": float("inf")}]
)
def test_a_retention_that_cannot_be_meant_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="retention"):
        PoolSettings(name="default", path="/var/lib/moorage/default", **wrong)  # type: ignore[arg-type]


def test_a_disk_that_fails_on_the_way_back_leaves_nothing_that_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(path=tmp_path / "pool", settings={"trash_retention": DAY})
    with world.open() as pool:
        record = make(pool, DATA)
        pool.discard(record)
        outcomes = []

        def after() -> None:
            assert world.names("volumes") == [known.id for known in pool.records.values()]
            outcomes.append(bool(pool.records))
            assert len(world.copies_of(DATA + b"\0" * (SIZE - len(DATA)))) == 1
            pool.discard(record)

        failing_syncs(monkeypatch, lambda: pool.restore(_only(pool)), after)
        assert set(outcomes) == {True, False}
        assert pool.find(record.id) == record
