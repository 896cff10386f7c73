"""Volumes of the backend ``image``, from the claim's first byte to the last."""

import asyncio
import os
from pathlib import Path

import grpc
import pytest

from moorage_csi.host import loops, mounts
from tests.kernel.rpc_driver import (
    MIB,
    SIZE,
    Driver,
    Modes,
    attached,
    capability,
    detached,
    mounted_below,
    refused,
    running,
)

pytestmark = pytest.mark.kernel


async def test_a_volume_is_made_written_read_by_a_second_pod_and_gone(driver: Driver) -> None:
    volume = await driver.create()
    assert volume.capacity_bytes == SIZE
    assert dict(volume.volume_context) == {
        "backend": "image",
        "pool": "default",
        "filesystem": "ext4",
        "quota": "enforced",
        "onDelete": "delete",
    }
    assert [dict(place.segments) for place in volume.accessible_topology] == [{"topology.moorage.dev/node": "node-1"}]
    image = driver.volume_folder(volume.volume_id) / "image"
    first, second = driver.target("one"), driver.target("two")

    await driver.publish(volume.volume_id, first)
    (first / "file").write_bytes(b"kept")
    await driver.unpublish(volume.volume_id, first)
    assert not first.exists()
    await detached(image)

    await driver.publish(volume.volume_id, second)
    assert (second / "file").read_bytes() == b"kept"
    await driver.unpublish(volume.volume_id, second)

    await driver.delete(volume.volume_id)
    await driver.emptied()
    assert driver.left() == []


async def test_the_size_is_a_limit_that_df_shows_and_writing_meets(driver: Driver) -> None:
    volume = await driver.create()
    target = driver.target("one")
    await driver.publish(volume.volume_id, target)
    total = os.statvfs(target).f_blocks * os.statvfs(target).f_frsize
    assert 0.9 * SIZE < total <= SIZE
    with pytest.raises(OSError, match="No space left"):
        _fill(target / "big")
    assert 0.85 * SIZE < (target / "big").stat().st_size < SIZE
    usage = await driver.stats(volume.volume_id, target)
    assert usage["BYTES"].total == total
    assert usage["BYTES"].available < MIB
    assert usage["INODES"].used > 0
    await driver.unpublish(volume.volume_id, target)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * MIB)


async def test_every_call_may_be_repeated(driver: Driver) -> None:
    first = await driver.create()
    image = driver.volume_folder(first.volume_id) / "image"
    inode = image.stat().st_ino
    assert await driver.create() == first
    assert image.stat().st_ino == inode
    target = driver.target("one")
    for _ in range(3):
        await driver.publish(first.volume_id, target)
    assert mounted_below(driver.kubelet) == [str(target)]
    assert len(attached(image)) == 1
    for _ in range(5):
        await driver.unpublish(first.volume_id, target)
    await detached(image)
    for _ in range(3):
        await driver.delete(first.volume_id)


async def test_two_pods_share_one_device_and_the_last_one_frees_it(driver: Driver) -> None:
    volume = (await driver.create()).volume_id
    image = driver.volume_folder(volume) / "image"
    targets = [driver.target(pod) for pod in ("one", "two", "three")]
    for target in targets:
        await driver.publish(volume, target)
    (targets[0] / "file").write_text("seen by all")
    assert (targets[2] / "file").read_text() == "seen by all"
    assert len(attached(image)) == 1
    for number, target in enumerate(targets):
        assert len(attached(image)) == 1, number
        await driver.unpublish(volume, target)
    await detached(image)


async def test_publishing_while_the_last_other_target_goes_never_loses_the_device(driver: Driver) -> None:
    volume = (await driver.create()).volume_id
    targets = [driver.target("a"), driver.target("b")]
    await driver.publish(volume, targets[0])
    for turn in range(30):
        old, new = targets[turn % 2], targets[(turn + 1) % 2]

        async def until_done(call: str, target: Path) -> None:
            while True:
                try:
                    await (driver.publish(volume, target) if call == "publish" else driver.unpublish(volume, target))
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.ABORTED:
                        raise
                    await asyncio.sleep(0.001)
                else:
                    return

        await asyncio.gather(until_done("unpublish", old), until_done("publish", new))
        (new / "file").write_text(str(turn))
        assert mounted_below(driver.kubelet) == [str(new)]
    await driver.unpublish(volume, targets[0])
    await detached(driver.volume_folder(volume) / "image")


async def test_a_read_only_target_cannot_be_written_while_another_can(driver: Driver) -> None:
    volume = (await driver.create()).volume_id
    writer, reader, flagged = driver.target("writer"), driver.target("reader"), driver.target("flagged")
    await driver.publish(volume, writer)
    await driver.publish(volume, reader, readonly=True)
    await driver.publish(volume, flagged, wanted=capability(flags=["ro"]))
    await driver.publish(volume, flagged, wanted=capability(flags=["ro"]))
    (writer / "file").write_text("new")
    assert (reader / "file").read_text() == "new"
    for target in (reader, flagged):
        with pytest.raises(OSError, match="Read-only file system"):
            (target / "file").write_text("no")
    with refused(grpc.StatusCode.ALREADY_EXISTS, "read-only"):
        await driver.publish(volume, reader)
    with refused(grpc.StatusCode.ALREADY_EXISTS, "writable"):
        await driver.publish(volume, writer, readonly=True)
    for target in (writer, reader, flagged):
        await driver.unpublish(volume, target)


