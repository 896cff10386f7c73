"""Nothing that a stranger names or leaves behind leads out of a directory."""

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage_csi.host import paths, syscalls
from moorage_csi.host.paths import Directory
from tests.kernel.machine import mounted, names

pytestmark = pytest.mark.kernel

UNNAMEABLE = ["", ".", "..", "a/b", "/", "/etc", "a\0b", "a\nb", "a\r", "../x"]
UNWALKABLE = ["", ".", "..", "/etc", "a//b", "a/", "a/../b", "./a", "a\0b", "a/b\n"]


@pytest.fixture
def pool(area: Path) -> Iterator[Directory]:
    """A pool directory beside a secret that must never be reached; ``out`` points to the secret's directory."""
    (area / "secret").mkdir()
    (area / "secret" / "file").write_text("secret")
    (area / "pool").mkdir()
    (area / "pool" / "out").symlink_to(area / "secret")
    (area / "pool" / "within").mkdir()
    (area / "pool" / "inner").symlink_to("within")
    (area / "pool" / "outfile").symlink_to(area / "secret" / "file")
    with Directory.open(area / "pool") as directory:
        yield directory
    assert (area / "secret" / "file").read_text() == "secret"
    assert names(area / "secret") == ["file"]


@pytest.mark.parametrize("name", UNNAMEABLE)
def test_no_method_takes_what_is_not_a_name(pool: Directory, name: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: pool.make_directory(name),
        lambda: pool.exists(name),
        lambda: pool.read_bytes(name),
        lambda: pool.write_atomic(name, b""),
        lambda: pool.rename(name, pool, "x"),
        lambda: pool.rename("within", pool, name),
        lambda: pool.unlink(name, missing_ok=True),
        lambda: pool.remove_tree(name),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="not a file name"):
            call()
    assert "within" in pool.names()


@pytest.mark.parametrize("path", UNWALKABLE)
def test_no_walk_takes_what_is_not_a_path_below(pool: Directory, path: str) -> None:
    with pytest.raises(ValueError, match="not a path below"):
        pool.child(path)
    with pytest.raises(ValueError, match="not a path below"):
        pool.open_file(path, os.O_RDWR | os.O_CREAT)


def test_no_method_follows_a_symlink(pool: Directory) -> None:
    refused: list[Callable[[], object]] = [
        lambda: pool.child("out"),
        lambda: pool.child("inner"),
        lambda: pool.open_file("out/file", os.O_RDONLY),
        lambda: pool.open_file("outfile", os.O_RDONLY),
        lambda: pool.open_file("outfile", os.O_RDWR | os.O_CREAT | os.O_TRUNC),
        lambda: pool.read_bytes("outfile"),
        lambda: pool.make_directory("out", exist_ok=True),
        lambda: pool.make_directory("inner", 0o777, exist_ok=True),
    ]
    for call in refused:
        with pytest.raises(OSError) as caught:  # noqa: PT011  (the number is looked at)
            call()
        assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)


def test_writing_replaces_a_symlink_and_not_what_it_points_to(pool: Directory) -> None:
    pool.write_atomic("outfile", b"record")
    assert pool.read_bytes("outfile") == b"record"


def test_removing_takes_the_symlink_alone(pool: Directory) -> None:
    pool.remove_tree("out")
    pool.unlink("outfile")
    assert pool.names() == ["inner", "within"]


def test_renaming_moves_the_symlink_itself(pool: Directory, area: Path) -> None:
    pool.rename("out", pool, "moved")
    assert (area / "pool" / "moved").is_symlink()


@given(name=st.text(st.sampled_from("./\0\n\ra\u2024\uff0e%"), max_size=6))
def test_what_the_validator_passes_is_exactly_one_component(name: str) -> None:
    try:
        paths.checked_name(name)
    except ValueError:
        assert name in ("", ".", "..") or set(name) & set("/\0\n\r")
    else:
        assert Path("/base", name).parent == Path("/base")
        assert Path("/base", name).name == name
        assert name not in (".", "..")


