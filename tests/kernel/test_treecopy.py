"""A copied tree is the tree, all of it, and shares its data where that can be."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moorage_csi.host import btrfs, quotas, reflink, treecopy
from moorage_csi.host.paths import Directory
from tests.kernel.copied_tree import copy, copying_place, furnished, inventory
from tests.kernel.loop_filesystem import MIB, disk_use
from tests.kernel.machine import descriptors, names, opened, tool

pytestmark = pytest.mark.kernel

ANY = pytest.mark.parametrize("kind", ["xfs", "btrfs", "ext4"])
SHARING = pytest.mark.parametrize("kind", ["xfs", "btrfs"])
ONE = pytest.mark.parametrize("kind", ["xfs"])


@pytest.fixture
def place(area: Path, kind: str) -> Iterator[Path]:
    with copying_place(area, kind) as mount:
        yield mount


@ANY
def test_everything_is_as_it_was(place: Path, kind: str) -> None:
    furnished(place / "source")
    before = inventory(place / "source")
    copied = copy(place)
    assert inventory(place / "copy") == before
    assert inventory(place / "source") == before
    assert copied.entries == len(before)
    assert (copied.shared > 0) is (kind != "ext4")
    assert (copied.bytes > 0) is (kind == "ext4")
    assert (place / "copy" / "sparse").stat().st_blocks < 2048
    for one, other in (("file", "folder/again"), ("fifo", "folder/fifo again"), ("link", "link again")):
        assert (place / "copy" / one).lstat().st_ino == (place / "copy" / other).lstat().st_ino
        assert (place / "copy" / one).lstat().st_ino != (place / "source" / one).lstat().st_ino


@ANY
def test_reading_leaves_no_trace_on_files_and_directories(place: Path, kind: str) -> None:
    furnished(place / "source")
    read = [path for path in (place / "source").rglob("*") if not path.is_symlink()]
    for path in read:
        os.utime(path, ns=(10**18, path.stat().st_mtime_ns))
    copy(place)
    assert {path.stat().st_atime_ns for path in read} == {10**18}


@ANY
def test_nothing_written_to_the_copy_reaches_the_source(place: Path, kind: str) -> None:
    furnished(place / "source")
    before = inventory(place / "source")
    copy(place)
    for path in list((place / "copy").rglob("*")):
        if path.is_symlink() or path.is_dir():
            os.chown(path, 1, 1, follow_symlinks=False)
        elif path.is_file():
            path.write_text("by the copy")
            path.chmod(0o777)
            os.setxattr(path, "user.by", b"the copy")
    assert inventory(place / "source") == before


@SHARING
def test_shared_data_takes_no_space(place: Path, kind: str) -> None:
    for number in range(4):
        (place / "source" / str(number)).write_bytes(os.urandom(16 * MIB))
    before = disk_use(place)
    copied = copy(place)
    assert (copied.shared, copied.bytes) == (4, 0)
    assert disk_use(place) < before + 2 * MIB


@pytest.mark.parametrize("kind", ["btrfs"])
def test_files_without_copy_on_write_are_shared_as_well_and_stay_so(place: Path, kind: str) -> None:
    (place / "source" / "folder").mkdir()
    tool("chattr", "+C", place / "source" / "folder")
    (place / "source" / "folder" / "database").write_bytes(os.urandom(MIB))
    (place / "source" / "other").write_bytes(os.urandom(MIB))
    copied = copy(place)
    assert (copied.shared, copied.bytes) == (2, 0)
    flags = tool(
        "lsattr", "-d", place / "copy" / "folder", place / "copy" / "folder" / "database", place / "copy" / "other"
    )
    assert ["C" in line.split()[0] for line in flags.stdout.splitlines()] == [True, True, False]


@pytest.mark.parametrize("kind", ["btrfs"])
def test_another_subvolume_within_is_copied_as_a_directory(place: Path, kind: str) -> None:
    with Directory.open(place / "source") as source:
        btrfs.make(source, "inner")
    (place / "source" / "inner" / "file").write_bytes(b"x" * MIB)
    (place / "source" / "file").write_bytes(b"y" * MIB)
    os.link(place / "source" / "file", place / "source" / "again")
    copied = copy(place)
    assert (copied.shared, copied.bytes) == (2, 0)
    assert (place / "copy" / "inner" / "file").read_bytes() == b"x" * MIB
    with opened(place / "copy" / "inner", os.O_RDONLY) as fd:
        assert btrfs.subvolume(fd) is None


@SHARING
@pytest.mark.parametrize("number", reflink.UNABLE)
def test_what_cannot_be_shared_is_copied(place: Path, kind: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(reflink, "clone_file", refuse)
    furnished(place / "source")
    before = inventory(place / "source")
    copied = copy(place)
    assert inventory(place / "copy") == before
    assert copied.shared == 0
    assert MIB < copied.bytes < 3 * MIB


@ONE
def test_another_error_ends_it_with_the_path(place: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(reflink, "clone_file", full)
    (place / "source" / "folder").mkdir()
    (place / "source" / "folder" / "file").write_text("data")
    before = descriptors()
    with pytest.raises(OSError, match="No space") as caught:
        copy(place)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == "folder/file"
    assert descriptors() == before


@ONE
def test_a_copy_to_another_filesystem_is_whole(place: Path, area: Path, kind: str) -> None:
    (place / "source" / "file").write_bytes(os.urandom(MIB))
    (place / "source" / "link").symlink_to("file")
    (area / "elsewhere").mkdir()
    with Directory.open(place / "source") as source, Directory.open(area / "elsewhere") as target:
        assert treecopy.copy_tree(source, target).bytes == MIB
    assert inventory(area / "elsewhere") == inventory(place / "source")


@ONE
def test_a_name_more_than_a_filesystem_allows_becomes_the_last_one(
    place: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ext4 stops at 65,000 names, and one more is needed while the copy goes on."""
    names_of = ["first", "second", "third"]
    (place / "source" / "first").write_text("data")
    for name in names_of[1:]:
        os.link(place / "source" / "first", place / "source" / name)
    link, calls = os.link, []

    def limited(source: str, target: str, **how: Any) -> None:
        calls.append(target)
        if len(calls) == 4:
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
        link(source, target, **how)

    monkeypatch.setattr(os, "link", limited)
    copy(place)
    assert names(place / "copy") == sorted(names_of)
    assert {(place / "copy" / name).stat().st_ino for name in names_of} == {(place / "copy" / "first").stat().st_ino}
    assert (place / "copy" / "first").stat().st_nlink == 3


@ONE
def test_the_copy_belongs_to_the_project_of_its_target(place: Path, kind: str) -> None:
    (place / "source" / "folder").mkdir()
    (place / "source" / "file").write_text("data")
    os.link(place / "source" / "file", place / "source" / "folder" / "again")
    for name, project in (("source", 1), ("copy", 2)):
        with opened(place / name, os.O_RDONLY) as fd:
            quotas.assign_project(fd, project)
    copy(place)
    for name in ("", "folder", "file", "folder/again"):
        with opened(place / "copy" / name, os.O_RDONLY) as fd:
            assert quotas.project_of(fd) == 2


@pytest.mark.parametrize("kind", ["ext4"])
def test_no_room_is_an_error_with_the_path(place: Path, kind: str) -> None:
    with (place / "source" / "large").open("wb") as file:
        for _ in range(200):
            file.write(os.urandom(4096) * 256)
    before = descriptors()
    with pytest.raises(OSError, match="No space") as caught:
        copy(place)
    assert caught.value.filename == "large"
    assert descriptors() == before
