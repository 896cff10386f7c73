"""Layered volumes: many over one base, none of which sees what another has written, and each as large as was asked for."""

import errno
import fcntl
import os
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from moorage_csi.backends import layers
from moorage_csi.host import mounts, overlay, syscalls
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.volumes.ids import VolumeId
from tests.kernel.loop_filesystem import fill
from tests.kernel.machine import names, tool
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
from tests.kernel.test_rpc_expanding import expand
from tests.kernel.test_rpc_snapshots import FREEZE, copy, snapshot

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

LAYERED = {"backend": "layered"}
METADATA = 4 * MIB
"""More than the filesystem of an image takes for itself at these sizes, and less than any data of these tests."""


@pytest.fixture(autouse=True)
def _able() -> None:
    try:
        os.close(syscalls.fsopen("overlay"))
    except OSError as error:
        pytest.skip(f"the kernel has no overlay: {error}")


async def create(driver: Driver, name: str = "pvc-1", *, size: int = SIZE) -> str:
    return (await driver.create(name, size=size, parameters=LAYERED)).volume_id


async def clone(driver: Driver, name: str, *, volume: str = "", snapshot: str = "", size: int = SIZE) -> str:
    return (await copy(driver, volume=volume, snapshot=snapshot, name=name, size=size, parameters=LAYERED)).volume_id


@asynccontextmanager
async def published(driver: Driver, volume: str, pod: str = "pod", *, readonly: bool = False) -> AsyncIterator[Path]:
    """The volume's target for the length of a block."""
    target = driver.target(pod)
    await driver.publish(volume, target, readonly=readonly)
    try:
        yield target
    finally:
        await driver.unpublish(volume, target)


async def written(driver: Driver, volume: str, **files: bytes) -> None:
    async with published(driver, volume, "writer") as target:
        for name, content in files.items():
            (target / name).write_bytes(content)


async def read(driver: Driver, volume: str) -> dict[str, bytes]:
    async with published(driver, volume, "reader", readonly=True) as target:
        return {path.name: path.read_bytes() for path in target.iterdir() if path.is_file()}


def chain(driver: Driver, what: str) -> list[Path]:
    kind = "snapshots" if what.startswith("snap-") else "volumes"
    return sorted((driver.pool / kind / what / "layers").iterdir())


def on_disk(driver: Driver) -> int:
    """Bytes that all files of the pool take, each once."""
    found = {seen.st_ino: seen.st_blocks * 512 for path in driver.pool.rglob("*") if (seen := path.lstat()).st_nlink}
    return sum(found.values())


async def cleared(driver: Driver, *volumes: str) -> None:
    """Delete them and find that nothing is left of them, no device either."""
    for volume in volumes:
        await driver.delete(volume)
    await driver.emptied()
    for path in driver.pool.rglob("layers/*"):
        await detached(path)
    assert not [path for path in driver.left() if path.startswith("volumes/")]


async def test_a_volume_is_written_at_two_targets_and_keeps_what_was_written(area: Path) -> None:
    async with running(area) as driver:
        made = await driver.create(size=SIZE, parameters=LAYERED)
        volume = made.volume_id
        assert made.volume_context["backend"] == "layered"
        assert made.volume_context["quota"] == "enforced"
        assert made.volume_context["filesystem"] == "ext4"
        async with published(driver, volume, "one") as one, published(driver, volume, "two", readonly=True) as two:
            assert one.stat().st_mode & 0o7777 == 0o770
            (one / "file").write_bytes(b"one")
            assert (two / "file").read_bytes() == b"one"
            with pytest.raises(OSError, match="Read-only") as caught:
                (two / "file").write_bytes(b"two")
            assert caught.value.errno == errno.EROFS
            await driver.publish(volume, one)
            with refused(grpc.StatusCode.ALREADY_EXISTS, "unpublish it first"):
                await driver.publish(volume, one, readonly=True)
            async with published(driver, volume, "three") as three:
                (three / "file").write_bytes(b"three")
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "is in use", str(one)):
                await driver.delete(volume)
            usage = await driver.stats(volume, two)
            assert 0.85 * SIZE <= usage["BYTES"].total <= SIZE
            assert usage["INODES"].used > 0
        # The first target of all has gone first.
        first, second = driver.target("first"), driver.target("second")
        await driver.publish(volume, first, readonly=True)
        await driver.publish(volume, second)
        await driver.unpublish(volume, first)
        (second / "later").write_bytes(b"later")
        await driver.unpublish(volume, second)
        assert await read(driver, volume) == {"file": b"three", "later": b"later"}
        await cleared(driver, volume)


