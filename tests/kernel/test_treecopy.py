"""A copied tree is the tree, all of it, and neither follows nor changes anything."""

import errno
import os
import resource
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moorage_csi.host import btrfs, inodes, quotas, reflink, treecopy
from moorage_csi.host.paths import Directory
from tests.kernel.loop_filesystem import MIB, disk_use, filesystem
from tests.kernel.machine import descriptors, mounted, names, opened, sparse, tool

pytestmark = pytest.mark.kernel

ANY = pytest.mark.parametrize("kind", ["xfs", "btrfs", "ext4"])
SHARING = pytest.mark.parametrize("kind", ["xfs", "btrfs"])
ONE = pytest.mark.parametrize("kind", ["xfs"])

USER, GROUP = 4711, 4712
ACL_HEAD = struct.pack("<I", 2)
ACL_ENTRY = struct.Struct("<HHI")
NOBODY = 0xFFFFFFFF


def acl(*entries: tuple[int, int, int]) -> bytes:
    return ACL_HEAD + b"".join(ACL_ENTRY.pack(*entry) for entry in entries)


NAMED_USER = acl((1, 6, NOBODY), (2, 4, USER), (4, 4, NOBODY), (16, 6, NOBODY), (32, 0, NOBODY))


@pytest.fixture
def place(area: Path, kind: str) -> Iterator[Path]:
    """A filesystem with a ``source`` to be filled, an empty ``copy``, and something that nobody may touch."""
    with filesystem(area, kind) as mount:
        for name in ("source", "copy", "precious"):
            (mount / name).mkdir()
        (mount / "precious" / "data").write_text("data")
        yield mount
        assert (mount / "precious" / "data").read_text() == "data"
        assert names(mount / "precious") == ["data"]


def copy(place: Path, batch: Callable[[], None] | None = None) -> treecopy.Copied:
    with Directory.open(place / "source") as source, Directory.open(place / "copy") as target:
        return treecopy.copy_tree(source, target, batch=batch)


def described(path: Path) -> tuple[object, ...]:
    """All of an entry that a copy has to have; not the time of change, and not the size of a directory."""
    seen = path.lstat()
    content: object = None
    if stat.S_ISREG(seen.st_mode):
        content = path.read_bytes()
    elif stat.S_ISLNK(seen.st_mode):
        content = path.readlink()
    attributes = {
        name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
    }
    links = 0 if stat.S_ISDIR(seen.st_mode) else seen.st_nlink
    return (seen.st_mode, seen.st_uid, seen.st_gid, seen.st_rdev, seen.st_mtime_ns, links, content, attributes)


def inventory(top: Path) -> dict[str, tuple[object, ...]]:
    found = {".": described(top)}
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = Path(folder, name)
            found[str(path.relative_to(top))] = described(path)
    return found


