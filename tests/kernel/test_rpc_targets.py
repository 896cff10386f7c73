"""The path at which a pod wants its volume, in every state in which it is found: left over, in use, stacked, gone, foreign.

A target is the kubelet's, and what lies there may be somebody else's: nothing is mounted over it, nothing in it is
removed, and a call that could not do its work says so.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from moorage_csi.host import freezing, loops, mounts
from tests.kernel.kinds import BLOCK, EACH, EXT4, XFS, Kind, each
from tests.kernel.machine import mounted, opened
from tests.kernel.rpc_driver import Driver, attached, detached, mounted_below, refused
from tests.kernel.test_rpc_snapshots import FREEZE

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

SENTINEL = b"not ours"


def put(path: Path, kind: Kind) -> None:
    """What the kind's volumes are mounted on."""
    if kind.block:
        path.touch()
    else:
        path.mkdir()


@pytest.fixture
def outside(area: Path) -> Path:
    """A folder of somebody else's, beside the pool and the kubelet's."""
    folder = area / "outside"
    folder.mkdir()
    (folder / "file").write_bytes(SENTINEL)
    return folder


def untouched(folder: Path) -> bool:
    return [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("file", SENTINEL)]


@contextlib.contextmanager
def bound(source: Path, target: Path) -> Iterator[None]:
    """Show a folder or a file at the target, and look away if it is gone at the end."""
    with opened(source, os.O_PATH) as one, opened(target, os.O_PATH) as other:
        mounts.bind(source_fd=one, target_fd=other)
    try:
        yield
    finally:
        mounts.unmount(str(target))


async def free(driver: Driver, kind: Kind, volume: str) -> None:
    """Nothing of the volume is used any more: it can be deleted."""
    assert mounted_below(driver.kubelet) == []
    if kind.piece == "image":
        await detached(driver.volume_folder(volume) / "image")
    await driver.delete(volume)
    await driver.emptied()


@each(*EACH)
async def test_a_target_that_is_left_over_is_used_and_goes(area: Path, kind: Kind) -> None:
    async with kind.driver(area) as driver:
        volume = await kind.create(driver)
        target = driver.target("pod")
        put(target, kind)
        await driver.publish(volume, target, wanted=kind.wanted)
        assert mounted_below(driver.kubelet) == [str(target)]
        await driver.unpublish(volume, target)
        assert not target.exists()
        put(target, kind)
        await driver.unpublish(volume, target)
        assert not target.exists(), "left by a crash between unmounting and removing"
        await free(driver, kind, volume)


@each(*EACH)
async def test_a_target_that_is_not_there_is_unpublished_however_often(area: Path, kind: Kind) -> None:
    async with kind.driver(area) as driver:
        volume = await kind.create(driver)
        target = driver.target("pod")
        for absent in (target, driver.kubelet / "pods" / "other" / "volumes" / "mount", driver.kubelet / "x"):
            for _ in range(5):
                await driver.unpublish(volume, absent)
                await driver.unpublish("vol-" + "0" * 32, absent)
            assert not absent.exists()
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "has to exist"):
            await driver.publish(volume, driver.kubelet / "pods" / "other" / "volumes" / "mount", wanted=kind.wanted)
        await free(driver, kind, volume)


@each(*EACH)
async def test_a_target_in_use_stays_and_the_call_says_so(area: Path, kind: Kind) -> None:
    async with kind.driver(area) as driver:
        volume = await kind.create(driver)
        target = driver.target("pod")
        await driver.publish(volume, target, wanted=kind.wanted)
        with opened(target, os.O_RDONLY):
            for _ in range(2):
                with refused(grpc.StatusCode.FAILED_PRECONDITION, str(target), "in use"):
                    await driver.unpublish(volume, target)
            assert mounted_below(driver.kubelet) == [str(target)]
        for _ in range(3):
            await driver.unpublish(volume, target)
        assert not target.exists()
        await free(driver, kind, volume)