async def test_one_pod_alone_and_foreign_mounts(area: Path) -> None:
    async with running(area) as driver:
        volume, other = await create(driver), await create(driver, "other")
        alone = capability(mode=Modes.SINGLE_NODE_SINGLE_WRITER)
        one, two = driver.target("one"), driver.target("two")
        await driver.publish(volume, one, wanted=alone)
        await driver.publish(volume, one, wanted=alone)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "ReadWriteOncePod", str(one)):
            await driver.publish(volume, two, wanted=alone)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "which is not this volume"):
            await driver.publish(other, one)
        with refused(grpc.StatusCode.NOT_FOUND, "is not mounted there"):
            await driver.stats(other, one)
        with pytest.raises(grpc.aio.AioRpcError, match="no-such-option"):
            await driver.publish(other, two, wanted=capability(flags=["no-such-option"]))
        await detached(driver.volume_folder(other) / "image")
        assert mounted_below(driver.kubelet) == [str(one)]
        await driver.unpublish(volume, one)
        await driver.unpublish(volume, one)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "makes no block volumes"):
            await driver.create("device", parameters=LAYERED, wanted=capability(block=True))
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "xfs is asked for"):
            await driver.create("xfs", parameters=LAYERED, wanted=capability(filesystem="xfs"))
        await cleared(driver, volume, other)


async def test_the_room_ends_where_the_size_does_whatever_the_layers_hold(area: Path) -> None:
    async with running(area) as driver:
        volume = await create(driver)
        async with published(driver, volume) as target:
            first = fill(target / "file", end=errno.ENOSPC)
            assert 0.85 * SIZE <= first <= SIZE
        made = await clone(driver, "clone", volume=volume)
        for each in (made, volume):
            async with published(driver, each) as target:
                assert (target / "file").stat().st_size == first
                assert (await driver.stats(each, target))["BYTES"].used < METADATA
                second = fill(target / "more", end=errno.ENOSPC)
                assert 0.85 * SIZE <= second <= SIZE
        await cleared(driver, volume, made)


async def test_a_snapshot_of_an_unused_volume_copies_nothing(area: Path) -> None:
    async with running(area) as driver:
        volume = await create(driver)
        await written(driver, volume, kept=b"k" * 24 * MIB)
        image = driver.volume_folder(volume) / "image"
        inode, before = image.stat().st_ino, on_disk(driver)
        taken = (await snapshot(driver, volume)).snapshot_id
        assert [path.stat().st_ino for path in chain(driver, taken)] == [inode], "it is the file that the data was in"
        assert image.stat().st_ino != inode
        made = await clone(driver, "clone", snapshot=taken, size=2 * SIZE)
        assert on_disk(driver) - before < METADATA
        # Nothing was written since, so there is nothing to make a layer of.
        again = (await snapshot(driver, volume, "again")).snapshot_id
        assert [path.stat().st_ino for path in chain(driver, again)] == [inode]
        assert len(chain(driver, volume)) == 1
        async with published(driver, volume) as target:
            target.chmod(0o2751)
        owned = await clone(driver, "owned", volume=volume)
        async with published(driver, owned) as target:
            assert target.stat().st_mode & 0o7777 == 0o2751, "no file was written, and yet there is something to copy"
        async with published(driver, made) as target:
            assert 0.85 * 2 * SIZE <= (await driver.stats(made, target))["BYTES"].total <= 2 * SIZE
        assert await read(driver, made) == {"kept": b"k" * 24 * MIB}


async def test_a_snapshot_of_a_used_volume_is_of_one_moment_and_copies_what_was_written_over_the_base(
    area: Path,
) -> None:
    async with running(area) as driver:
        base = await create(driver, "base")
        await written(driver, base, base=b"b" * 24 * MIB)
        volume = await clone(driver, "clone", volume=base)
        async with published(driver, volume) as target:
            (target / "own").write_bytes(b"before")
            before = on_disk(driver)
            taken = (await snapshot(driver, volume)).snapshot_id
            (target / "own").write_bytes(b"after")
            assert on_disk(driver) - before < METADATA, "the base is not copied"
            assert len(chain(driver, volume)) == 1, "what is in use stays as it is"
            made = await clone(driver, "restored", snapshot=taken)
            assert await read(driver, made) == {"base": b"b" * 24 * MIB, "own": b"before"}
            assert (target / "own").read_bytes() == b"after"
            os.sync()
        await cleared(driver, base, volume, made)


