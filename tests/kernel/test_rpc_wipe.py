"""Wiping a volume over gRPC: the old bytes are gone, the next claim's never are, and a used volume is left alone."""

import asyncio
import json
import threading
from pathlib import Path

import grpc
import grpc.aio
import pytest

from moorage_csi.host import filesystems, loops
from moorage_csi.proto import moorage_pb2
from moorage_csi.rpc.validation import MOST_WIPES
from moorage_csi.volumes import lane
from moorage_csi.volumes.pool import PoolSettings
from tests.kernel.rpc_driver import DIRECTORY, MIB, SIZE, Driver, capability, detached, refused, running
from tests.kernel.wipe_client import record_of, wiping

pytestmark = pytest.mark.kernel

SECRET = b"what the old claim wrote"
XFS_SIZE = 320 * MIB


def _contains(path: Path, needle: bytes) -> bool:
    with path.open("rb") as file:
        return any(needle in chunk for chunk in iter(lambda: file.read(8 * MIB), b""))


async def _written(driver: Driver, volume: str, content: bytes) -> None:
    """Write as a pod does, in a file, and end the pod."""
    target = driver.target("writer")
    await driver.publish(volume, target)
    (target / "file").write_bytes(content)
    await driver.unpublish(volume, target)


async def _read(driver: Driver, volume: str) -> dict[str, bytes]:
    """The files that a pod finds."""
    target = driver.target("reader")
    await driver.publish(volume, target)
    found = {path.name: path.read_bytes() for path in target.iterdir() if path.is_file()}
    await driver.unpublish(volume, target)
    return found


@pytest.mark.parametrize(
    ("parameters", "filesystem", "size"),
    [({}, "ext4", SIZE), ({}, "xfs", XFS_SIZE), (DIRECTORY, "", SIZE)],
    ids=["ext4", "xfs", "directory"],
)
async def test_old_data_is_gone_and_the_volume_is_the_same(
    driver: Driver, parameters: dict[str, str], filesystem: str, size: int
) -> None:
    made = await driver.create(parameters=parameters, size=size, wanted=capability(filesystem=filesystem))
    volume = made.volume_id
    await _written(driver, volume, SECRET)
    before = record_of(driver, volume)
    async with wiping(driver) as wipe:
        await wipe(volume)
    assert record_of(driver, volume) == before | {"version": 2, "wipedFor": ["uid-1"]}
    assert await _read(driver, volume) == {}
    image = driver.volume_folder(volume) / "image"
    if parameters:
        assert (driver.volume_folder(volume) / "data").stat().st_mode & 0o7777 == 0o770
    else:
        assert image.stat().st_size == size
        assert filesystems.detect(str(image)) == filesystem
        assert not _contains(image, SECRET)
    again = await driver.create(parameters=parameters, size=size, wanted=capability(filesystem=filesystem))
    assert again == made
    await driver.emptied()
    await driver.delete(volume)
    await driver.emptied()
    assert driver.left() == []


async def test_a_raw_block_volume_is_zeroes_again(driver: Driver) -> None:
    volume = (await driver.create(wanted=capability(block=True))).volume_id
    target = driver.target("pod")
    await driver.publish(volume, target, wanted=capability(block=True))
    with target.open("r+b") as device:
        device.write(SECRET)
        device.seek(SIZE - 4096)
        device.write(SECRET)
    await driver.unpublish(volume, target)
    async with wiping(driver) as wipe:
        await wipe(volume)
    image = driver.volume_folder(volume) / "image"
    assert image.stat().st_size == SIZE
    assert image.read_bytes().count(0) == SIZE
    assert filesystems.detect(str(image)) is None
    await driver.publish(volume, target, wanted=capability(block=True))
    with target.open("rb") as device:
        assert device.read(len(SECRET)) == bytes(len(SECRET))
        assert device.seek(0, 2) == SIZE
    await driver.unpublish(volume, target)


@pytest.mark.parametrize(
    ("parameters", "block"), [({}, False), ({}, True), (DIRECTORY, False)], ids=["ext4", "block", "directory"]
)
async def test_a_published_volume_is_refused_and_left_as_it_is(
    driver: Driver, parameters: dict[str, str], *, block: bool
) -> None:
    wanted = capability(block=block)
    volume = (await driver.create(parameters=parameters, wanted=wanted)).volume_id
    target = driver.target("pod")
    await driver.publish(volume, target, wanted=wanted)
    before = record_of(driver, volume)
    [storage] = [path for path in driver.volume_folder(volume).iterdir() if path.name != "record.json"]
    inode = storage.stat().st_ino
    async with wiping(driver) as wipe:
        with refused(grpc.StatusCode.FAILED_PRECONDITION, str(target), "unpublish it first"):
            await wipe(volume)
        assert record_of(driver, volume) == before
        assert storage.stat().st_ino == inode
        await driver.unpublish(volume, target)
        await wipe(volume)
    assert storage.stat().st_ino != inode