@each(*EACH)
async def test_a_mount_below_the_target_keeps_it(area: Path, kind: Kind, outside: Path) -> None:
    if kind.block:
        pytest.skip("there is nothing below a device")
    async with kind.driver(area) as driver:
        volume = await kind.create(driver)
        target = driver.target("pod")
        await driver.publish(volume, target, wanted=kind.wanted)
        (target / "below").mkdir()
        with bound(outside, target / "below"):
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "in use"):
                await driver.unpublish(volume, target)
            assert sorted(mounted_below(driver.kubelet)) == [str(target), str(target / "below")]
        assert untouched(outside)
        await driver.unpublish(volume, target)
        await free(driver, kind, volume)


@each(*EACH)
async def test_all_that_is_stacked_on_a_target_goes(area: Path, kind: Kind) -> None:
    async with kind.driver(area) as driver:
        volume = await kind.create(driver)
        target = driver.target("pod")
        await driver.publish(volume, target, wanted=kind.wanted)
        with bound(target, target), bound(target, target):
            assert mounted_below(driver.kubelet) == [str(target)] * 3
            await driver.publish(volume, target, wanted=kind.wanted)
            assert mounted_below(driver.kubelet) == [str(target)] * 3, "published already"
            await driver.unpublish(volume, target)
            assert mounted_below(driver.kubelet) == []
            assert not target.exists()
        await free(driver, kind, volume)


@each(*EACH)
async def test_nothing_is_mounted_over_what_somebody_else_has_there(area: Path, kind: Kind, outside: Path) -> None:
    async with kind.driver(area) as driver:
        volume = await kind.create(driver)
        target = driver.target("pod")
        put(target, kind)
        with bound(outside / "file" if kind.block else outside, target):
            before = mounts.mounts()
            with refused(grpc.StatusCode.FAILED_PRECONDITION, str(target), "not this volume", "unmount it first"):
                await driver.publish(volume, target, wanted=kind.wanted)
            assert mounts.mounts() == before
        assert untouched(outside)
        if kind.piece == "image":
            await detached(driver.volume_folder(volume) / "image")
        await driver.publish(volume, target, wanted=kind.wanted)
        with bound(outside / "file" if kind.block else outside, target):
            # Over the volume lies something else: it is not published any more, and must not be twice.
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "not this volume"):
                await driver.publish(volume, target, wanted=kind.wanted)
            assert mounted_below(driver.kubelet) == [str(target)] * 2
        assert untouched(outside)
        await driver.unpublish(volume, target)
        await free(driver, kind, volume)


@each(*EACH)
async def test_what_lies_over_the_volume_goes_with_it_and_loses_nothing(area: Path, kind: Kind, outside: Path) -> None:
    """The kubelet waits for a path with no mount on it; taking one away removes no data."""
    async with kind.driver(area) as driver:
        volume = await kind.create(driver)
        target = driver.target("pod")
        await driver.publish(volume, target, wanted=kind.wanted)
        with bound(outside / "file" if kind.block else outside, target):
            await driver.unpublish(volume, target)
            assert mounted_below(driver.kubelet) == []
        assert untouched(outside)
        await free(driver, kind, volume)


async def test_a_filesystem_in_memory_at_the_target_is_not_used_as_the_volume(area: Path) -> None:
    async with EXT4.driver(area) as driver:
        volume = await EXT4.create(driver)
        target = driver.target("pod")
        target.mkdir()
        with mounted(target, "-t", "tmpfs", "none"):
            (target / "file").write_bytes(SENTINEL)
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "not this volume"):
                await driver.publish(volume, target, wanted=EXT4.wanted)
            with refused(grpc.StatusCode.NOT_FOUND):
                await driver.stats(volume, target)
            assert untouched(target)
        await driver.unpublish(volume, target)


@each(*EACH)
async def test_files_that_lie_at_the_target_are_neither_removed_nor_hidden(area: Path, kind: Kind) -> None:
    async with kind.driver(area) as driver:
        volume = await kind.create(driver)
        target = driver.target("pod")
        target.mkdir()
        (target / "file").write_bytes(SENTINEL)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, str(target), "holds something"):
            await driver.unpublish(volume, target)
        assert untouched(target)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, str(target)):
            await driver.publish(volume, target, wanted=kind.wanted)
        assert mounted_below(driver.kubelet) == []
        assert untouched(target)
        await free(driver, kind, volume)


