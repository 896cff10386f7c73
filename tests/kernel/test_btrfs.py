"""Subvolumes are made, copied and removed whole, and nothing else is."""

import errno
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage_csi.host import btrfs
from moorage_csi.host.paths import Directory
from tests.kernel.loop_filesystem import filesystem
from tests.kernel.machine import descriptors, mounted, opened, tool

pytestmark = pytest.mark.kernel


@pytest.fixture
def pool(area: Path) -> Iterator[Directory]:
    with filesystem(area, "btrfs") as mount, Directory.open(mount) as folder:
        try:
            yield folder
        finally:
            folder.close()


def path(folder: Directory, *names: str) -> Path:
    return Path(f"/proc/self/fd/{folder.fd}").readlink().joinpath(*names)


def made(folder: Directory, name: str, **contents: str) -> Path:
    btrfs.make(folder, name)
    for entry, text in contents.items():
        path(folder, name, entry).write_text(text)
    return path(folder, name)


def taken(folder: Directory, source: str, name: str, *, read_only: bool) -> Path:
    with folder.child(source) as one:
        btrfs.snapshot(one, folder, name, read_only=read_only)
    return path(folder, name)


def looked_at(folder: Directory, name: str) -> btrfs.Subvolume:
    with folder.child(name) as one:
        seen = btrfs.subvolume(one.fd)
    assert seen is not None
    return seen


def inside(folder: Directory, name: str) -> tuple[int, ...]:
    with folder.child(name) as one:
        return btrfs.nested(one.fd)


def test_a_source_and_its_snapshot_do_not_see_each_others_changes(pool: Directory) -> None:
    source = made(pool, "source", kept="old", changed="old", removed="old")
    copy = taken(pool, "source", "copy", read_only=False)
    (copy / "changed").write_text("by the copy")
    (copy / "removed").unlink()
    (source / "kept").write_text("by the source")
    (source / "new").touch()
    assert {entry.name: entry.read_text() for entry in source.iterdir()} == {
        "kept": "by the source",
        "changed": "old",
        "removed": "old",
        "new": "",
    }
    assert {entry.name: entry.read_text() for entry in copy.iterdir()} == {"kept": "old", "changed": "by the copy"}


def test_a_read_only_snapshot_cannot_be_written_by_anything(pool: Directory) -> None:
    made(pool, "source", file="old")
    copy = taken(pool, "source", "copy", read_only=True)
    for attempt in (
        lambda: (copy / "file").write_text("new"),
        (copy / "new").touch,
        (copy / "file").unlink,
        lambda: (copy / "file").rename(copy / "other"),
        lambda: (copy / "file").chmod(0o777),
        lambda: os.chown(copy / "file", 1, 1),
        lambda: os.utime(copy / "file", (1, 1)),
        lambda: os.setxattr(copy / "file", "user.one", b"1"),
        lambda: os.truncate(copy / "file", 1),
        lambda: os.link(copy / "file", copy / "link"),
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011  (the number is looked at)
            attempt()
        assert caught.value.errno == errno.EROFS
    assert (copy / "file").read_text() == "old"
    assert looked_at(pool, "copy").read_only
    assert not looked_at(pool, "source").read_only


def test_a_writer_of_the_source_never_writes_to_a_read_only_snapshot(pool: Directory) -> None:
    source = made(pool, "source", file="old")
    with (source / "file").open("r+b", buffering=0) as writer:
        copy = taken(pool, "source", "copy", read_only=True)
        writer.write(b"NEW")
        os.fsync(writer.fileno())
    assert (source / "file").read_text() == "NEW"
    assert (copy / "file").read_text() == "old"


def test_what_is_made_read_only_later_is_still_written_through_what_is_open(pool: Directory) -> None:
    """The reason why a snapshot is read-only from the beginning or is no promise; documented of ``set_read_only``."""
    source = made(pool, "source", file="old")
    with pool.child("source") as one, (source / "file").open("r+b", buffering=0) as writer:
        btrfs.set_read_only(one.fd, read_only=True)
        writer.write(b"NEW")
        os.fsync(writer.fileno())
        assert (source / "file").read_text() == "NEW"
        with pytest.raises(OSError, match="Read-only"):
            (source / "file").open("r+b")


def test_read_only_is_set_cleared_and_free_to_repeat(pool: Directory) -> None:
    source = made(pool, "source")
    with pool.child("source") as one:
        for read_only in (True, True, False, False):
            btrfs.set_read_only(one.fd, read_only=read_only)
            assert looked_at(pool, "source").read_only is read_only
    (source / "file").touch()


def test_what_is_not_a_subvolume_is_never_taken_or_removed_as_one(pool: Directory, area: Path) -> None:
    made(pool, "source", file="old")
    pool.make_directory("folder")
    path(pool, "source", "below").mkdir()
    path(pool, "link").symlink_to("source")
    path(pool, "plain").touch()
    with pool.child("folder") as folder, pool.child("source/below") as below:
        for one in (folder, below):
            assert btrfs.subvolume(one.fd) is None
            with pytest.raises(OSError, match="is not the directory of a btrfs subvolume"):
                btrfs.snapshot(one, pool, "copy", read_only=False)
            with pytest.raises(OSError, match="is not the directory of a btrfs subvolume"):
                btrfs.set_read_only(one.fd, read_only=True)
    for name, number in (("folder", errno.EINVAL), ("link", errno.ELOOP), ("plain", errno.ENOTDIR)):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            btrfs.destroy(pool, name)
        assert caught.value.errno == number
    assert pool.names() == ["folder", "link", "plain", "source"]
    assert path(pool, "source", "file").read_text() == "old"
    (area / "other").mkdir()
    with opened(area / "other") as fd:
        assert not btrfs.is_btrfs(fd)
        assert btrfs.subvolume(fd) is None


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "a\nb"])
def test_what_is_not_a_name_is_refused(pool: Directory, name: str) -> None:
    made(pool, "source")
    with pytest.raises(ValueError, match="is not a file name"):
        btrfs.make(pool, name)
    with pytest.raises(ValueError, match="is not a file name"):
        btrfs.destroy(pool, name)
    with pool.child("source") as one, pytest.raises(ValueError, match="is not a file name"):
        btrfs.snapshot(one, pool, name, read_only=True)
    assert pool.names() == ["source"]