def furnished(top: Path) -> None:
    """One of everything."""
    (top / "file").write_bytes(os.urandom(MIB + 5))
    (top / "empty").touch()
    (top / "name\nwith\tanything \udcff").write_text("odd")
    sparse(top / "sparse", 64 * MIB)
    with (top / "sparse").open("r+b") as file:
        file.seek(32 * MIB)
        file.write(b"middle")
    (top / "folder" / "below").mkdir(parents=True)
    (top / "folder" / "below" / "file").write_text("below")
    (top / "link").symlink_to("file")
    (top / "outwards").symlink_to("../precious/data")
    (top / "dangling").symlink_to("/nowhere/at all")
    os.mkfifo(top / "fifo", 0o620)
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(top, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    os.mknod(top / "whiteout", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    os.mknod(top / "disk", stat.S_IFBLK | 0o640, os.makedev(7, 250))
    os.link(top / "file", top / "folder" / "again")
    os.link(top / "fifo", top / "folder" / "fifo again")
    os.link(top / "link", top / "link again", follow_symlinks=False)
    (top / "setuid").write_text("#!")
    for path in (top / "setuid", top / "link", top / "fifo", top / "folder", top / "disk"):
        os.chown(path, USER, GROUP, follow_symlinks=False)
    (top / "setuid").chmod(0o6755)
    (top / "empty").chmod(0)
    (top / "folder").chmod(0o3775)
    os.setxattr(top / "setuid", "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
    os.setxattr(top / "file", "user.word", b"value \0 with anything")
    os.setxattr(top / "folder", "trusted.overlay.opaque", b"y")
    os.setxattr(top / "link", "trusted.of the link", b"itself", follow_symlinks=False)
    os.setxattr(top / "fifo", "trusted.of the fifo", b"itself")
    os.setxattr(top / "file", "system.posix_acl_access", NAMED_USER)
    os.setxattr(top / "folder", "system.posix_acl_default", NAMED_USER)
    (top / "folder" / "heir").touch()
    for number, path in enumerate([*top.iterdir(), top / "folder" / "below", top]):
        os.utime(path, ns=(10**18 + number, 10**18 + 7 * number), follow_symlinks=False)


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
def test_symlinks_are_never_followed(place: Path, kind: str) -> None:
    for name, text in (
        ("absolute", str(place / "precious")),
        ("relative", "../precious"),
        ("parent", ".."),
        ("self", "self"),
    ):
        (place / "source" / name).symlink_to(text)
    copied = copy(place)
    assert inventory(place / "copy") == inventory(place / "source")
    assert copied.entries == 5


@ONE
def test_an_entry_that_becomes_a_symlink_meanwhile_is_not_followed(place: Path, kind: str) -> None:
    top = place / "source"
    for number in range(30):
        (top / f"folder {number}").mkdir()
        (top / f"folder {number}" / "data").write_text("of the source")
        (top / f"file {number}").write_text("of the source")

    def swap() -> None:
        for path in top.iterdir():
            if path.is_symlink():
                continue
            if path.is_dir():
                (path / "data").unlink()
                path.rmdir()
                path.symlink_to(place / "precious")
            else:
                path.unlink()
                path.symlink_to(place / "precious" / "data")

    copy(place, batch=swap)
    contents = {path.read_text() for path in (place / "copy").rglob("*") if path.is_file() and not path.is_symlink()}
    assert contents <= {"of the source"}
    assert any(path.is_symlink() for path in (place / "copy").iterdir())


@ONE
@pytest.mark.parametrize("text", ["decoy", "/etc", ".."])
def test_a_directory_deep_below_that_becomes_a_symlink_is_not_followed(place: Path, kind: str, text: str) -> None:
    """What lies deep is opened a second time, by its path, when the rest is done."""
    relative = Path(*["d"] * treecopy._DEPTH)
    within = place / "source" / relative
    for folder, content in ((within, "of the source"), (within.parent / "decoy", "of the decoy")):
        folder.mkdir(parents=True)
        (folder / "data").write_text(content)

    def swap() -> None:
        if (place / "copy" / relative).is_dir() and not within.is_symlink():
            within.rename(within.parent / "aside")
            within.symlink_to(text)

    copy(place, batch=swap)
    assert within.is_symlink()
    assert names(place / "copy" / relative) == []
    assert (place / "copy" / relative.parent / "decoy" / "data").read_text() == "of the decoy"


@ONE
def test_nor_is_one_on_the_way_to_it(place: Path, kind: str) -> None:
    deep, middle = Path(*["d"] * 2 * treecopy._DEPTH), Path(*["d"] * (treecopy._DEPTH + 8))
    within = place / "source" / middle
    for folder, content in ((place / "source" / deep, "of the source"), (within.parent / "decoy", "of the decoy")):
        (folder / deep.relative_to(middle)).mkdir(parents=True)
        (folder / "data").write_text(content)
        (folder / deep.relative_to(middle) / "data").write_text(content)

    def swap() -> None:
        if (place / "copy" / deep).is_dir() and not within.is_symlink():
            within.rename(within.parent / "aside")
            within.symlink_to("decoy")

    copy(place, batch=swap)
    assert within.is_symlink()
    assert names(place / "copy" / deep) == []


@ONE
def test_a_copy_does_not_write_through_what_lies_in_the_target(place: Path, kind: str) -> None:
    (place / "source" / "data").write_text("of the source")
    (place / "copy" / "data").symlink_to(place / "precious" / "data")
    with pytest.raises(OSError, match="is not empty") as caught:
        copy(place)
    assert caught.value.errno == errno.ENOTEMPTY
    assert names(place / "copy") == ["data"]


@ONE
@pytest.mark.parametrize("what", ["tmpfs", "bind", "file"])
@pytest.mark.parametrize("depth", [0, 40])
def test_a_mount_stops_it_loudly(place: Path, kind: str, what: str, depth: int) -> None:
    inside = place / "source" / Path(*["d"] * depth) / "mounted"
    inside.parent.mkdir(parents=True, exist_ok=True)
    arguments: list[str | Path] = ["-t", "tmpfs", "none"]
    if what == "file":
        inside.touch()
        arguments = ["--bind", place / "precious" / "data"]
    else:
        inside.mkdir()
        if what == "bind":
            arguments = ["--bind", place / "precious"]
    before = descriptors()
    with mounted(inside, *arguments), pytest.raises(OSError, match="is a mount point") as caught:
        copy(place)
    assert caught.value.errno == errno.EBUSY
    assert caught.value.filename == str(inside.relative_to(place / "source"))
    assert descriptors() == before


@ONE
def test_depth_costs_neither_recursion_nor_descriptors(place: Path, kind: str) -> None:
    fd = os.open(place / "source", os.O_RDONLY)
    for level in range(1500):
        os.mkdir("directory", 0o755, dir_fd=fd)
        os.close(os.open(f"file-{level}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        below = os.open("directory", os.O_RDONLY, dir_fd=fd)
        os.fchmod(below, 0o751)
        os.close(fd)
        fd = below
    os.close(fd)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(descriptors()) + 120, hard))
    before = descriptors()
    try:
        copied = copy(place)
        assert descriptors() == before
        assert copied.entries == 3001
        fd = os.open(place / "copy", os.O_RDONLY)
        for level in range(1500):
            with os.scandir(fd) as entries:
                assert {entry.name for entry in entries} == {"directory", f"file-{level}"}
            below = os.open("directory", os.O_RDONLY, dir_fd=fd)
            assert os.fstat(below).st_mode & 0o7777 == 0o751
            os.close(fd)
            fd = below
        os.close(fd)
        for name in ("source", "copy"):
            with Directory.open(place) as folder:
                folder.remove_tree(name)
            (place / name).mkdir()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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


@ANY
def test_a_hard_link_to_an_inode_that_is_used_again_is_not_one(place: Path, kind: str) -> None:
    """The number of a file that vanished is given to the next one, which is another file."""
    with opened(place / "source", os.O_RDONLY) as fd:
        seen = set()
        for _ in range(5):
            (place / "source" / "file").touch()
            with opened(place / "source" / "file", os.O_RDONLY) as file:
                seen.add(inodes.identity(file, os.fstat(file)))
            (place / "source" / "file").unlink()
            os.fsync(fd)
    assert len(seen) == 5


@ONE
def test_what_the_target_inherits_does_not_reach_the_copy(place: Path, kind: str) -> None:
    os.setxattr(place / "copy", "system.posix_acl_default", NAMED_USER)
    os.setxattr(place / "copy", "system.posix_acl_access", NAMED_USER)
    (place / "copy").chmod(0o2777)
    os.chown(place / "copy", 1, 1)
    (place / "source" / "folder").mkdir()
    (place / "source" / "folder" / "file").touch()
    before = os.umask(0o077)
    try:
        copy(place)
    finally:
        os.umask(before)
    assert inventory(place / "copy") == inventory(place / "source")


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


@ANY
def test_the_batch_paces_it_and_stops_it(place: Path, kind: str) -> None:
    (place / "source" / "folder").mkdir()
    for number in range(50):
        (place / "source" / "folder" / str(number)).write_text("data")
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise InterruptedError

    before = descriptors()
    with pytest.raises(InterruptedError):
        copy(place, batch=stop)
    assert descriptors() == before
    assert len(names(place / "source" / "folder")) == 50
    with pytest.raises(OSError, match="is not empty"):
        copy(place)
    with Directory.open(place) as folder:
        folder.remove_tree("copy")
    (place / "copy").mkdir()
    calls = 100
    assert copy(place, batch=stop).entries == 52
    assert calls >= 152
    assert inventory(place / "copy") == inventory(place / "source")


@pytest.mark.parametrize("kind", ["ext4"])
@pytest.mark.parametrize(
    "error", [InterruptedError(), FileExistsError(errno.EEXIST, "mine"), TimeoutError(errno.EXDEV, "mine")]
)
def test_the_batch_stops_within_a_large_file_and_its_error_is_its_own(place: Path, kind: str, error: OSError) -> None:
    (place / "source" / "file").write_bytes(b"x" * 20 * MIB)

    def stop() -> None:
        raise error

    with pytest.raises(OSError) as caught:  # noqa: PT011  (it is the same one)
        copy(place, batch=stop)
    assert caught.value is error
    os.sync()
    assert (place / "copy" / "file").stat().st_blocks * 512 <= 10 * MIB


@ANY
def test_a_tree_that_is_used_meanwhile_gives_a_copy_of_what_was_there(place: Path, kind: str) -> None:
    top = place / "source"
    for number in range(40):
        (top / f"{number:02}").mkdir()
        for name in ("one", "two"):
            (top / f"{number:02}" / name).write_text(f"{number} {name}")
    calls = 0

    def disturb() -> None:
        nonlocal calls
        calls += 1
        with_number = top / f"{calls % 40:02}"
        if with_number.exists():
            (with_number / "one").unlink(missing_ok=True)
            (with_number / f"new {calls}").write_text("new")
            if calls % 3 == 0:
                tool("rm", "-rf", with_number)
            elif calls % 7 == 0:
                with_number.rename(top / f"moved {calls}")

    copy(place, batch=disturb)
    for path in (place / "copy").rglob("*"):
        if path.is_file():
            assert path.read_text() in {"new", *(f"{number} {name}" for number in range(40) for name in ("one", "two"))}
    assert not [name for name in names(place / "copy") if name.startswith(".")]


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