@each(*EACH)
async def test_a_link_or_the_wrong_kind_of_file_at_the_target_is_refused_and_not_followed(
    area: Path, kind: Kind, outside: Path
) -> None:
    async with kind.driver(area) as driver:
        volume = await kind.create(driver)
        target = driver.target("pod")
        for links_to in (outside, outside / "file", outside / "absent", Path("/")):
            target.symlink_to(links_to)
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "link"):
                await driver.publish(volume, target, wanted=kind.wanted)
            await driver.unpublish(volume, target)
            assert not target.is_symlink(), "the link itself goes, as any target does"
        put(target, BLOCK if not kind.block else EXT4)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, str(target)):
            await driver.publish(volume, target, wanted=kind.wanted)
        await driver.unpublish(volume, target)
        for folder in (target.parent, target.parent.parent):
            folder.rename(folder.with_name("real"))
            folder.symlink_to(outside)
            for call in (driver.publish(volume, target, wanted=kind.wanted), driver.unpublish(volume, target)):
                with refused(grpc.StatusCode.FAILED_PRECONDITION, "link"):
                    await call
            folder.unlink()
            folder.with_name("real").rename(folder)
        assert mounted_below(area / "kubelet") == []
        assert untouched(outside)
        await free(driver, kind, volume)


@each(*EACH)
async def test_a_driver_started_again_takes_away_what_the_last_one_left(area: Path, kind: Kind) -> None:
    with kind.pool(area) as pool:
        async with kind.started(area, pool) as first:
            volume = await kind.create(first)
            target = first.target("pod")
            await first.publish(volume, target, wanted=kind.wanted)
        with bound(target, target):
            async with kind.started(area, pool) as second:
                await second.publish(volume, target, wanted=kind.wanted)
                assert len(await second.stats(volume, target)) > 0
                await second.unpublish(volume, target)
                assert not target.exists()
                await free(second, kind, volume)


@each(*EACH)
async def test_a_pod_can_end_when_its_volume_or_its_pool_is_unknown(area: Path, kind: Kind) -> None:
    with kind.pool(area) as pool:
        async with kind.started(area, pool) as first:
            volume = await kind.create(first)
            target = first.target("pod")
            await first.publish(volume, target, wanted=kind.wanted)
        (pool / "volumes" / volume / "record.json").write_bytes(b"{")
        async with kind.started(area, pool) as second:
            await second.unpublish(volume, target)
            assert not target.exists()
            assert mounted_below(second.kubelet) == []
            for device in attached(pool / "volumes" / volume / "image") if kind.block else ():
                loops.detach(device.number)


async def test_a_pod_can_end_when_its_device_was_taken_away_under_it(area: Path) -> None:
    async with BLOCK.driver(area) as driver:
        volume = await BLOCK.create(driver)
        target = driver.target("pod")
        await driver.publish(volume, target, wanted=BLOCK.wanted)
        [device] = attached(driver.volume_folder(volume) / "image")
        assert loops.detach(device.number)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "unmount it first"):
            await driver.publish(volume, target, wanted=BLOCK.wanted)
        await driver.unpublish(volume, target)
        assert not target.exists()
        await driver.publish(volume, target, wanted=BLOCK.wanted)
        assert target.is_block_device()
        await driver.unpublish(volume, target)
        await free(driver, BLOCK, volume)


@each(EXT4, XFS)
async def test_a_volume_that_somebody_froze_is_not_deleted_and_its_pod_can_end(area: Path, kind: Kind) -> None:
    async with kind.driver(area) as driver:
        volume = await kind.create(driver)
        target = driver.target("pod")
        await driver.publish(volume, target, wanted=kind.wanted)
        (target / "file").write_bytes(b"kept")
        with opened(target, os.O_RDONLY) as fd:
            fcntl.ioctl(fd, FREEZE, 0)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, str(target)):
            await driver.delete(volume)
        await driver.unpublish(volume, target)
        assert not target.exists()
        await driver.publish(volume, target, wanted=kind.wanted)
        assert (target / "file").read_bytes() == b"kept"
        with opened(target, os.O_RDONLY) as fd:
            # Looked at first: who writes to a frozen filesystem waits for ever.
            assert not freezing.thaw(fd)
        (target / "file").write_bytes(b"written again")
        await driver.unpublish(volume, target)
        await free(driver, kind, volume)