async def test_many_are_written_over_one_base_that_is_in_memory_once(area: Path) -> None:
    async with running(area) as driver:
        base = await create(driver, "base")
        async with published(driver, base) as target:
            (target / "deleted").write_bytes(b"base")
            (target / "changed").write_bytes(b"base")
            (target / "before").mkdir()
            (target / "before" / "inside").write_bytes(b"base")
            os.chown(target, 1000, 2000)
            target.chmod(0o2775)
        taken = (await snapshot(driver, base)).snapshot_id
        clones = [await clone(driver, f"clone-{number}", snapshot=taken) for number in range(6)]
        targets = [driver.target(f"pod-{number}") for number in range(6)]
        for number, (volume, target) in enumerate(zip(clones, targets, strict=True)):
            await driver.publish(volume, target)
            (target / "deleted").unlink()
            (target / "changed").write_bytes(b"%d" % number)
            (target / "before").rename(target / f"after-{number}")
        (layer,) = chain(driver, taken)
        assert len(attached(layer)) == 1
        for number, target in enumerate(targets):
            assert names(target) == [f"after-{number}", "changed"]
            assert (target / f"after-{number}" / "inside").read_bytes() == b"base"
            assert (target / "changed").read_bytes() == b"%d" % number
            seen = target.stat()
            assert (seen.st_uid, seen.st_gid, seen.st_mode & 0o7777) == (1000, 2000, 0o2775)
        for volume, target in zip(clones, targets, strict=True):
            await driver.unpublish(volume, target)
        second = await clone(driver, "second", volume=clones[3])
        async with published(driver, second) as target:
            assert names(target) == ["after-3", "changed"]
            assert (target / "after-3" / "inside").read_bytes() == b"base"
            assert (target.stat().st_uid, target.stat().st_mode & 0o7777) == (1000, 0o2775)
        assert await read(driver, base) == {"changed": b"base", "deleted": b"base"}
        await cleared(driver, base, second, *clones)


async def test_what_is_left_of_a_family_has_all_its_data(area: Path) -> None:
    async with running(area) as driver:
        volume = await create(driver)
        await written(driver, volume, first=b"1")
        one = (await snapshot(driver, volume, "one")).snapshot_id
        await written(driver, volume, second=b"2")
        two = (await snapshot(driver, volume, "two")).snapshot_id
        await driver.controller.DeleteSnapshot(csi.DeleteSnapshotRequest(snapshot_id=one))
        await driver.emptied()
        assert await read(driver, volume) == {"first": b"1", "second": b"2"}
        await cleared(driver, volume)
        made = await clone(driver, "restored", snapshot=two)
        await driver.controller.DeleteSnapshot(csi.DeleteSnapshotRequest(snapshot_id=two))
        await driver.emptied()
    async with running(area) as driver:
        assert await read(driver, made) == {"first": b"1", "second": b"2"}
        assert Counter(path.stat().st_nlink for path in chain(driver, made)) == {1: 2}
        await cleared(driver, made)
        assert driver.left() == []


async def test_a_chain_that_becomes_too_long_is_made_one_layer_of_what_it_shows(area: Path) -> None:
    async with running(area) as driver:
        volume = await create(driver)
        async with published(driver, volume) as target:
            (target / "before").mkdir()
            (target / "before" / "inside").write_bytes(b"base")
            (target / "linked").write_bytes(b"linked")
            os.link(target / "linked", target / "other")
            target.chmod(0o751)
        lengths, generations = [], [volume]
        for number in range(layers.MOST + 2):
            async with published(driver, volume, f"pod-{number}") as target:
                (target / f"{number:02d}").write_bytes(b"%d" % number)
                (target / f"{number - 1:02d}").unlink(missing_ok=True)
                if number == 3:
                    (target / "before").rename(target / "after")
            volume = await clone(driver, f"clone-{number}", volume=volume)
            generations.append(volume)
            lengths.append(len(chain(driver, volume)))
        assert lengths == [*range(1, layers.MOST + 1), 1, 2]
        flat = chain(driver, generations[layers.MOST + 1])[0].stat().st_size
        assert flat < 2 * SIZE, "it is as large as what is in the layers asks for, not as all of them are"
        async with published(driver, volume) as target:
            assert names(target) == ["17", "after", "linked", "other"]
            assert (target / "after" / "inside").read_bytes() == b"base"
            assert (target / "linked").samefile(target / "other")
            assert target.stat().st_mode & 0o7777 == 0o751
        # One in use, at the end of its chain, and what it was.
        full = generations[layers.MOST]
        assert len(chain(driver, full)) == layers.MOST
        async with published(driver, full) as target:
            (target / "now").write_bytes(b"now")
            taken = (await snapshot(driver, full)).snapshot_id
            (target / "now").write_bytes(b"later")
        assert len(chain(driver, taken)) == 1
        restored = await clone(driver, "restored", snapshot=taken)
        assert (await read(driver, restored))["now"] == b"now"
        await cleared(driver, restored, *generations)


