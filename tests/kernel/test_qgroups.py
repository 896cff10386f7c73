"""A limit on a subvolume is held, told truthfully, and means for a clone what the module says it means."""

import errno
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from moorage_csi.host import btrfs, qgroups
from moorage_csi.host.paths import Directory
from moorage_csi.host.qgroups import Quota
from moorage_csi.host.quotas import Limit
from tests.kernel.loop_filesystem import MIB, filesystem, fill
from tests.kernel.machine import mounted, opened, tool

pytestmark = pytest.mark.kernel

SIZE = 32 * MIB
SLACK = 128 << 10
"""What one large file cannot have of the size: the subvolume's own blocks, and what is set aside for the next change."""
SMALL_SLACK = MIB
"""The same for files of 1 KiB, all of which is metadata."""

BOTH = pytest.mark.parametrize("pool", [Quota.SIMPLE, Quota.QGROUP], indirect=True, ids=lambda kind: kind.value)
SIMPLE = pytest.mark.parametrize("pool", [Quota.SIMPLE], indirect=True, ids=lambda kind: kind.value)
QGROUP = pytest.mark.parametrize("pool", [Quota.QGROUP], indirect=True, ids=lambda kind: kind.value)


def switched_on(folder: Directory, kind: Quota) -> None:
    got = qgroups.enable(folder.fd, simple=kind is Quota.SIMPLE, pause=lambda: None)
    if got is not kind:
        pytest.skip(f"the kernel counts by {got.value} and has no simple quotas (6.7)")


@contextmanager
def emptied(area: Path, size: int = 640 * MIB) -> Iterator[Directory]:
    with filesystem(area, "btrfs", size=size) as mount, Directory.open(mount) as folder:
        try:
            yield folder
        finally:
            folder.close()


@pytest.fixture
def pool(area: Path, request: pytest.FixtureRequest) -> Iterator[Directory]:
    with emptied(area) as folder:
        switched_on(folder, request.param)
        yield folder


def path(folder: Directory, *names: str) -> Path:
    return Path(f"/proc/self/fd/{folder.fd}").readlink().joinpath(*names)


def limit(folder: Directory, name: str, size: int) -> None:
    qgroups.set_limit(folder, name, size)


def made(folder: Directory, name: str, size: int = SIZE) -> Path:
    btrfs.make(folder, name)
    limit(folder, name, size)
    return path(folder, name)


def taken(folder: Directory, source: str, name: str, *, size: int = SIZE, read_only: bool = False) -> Path:
    with folder.child(source) as one:
        btrfs.snapshot(one, folder, name, read_only=read_only)
    if not read_only:
        limit(folder, name, size)
    return path(folder, name)


def held(folder: Directory, name: str) -> Limit:
    btrfs.commit(folder.fd)
    with folder.child(name) as one:
        return qgroups.read_limit(one.fd)