def test_a_name_that_is_taken_or_too_long_changes_nothing(pool: Directory) -> None:
    made(pool, "source", file="old")
    made(pool, "taken", file="other")
    with pytest.raises(FileExistsError):
        btrfs.make(pool, "taken")
    with pool.child("source") as one, pytest.raises(FileExistsError):
        btrfs.snapshot(one, pool, "taken", read_only=True)
    for length in (256, 5000):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            btrfs.make(pool, "n" * length)
        assert caught.value.errno == errno.ENAMETOOLONG
    btrfs.make(pool, "n" * 255)
    assert path(pool, "taken", "file").read_text() == "other"


def test_a_snapshot_knows_its_origin_and_outlives_it(pool: Directory) -> None:
    made(pool, "source", file="old")
    copy = taken(pool, "source", "copy", read_only=True)
    again = taken(pool, "copy", "again", read_only=False)
    source, first, second = (looked_at(pool, name) for name in ("source", "copy", "again"))
    assert source.origin == ""
    assert first.origin == source.uuid
    assert second.origin == first.uuid
    assert source.id < first.id < second.id
    assert source.made <= first.made <= second.made
    btrfs.destroy(pool, "source")
    btrfs.destroy(pool, "copy")
    assert not copy.exists()
    assert (again / "file").read_text() == "old"
    (again / "file").write_text("new")


def test_the_mode_is_what_was_asked_for(pool: Directory) -> None:
    before = os.umask(0o077)
    try:
        btrfs.make(pool, "open", 0o770)
    finally:
        os.umask(before)
    assert path(pool, "open").stat().st_mode & 0o7777 == 0o770


def test_another_filesystem_is_refused(pool: Directory, area: Path) -> None:
    made(pool, "source")
    (area / "other").mkdir()
    with Directory.open(area / "other") as other:
        with pool.child("source") as one, pytest.raises(OSError) as caught:  # noqa: PT011
            btrfs.snapshot(one, other, "copy", read_only=True)
        assert caught.value.errno in (errno.ENOTTY, errno.EOPNOTSUPP)
        with pytest.raises(OSError) as caught:  # noqa: PT011
            btrfs.make(other, "one")
        assert caught.value.errno in (errno.ENOTTY, errno.EOPNOTSUPP)
        assert other.names() == []


def test_a_snapshot_does_not_hold_what_is_nested_and_nested_tells(pool: Directory) -> None:
    source = made(pool, "source")
    assert inside(pool, "source") == ()
    (source / "below").mkdir()
    with pool.child("source/below") as below:
        made(below, "inner", file="inner")
    taken(pool, "source", "copy", read_only=True)
    assert inside(pool, "source") == (looked_at(pool, "source/below/inner").id,)
    assert inside(pool, "copy") == ()
    assert list(path(pool, "copy", "below", "inner").iterdir()) == []


def test_many_nested_ones_are_all_told(pool: Directory) -> None:
    made(pool, "source")
    with pool.child("source") as one:
        for number in range(300):
            btrfs._create(one, f"{number:0200}", btrfs._SUBVOL_CREATE_V2, source=0, flags=0)
        assert len(btrfs.nested(one.fd)) == 300
    calls = []
    btrfs.destroy(pool, "source", batch=lambda: calls.append(1))
    assert len(calls) == 301
    assert pool.names() == []


