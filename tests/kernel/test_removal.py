"""Removing a tree removes that tree, all of it, and nothing else."""

import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage_csi.host import paths
from moorage_csi.host.paths import Directory
from tests.kernel.machine import descriptors, names, tool

pytestmark = pytest.mark.kernel


@pytest.fixture
def trash(area: Path) -> Iterator[Directory]:
    (area / "precious").mkdir()
    (area / "precious" / "data").write_text("data")
    (area / "trash").mkdir()
    with Directory.open(area / "trash") as directory:
        yield directory
    tool("rm", "-rf", area / "trash")
    assert (area / "precious" / "data").read_text() == "data"


def deep(base: Path, levels: int) -> None:
    """Directories within one another, made by descriptor because the path gets too long for the kernel."""
    fd = os.open(base, os.O_RDONLY)
    for level in range(levels):
        os.mkdir("d", dir_fd=fd)
        os.close(os.open(f"file-{level}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_symlinks_are_removed_and_never_followed(trash: Directory, area: Path) -> None:
    tree = area / "trash" / "tree"
    (tree / "sub").mkdir(parents=True)
    for place in (tree, tree / "sub"):
        (place / "absolute").symlink_to(area / "precious")
        (place / "relative").symlink_to("../../precious")
        (place / "parent").symlink_to("..")
        (place / "file").symlink_to(area / "precious" / "data")
        (place / "dangling").symlink_to("nowhere")
    trash.remove_tree("tree")
    assert trash.names() == []


def test_hard_links_to_other_files_do_not_matter(trash: Directory, area: Path) -> None:
    (area / "trash" / "tree").mkdir()
    os.link(area / "precious" / "data", area / "trash" / "tree" / "data")
    trash.remove_tree("tree")
    assert trash.names() == []


def test_a_directory_that_becomes_a_symlink_after_it_was_listed_is_not_followed(trash: Directory, area: Path) -> None:
    tree = area / "trash" / "tree"
    for number in range(20):
        (tree / str(number)).mkdir(parents=True)

    def swap() -> None:
        for path in tree.iterdir() if tree.exists() else ():
            if not path.is_symlink():
                path.rmdir()
                path.symlink_to(area / "precious")

    trash.remove_tree("tree", batch=swap)
    assert trash.names() == []


@pytest.mark.parametrize("kind", ["file", "fifo", "socket", "symlink", "absent"])
def test_anything_by_that_name_goes(trash: Directory, area: Path, kind: str) -> None:
    path = area / "trash" / "tree"
    if kind == "file":
        path.touch()
    elif kind == "symlink":
        path.symlink_to(area / "precious")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, 0o140600)
    trash.remove_tree("tree")
    assert trash.names() == []


@pytest.mark.parametrize("kind", ["tmpfs", "bind", "file"])
@pytest.mark.parametrize("where", ["top", "below"])
def test_a_mount_stops_it_loudly(trash: Directory, area: Path, kind: str, where: str) -> None:
    tree = area / "trash" / "tree"
    inside = tree if where == "top" else tree / "sub" / "mounted"
    inside.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file":
        inside.touch()
        tool("mount", "--bind", area / "precious" / "data", inside)
    else:
        inside.mkdir()
        arguments = ["-t", "tmpfs", "none"] if kind == "tmpfs" else ["--bind", str(area / "precious")]
        tool("mount", *arguments, inside)
    try:
        if kind == "tmpfs":
            (inside / "data").touch()
        with pytest.raises(OSError, match="is a mount point") as caught:
            trash.remove_tree("tree")
        assert caught.value.errno == errno.EBUSY
        assert caught.value.filename == ("tree" if where == "top" else "tree/sub/mounted")
        assert kind == "file" or names(inside) == ["data"]
    finally:
        tool("umount", inside)
    trash.remove_tree("tree")
    assert trash.names() == []


def test_a_mount_in_a_directory_that_lies_deep_stops_it_too(trash: Directory, area: Path) -> None:
    inside = area.joinpath("trash", "tree", *["d"] * 60)
    inside.mkdir(parents=True)
    tool("mount", "--bind", area / "precious", inside)
    try:
        with pytest.raises(OSError, match="is a mount point"):
            trash.remove_tree("tree")
        assert (area / "precious" / "data").exists()
    finally:
        where = next(
            line.split()[4]
            for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
            if f"{area}/trash/" in line
        )
        tool("umount", where)
    trash.remove_tree("tree")
    assert trash.names() == []


def test_many_files_in_many_directories(trash: Directory, area: Path) -> None:
    tree = area / "trash" / "tree"
    for folder in range(50):
        (tree / str(folder)).mkdir(parents=True)
        for number in range(100):
            (tree / str(folder) / f"{number}\n{number}").touch()
    counted = 0

    def count() -> None:
        nonlocal counted
        counted += 1

    trash.remove_tree("tree", batch=count)
    assert trash.names() == []
    assert counted == 50 * 100 + 50 + 1


def test_depth_costs_neither_recursion_nor_descriptors(trash: Directory, area: Path) -> None:
    (area / "trash" / "tree").mkdir()
    deep(area / "trash" / "tree", 3000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = len(descriptors()) + 80
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        trash.remove_tree("tree")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert trash.names() == []


def test_names_made_to_collide_with_its_own_do_not_stop_it(trash: Directory, area: Path) -> None:
    tree = area / "trash" / "tree"
    for number in range(1, 6):
        (tree / f".deep-{number}" / "full").mkdir(parents=True)
    (tree / ".deep-6").touch()
    deep(tree, 300)
    trash.remove_tree("tree")
    assert trash.names() == []


def test_no_descriptor_is_left_open(trash: Directory, area: Path) -> None:
    (area / "trash" / "tree").mkdir()
    deep(area / "trash" / "tree", 40)
    before = descriptors()
    trash.remove_tree("tree")
    assert descriptors() == before


def test_cancelling_leaves_a_tree_that_is_removed_later(trash: Directory, area: Path) -> None:
    tree = area / "trash" / "tree"
    tree.mkdir()
    deep(tree, 100)
    calls = 0

    def cancel() -> None:
        nonlocal calls
        calls += 1
        if calls == 30:
            raise InterruptedError

    before = descriptors()
    with pytest.raises(InterruptedError):
        trash.remove_tree("tree", batch=cancel)
    assert descriptors() == before
    assert trash.names() == ["tree"]
    trash.remove_tree("tree")
    assert trash.names() == []


def test_two_removals_at_once_and_entries_that_vanish(trash: Directory, area: Path) -> None:
    tree = area / "trash" / "tree"
    for folder in range(40):
        (tree / str(folder) / "sub").mkdir(parents=True)
        for number in range(50):
            (tree / str(folder) / "sub" / str(number)).touch()
    failures: list[BaseException] = []

    def remove() -> None:
        try:
            trash.remove_tree("tree")
        except BaseException as error:  # noqa: BLE001  (carried to the test's thread)
            failures.append(error)

    threads = [threading.Thread(target=remove) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert trash.names() == []


def test_somebody_who_keeps_writing_ends_it(trash: Directory, area: Path) -> None:
    tree = area / "trash" / "tree"
    tree.mkdir()
    (tree / "first").touch()
    written = 0

    def write() -> None:
        nonlocal written
        written += 1
        (tree / f"again-{written}").touch()

    with pytest.raises(OSError) as caught:  # noqa: PT011  (the number is looked at)
        trash.remove_tree("tree", batch=write)
    assert caught.value.errno == errno.ENOTEMPTY
    trash.remove_tree("tree")


def test_an_immutable_file_is_told_with_its_path(trash: Directory, area: Path) -> None:
    tree = area / "trash" / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "file").touch()
    if tool("chattr", "+i", tree / "sub" / "file", check=False).returncode:
        pytest.skip("the filesystem has no immutable flag")
    try:
        with pytest.raises(PermissionError) as caught:
            trash.remove_tree("tree")
        assert caught.value.filename == "tree/sub/file"
    finally:
        tool("chattr", "-i", tree / "sub" / "file")
    trash.remove_tree("tree")
    assert trash.names() == []


UNPRIVILEGED = """
import os, sys
from moorage_csi.host.paths import Directory
os.setgid(65534); os.setuid(65534)
with Directory.open(sys.argv[1]) as trash:
    trash.remove_tree("tree")
"""


def test_directories_nobody_may_enter_go_even_without_root(trash: Directory, area: Path) -> None:
    tree = area / "trash" / "tree"
    for name in ("closed", "unreadable", "unwritable"):
        (tree / name / "sub").mkdir(parents=True)
        (tree / name / "sub" / "file").touch()
    (tree / "closed").chmod(0)
    (tree / "unreadable").chmod(0o300)
    (tree / "unwritable").chmod(0o500)
    tool("chown", "-R", "65534:65534", area / "trash")
    for parent in area.parents:
        if not parent.stat().st_mode & 0o005:
            parent.chmod(parent.stat().st_mode | 0o005)
    area.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, str(area / "trash")],
        env={"PYTHONPATH": str(Path(paths.__file__).parents[2])},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert trash.names() == []