def as_somebody(folder: Directory, act: Callable[[], int]) -> int:
    """Do something in another process without any rights, in a directory; its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.fchdir(folder.fd)
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            code = act()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@BOTH
def test_the_size_is_held_to_the_block_and_can_be_used(pool: Directory) -> None:
    volume = made(pool, "volume")
    written = fill(volume / "file", end=errno.EDQUOT)
    assert SIZE - SLACK <= written < SIZE
    assert SIZE - SLACK <= held(pool, "volume").used <= SIZE
    assert written + fill(volume / "other", end=errno.EDQUOT) < SIZE


@BOTH
def test_a_full_volume_can_be_copied_grown_and_removed(pool: Directory) -> None:
    """Where the kernel charges a change to the subvolume that the descriptor lies in, it has to be another one."""
    volume = made(pool, "volume")
    fill(volume / "file", end=errno.EDQUOT)
    fill_with_files(volume, b"")
    clone = taken(pool, "volume", "clone")
    taken(pool, "volume", "snapshot", read_only=True)
    limit(pool, "volume", 2 * SIZE)
    fill(volume / "more", SIZE // 2)
    with pool.child("clone") as one:
        btrfs.set_read_only(one.fd, read_only=True)
        btrfs.set_read_only(one.fd, read_only=False)
    (clone / "file").unlink()
    qgroups.drop_limit(pool, "volume")
    for name in pool.names():
        btrfs.destroy(pool, name)
    assert pool.names() == []


def fill_with_files(volume: Path, content: bytes) -> None:
    """Make small files until there is no room for one more."""
    numbers = iter(range(SIZE))
    with pytest.raises(OSError, match="quota exceeded"):
        deque((volume / f"small-{number}").write_bytes(content) for number in numbers)


@BOTH
def test_the_size_is_held_against_many_writers_and_against_reserving(pool: Directory) -> None:
    volume = made(pool, "volume")
    with ThreadPoolExecutor(8) as writers:
        written = list(writers.map(lambda number: fill(volume / f"{number}", end=errno.EDQUOT), range(8)))
    assert SIZE - 8 * SLACK <= sum(written) < SIZE
    assert held(pool, "volume").used <= SIZE
    for entry in volume.iterdir():
        entry.unlink()
    btrfs.commit(pool.fd)
    with opened(volume / "reserved", os.O_RDWR | os.O_CREAT) as fd:
        with pytest.raises(OSError, match="quota exceeded"):
            os.posix_fallocate(fd, 0, SIZE)
        os.ftruncate(fd, 0)
    assert held(pool, "volume").used <= SIZE


@BOTH
def test_many_small_files_are_held_to_the_size_as_well(pool: Directory) -> None:
    size = SIZE // 4
    fill_with_files(made(pool, "volume", size), b"x" * 1024)
    assert size - SMALL_SLACK <= held(pool, "volume").used <= size


@BOTH
def test_what_is_deleted_is_free_again_also_when_it_was_full(pool: Directory) -> None:
    volume = made(pool, "volume")
    fill(volume / "file", end=errno.EDQUOT)
    (volume / "file").unlink()
    assert held(pool, "volume").used < SLACK
    assert fill(volume / "file", end=errno.EDQUOT) >= SIZE - SLACK


@BOTH
def test_a_larger_and_a_smaller_limit_take_effect_at_once(pool: Directory) -> None:
    volume = made(pool, "volume")
    fill(volume / "file", end=errno.EDQUOT)
    limit(pool, "volume", 2 * SIZE)
    assert 2 * SIZE - SLACK <= fill(volume / "file", end=errno.EDQUOT) < 2 * SIZE
    limit(pool, "volume", SIZE)
    limit(pool, "volume", SIZE)
    assert held(pool, "volume").limit == SIZE
    with pytest.raises(OSError, match="quota"):
        (volume / "other").write_bytes(b"x" * MIB)
    (volume / "file").unlink()
    assert SIZE - SLACK <= fill(volume / "file", end=errno.EDQUOT) < SIZE
    limit(pool, "volume", 0)
    assert held(pool, "volume").limit == 0
    assert fill(volume / "file", 3 * SIZE) == 3 * SIZE


@BOTH
@pytest.mark.parametrize("size", [1, MIB + 1, 10**15 + 7, 2**62])
def test_a_limit_is_kept_to_the_byte(pool: Directory, size: int) -> None:
    made(pool, "volume", size)
    assert held(pool, "volume").limit == size


@BOTH
def test_a_subvolume_without_a_limit_has_none(pool: Directory) -> None:
    btrfs.make(pool, "volume")
    assert held(pool, "volume").limit == 0


@SIMPLE
def test_a_limit_that_a_pod_could_escape_is_told_as_none(pool: Directory) -> None:
    btrfs.make(pool, "volume")
    tool("btrfs", "qgroup", "limit", str(SIZE), path(pool, "volume"))
    assert held(pool, "volume").limit == 0
    limit(pool, "volume", SIZE)
    assert held(pool, "volume").limit == SIZE


@BOTH
def test_one_volume_does_not_fill_another(pool: Directory) -> None:
    first, second = made(pool, "first"), made(pool, "second")
    fill(first / "file", end=errno.EDQUOT)
    assert fill(second / "file", end=errno.EDQUOT) >= SIZE - SLACK


@pytest.mark.parametrize("kind", [Quota.SIMPLE, Quota.QGROUP], ids=lambda kind: kind.value)
def test_a_limit_survives_a_power_loss(area: Path, kind: Quota) -> None:
    """The image is copied as it is, without a sync, and mounted when the other is gone."""
    with emptied(area) as folder:
        switched_on(folder, kind)
        made(folder, "volume")
        shutil.copyfile(area / "btrfs.img", area / "lost.img")
    (area / "lost").mkdir()
    with mounted(area / "lost", "-o", "loop", area / "lost.img"), Directory.open(area / "lost") as lost:
        assert held(lost, "volume").limit == SIZE
        assert fill(path(lost, "volume", "file"), end=errno.EDQUOT) < SIZE
        lost.close()


@QGROUP
def test_qgroups_hold_a_clone_like_a_disk_of_its_size(pool: Directory) -> None:
    source = made(pool, "source")
    fill(source / "file", SIZE // 2)
    clone = taken(pool, "source", "clone")
    assert SIZE // 2 <= held(pool, "clone").used <= SIZE // 2 + SLACK
    written = fill(clone / "other", end=errno.EDQUOT)
    assert SIZE // 2 - SLACK <= written < SIZE // 2
    (clone / "file").unlink()
    assert fill(clone / "third", end=errno.EDQUOT) >= SIZE // 2 - SLACK


@QGROUP
def test_qgroups_give_back_what_is_deleted_whatever_snapshots_hold(pool: Directory) -> None:
    source = made(pool, "source")
    fill(source / "file", SIZE * 3 // 4)
    taken(pool, "source", "snapshot", read_only=True)
    (source / "file").unlink()
    assert fill(source / "again", end=errno.EDQUOT) >= SIZE - SLACK
    assert path(pool, "snapshot", "file").stat().st_size == SIZE * 3 // 4


def overwrite(file: Path, size: int) -> None:
    with opened(file, os.O_WRONLY) as fd:
        os.write(fd, b"y" * size)
        os.fsync(fd)


@SIMPLE
def test_simple_quotas_give_a_clone_its_size_beside_what_it_shares_and_never_more_of_the_pool(pool: Directory) -> None:
    source = made(pool, "source")
    fill(source / "file", SIZE * 3 // 4)
    clone = taken(pool, "source", "clone")
    assert held(pool, "clone").used < SLACK
    assert SIZE - SLACK <= fill(clone / "other", end=errno.EDQUOT) < SIZE
    with pytest.raises(OSError, match="quota"):
        overwrite(clone / "file", SIZE // 2)
    assert held(pool, "clone").used <= SIZE
    assert held(pool, "source").used <= SIZE


@SIMPLE
def test_simple_quotas_count_for_a_volume_what_its_snapshots_hold_so_its_limit_is_raised_by_it(pool: Directory) -> None:
    source = made(pool, "source")
    fill(source / "file", SIZE * 3 // 4)
    used = held(pool, "source").used
    taken(pool, "source", "snapshot", read_only=True)
    (source / "file").unlink()
    assert fill(source / "again", end=errno.EDQUOT) <= SIZE // 4
    limit(pool, "source", SIZE + used)
    assert SIZE - SLACK <= fill(source / "again", end=errno.EDQUOT) < SIZE + SLACK
    btrfs.destroy(pool, "snapshot")
    (source / "again").unlink()
    limit(pool, "source", SIZE)


@SIMPLE
def test_subvolumes_that_a_pod_makes_in_its_volume_are_held_with_it(pool: Directory) -> None:
    """No right is needed to make one, and each would have no limit of its own."""
    os.chown(made(pool, "volume"), 65534, 65534)

    def escape() -> int:
        with Directory(os.open(".", os.O_RDONLY)) as here:
            here.fd = os.open("volume", os.O_RDONLY)
            btrfs._create(here, "inner", btrfs._SUBVOL_CREATE_V2, source=0, flags=0)
            first = fill(Path("volume/inner/file"), SIZE // 2)
            with here.child("inner") as inner:
                btrfs._create(inner, "innermost", btrfs._SUBVOL_CREATE_V2, source=0, flags=0)
            second = fill(Path("volume/inner/innermost/file"), end=errno.EDQUOT)
        return 0 if first == SIZE // 2 and SIZE // 2 - SLACK <= second < SIZE // 2 else 2

    assert as_somebody(pool, escape) == 0
    assert held(pool, "volume").used <= SIZE


@QGROUP
def test_qgroups_do_not_hold_what_a_pod_makes_in_its_volume_and_nested_tells(pool: Directory) -> None:
    """What the module says they cannot do; here to be seen when a kernel can."""
    made(pool, "volume")
    with pool.child("volume") as volume:
        btrfs.make(volume, "inner")
        assert fill(path(volume, "inner", "file"), 2 * SIZE) == 2 * SIZE
        assert len(btrfs.nested(volume.fd)) == 1
    assert held(pool, "volume").used < SLACK


@BOTH
def test_a_volume_with_a_limit_is_destroyed_with_all_that_the_kernel_kept_for_it(pool: Directory) -> None:
    source = made(pool, "volume")
    fill(source / "file", SIZE // 2)
    with pool.child("volume") as volume:
        btrfs.make(volume, "inner")
        fill(path(volume, "inner", "file"), SIZE // 4)
        for _ in range(2):
            qgroups.drop_limit(pool, "volume")
        assert qgroups.read_limit(volume.fd).limit == 0
    btrfs.destroy(pool, "volume")
    tool("btrfs", "subvolume", "sync", path(pool))
    # What is gone still counts until the next commit, and so long the kernel keeps its group.
    btrfs.commit(pool.fd)
    qgroups.clear_stale(pool.fd)
    btrfs.commit(pool.fd)
    assert [group & 2**48 - 1 for group, _ in qgroups._items(pool.fd, 0, qgroups._INFO_ITEM)] == [5]


@SIMPLE
def test_what_others_still_share_is_not_forgotten_and_what_is_left_over_is_found(pool: Directory) -> None:
    source = made(pool, "source")
    fill(source / "file", SIZE // 2)
    taken(pool, "source", "clone")
    btrfs.destroy(pool, "source")
    tool("btrfs", "subvolume", "sync", path(pool))
    assert qgroups.clear_stale(pool.fd) == 1
    assert qgroups.clear_stale(pool.fd) == 0
    kept = {group: qgroups._INFO.unpack_from(info)[0] for group, info in qgroups._items(pool.fd, 0, qgroups._INFO_ITEM)}
    assert sum(1 for used in kept.values() if SIZE // 2 <= used <= SIZE // 2 + SLACK) == 1
    assert held(pool, "clone").limit == SIZE
    btrfs.destroy(pool, "clone")


@BOTH
def test_clearing_leaves_what_is_in_use_and_what_others_made(pool: Directory) -> None:
    made(pool, "volume")
    tool("btrfs", "qgroup", "create", "1/4711", path(pool))
    assert qgroups.clear_stale(pool.fd) == 0
    assert held(pool, "volume").limit == SIZE
    assert "1/4711" in tool("btrfs", "qgroup", "show", path(pool)).stdout


def test_without_quotas_nothing_is_promised(area: Path) -> None:
    with emptied(area) as folder:
        btrfs.make(folder, "volume")
        assert qgroups.state(folder.fd).quota is Quota.OFF
        reason = qgroups.subvolume_quota_supported(str(path(folder)))
        assert reason is not None
        assert "btrfs quota enable" in reason
        with folder.child("volume") as volume:
            with pytest.raises(OSError, match="no quotas switched on"):
                limit(folder, "volume", SIZE)
            with pytest.raises(OSError, match="no quotas switched on") as caught:
                qgroups.read_limit(volume.fd)
            assert caught.value.errno == errno.ESRCH
            qgroups.drop_limit(folder, "volume")
        assert qgroups.clear_stale(folder.fd) == 0


def test_another_filesystem_says_so_and_an_absent_path_is_an_error(area: Path) -> None:
    reason = qgroups.subvolume_quota_supported(str(area))
    assert reason is not None
    assert "no subvolumes" in reason
    with opened(area, os.O_RDONLY) as fd:
        assert qgroups.state(fd).quota is Quota.OFF
    with pytest.raises(FileNotFoundError):
        qgroups.subvolume_quota_supported(str(area / "absent"))


@BOTH
def test_a_way_of_counting_that_is_on_stays(pool: Directory) -> None:
    kind = qgroups.state(pool.fd).quota
    assert qgroups.subvolume_quota_supported(str(path(pool))) is None
    for simple in (True, False):
        assert qgroups.enable(pool.fd, simple=simple, pause=lambda: None) is kind


def test_a_kernel_without_simple_quotas_gets_qgroups(area: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qgroups, "_ENABLE_SIMPLE", 77)
    with emptied(area) as folder:
        assert qgroups.enable(folder.fd, pause=lambda: None) is Quota.QGROUP


def test_qgroups_count_what_is_there_already_before_they_are_ready(area: Path) -> None:
    with emptied(area) as folder:
        btrfs.make(folder, "volume")
        fill(path(folder, "volume", "file"), SIZE // 2)
        switched_on(folder, Quota.QGROUP)
        assert held(folder, "volume").used >= SIZE // 2
        limit(folder, "volume", SIZE)
        assert fill(path(folder, "volume", "other"), end=errno.EDQUOT) < SIZE // 2


def test_simple_quotas_are_not_promised_for_what_was_there_already(area: Path) -> None:
    with emptied(area) as folder:
        btrfs.make(folder, "volume")
        fill(path(folder, "volume", "file"), SIZE // 2)
        switched_on(folder, Quota.SIMPLE)
        with pytest.raises(OSError, match="made before the filesystem counted"):
            limit(folder, "volume", SIZE)
        clone = path(folder, "clone")
        with folder.child("volume") as volume:
            btrfs.snapshot(volume, folder, "clone", read_only=False)
        limit(folder, "clone", SIZE)
        assert SIZE - SLACK <= fill(clone / "other", end=errno.EDQUOT) < SIZE


def inconsistent(folder: Directory) -> bool:
    """What the kernel says in another place than the one that is looked at."""
    number = tool("findmnt", "-n", "-o", "UUID", path(folder)).stdout.strip()
    return Path(f"/sys/fs/btrfs/{number}/qgroups/inconsistent").read_text(encoding="ascii").strip() == "1"


@QGROUP
def test_inconsistent_qgroups_are_told_refused_and_repaired(pool: Directory) -> None:
    volume = made(pool, "volume")
    fill(volume / "file", SIZE // 2)
    tool("btrfs", "qgroup", "create", "1/1", path(pool))
    number = next(iter(_ids(pool, "volume")))
    tool("btrfs", "qgroup", "assign", "--no-rescan", f"0/{number}", "1/1", path(pool))
    with pool.child("volume") as one:
        btrfs.snapshot(one, pool, "snapshot", read_only=True)
    if not inconsistent(pool):
        pytest.skip("this kernel keeps qgroups consistent when a member of a group is copied out of it")
    reason = qgroups.subvolume_quota_supported(str(path(pool)))
    assert reason is not None
    assert "btrfs quota rescan" in reason
    with pytest.raises(OSError, match="inconsistent"):
        limit(pool, "volume", SIZE)
    assert qgroups.enable(pool.fd, pause=lambda: None) is Quota.QGROUP
    assert not inconsistent(pool)
    assert qgroups.subvolume_quota_supported(str(path(pool))) is None
    assert held(pool, "volume").limit == SIZE
    assert SIZE // 2 - SLACK <= fill(volume / "other", end=errno.EDQUOT) < SIZE // 2


def _ids(folder: Directory, *names: str) -> Iterator[int]:
    for name in names:
        with folder.child(name) as one:
            seen = btrfs.subvolume(one.fd)
        assert seen is not None
        yield seen.id


@QGROUP
def test_a_pause_that_gives_up_leaves_what_a_later_call_finishes(
    pool: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give_up() -> None:
        raise TimeoutError

    with monkeypatch.context() as patched:
        patched.setattr(qgroups, "_is_counting", lambda _: True)
        with pytest.raises(TimeoutError):
            qgroups.enable(pool.fd, pause=give_up)
    assert qgroups.enable(pool.fd, pause=give_up) is Quota.QGROUP


@BOTH
def test_a_limit_that_is_not_kept_is_an_error(pool: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    btrfs.make(pool, "volume")
    monkeypatch.setattr(qgroups, "_MAX_RFER", 2)
    with pytest.raises(OSError, match="did not keep the limit"):
        limit(pool, "volume", SIZE)


@BOTH
def test_what_is_not_a_subvolume_has_no_limit(pool: Directory) -> None:
    made(pool, "volume")
    path(pool, "volume", "below").mkdir()
    with pool.child("volume") as volume, volume.child("below") as below:
        for call in (
            lambda: qgroups.set_limit(volume, "below", SIZE),
            lambda: qgroups.drop_limit(volume, "below"),
            lambda: qgroups.read_limit(below.fd),
        ):
            with pytest.raises(OSError, match="not the directory of a btrfs subvolume"):
                call()
    assert held(pool, "volume").limit == SIZE
