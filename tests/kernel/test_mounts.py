"""Mounts are whole or absent, where they were meant to be, and gone when unmounting says so."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moorage_csi.host import loops, mounts, paths
from moorage_csi.host.mounts import MountAttributes, MountFlag
from tests.kernel.machine import descriptors, names, opened, place_in_filesystem, sparse, tool

pytestmark = pytest.mark.kernel

WRITABLE = MountAttributes()
READ_ONLY = MountAttributes(set=MountFlag.READ_ONLY)


def bind(source: Path, target: Path, attributes: MountAttributes = WRITABLE, flags: int = os.O_PATH) -> None:
    with opened(source, flags) as source_fd, opened(target, flags) as target_fd:
        mounts.bind(source_fd=source_fd, target_fd=target_fd, attributes=attributes)


@pytest.fixture
def source(area: Path) -> Path:
    (area / "source").mkdir()
    (area / "source" / "data").write_text("data")
    return area / "source"


@pytest.fixture
def target(area: Path) -> Iterator[Path]:
    (area / "target").mkdir()
    yield area / "target"
    while tool("umount", area / "target", check=False).returncode == 0:
        continue


@pytest.fixture
def image(area: Path) -> Iterator[loops.Loop]:
    """A small ext4 on an autoclear loop device, held open."""
    path = sparse(area / "image", 16 << 20)
    tool("mkfs.ext4", "-q", "-F", path)
    with opened(path, os.O_RDWR) as fd, loops.attach(backing_fd=fd, name="test") as loop:
        yield loop


# Bind mounts.


def test_a_bind_mount_shows_the_source_and_can_be_written(source: Path, target: Path) -> None:
    bind(source, target)
    (target / "more").touch()
    assert (source / "more").exists()
    mounts.unmount(str(target))
    assert not any(target.iterdir())


def test_a_file_can_be_bound_onto_a_file(source: Path, area: Path) -> None:
    (area / "file").touch()
    bind(source / "data", area / "file")
    try:
        assert (area / "file").read_text() == "data"
    finally:
        assert mounts.unmount(str(area / "file")) == 1


def test_a_read_only_bind_mount_is_never_writable(source: Path, target: Path) -> None:
    """A bind mount that is made read-only afterwards has a moment at which another thread can write."""
    stop = threading.Event()

    def intrude() -> None:
        while not stop.is_set():
            try:
                with opened(target) as fd:
                    if os.path.samestat(os.fstat(fd), source.stat()):
                        os.close(os.open("intruder", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
            except OSError:
                continue

    intruder = threading.Thread(target=intrude)
    intruder.start()
    try:
        for _ in range(300):
            bind(source, target, READ_ONLY)
            mounts.unmount(str(target), pause=lambda _: None, retries=5)
    except OSError as error:
        assert error.errno == errno.EBUSY  # noqa: PT017  (the intruder's open descriptor; the mount goes below)
    finally:
        stop.set()
        intruder.join()
    assert names(source) == ["data"]


def test_attributes_hold_for_the_mount_and_not_for_the_source(source: Path, target: Path) -> None:
    flags = MountFlag.READ_ONLY | MountFlag.NOSUID | MountFlag.NODEV | MountFlag.NOEXEC | MountFlag.NOATIME
    bind(source, target, MountAttributes(set=flags))
    mount = mounts.mount_at(str(target))
    assert mount is not None
    assert mount.options >= {"ro", "nosuid", "nodev", "noexec", "noatime"}
    assert mount.read_only
    with pytest.raises(OSError) as caught:  # noqa: PT011  (the number is looked at)
        (target / "new").touch()
    assert caught.value.errno == errno.EROFS
    (source / "new").touch()


def test_an_attribute_of_the_source_can_be_cleared(source: Path, target: Path, area: Path) -> None:
    (area / "second").mkdir()
    bind(source, target, MountAttributes(set=MountFlag.NOEXEC | MountFlag.NOATIME))
    options = mounts.parse_options(["exec", "strictatime"])
    bind(target, area / "second", options.attributes)
    try:
        mount = mounts.mount_at(str(area / "second"))
        assert mount is not None
        assert not mount.options & {"noexec", "noatime", "relatime"}
    finally:
        mounts.unmount(str(area / "second"))


def test_what_is_mounted_in_the_source_later_does_not_appear(
    source: Path, target: Path, in_namespace: Callable[..., str]
) -> None:
    (source / "sub").mkdir()
    script = """
        import os, subprocess, sys
        from pathlib import Path
        from moorage_csi.host import mounts
        source, target = map(Path, sys.argv[1:])
        subprocess.run(["mount", "--bind", source, source], check=True)
        subprocess.run(["mount", "--make-shared", source], check=True)
        mounts.bind(source_fd=os.open(source, os.O_PATH), target_fd=os.open(target, os.O_PATH))
        subprocess.run(["mount", "-t", "tmpfs", "none", source / "sub"], check=True)
        (source / "sub" / "stranger").touch()
        print(os.listdir(target / "sub"))
    """
    assert in_namespace(script, source, target) == "[]"


def test_a_symlink_swapped_under_the_target_catches_nothing(source: Path, area: Path) -> None:
    """The target was opened; what its path means afterwards does not matter."""
    kubelet = area / "kubelet"
    (area / "victim").mkdir()
    (kubelet / "pod").mkdir(parents=True)
    path = kubelet / "pod" / "mount"
    fd = paths.open_target_directory(str(path), str(kubelet))
    path.rename(kubelet / "pod" / "moved")
    path.symlink_to(area / "victim")
    with opened(source) as source_fd:
        mounts.bind(source_fd=source_fd, target_fd=fd)
    os.close(fd)
    try:
        assert not any((area / "victim").iterdir())
        assert (kubelet / "pod" / "moved" / "data").exists()
    finally:
        mounts.unmount(str(kubelet / "pod" / "moved"), beneath=str(kubelet))


def test_unmounting_never_goes_through_a_symlink(source: Path, target: Path, area: Path) -> None:
    bind(source, target)
    kubelet = area / "kubelet"
    kubelet.mkdir()
    (kubelet / "last").symlink_to(target)
    (kubelet / "middle").symlink_to(area)
    assert mounts.unmount(f"{kubelet}/last", beneath=str(kubelet)) == 0
    with pytest.raises(OSError) as caught:  # noqa: PT011  (the number is looked at)
        mounts.unmount(f"{kubelet}/middle/target", beneath=str(kubelet))
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    with pytest.raises(ValueError, match="does not lie beneath"):
        mounts.unmount(str(target), beneath=str(kubelet))
    assert mounts.mount_at(f"{kubelet}/last", beneath=str(kubelet)) is None
    assert mounts.mount_at(str(target)) is not None


# Unmounting.


def test_stacked_mounts_all_go(source: Path, target: Path) -> None:
    for _ in range(5):
        bind(source, target)
    assert mounts.unmount(str(target)) == 5
    assert mounts.mount_at(str(target)) is None


@pytest.mark.parametrize("name", ["target", "absent", "absent/too", "source/data"])
def test_nothing_mounted_is_success_however_often(source: Path, target: Path, area: Path, name: str) -> None:
    for _ in range(3):
        assert mounts.unmount(str(area / name)) == 0
        assert mounts.unmount(str(area / name), beneath=str(area)) == 0


def test_a_busy_mount_is_told_after_a_bounded_time_and_stays(source: Path, target: Path) -> None:
    bind(source, target)
    pauses: list[float] = []
    with opened(target), pytest.raises(OSError) as caught:  # noqa: PT011  (the number is looked at)
        mounts.unmount(str(target), pause=pauses.append)
    assert caught.value.errno == errno.EBUSY
    assert caught.value.filename == str(target)
    assert len(pauses) == 5
    assert sum(pauses) < 1
    assert mounts.mount_at(str(target)) is not None
    assert mounts.unmount(str(target)) == 1


def test_a_user_who_leaves_in_time_is_waited_for(source: Path, target: Path) -> None:
    bind(source, target)
    fd = os.open(target, os.O_PATH)
    assert mounts.unmount(str(target), pause=lambda _: os.close(fd)) == 1


def test_a_mount_below_keeps_it_busy(source: Path, target: Path) -> None:
    (source / "sub").mkdir()
    bind(source, target)
    bind(source, target / "sub")
    with pytest.raises(OSError) as caught:  # noqa: PT011  (the number is looked at)
        mounts.unmount(str(target), pause=lambda _: None)
    assert caught.value.errno == errno.EBUSY
    assert mounts.unmount(str(target / "sub")) == 1


# Filesystems.


def test_a_filesystem_is_mounted_with_its_attributes(image: loops.Loop, target: Path) -> None:
    options = mounts.parse_options(["noatime,nodev", "data=ordered", "errors=remount-ro"])
    with opened(target) as fd:
        mounts.filesystem_mount(
            device=image.path,
            filesystem="ext4",
            options=options.filesystem,
            target_fd=fd,
            attributes=options.attributes,
        )
    mount = mounts.mount_at(str(target))
    assert mount is not None
    assert (mount.major, mount.minor) == (image.status.major, image.status.minor)
    assert mount.filesystem == "ext4"
    assert mount.options >= {"noatime", "nodev"}
    assert "errors=remount-ro" in mount.filesystem_options
    (target / "file").touch()


def test_one_device_is_writable_here_and_read_only_there(image: loops.Loop, target: Path, area: Path) -> None:
    (area / "second").mkdir()
    for path, attributes in ((target, WRITABLE), (area / "second", READ_ONLY)):
        with opened(path) as fd:
            mounts.filesystem_mount(device=image.path, filesystem="ext4", target_fd=fd, attributes=attributes)
    try:
        (target / "file").touch()
        assert (area / "second" / "file").exists()
        with pytest.raises(OSError) as caught:  # noqa: PT011  (the number is looked at)
            (area / "second" / "other").touch()
        assert caught.value.errno == errno.EROFS
    finally:
        mounts.unmount(str(area / "second"))


def test_a_refused_option_is_told_in_the_kernels_words(image: loops.Loop, target: Path) -> None:
    with opened(target) as fd, pytest.raises(OSError, match=r"(?i)unknown.*no-such-option") as caught:
        mounts.filesystem_mount(device=image.path, filesystem="ext4", options=["no-such-option"], target_fd=fd)
    assert caught.value.errno == errno.EINVAL
    assert caught.value.filename == f"ext4 on {image.path}"
    assert mounts.mount_at(str(target)) is None


def test_the_wrong_filesystem_is_refused_and_nothing_is_left(image: loops.Loop, target: Path) -> None:
    before = len(descriptors())
    with opened(target) as fd, pytest.raises(OSError, match="xfs on /dev/loop"):
        mounts.filesystem_mount(device=image.path, filesystem="xfs", target_fd=fd)
    assert mounts.mount_at(str(target)) is None
    assert len(descriptors()) == before


def test_a_filesystem_that_the_kernel_does_not_know(target: Path) -> None:
    with opened(target) as fd, pytest.raises(OSError) as caught:  # noqa: PT011  (the number is looked at)
        mounts.filesystem_mount(device="none", filesystem="no-such-fs", target_fd=fd)
    assert caught.value.errno == errno.ENODEV


# Looking.


def test_a_mount_point_is_told_from_what_lies_in_a_mount(source: Path, target: Path) -> None:
    (source / "sub").mkdir()
    bind(source, target)
    mount = mounts.mount_at(str(target))
    assert mount is not None
    assert (mount.target, mount.root) == (str(target), place_in_filesystem(source))
    assert mounts.mount_at(str(target / "sub")) is None
    assert mounts.mount_at(str(target / "absent")) is None
    for path, expected in ((target, mount.mount_id), (target / "sub", None)):
        with opened(path) as fd:
            found = mounts.mount_of_fd(fd)
        assert (found and found.mount_id) == expected


def test_the_topmost_of_stacked_mounts_is_seen(source: Path, target: Path, area: Path) -> None:
    (area / "upper").mkdir()
    bind(source, target)
    bind(area / "upper", target)
    mount = mounts.mount_at(str(target))
    assert mount is not None
    assert mount.root == place_in_filesystem(area / "upper")


def test_propagation_is_seen_where_it_is_and_missed_where_it_is_not(
    area: Path, in_namespace: Callable[..., str]
) -> None:
    script = """
        import subprocess, sys
        from moorage_csi.host import mounts
        area = sys.argv[1]
        subprocess.run(["mount", "-t", "tmpfs", "none", area], check=True)
        subprocess.run(["mkdir", area + "/sub"], check=True)
        found = []
        for kind in ("private", "slave", "shared"):
            subprocess.run(["mount", "--make-" + kind, area], check=True)
            found.append(mounts.propagates(area + "/sub"))
        print(found)
    """
    assert in_namespace(script, area) == "[False, False, True]"


def test_a_bind_mount_below_a_shared_mount_reaches_the_other_namespace(
    area: Path, in_namespace: Callable[..., str]
) -> None:
    script = """
        import os, subprocess, sys
        from moorage_csi.host import mounts
        area = sys.argv[1]
        subprocess.run(["mount", "-t", "tmpfs", "none", area], check=True)
        subprocess.run(["mount", "--make-shared", area], check=True)
        os.makedirs(area + "/source/data")
        os.makedirs(area + "/target")
        other = subprocess.Popen(["unshare", "--mount", "--propagation", "unchanged", "sh", "-c",
                                  "read go; ls " + area + "/target"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        while os.readlink(f"/proc/{other.pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
            pass
        mounts.bind(source_fd=os.open(area + "/source", os.O_PATH), target_fd=os.open(area + "/target", os.O_PATH))
        print(other.communicate(b"go\\n")[0].decode().strip())
    """
    assert in_namespace(script, area) == "data"


# Options.


@pytest.mark.parametrize(
    ("written", "set_flags", "clear_flags", "filesystem"),
    [
        ([], 0, 0, ()),
        (["defaults", "_netdev", "nofail", "x-systemd.automount"], 0, 0, ()),
        (["ro", "nosuid,nodev"], MountFlag.READ_ONLY | MountFlag.NOSUID | MountFlag.NODEV, 0, ()),
        (["ro", "rw"], 0, MountFlag.READ_ONLY, ()),
        (["rw", "ro"], MountFlag.READ_ONLY, 0, ()),
        (["noatime", "relatime"], 0, MountFlag.NOATIME | MountFlag.STRICTATIME, ()),
        (["strictatime", "noatime"], MountFlag.NOATIME, MountFlag.STRICTATIME, ()),
        (["nouuid, discard", " commit=30 "], 0, 0, ("nouuid", "discard", "commit=30")),
        (
            ['context="system_u:object_r:c:s0:c1,c2",ro'],
            MountFlag.READ_ONLY,
            0,
            ("context=system_u:object_r:c:s0:c1,c2",),
        ),
        ([",,"], 0, 0, ()),
    ],
)
def test_options_are_sorted_by_whom_they_are_for(
    written: list[str], set_flags: int, clear_flags: int, filesystem: tuple[str, ...]
) -> None:
    options = mounts.parse_options(written)
    assert options.attributes == MountAttributes(set=MountFlag(set_flags), clear=MountFlag(clear_flags))
    assert options.filesystem == filesystem


@pytest.mark.parametrize("option", ["bind", "remount", "rshared", "move", "loop"])
def test_operations_are_not_options(option: str) -> None:
    with pytest.raises(ValueError, match="an operation, not an option"):
        mounts.parse_options(["ro", option])