async def test_an_image_that_somebody_attached_is_refused(driver: Driver) -> None:
    volume = (await driver.create()).volume_id
    image = driver.volume_folder(volume) / "image"
    with image.open("r+b") as file, loops.ensure(backing_fd=file.fileno(), name="by-hand", autoclear=True) as loop:
        async with wiping(driver) as wipe:
            with refused(grpc.StatusCode.FAILED_PRECONDITION, loop.path):
                await wipe(volume)
    await detached(image)
    async with wiping(driver) as wipe:
        await wipe(volume)


@pytest.mark.parametrize("parameters", [{}, DIRECTORY], ids=["image", "directory"])
async def test_a_late_duplicate_never_touches_the_next_claims_data(area: Path, parameters: dict[str, str]) -> None:
    async with running(area) as driver, wiping(driver) as wipe:
        volume = (await driver.create(parameters=parameters)).volume_id
        await _written(driver, volume, SECRET)
        await wipe(volume, "uid-1")
        await _written(driver, volume, b"second")
        await wipe(volume, "uid-1")
        assert await _read(driver, volume) == {"file": b"second"}
        await wipe(volume, "uid-2")
        await _written(driver, volume, b"third")
        # Also the call of the claim before the last one, and while the volume is in use.
        target = driver.target("pod")
        await driver.publish(volume, target)
        for uid in ("uid-1", "uid-2"):
            await wipe(volume, uid)
        assert (target / "file").read_bytes() == b"third"
        await driver.unpublish(volume, target)
    async with running(area) as driver, wiping(driver) as wipe:
        for uid in ("uid-2", "uid-1"):
            await wipe(volume, uid)
        assert await _read(driver, volume) == {"file": b"third"}
        await wipe(volume, "uid-3")
        assert await _read(driver, volume) == {}
        assert record_of(driver, volume)["wipedFor"] == ["uid-1", "uid-2", "uid-3"]


async def test_what_cannot_be_wiped_is_told(driver: Driver) -> None:
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    async with wiping(driver) as wipe:
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "volume_id"):
            await wipe("")
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "volume_id"):
            await wipe("../" + volume)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "released_uid"):
            await wipe(volume, "")
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "released_uid"):
            await wipe(volume, "a b")
        with refused(grpc.StatusCode.NOT_FOUND, "vol-" + "0" * 32):
            await wipe("vol-" + "0" * 32)
        await driver.delete(volume)
        with refused(grpc.StatusCode.NOT_FOUND, volume):
            await wipe(volume)