@given(components=st.lists(st.sampled_from(["..", ".", "", "a", "out", "inner", "b\0", "proc", "self"]), max_size=5))
def test_no_combination_of_components_escapes(components: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        (base / "pool" / "a" / "a").mkdir(parents=True)
        (base / "pool" / "out").symlink_to("..")
        (base / "pool" / "a" / "inner").symlink_to("/proc/self/root")
        with Directory.open(base / "pool") as pool:
            try:
                child = pool.child("/".join(components))
            except (ValueError, OSError):
                return
            with child:
                where = Path(f"/proc/self/fd/{child.fd}").readlink()
            assert where.is_relative_to(base / "pool")
            assert set(components) == {"a"}


def test_a_nul_never_reaches_the_kernel(area: Path) -> None:
    (area / "a").mkdir()
    with Directory.open(area) as directory, pytest.raises(ValueError, match="NUL"):
        syscalls.openat2(directory.fd, "a\0/../..", flags=os.O_RDONLY, resolve=0)


def test_only_absolute_roots_are_opened() -> None:
    with pytest.raises(ValueError, match="not an absolute path"):
        Directory.open("etc")


def test_a_fifo_is_refused_and_not_waited_for(pool: Directory, area: Path) -> None:
    os.mkfifo(area / "pool" / "record.json")
    started = time.monotonic()
    with pytest.raises(OSError, match="not a regular file"):
        pool.read_bytes("record.json")
    assert time.monotonic() - started < 1


def test_a_device_is_refused(pool: Directory, area: Path) -> None:
    os.mknod(area / "pool" / "zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    with pytest.raises(OSError, match="not a regular file"):
        pool.read_bytes("zero")


def test_modes_do_not_depend_on_the_umask(pool: Directory, area: Path) -> None:
    before = os.umask(0o077)
    try:
        pool.make_directory("made", 0o2775)
        pool.write_atomic("record", b"", mode=0o644)
        os.close(pool.open_file("image", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640))
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((area / "pool" / name).stat().st_mode) for name in ("made", "record", "image")}
    assert modes == {"made": 0o2775, "record": 0o644, "image": 0o640}


def test_making_a_directory_again_heals_the_mode_of_an_interrupted_first_time(pool: Directory, area: Path) -> None:
    (area / "pool" / "made").mkdir(mode=0o700)
    with pytest.raises(FileExistsError):
        pool.make_directory("made", 0o750)
    pool.make_directory("made", 0o750, exist_ok=True)
    assert stat.S_IMODE((area / "pool" / "made").stat().st_mode) == 0o750


def test_making_a_directory_over_a_file_is_refused(pool: Directory) -> None:
    pool.write_atomic("file", b"")
    with pytest.raises(NotADirectoryError):
        pool.make_directory("file", exist_ok=True)


def test_a_mount_is_crossed_only_where_that_is_allowed(pool: Directory, area: Path) -> None:
    with mounted(area / "pool" / "within", "-t", "tmpfs", "none"):
        pool.child("within").close()
        with pytest.raises(OSError) as caught:  # noqa: PT011  (the number is looked at)
            pool.child("within", same_mount=True)
        assert caught.value.errno == errno.EXDEV


def test_a_rename_never_replaces(pool: Directory) -> None:
    pool.make_directory("trash")
    pool.make_directory("one")
    with pool.child("trash") as trash:
        pool.rename("one", trash, "one")
        pool.make_directory("one")
        with pytest.raises(FileExistsError):
            pool.rename("one", trash, "one")
        pool.rename("one", trash, "two")
        assert trash.names() == ["one", "two"]


def test_a_rename_never_replaces_where_the_filesystem_cannot_promise_it(
    pool: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(syscalls, "rename_no_replace", cannot)
    pool.make_directory("one")
    pool.make_directory("two")
    with pytest.raises(FileExistsError):
        pool.rename("one", pool, "two")
    pool.rename("one", pool, "three")
    assert {"two", "three"} <= set(pool.names())


def test_two_threads_may_list_one_directory(pool: Directory, area: Path) -> None:
    for number in range(500):
        (area / "pool" / f"entry-{number}").touch()
    expected = names(area / "pool")
    with ThreadPoolExecutor(8) as threads:
        for listed in threads.map(lambda _: pool.names(), range(64)):
            assert listed == expected


def test_a_record_that_is_too_large_is_refused(pool: Directory) -> None:
    pool.write_atomic("record", b"x" * 101)
    assert len(pool.read_bytes("record", limit=101)) == 101
    with pytest.raises(OSError, match="more than 100 bytes"):
        pool.read_bytes("record", limit=100)


def test_a_write_without_room_keeps_the_old_and_leaves_nothing(pool: Directory, area: Path) -> None:
    with mounted(area / "pool" / "within", "-t", "tmpfs", "-o", "size=64k", "none"), pool.child("within") as full:
        full.write_atomic("record", b"old")
        with pytest.raises(OSError) as caught:  # noqa: PT011  (the number is looked at)
            full.write_atomic("record", b"n" * 200_000)
        assert caught.value.errno == errno.ENOSPC
        assert full.names() == ["record"]
        assert full.read_bytes("record") == b"old"


def test_a_record_is_on_the_disk_before_it_gets_its_name_and_the_name_after(
    pool: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def recorded_fsync(fd: int) -> None:
        done.append(f"fsync {'directory' if stat.S_ISDIR(os.fstat(fd).st_mode) else 'file'}")
        fsync(fd)

    def recorded_rename(old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        done.append("rename")
        rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    pool.write_atomic("record", b"data")
    assert done == ["fsync file", "rename", "fsync directory"]


WRITER = """
import sys
from moorage_csi.host.paths import Directory
with Directory.open(sys.argv[1]) as pool:
    number = 0
    while True:
        number = (number + 1) % 10
        pool.write_atomic("record", str(number).encode() * 50_000)
        print(number, flush=True)
"""


def test_a_killed_writer_leaves_the_old_or_the_new(pool: Directory, area: Path) -> None:
    pool.write_atomic("record", b"0" * 50_000)
    for moment in range(12):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(area / "pool")],
            env={**os.environ, "PYTHONPATH": str(Path(paths.__file__).parents[2])},
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None
        with writer.stdout:
            writer.stdout.readline()
            threading.Event().wait(moment * 0.0017)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
        content = pool.read_bytes("record")
        assert len(content) == 50_000
        assert len(set(content)) == 1


# Target paths.


@pytest.fixture
def kubelet(area: Path) -> Path:
    (area / "kubelet" / "pods" / "uid").mkdir(parents=True)
    (area / "kubelet-evil").mkdir()
    return area / "kubelet"


@pytest.mark.parametrize(
    "target",
    [
        *("pods/uid/mount", "", "/", "{root}", "{root}/", "{root}/..", "{root}/../kubelet-evil/x", "{root}-evil/x"),
        *("{root}/pods/../x", "{root}/./x", "{root}/a\0b", "{root}/a\nb", "/etc/x", "{root}/pods/uid/.."),
    ],
)
def test_a_target_that_is_not_plainly_beneath_is_refused(kubelet: Path, target: str) -> None:
    path = target.replace("{root}", str(kubelet))
    calls: list[Callable[[str, str], object]] = [
        paths.open_target_directory,
        paths.open_target_file,
        paths.remove_target,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="target path"):
            call(path, str(kubelet))
    assert not any((kubelet.parent / "kubelet-evil").iterdir())


def test_a_target_directory_is_made_once_with_its_mode(kubelet: Path) -> None:
    target = kubelet / "pods" / "uid" / "mount"
    before = os.umask(0o077)
    try:
        os.close(paths.open_target_directory(f"{target}/", f"{kubelet}/"))
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o750
    target.chmod(0o777)
    fd = paths.open_target_directory(str(target), str(kubelet))
    try:
        assert os.fstat(fd).st_ino == target.stat().st_ino
        assert stat.S_IMODE(target.stat().st_mode) == 0o777
    finally:
        os.close(fd)


def test_a_target_file_is_made_once_with_its_mode(kubelet: Path) -> None:
    target = kubelet / "pods" / "uid" / "device"
    for _ in range(2):
        os.close(paths.open_target_file(str(target), str(kubelet)))
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert target.stat().st_size == 0


def test_a_target_of_the_wrong_kind_is_refused(kubelet: Path) -> None:
    (kubelet / "file").touch()
    (kubelet / "folder").mkdir()
    os.mkfifo(kubelet / "fifo")
    with pytest.raises(NotADirectoryError):
        paths.open_target_directory(f"{kubelet}/file", str(kubelet))
    for name in ("folder", "fifo"):
        with pytest.raises(OSError, match="neither a regular file"):
            paths.open_target_file(f"{kubelet}/{name}", str(kubelet))


@pytest.mark.parametrize("where", ["last", "middle"])
def test_a_symlink_in_a_target_is_refused(kubelet: Path, area: Path, where: str) -> None:
    (area / "elsewhere").mkdir()
    if where == "last":
        (kubelet / "pods" / "uid" / "mount").symlink_to(area / "elsewhere")
    else:
        (kubelet / "pods" / "uid").rmdir()
        (kubelet / "pods" / "uid").symlink_to(area / "elsewhere")
    for call in (paths.open_target_directory, paths.open_target_file):
        with pytest.raises(OSError) as caught:  # noqa: PT011  (the number is looked at)
            call(f"{kubelet}/pods/uid/mount", str(kubelet))
        assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    assert not any((area / "elsewhere").iterdir())


def test_an_absent_parent_is_told_and_not_made(kubelet: Path) -> None:
    with pytest.raises(FileNotFoundError):
        paths.open_target_directory(f"{kubelet}/pods/other/mount", str(kubelet))


def test_the_configured_directory_may_be_a_symlink(kubelet: Path, area: Path) -> None:
    (area / "link").symlink_to(kubelet)
    os.close(paths.open_target_directory(f"{area}/link/pods/uid/mount", f"{area}/link"))
    assert (kubelet / "pods" / "uid" / "mount").is_dir()


def test_removing_a_target_takes_the_last_component_and_nothing_else(kubelet: Path) -> None:
    target = kubelet / "pods" / "uid" / "mount"
    target.mkdir()
    (target / "data").touch()
    with pytest.raises(OSError) as caught:  # noqa: PT011  (the number is looked at)
        paths.remove_target(str(target), str(kubelet))
    assert caught.value.errno == errno.ENOTEMPTY
    assert (target / "data").exists()
    (target / "data").unlink()
    for _ in range(2):
        paths.remove_target(str(target), str(kubelet))
    assert (kubelet / "pods" / "uid").is_dir()
    paths.remove_target(f"{kubelet}/gone/entirely/mount", str(kubelet))


def test_removing_a_target_takes_a_symlink_itself(kubelet: Path, area: Path) -> None:
    (area / "data").touch()
    (kubelet / "mount").symlink_to(area / "data")
    paths.remove_target(f"{kubelet}/mount", str(kubelet))
    assert (area / "data").exists()
    assert not (kubelet / "mount").is_symlink()


def test_removing_a_mounted_target_fails(kubelet: Path) -> None:
    (kubelet / "mount").mkdir()
    with mounted(kubelet / "mount", "-t", "tmpfs", "none"):
        with pytest.raises(OSError) as caught:  # noqa: PT011  (the number is looked at)
            paths.remove_target(f"{kubelet}/mount", str(kubelet))
        assert caught.value.errno == errno.EBUSY