def test_destroying_takes_what_is_nested_and_nothing_beside(pool: Directory) -> None:
    made(pool, "beside", file="beside")
    made(pool, "source")
    with pool.child("source") as one:
        for name in ("first", "second"):
            made(one, name, file=name)
        with one.child("first") as first:
            (path(first, "deep")).mkdir()
            with first.child("deep") as deep:
                made(deep, "inner", file="inner")
        btrfs.snapshot(one, one, "of itself", read_only=True)
    before = descriptors()
    btrfs.destroy(pool, "source")
    assert descriptors() == before
    assert pool.names() == ["beside"]
    assert path(pool, "beside", "file").read_text() == "beside"
    assert tool("btrfs", "subvolume", "list", path(pool)).stdout.count("\n") == 1


def test_what_a_pod_made_read_only_goes_too(pool: Directory) -> None:
    """An owner may make a subvolume read-only, with others in it, which the kernel then refuses to remove."""
    made(pool, "source")
    with pool.child("source") as one:
        made(one, "outer")
        with one.child("outer") as outer:
            made(outer, "inner")
            btrfs.set_read_only(outer.fd, read_only=True)
        btrfs.set_read_only(one.fd, read_only=True)
    btrfs.destroy(pool, "source")
    assert pool.names() == []
    assert tool("btrfs", "subvolume", "list", path(pool)).stdout == ""


def test_destroying_is_free_to_repeat_and_goes_on_where_it_was_stopped(pool: Directory) -> None:
    btrfs.destroy(pool, "absent")
    made(pool, "source")
    with pool.child("source") as one:
        for number in range(5):
            made(one, str(number))
    calls = 0

    def cancel() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        btrfs.destroy(pool, "source", batch=cancel)
    assert len(inside(pool, "source")) == 3
    btrfs.destroy(pool, "source")
    assert pool.names() == []


def test_a_mount_on_it_stops_it_loudly(pool: Directory, area: Path) -> None:
    made(pool, "source", file="old")
    (area / "precious").mkdir()
    (area / "precious" / "data").write_text("data")
    with mounted(path(pool, "source"), "--bind", area / "precious"):
        with pytest.raises(OSError, match="is a mount point") as caught:
            btrfs.destroy(pool, "source")
        assert caught.value.errno == errno.EBUSY
    assert path(pool, "source", "file").read_text() == "old"
    assert (area / "precious" / "data").read_text() == "data"


def test_what_the_kernel_does_to_one_that_is_in_use(pool: Directory, area: Path) -> None:
    source = made(pool, "source", file="old")
    (source / "below").mkdir()
    (area / "target").mkdir()
    (area / "precious").mkdir()
    (area / "precious" / "data").write_text("data")
    tool("mount", "--bind", area / "precious", source / "below")
    with mounted(area / "target", "--bind", source), (area / "target" / "file").open("r+") as user:
        btrfs.destroy(pool, "source")
        assert list((area / "target").iterdir()) == []
        with pytest.raises(FileNotFoundError):
            (area / "target" / "new").touch()
        assert user.read() == "old"
        user.write("new")
        user.flush()
    assert (area / "precious" / "data").read_text() == "data"
    assert f"{source}/below" not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")


@pytest.mark.parametrize("call", ["make", "snapshot", "destroy"])
def test_others_go_on_while_a_call_waits_for_the_filesystem(pool: Directory, call: str) -> None:
    made(pool, "source")
    calls = {
        "make": lambda: btrfs.make(pool, "new"),
        "snapshot": lambda: taken(pool, "source", "new", read_only=True),
        "destroy": lambda: btrfs.destroy(pool, "source"),
    }
    tool("fsfreeze", "--freeze", path(pool))
    # A process, because a thread would wait for the interpreter lock, and the call for it.
    with subprocess.Popen(("/bin/sh", "-c", 'sleep 3; exec fsfreeze --unfreeze "$1"', "sh", path(pool))) as thaws:
        steps: list[float] = []
        waiting = threading.Thread(target=calls[call])
        begun = time.monotonic()
        waiting.start()
        while waiting.is_alive():
            waiting.join(0.05)
            steps.append(time.monotonic())
        assert thaws.wait(20) == 0
    assert steps[-1] - begun > 1, "it did not wait"
    assert max(after - before for before, after in zip([begun, *steps], steps, strict=False)) < 1


def test_what_was_done_survives_a_power_loss(area: Path) -> None:
    """The image is copied as it is, without a sync, and mounted when the other is gone."""
    with filesystem(area, "btrfs") as mount, Directory.open(mount) as pool:
        made(pool, "source")
        made(pool, "gone")
        with pool.child("source") as one:
            btrfs.snapshot(one, pool, "copy", read_only=True)
            btrfs.set_read_only(one.fd, read_only=True)
        btrfs.destroy(pool, "gone")
        shutil.copyfile(area / "btrfs.img", area / "lost.img")
        made(pool, "later")
        pool.close()
    (area / "lost").mkdir()
    with mounted(area / "lost", "-o", "loop", area / "lost.img"), Directory.open(area / "lost") as lost:
        assert lost.names() == ["copy", "source"]
        assert looked_at(lost, "copy").read_only
        assert looked_at(lost, "source").read_only
        lost.close()