async def test_what_a_power_cut_left_in_the_journal_is_in_the_layer(area: Path) -> None:
    async with running(area) as driver:
        volume = await create(driver)
        image = driver.volume_folder(volume) / "image"
        async with published(driver, volume) as target:
            (target / "kept").write_bytes(b"kept")
            fd = os.open(target / "kept", os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
            torn = image.read_bytes()
        await detached(image)
        image.write_bytes(torn)
        assert "needs_recovery" in tool("dumpe2fs", "-h", image).stdout
        made = await clone(driver, "clone", volume=volume)
        (layer,) = chain(driver, made)
        assert "needs_recovery" not in tool("dumpe2fs", "-h", layer).stdout
        assert await read(driver, made) == await read(driver, volume) == {"kept": b"kept"}


async def test_a_wiped_superblock_is_refused_and_never_formatted(area: Path) -> None:
    async with running(area) as driver:
        volume = await create(driver)
        await written(driver, volume, kept=b"kept")
        made = await clone(driver, "clone", volume=volume)
        (layer,) = chain(driver, made)
        for path in (driver.volume_folder(made) / "image", layer):
            start = path.read_bytes()[: 64 << 10]
            with path.open("r+b") as file:
                file.write(bytes(64 << 10))
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "never formatted again"):
                await driver.publish(made, driver.target("pod"))
            assert path.read_bytes()[: 64 << 10] == bytes(64 << 10)
            with path.open("r+b") as file:
                file.write(start)
        other = (await snapshot(driver, made)).snapshot_id
        (driver.volume_folder(made) / "layers" / "00").rename(area / "aside")
        (driver.volume_folder(made) / "layers" / "01").write_bytes(b"")
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "layers/00", "restore the volume from a backup"):
            await driver.publish(made, driver.target("pod"))
        found = await driver.controller.ControllerGetVolume(csi.ControllerGetVolumeRequest(volume_id=made))
        assert found.status.volume_condition.abnormal
        assert "layers/00" in found.status.volume_condition.message
        assert await read(driver, await clone(driver, "again", snapshot=other)) == {"kept": b"kept"}


async def test_a_volume_that_grows_has_the_new_size_over_the_same_layers(area: Path) -> None:
    async with running(area) as driver:
        volume = await create(driver)
        await written(driver, volume, kept=b"kept")
        await snapshot(driver, volume)
        grown = await expand(driver, volume, 2 * SIZE)
        assert (grown.capacity_bytes, grown.node_expansion_required) == (2 * SIZE, False)
        async with published(driver, volume) as target:
            assert 0.85 * 2 * SIZE <= (await driver.stats(volume, target))["BYTES"].total <= 2 * SIZE
            used = await expand(driver, volume, 3 * SIZE)
            if used.node_expansion_required:
                request = csi.NodeExpandVolumeRequest(volume_id=volume, volume_path=str(target))
                with refused(grpc.StatusCode.FAILED_PRECONDITION, "end the pods that use the volume"):
                    await driver.node.NodeExpandVolume(request)
            (target / "more").write_bytes(b"more")
        async with published(driver, volume) as target:
            assert 0.85 * 3 * SIZE <= (await driver.stats(volume, target))["BYTES"].total <= 3 * SIZE
        assert await read(driver, volume) == {"kept": b"kept", "more": b"more"}
        await cleared(driver, volume)