async def test_one_call_at_a_time_with_create_publish_and_delete(driver: Driver) -> None:
    volume = (await driver.create()).volume_id
    async with wiping(driver) as wipe:
        held = asyncio.Event()
        holding = asyncio.create_task(driver.guard.run(volume, held.wait))
        try:
            await asyncio.sleep(0)
            with refused(grpc.StatusCode.ABORTED, volume):
                await wipe(volume)
        finally:
            held.set()
            await holding
        calls = [wipe(volume) for _ in range(8)] + [driver.delete(volume)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    codes = [error.code() for error in outcomes if isinstance(error, grpc.aio.AioRpcError)]
    assert grpc.StatusCode.ABORTED in codes
    assert set(codes) <= {grpc.StatusCode.ABORTED, grpc.StatusCode.NOT_FOUND}


async def test_a_wipe_whose_caller_gave_up_ends_all_the_same(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = (await driver.create()).volume_id
    await _written(driver, volume, SECRET)
    real, begun, may_end = filesystems.make, threading.Event(), threading.Event()

    async def slow(**arguments: object) -> None:
        begun.set()
        may_end.wait(20)
        await real(**arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(filesystems, "make", slow)
    async with wiping(driver) as wipe:
        call = wipe.volumes.WipeVolume(moorage_pb2.WipeVolumeRequest(volume_id=volume, released_uid="uid-1"))
        assert await asyncio.to_thread(begun.wait, 20)
        call.cancel()
        may_end.set()
        assert await driver.guard.drain(20)
        record = record_of(driver, volume)
        assert (record["state"], record["wipedFor"]) == ("ready", ["uid-1"])
    assert await _read(driver, volume) == {}


async def test_a_failed_mkfs_leaves_a_volume_that_nobody_uses_until_it_is_wiped(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = (await driver.create()).volume_id
    await _written(driver, volume, SECRET)

    async def fails(**_: object) -> None:
        raise OSError(28, "No space left on device")

    async with wiping(driver) as wipe:
        with monkeypatch.context() as broken:
            broken.setattr(filesystems, "make", fails)
            for _ in range(2):
                with refused(grpc.StatusCode.UNAVAILABLE, "No space left", "ask again"):
                    await wipe(volume)
        record = record_of(driver, volume)
        assert (record["state"], record["formatted"]) == ("wiping", False)
        with refused(grpc.StatusCode.UNAVAILABLE, "wiping"):
            await driver.publish(volume, driver.target("pod"))
        await wipe(volume, "uid-2")
    assert await _read(driver, volume) == {}
    assert record_of(driver, volume)["wipedFor"] == ["uid-1", "uid-2"]


async def test_a_record_of_the_release_before_is_wiped_too(area: Path) -> None:
    async with running(area) as driver:
        volume = (await driver.create(parameters=DIRECTORY)).volume_id
        assert record_of(driver, volume)["version"] == 1
    async with running(area) as driver, wiping(driver) as wipe:
        await wipe(volume)
        assert record_of(driver, volume)["wipedFor"] == ["uid-1"]


async def test_a_record_that_has_room_for_no_uid_more_is_not_wiped(area: Path) -> None:
    async with running(area) as driver:
        volume = (await driver.create(parameters=DIRECTORY)).volume_id
        await _written(driver, volume, SECRET)
        full = record_of(driver, volume) | {"version": 2, "wipedFor": [f"uid-{n}" for n in range(MOST_WIPES)]}
    (driver.volume_folder(volume) / "record.json").write_text(json.dumps(full))
    async with running(area) as driver, wiping(driver) as wipe:
        with refused(grpc.StatusCode.FAILED_PRECONDITION, str(MOST_WIPES), "delete it"):
            await wipe(volume, "one-more")
        await wipe(volume, "uid-0")
        assert await _read(driver, volume) == {"file": SECRET}


async def test_retained_data_is_wiped_and_what_came_after_is_retained(driver: Driver) -> None:
    volume = (await driver.create(parameters={**DIRECTORY, "onDelete": "retain"})).volume_id
    await _written(driver, volume, SECRET)
    async with wiping(driver) as wipe:
        await wipe(volume)
    await _written(driver, volume, b"second")
    await driver.emptied()
    await driver.delete(volume)
    [kept] = (driver.pool / "retained").iterdir()
    assert (kept / "data" / "file").read_bytes() == b"second"


async def test_nodes_of_a_shared_pool_wipe_one_after_the_other(area: Path) -> None:
    settings = [PoolSettings(name="default", path=str(area / "pool"), shared=True)]
    (area / "second").mkdir()
    async with running(area, settings) as first, running(area / "second", settings, node="node-2") as second:
        volume = (await first.create(parameters=DIRECTORY)).volume_id
        await _written(first, volume, SECRET)
        async with wiping(first) as here, wiping(second, node="node-2") as there:
            await asyncio.gather(here(volume), there(volume))
            await _written(first, volume, b"second")
            await there(volume)
            assert await _read(second, volume) == {"file": b"second"}
            await asyncio.gather(here(volume, "uid-2"), there(volume, "uid-2"))
            assert await _read(second, volume) == {}
            assert record_of(first, volume)["wipedFor"] == ["uid-1", "uid-2"]


async def test_many_wipes_at_a_time_in_a_shared_pool_do_not_wait_for_each_other_for_ever(area: Path) -> None:
    settings = [PoolSettings(name="default", path=str(area / "pool"), shared=True)]
    async with running(area, settings) as driver, wiping(driver) as wipe:
        count = 3 * lane.THREADS
        volumes = [(await driver.create(f"pvc-{n}", parameters=DIRECTORY)).volume_id for n in range(count)]
        async with asyncio.timeout(30):
            made = [driver.create(f"more-{n}", parameters=DIRECTORY) for n in range(count)]
            await asyncio.gather(*map(wipe, volumes), *made)
        for volume in volumes:
            assert record_of(driver, volume)["wipedFor"] == ["uid-1"]