async def test_for_one_pod_alone_means_one_target(driver: Driver) -> None:
    volume = (await driver.create()).volume_id
    alone = capability(mode=Modes.SINGLE_NODE_SINGLE_WRITER)
    await driver.publish(volume, driver.target("one"), wanted=alone)
    await driver.publish(volume, driver.target("one"), wanted=alone)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "ReadWriteOncePod", str(driver.target("one"))):
        await driver.publish(volume, driver.target("two"), wanted=alone)
    await driver.unpublish(volume, driver.target("one"))
    await driver.publish(volume, driver.target("two"), wanted=alone)
    await driver.unpublish(volume, driver.target("two"))


async def test_mount_flags_reach_the_mount_and_the_filesystem(driver: Driver) -> None:
    volume = (await driver.create()).volume_id
    target = driver.target("one")
    await driver.publish(volume, target, wanted=capability(flags=["noexec,noatime", "commit=7"]))
    mount = mounts.mount_at(str(target))
    assert mount is not None
    assert {"noexec", "noatime"} <= mount.options
    assert "commit=7" in mount.filesystem_options
    await driver.unpublish(volume, target)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "remount"):
        await driver.publish(volume, target, wanted=capability(flags=["remount"]))


async def test_a_failed_mount_leaves_no_device_and_no_mount(driver: Driver) -> None:
    volume = (await driver.create()).volume_id
    target = driver.target("one")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "no-such-option"):
        await driver.publish(volume, target, wanted=capability(flags=["no-such-option"]))
    await detached(driver.volume_folder(volume) / "image")
    assert mounted_below(driver.kubelet) == []


async def test_xfs_is_made_where_it_is_asked_for(driver: Driver) -> None:
    volume = await driver.create(size=300 * MIB, wanted=capability(filesystem="xfs"))
    assert volume.volume_context["filesystem"] == "xfs"
    target = driver.target("one")
    await driver.publish(volume.volume_id, target, wanted=capability(filesystem="xfs"))
    mount = mounts.mount_at(str(target))
    assert mount is not None
    assert mount.filesystem == "xfs"
    await driver.unpublish(volume.volume_id, target)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "ext4", "never formatted again"):
        await driver.publish(volume.volume_id, target, wanted=capability(filesystem="ext4"))
    with refused(grpc.StatusCode.OUT_OF_RANGE, "300Mi", "xfs"):
        await driver.create("pvc-2", size=64 * MIB, wanted=capability(filesystem="xfs"))


async def test_a_wiped_superblock_is_refused_and_never_formatted(driver: Driver) -> None:
    volume = (await driver.create()).volume_id
    image = driver.volume_folder(volume) / "image"
    target = driver.target("one")
    await driver.publish(volume, target)
    (target / "file").write_bytes(b"precious")
    await driver.unpublish(volume, target)
    whole = image.read_bytes()
    with image.open("r+b") as file:
        file.write(bytes(65536))
    wiped = image.read_bytes()
    for _ in range(2):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "ext4", "no filesystem", "never formatted again"):
            await driver.publish(volume, target)
    await driver.create()
    assert image.read_bytes() == wiped
    await detached(image)
    image.write_bytes(whole)
    await driver.publish(volume, target)
    assert (target / "file").read_bytes() == b"precious"
    await driver.unpublish(volume, target)


async def test_another_filesystem_in_the_image_is_refused(driver: Driver) -> None:
    volume = (await driver.create(size=300 * MIB)).volume_id
    other = (await driver.create("pvc-2", size=300 * MIB, wanted=capability(filesystem="xfs"))).volume_id
    image = driver.volume_folder(volume) / "image"
    image.write_bytes((driver.volume_folder(other) / "image").read_bytes())
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "ext4", "xfs"):
        await driver.publish(volume, driver.target("one"))
    assert mounted_below(driver.kubelet) == []


async def test_nothing_is_mounted_over_something_else(driver: Driver) -> None:
    one, two = (await driver.create("pvc-1")).volume_id, (await driver.create("pvc-2")).volume_id
    target = driver.target("pod")
    await driver.publish(one, target)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "not this volume"):
        await driver.publish(two, target)
    assert mounted_below(driver.kubelet) == [str(target)]
    await driver.unpublish(one, target)


async def test_a_volume_in_use_is_not_deleted(driver: Driver) -> None:
    volume = (await driver.create()).volume_id
    target = driver.target("one")
    await driver.publish(volume, target)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, str(target)):
        await driver.delete(volume)
    (target / "file").write_text("still there")
    await driver.unpublish(volume, target)
    await driver.delete(volume)


async def test_a_busy_target_stays_and_the_call_fails(driver: Driver) -> None:
    volume = (await driver.create()).volume_id
    target = driver.target("one")
    await driver.publish(volume, target)
    with (target / "open").open("wb"):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "in use"):
            await driver.unpublish(volume, target)
        assert mounted_below(driver.kubelet) == [str(target)]
    await driver.unpublish(volume, target)
    assert not target.exists()


