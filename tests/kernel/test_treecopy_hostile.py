"""A tree that somebody hostile filled, or goes on to change, leads the copy nowhere."""

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage_csi.host import inodes, treecopy
from moorage_csi.host.paths import Directory
from tests.kernel.copied_tree import NAMED_USER, copy, copying_place, inventory
from tests.kernel.loop_filesystem import MIB
from tests.kernel.machine import descriptors, mounted, names, opened, tool

pytestmark = pytest.mark.kernel

ANY = pytest.mark.parametrize("kind", ["xfs", "btrfs", "ext4"])

ONE = pytest.mark.parametrize("kind", ["xfs"])


@pytest.fixture
def place(area: Path, kind: str) -> Iterator[Path]:
    with copying_place(area, kind) as mount:
        yield mount


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
