"""A file has at most one loop device, which goes when its last user goes."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moorage_csi.host import loops, mounts
from tests.kernel.machine import descriptors, mounted, opened, sparse, tool

pytestmark = pytest.mark.kernel

SIZE = 16 << 20


@pytest.fixture
def image(area: Path) -> Path:
    return sparse(area / "image", SIZE)


@pytest.fixture
def backing(image: Path) -> Iterator[int]:
    with opened(image, os.O_RDWR) as fd:
        yield fd


def found(path: Path) -> list[loops.LoopStatus]:
    seen = path.stat()
    return loops.find(seen.st_dev, seen.st_ino)


def capacity(loop: loops.Loop) -> int:
    return int(Path(f"/sys/block/loop{loop.number}/size").read_text(encoding="ascii")) * 512


def test_an_attached_file_is_a_block_device_of_its_size(image: Path, backing: int) -> None:
    with loops.attach(backing_fd=backing, name="vol-1") as loop:
        assert stat.S_ISBLK(Path(loop.path).stat().st_mode)
        assert capacity(loop) == SIZE
        assert loop.status.name == "vol-1"
        assert (loop.status.read_only, loop.status.autoclear) == (False, True)
        block_size = Path(f"/sys/block/loop{loop.number}/queue/logical_block_size").read_text(encoding="ascii")
        assert int(block_size) == 512
        rdev = Path(loop.path).stat().st_rdev
        assert (loop.status.major, loop.status.minor) == (os.major(rdev), os.minor(rdev))
        assert found(image) == [loop.status]


def test_closing_the_last_descriptor_frees_it(image: Path, backing: int) -> None:
    with loops.attach(backing_fd=backing, name="x") as loop:
        number = loop.number
    assert found(image) == []
    after = loops.status(number)
    assert after is None or after.inode != image.stat().st_ino


def test_the_last_unmount_frees_it_and_not_an_earlier_one(image: Path, backing: int, area: Path) -> None:
    tool("mkfs.ext4", "-q", "-F", image)
    targets = [area / "one", area / "two"]
    try:
        with loops.attach(backing_fd=backing, name="x") as loop:
            for target in targets:
                target.mkdir()
                fd = os.open(target, os.O_PATH | os.O_DIRECTORY)
                mounts.filesystem_mount(device=loop.path, filesystem="ext4", target_fd=fd)
                os.close(fd)
        assert len(found(image)) == 1
        mounts.unmount(str(targets[0]))
        assert len(found(image)) == 1
    finally:
        for target in targets:
            mounts.unmount(str(target))
    assert found(image) == []


def test_a_device_without_autoclear_stays_until_it_is_detached(image: Path, backing: int) -> None:
    loops.attach(backing_fd=backing, name="x", autoclear=False).close()
    (seen,) = found(image)
    assert not seen.autoclear
    assert loops.detach(seen.number)
    assert found(image) == []
    assert loops.detach(seen.number)


def test_it_is_found_by_inode_after_a_rename_and_after_an_unlink(image: Path, backing: int, area: Path) -> None:
    with loops.attach(backing_fd=backing, name="x") as loop:
        image.rename(area / "renamed")
        assert [one.number for one in found(area / "renamed")] == [loop.number]
        image.touch()
        assert found(image) == []
        seen = os.fstat(backing)
        (area / "renamed").unlink()
        assert [one.number for one in loops.find(seen.st_dev, seen.st_ino)] == [loop.number]


def test_the_kernel_lets_a_file_be_attached_twice_and_both_are_found(image: Path, backing: int) -> None:
    with loops.attach(backing_fd=backing, name="x") as one, loops.attach(backing_fd=backing, name="x") as two:
        assert one.number != two.number
        assert [each.number for each in found(image)] == sorted([one.number, two.number])


def test_ensure_never_attaches_twice_however_many_ask(image: Path, backing: int) -> None:
    with ThreadPoolExecutor(8) as threads:
        held = list(threads.map(lambda _: loops.ensure(backing_fd=backing, name="x"), range(24)))
    try:
        assert len({loop.number for loop in held}) == 1
        assert len(found(image)) == 1
    finally:
        for loop in held:
            loop.close()
    assert found(image) == []


def test_ensure_does_not_hold_the_lock_of_a_device_that_lives_on(image: Path, backing: int) -> None:
    with loops.ensure(backing_fd=backing, name="x"):
        fd = os.open(image, os.O_RDWR)
        try:
            loops.ensure(backing_fd=fd, name="x").close()
        finally:
            os.close(fd)


def test_holding_keeps_the_association(image: Path, backing: int) -> None:
    first = loops.attach(backing_fd=backing, name="x")
    held = loops.hold(first.status)
    assert held is not None
    with held:
        first.close()
        assert len(found(image)) == 1
        assert loops.detach(held.number, device=held.status.device, inode=held.status.inode) is False
        assert len(found(image)) == 1
    assert found(image) == []


def test_a_stale_status_is_not_held_and_not_detached(image: Path, backing: int, area: Path) -> None:
    other = sparse(area / "other", SIZE)
    stale = loops.attach(backing_fd=backing, name="x")
    stale.close()
    assert loops.hold(stale.status) is None
    fd = os.open(other, os.O_RDWR)
    with loops.attach(backing_fd=fd, name="y", autoclear=False) as loop:
        os.close(fd)
        reused = loops.LoopStatus(
            number=loop.number,
            device=stale.status.device,
            inode=stale.status.inode,
            name="x",
            read_only=False,
            autoclear=True,
            direct_io=False,
            major=loop.status.major,
            minor=loop.status.minor,
        )
        assert loops.hold(reused) is None
        assert loops.detach(loop.number, device=reused.device, inode=reused.inode)
        assert [one.number for one in found(other)] == [loop.number]
    assert loops.detach(loop.number)
    assert found(other) == []


def test_read_only_is_kept_by_the_kernel(image: Path, area: Path) -> None:
    fd = os.open(image, os.O_RDONLY)
    try:
        with loops.attach(backing_fd=fd, name="x", read_only=True) as loop:
            assert loop.status.read_only
            with pytest.raises(PermissionError), Path(loop.path).open("r+b", buffering=0) as device:
                device.write(bytes(512))
    finally:
        os.close(fd)


def test_direct_io_is_used_where_it_works_and_told_where_not(image: Path, backing: int, area: Path) -> None:
    try:
        os.close(os.open(image, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("the filesystem of the temporary directory has no direct I/O")
    for wanted in (True, False):
        with loops.attach(backing_fd=backing, name="x", direct_io=wanted) as loop:
            shown = Path(f"/sys/block/loop{loop.number}/loop/dio").read_text(encoding="ascii").strip()
            assert loop.status.direct_io is (shown == "1")
            assert wanted or not loop.status.direct_io


def test_a_filesystem_without_direct_io_still_works(area: Path) -> None:
    (area / "ram").mkdir()
    with mounted(area / "ram", "-t", "ramfs", "none"):
        fd = os.open(area / "ram" / "image", os.O_RDWR | os.O_CREAT)
        os.truncate(fd, SIZE)
        with loops.attach(backing_fd=fd, name="x") as loop:
            os.close(fd)
            assert not loop.status.direct_io
            assert capacity(loop) == SIZE


def test_a_device_that_cannot_be_looked_at_is_not_kept_open(backing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with loops.attach(backing_fd=backing, name="x") as loop:
        before = descriptors()
        monkeypatch.setattr(loops, "_status", broken)
        with pytest.raises(OSError, match="Input/output"):
            loops.hold(loop.status)
        assert descriptors() == before


def test_the_capacity_follows_the_file(image: Path, backing: int) -> None:
    with loops.attach(backing_fd=backing, name="x") as loop:
        os.truncate(image, 2 * SIZE)
        assert capacity(loop) == SIZE
        loops.set_capacity(loop.number)
        assert capacity(loop) == 2 * SIZE


def test_what_does_not_exist_is_not_attached() -> None:
    assert loops.status(1 << 19) is None
    assert loops.detach(1 << 19)
    with pytest.raises(OSError) as caught:  # noqa: PT011  (the number is looked at)
        loops.set_capacity(1 << 19)
    assert caught.value.errno == errno.ENXIO


def test_a_name_that_does_not_fit_is_refused(backing: int) -> None:
    with pytest.raises(ValueError, match="at most 63 bytes"):
        loops.attach(backing_fd=backing, name="x" * 64)


def test_a_directory_cannot_be_attached(area: Path) -> None:
    fd = os.open(area, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Invalid"):
            loops.attach(backing_fd=fd, name="x")
    finally:
        os.close(fd)
    assert found(area) == []


def test_many_attach_at_once(area: Path) -> None:
    images = [sparse(area / f"image-{number}", 1 << 20) for number in range(40)]

    def attach(path: Path) -> loops.Loop:
        fd = os.open(path, os.O_RDWR)
        try:
            return loops.attach(backing_fd=fd, name=path.name)
        finally:
            os.close(fd)

    with ThreadPoolExecutor(8) as threads:
        held = list(threads.map(attach, images))
    try:
        assert len({loop.number for loop in held}) == len(images)
        assert [loop.status.inode for loop in held] == [path.stat().st_ino for path in images]
    finally:
        for loop in held:
            loop.close()


def test_an_absent_device_node_is_made_and_a_wrong_one_refused(image: Path, in_namespace: Callable[..., str]) -> None:
    """As in a container whose /dev was filled before the kernel made the device."""
    script = """
        import os, stat, subprocess, sys
        from moorage_csi.host import loops
        control = os.stat("/dev/loop-control").st_rdev
        subprocess.run(["mount", "-t", "tmpfs", "none", "/dev"], check=True)
        os.mknod("/dev/loop-control", stat.S_IFCHR | 0o600, control)
        backing = os.open(sys.argv[1], os.O_RDWR)
        with loops.attach(backing_fd=backing, name="x") as loop:
            made = os.stat(loop.path)
            print(stat.S_ISBLK(made.st_mode), made.st_rdev == os.makedev(loop.status.major, loop.status.minor))
            os.unlink(loop.path)
            os.mknod(loop.path, stat.S_IFBLK | 0o600, os.makedev(loop.status.major, loop.status.minor + 1))
            try:
                loops.status(loop.number)
            except OSError as error:
                print(error.strerror.startswith("is not the block device") or error.errno)
            os.unlink(loop.path)
            print(len(loops.find(loop.status.device, loop.status.inode)))
    """
    assert in_namespace(script, image).split() == ["True", "True", "True", "1"]
    assert found(image) == []