async def test_a_volume_that_is_mounted_where_nobody_sees_it_is_not_mounted_a_second_time(area: Path) -> None:
    """Two overlays on one directory are undefined, and the kernel lets it happen."""
    async with running(area) as driver:
        volume = await create(driver)
        image = driver.volume_folder(volume) / "image"
        target = driver.target("pod")
        await driver.publish(volume, target)
        with used_elsewhere(target) as user:
            await driver.unpublish(volume, target)
            assert attached(image)
            with refused(grpc.StatusCode.UNAVAILABLE, "never mounted twice"):
                await driver.publish(volume, target)
            with refused(grpc.StatusCode.FAILED_PRECONDITION, "in use", "/dev/loop"):
                await driver.delete(volume)
            taken = (await snapshot(driver, volume)).snapshot_id
            assert len(chain(driver, volume)) == 0, "it was not sealed while something could be written to it"
            user.kill()
        await detached(image)
        await driver.publish(volume, target)
        await driver.unpublish(volume, target)
        assert len(chain(driver, taken)) == 1
        await cleared(driver, volume)


async def test_writers_wait_while_a_volume_is_held_and_go_on_after_a_crash(area: Path) -> None:
    async with running(area) as driver:
        volume = await create(driver)
        (station,) = driver.pools
        opened = await station.open()
        backend = opened.backends["layered"]
        async with published(driver, volume) as target:
            with opened.pool.folder(VolumeId(volume)) as folder:
                with backend.held(folder):
                    held = writer(target / "held")
                    with pytest.raises(subprocess.TimeoutExpired):
                        held.wait(0.5)
                assert held.wait(20) == 0
                image = layers.opened(folder)
                try:
                    with layers.written(image) as top:
                        fcntl.ioctl(top, FREEZE, 0)
                finally:
                    os.close(image)
                left = writer(target / "left")
                try:
                    with pytest.raises(subprocess.TimeoutExpired):
                        left.wait(0.5)
                finally:
                    backend.resume(folder)
                assert left.wait(20) == 0
        assert sorted(await read(driver, volume)) == ["held", "left"]


@contextmanager
def used_elsewhere(target: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process with a mount table of its own, which keeps in use what is mounted at the target."""
    script = 'cd "$1" && echo ready && exec sleep 60'
    command = ("/usr/bin/env", "unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", target)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == b"ready\n"
            yield started
        finally:
            started.kill()


async def test_a_group_is_of_one_moment_whether_its_volumes_are_used_or_not(area: Path) -> None:
    async with running(area) as driver:
        used, unused = await create(driver, "used"), await create(driver, "unused")
        await written(driver, unused, kept=b"unused")
        inode = (driver.volume_folder(unused) / "image").stat().st_ino
        async with published(driver, used) as target:
            (target / "kept").write_bytes(b"used")
            request = csi.CreateVolumeGroupSnapshotRequest(name="group", source_volume_ids=[used, unused])
            taken = (await driver.groups.CreateVolumeGroupSnapshot(request)).group_snapshot
            assert taken.ready_to_use
            (target / "kept").write_bytes(b"later")
        copies = {each.source_volume_id: each.snapshot_id for each in taken.snapshots}
        assert [path.stat().st_ino for path in chain(driver, copies[unused])] == [inode]
        for source, content in ((used, b"used"), (unused, b"unused")):
            made = await clone(driver, f"of {source}", snapshot=copies[source])
            assert await read(driver, made) == {"kept": content}
        assert await read(driver, used) == {"kept": b"later"}


def writer(path: Path) -> "subprocess.Popen[bytes]":
    """A process that writes there."""
    return subprocess.Popen(["/bin/sh", "-c", 'echo written > "$1"', "sh", path])


async def test_a_kernel_that_wants_mounts_in_the_table_gets_them_there(
    area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_before(*_: object) -> int:
        raise OSError(errno.EINVAL, "as kernels before 6.15 say")

    monkeypatch.setattr(overlay, "_directly", as_before)
    before = mounts.mounts()
    async with running(area) as driver:
        volume = await create(driver)
        await written(driver, volume, kept=b"kept")
        made = await clone(driver, "clone", volume=volume)
        async with published(driver, made) as target:
            assert len(mounts.mounts()) == len(before) + 1
            assert (target / "kept").read_bytes() == b"kept"
        await cleared(driver, volume, made)
    assert not mounted_below(area)
    assert mounts.mounts() == before
