"""Giving a tree to a group: everything in it, nothing outside of it, once, and the top last."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from moorage_csi.host import mounts, ownership
from moorage_csi.host.ownership import Given
from tests.kernel.machine import descriptors, tool

pytestmark = pytest.mark.kernel

GROUP = 4711


def _nothing() -> None:
    """No pace."""


def give(top: Path, group: int = GROUP, batch: Callable[[], None] = _nothing) -> Given:
    fd = os.open(top, os.O_PATH | os.O_DIRECTORY)
    try:
        return ownership.give(fd, group, batch=batch)
    finally:
        os.close(fd)


def is_given(top: Path, group: int = GROUP) -> bool:
    fd = os.open(top, os.O_PATH | os.O_DIRECTORY)
    try:
        return ownership.is_given(fd, group)
    finally:
        os.close(fd)


def owner(path: Path) -> tuple[int, str]:
    seen = path.lstat()
    return seen.st_gid, f"{stat.S_IMODE(seen.st_mode):04o}"


@pytest.fixture
def top(area: Path) -> Path:
    tree = area / "tree"
    (tree / "folder").mkdir(parents=True)
    tree.chmod(0o755)
    (tree / "folder").chmod(0o700)
    (tree / "folder" / "file").write_text("x")
    (tree / "folder" / "file").chmod(0o600)
    return tree


def test_files_and_directories_get_the_group_and_what_it_may_do(top: Path) -> None:
    (top / "tool").write_text("x")
    (top / "tool").chmod(0o711)
    assert not is_given(top)
    assert give(top) == Given(changed=3, immutable=0)
    assert owner(top) == (GROUP, "2775")
    assert owner(top / "folder") == (GROUP, "2770")
    assert owner(top / "folder" / "file") == (GROUP, "0660")
    assert owner(top / "tool") == (GROUP, "0771")
    assert top.stat().st_uid == 0
    (top / "folder" / "later").write_text("x")
    assert (top / "folder" / "later").stat().st_gid == GROUP
    assert is_given(top)


def test_a_tree_whose_top_has_the_group_is_not_looked_into(top: Path) -> None:
    give(top)
    (top / "folder" / "file").chmod(0o600)
    os.chown(top / "folder" / "file", 0, 0)
    calls: list[None] = []
    assert give(top, batch=lambda: calls.append(None)) == Given(changed=0, immutable=0)
    assert calls == []
    assert owner(top / "folder" / "file") == (0, "0600")
    # Somebody took the group's rights off the top: put back, and still no walk.
    top.chmod(0o2700)
    assert not is_given(top)
    assert give(top, batch=lambda: calls.append(None)) == Given(changed=0, immutable=0)
    assert (calls, owner(top)) == ([], (GROUP, "2770"))


def test_the_group_that_the_top_has_from_making_is_no_mark(top: Path) -> None:
    assert top.stat().st_gid == 0
    assert not is_given(top, 0)
    give(top, 0)
    assert owner(top / "folder" / "file") == (0, "0660")


@pytest.mark.parametrize("stop_after", range(1, 4))
def test_one_that_stops_in_the_middle_is_made_again(top: Path, stop_after: int) -> None:
    (top / "another").write_text("x")
    left = [stop_after]

    def stop() -> None:
        left[0] -= 1
        if not left[0]:
            raise InterruptedError("stopping")

    before = descriptors()
    with pytest.raises(InterruptedError):
        give(top, batch=stop)
    assert descriptors() == before
    assert top.stat().st_gid != GROUP
    assert not is_given(top)
    give(top)
    assert {owner(path)[0] for path in (top, *top.rglob("*"))} == {GROUP}


def test_links_lead_nowhere(top: Path, area: Path) -> None:
    outside = area / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_text("not ours")
    before = {path: (path.lstat().st_gid, path.lstat().st_mode) for path in (outside, *outside.rglob("*"))}
    (top / "to a file").symlink_to(outside / "file")
    (top / "to a folder").symlink_to(outside)
    (top / "upwards").symlink_to("../outside")
    (top / "to the root").symlink_to("/")
    (top / "nowhere").symlink_to("/does/not/exist")
    give(top)
    assert (top / "to a file").lstat().st_gid == GROUP
    assert {path: (path.lstat().st_gid, path.lstat().st_mode) for path in (outside, *outside.rglob("*"))} == before
    assert Path("/").stat().st_gid == 0


def test_an_entry_that_becomes_a_link_meanwhile_is_not_followed(top: Path, area: Path) -> None:
    outside = area / "outside"
    outside.mkdir()
    (outside / "data").write_text("not ours")
    for number in range(40):
        (top / f"folder {number}").mkdir()
        (top / f"folder {number}" / "data").write_text("x")

    def swap() -> None:
        for path in top.glob("folder *"):
            if not path.is_symlink():
                shutil.rmtree(path)
                path.symlink_to(outside)
                return

    give(top, batch=swap)
    assert owner(outside)[0] == owner(outside / "data")[0] == 0


def test_what_is_mounted_below_is_not_the_trees(top: Path, area: Path) -> None:
    outside = area / "outside"
    outside.mkdir()
    (outside / "file").write_text("not ours")
    (top / "folder" / "mount").mkdir()
    source, target = (os.open(path, os.O_PATH | os.O_DIRECTORY) for path in (outside, top / "folder" / "mount"))
    try:
        mounts.bind(source_fd=source, target_fd=target)
    finally:
        os.close(source)
        os.close(target)
    try:
        give(top)
    finally:
        mounts.unmount(str(top / "folder" / "mount"))
    assert owner(outside)[0] == owner(outside / "file")[0] == 0
    assert owner(top / "folder" / "file")[0] == GROUP


def test_what_a_program_may_do_is_not_lost(top: Path) -> None:
    for name, mode in (("user", 0o4755), ("group", 0o2755), ("both", 0o6711), ("right", 0o6770), ("capable", 0o755)):
        (top / name).write_text("x")
        (top / name).chmod(mode)
    # cap_net_raw, permitted and effective, version 2.
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(top / "capable", "security.capability", capability)
    give(top)
    assert owner(top / "user") == (GROUP, "4775")
    assert owner(top / "group") == (GROUP, "2775")
    assert owner(top / "both") == (GROUP, "6771")
    assert owner(top / "right") == (GROUP, "6770")
    assert os.getxattr(top / "capable", "security.capability") == capability


def test_pipes_and_sockets_are_never_opened_and_devices_let_be(top: Path) -> None:
    os.mkfifo(top / "pipe", 0o600)
    os.mknod(top / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(top / "socket", stat.S_IFSOCK | 0o600)
    give(top)
    assert owner(top / "pipe") == owner(top / "socket") == (GROUP, "0660")
    assert owner(top / "device") == (0, "0600")


def test_a_file_with_several_names_is_one_file(top: Path) -> None:
    os.link(top / "folder" / "file", top / "second")
    give(top)
    assert owner(top / "second") == (GROUP, "0660")


def test_an_immutable_file_keeps_its_group_and_stops_nothing(top: Path) -> None:
    stuck = top / "folder" / "file"
    if tool("chattr", "+i", stuck, check=False).returncode:
        pytest.skip("the filesystem has no immutable flag")
    try:
        (top / "other").write_text("x")
        assert give(top) == Given(changed=2, immutable=1)
        assert owner(stuck)[0] == 0
        assert owner(top / "other")[0] == owner(top)[0] == GROUP
    finally:
        tool("chattr", "-i", stuck)


def test_a_tree_deeper_than_a_path_may_be_long_is_given_to_its_end_with_few_descriptors(top: Path) -> None:
    name = "d" * 100
    fd = os.open(top, os.O_PATH | os.O_DIRECTORY)
    for _ in range(200):
        os.mkdir(name, 0o700, dir_fd=fd)
        below = os.open(name, os.O_PATH | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    most = 0

    def count() -> None:
        nonlocal most
        most = max(most, len(descriptors()))

    before = len(descriptors())
    try:
        assert give(top, batch=count).changed == 202
        seen = os.fstat(fd)
        assert (seen.st_gid, stat.S_IMODE(seen.st_mode)) == (GROUP, 0o2770)
        assert most - before < 80
    finally:
        os.close(fd)