async def test_a_device_for_a_pod(driver: Driver) -> None:
    raw = capability(block=True)
    volume = await driver.create(size=4 * MIB, wanted=raw)
    assert "filesystem" not in volume.volume_context
    image = driver.volume_folder(volume.volume_id) / "image"
    first, second = driver.target("one"), driver.target("two")
    await driver.publish(volume.volume_id, first, wanted=raw)
    await driver.publish(volume.volume_id, first, wanted=raw)
    await driver.publish(volume.volume_id, second, wanted=raw)
    assert first.is_block_device()
    fd = os.open(first, os.O_RDWR)
    try:
        assert os.lseek(fd, 0, os.SEEK_END) == 4 * MIB
        assert os.pread(fd, 4096, 0) == bytes(4096)
        os.pwrite(fd, b"p" * 4096, 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    assert image.read_bytes()[:4096] == b"p" * 4096
    usage = await driver.stats(volume.volume_id, first)
    assert {unit: amount.total for unit, amount in usage.items()} == {"BYTES": 4 * MIB}
    with refused(grpc.StatusCode.FAILED_PRECONDITION, str(first)):
        await driver.delete(volume.volume_id)
    await driver.unpublish(volume.volume_id, first)
    assert not first.exists()
    assert len(attached(image)) == 1
    await driver.unpublish(volume.volume_id, second)
    await detached(image)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "block"):
        await driver.publish(volume.volume_id, first)
    await driver.delete(volume.volume_id)


def _overwrite(device: Path) -> None:
    fd = os.open(device, os.O_RDWR)
    try:
        os.pwrite(fd, b"p" * 4096, 0)
        os.fsync(fd)
    finally:
        os.close(fd)


async def test_a_device_is_read_only_or_writable_for_all(driver: Driver) -> None:
    raw = capability(block=True)
    volume = (await driver.create(size=4 * MIB, wanted=raw)).volume_id
    first, second = driver.target("one"), driver.target("two")
    await driver.publish(volume, first, readonly=True, wanted=raw)
    with pytest.raises(PermissionError):
        _overwrite(first)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "one or the other"):
        await driver.publish(volume, second, wanted=raw)
    with refused(grpc.StatusCode.ALREADY_EXISTS, "read-only"):
        await driver.publish(volume, first, wanted=raw)
    await driver.unpublish(volume, first)
    await driver.publish(volume, second, wanted=raw)
    _overwrite(second)
    await driver.unpublish(volume, second)


async def test_a_device_for_one_pod_alone(driver: Driver) -> None:
    raw = capability(block=True, mode=Modes.SINGLE_NODE_SINGLE_WRITER)
    volume = (await driver.create(size=4 * MIB, wanted=raw)).volume_id
    await driver.publish(volume, driver.target("one"), wanted=raw)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "ReadWriteOncePod"):
        await driver.publish(volume, driver.target("two"), wanted=raw)
    await driver.unpublish(volume, driver.target("one"))


async def test_a_device_left_attached_by_a_crash_does_not_keep_its_volume(driver: Driver) -> None:
    volume = (await driver.create(size=4 * MIB, wanted=capability(block=True))).volume_id
    image = driver.volume_folder(volume) / "image"
    with image.open("r+b") as file:
        loops.attach(backing_fd=file.fileno(), name="left", autoclear=False).close()
    assert len(attached(image)) == 1
    await driver.delete(volume)
    await driver.emptied()
    assert [one for one in map(loops.status, range(256)) if one is not None and one.name == "left"] == []


async def test_a_driver_started_again_knows_what_is_mounted(area: Path) -> None:
    async with running(area) as first:
        volume = (await first.create()).volume_id
        target = first.target("one")
        await first.publish(volume, target)
    (target / "file").write_text("the pod goes on")
    async with running(area) as second:
        await second.publish(volume, target)
        assert (await second.stats(volume, target))["BYTES"].total > 0
        with refused(grpc.StatusCode.FAILED_PRECONDITION, str(target)):
            await second.delete(volume)
        await second.unpublish(volume, target)
        await second.delete(volume)
        await second.emptied()
        assert second.left() == []


async def test_a_link_as_target_is_refused_and_not_followed(driver: Driver, area: Path) -> None:
    volume = (await driver.create()).volume_id
    outside = area / "outside"
    outside.mkdir()
    target = driver.target("one")
    target.symlink_to(outside)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "link"):
        await driver.publish(volume, target)
    target.unlink()
    target.parent.rename(target.parent.with_name("real"))
    target.parent.symlink_to(outside)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "link"):
        await driver.publish(volume, target)
    assert mounted_below(area) == []
    assert list(outside.iterdir()) == []


async def test_a_missing_image_is_told(driver: Driver) -> None:
    volume = (await driver.create()).volume_id
    (driver.volume_folder(volume) / "image").unlink()
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "image"):
        await driver.publish(volume, driver.target("one"))
    await driver.unpublish(volume, driver.target("one"))
    await driver.delete(volume)
