"""Group snapshots: several volumes of one moment, all or nothing, and nobody is kept waiting for ever."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from moorage_csi.backends.image import Image
from moorage_csi.host import freezing
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.rpc import moment
from moorage_csi.volumes.ids import GROUP_ID, SNAPSHOT_ID
from moorage_csi.volumes.pool import PoolSettings
from tests.kernel.loop_filesystem import filesystem
from tests.kernel.rpc_driver import DIRECTORY, MIB, Driver, capability, refused, running
from tests.kernel.test_rpc_snapshots import copy, listed, snapshot

pytestmark = pytest.mark.kernel

SIZE = 64 * MIB
METADATA = {
    "csi.storage.k8s.io/volumegroupsnapshot/name": "nightly",
    "csi.storage.k8s.io/volumegroupsnapshot/namespace": "shop",
    "csi.storage.k8s.io/volumegroupsnapshotcontent/name": "groupsnapcontent-1",
}


async def create(
    driver: Driver, volumes: Sequence[str], name: str = "group", parameters: dict[str, str] | None = None
) -> csi.VolumeGroupSnapshot:
    request = csi.CreateVolumeGroupSnapshotRequest(name=name, source_volume_ids=volumes, parameters=parameters or {})
    return (await driver.groups.CreateVolumeGroupSnapshot(request)).group_snapshot


async def taken(driver: Driver, volumes: Sequence[str], name: str = "group") -> csi.VolumeGroupSnapshot:
    """A group snapshot that is ready to use; asked for until it is, as callers do."""
    async with asyncio.timeout(60):
        while True:
            group = await create(driver, volumes, name)
            if group.ready_to_use:
                return group
            await asyncio.sleep(0.1)


async def deleted(driver: Driver, group: str, listed: Sequence[str] = ()) -> None:
    request = csi.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=group, snapshot_ids=listed)
    await driver.groups.DeleteVolumeGroupSnapshot(request)


async def got(driver: Driver, group: str, listed: Sequence[str] = ()) -> csi.VolumeGroupSnapshot:
    request = csi.GetVolumeGroupSnapshotRequest(group_snapshot_id=group, snapshot_ids=listed)
    return (await driver.groups.GetVolumeGroupSnapshot(request)).group_snapshot


def ids_of(group: csi.VolumeGroupSnapshot) -> list[str]:
    return [each.snapshot_id for each in group.snapshots]


@pytest.fixture
async def two(area: Path) -> AsyncIterator[tuple[Driver, list[str]]]:
    """A driver with two empty volumes."""
    async with running(area) as driver:
        yield driver, [(await driver.create(name, size=SIZE)).volume_id for name in ("one", "two")]


@contextlib.contextmanager
def counting(first: Path, second: Path) -> Iterator[None]:
    """Count up in both files for as long as the block lasts, always in the first one first."""
    over = threading.Event()

    def count() -> None:
        number = 0
        while not over.is_set():
            number += 1
            for path in (first, second):
                fd = os.open(path, os.O_WRONLY | os.O_CREAT)
                try:
                    os.pwrite(fd, f"{number:08d}".encode(), 0)
                    if number % 7 == 0:
                        os.fsync(fd)
                finally:
                    os.close(fd)

    writer = threading.Thread(target=count)
    writer.start()
    try:
        yield
    finally:
        over.set()
        writer.join(60)
        assert not writer.is_alive(), "whoever wrote waits for ever"


async def counted(driver: Driver, snapshot: str, name: str, filesystem: str) -> int:
    """The number in a snapshot."""
    wanted = capability(filesystem=filesystem)
    volume = (await copy(driver, snapshot=snapshot, name=name, size=0, wanted=wanted)).volume_id
    target = driver.target(name)
    await driver.publish(volume, target, wanted=wanted)
    try:
        return int((target / "count").read_text())
    finally:
        await driver.unpublish(volume, target)
        await driver.delete(volume)


async def grown(path: Path) -> None:
    """Wait until the number in a file is another one."""
    before = _number_in(path)
    async with asyncio.timeout(30):
        while True:
            if _number_in(path) != before:
                return
            await asyncio.sleep(0.005)


def _number_in(path: Path) -> int:
    return int(path.read_text() or 0) if path.exists() else 0


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
async def test_a_group_is_of_one_moment_where_two_snapshots_are_of_two(area: Path, kind: str) -> None:
    size = SIZE if kind == "ext4" else 320 * MIB
    wanted = capability(filesystem=kind)
    async with running(area) as driver:
        volumes, targets = [], []
        for name in ("one", "two"):
            volumes.append((await driver.create(name, size=size, wanted=wanted)).volume_id)
            targets.append(driver.target(name))
            await driver.publish(volumes[-1], targets[-1], wanted=wanted)
        first, second = (target / "count" for target in targets)
        groups = []
        with counting(first, second):
            await grown(second)
            for number in range(4):
                # Whichever of them is asked for first.
                groups.append(await taken(driver, volumes[:: 1 if number % 2 else -1], f"group-{number}"))
                await grown(second)
            apart = [(await snapshot(driver, volumes[0], "apart-1")).snapshot_id]
            await grown(second)
            await grown(second)
            apart.append((await snapshot(driver, volumes[1], "apart-2")).snapshot_id)
        for number, group in enumerate(groups):
            members = {each.source_volume_id: each.snapshot_id for each in group.snapshots}
            ahead = await counted(driver, members[volumes[0]], f"{number}-first", kind)
            behind = await counted(driver, members[volumes[1]], f"{number}-second", kind)
            assert 0 <= ahead - behind <= 1, (ahead, behind)
        alone = [await counted(driver, each, f"{each}-copy", kind) for each in apart]
        assert alone[1] > alone[0], "one by one they are of two moments, so that a group is worth something"
        for volume, target in zip(volumes, targets, strict=True):
            await driver.unpublish(volume, target)


async def test_the_same_name_is_the_same_group_and_of_no_other_volumes(two: tuple[Driver, list[str]]) -> None:
    driver, volumes = two
    group = await taken(driver, volumes)
    assert GROUP_ID.fullmatch(group.group_snapshot_id)
    assert all(SNAPSHOT_ID.fullmatch(each) for each in ids_of(group))
    assert {each.source_volume_id for each in group.snapshots} == set(volumes)
    assert all(each.group_snapshot_id == group.group_snapshot_id for each in group.snapshots)
    assert {each.size_bytes for each in group.snapshots} == {SIZE}
    assert await create(driver, volumes[::-1], parameters=METADATA) == group
    assert await got(driver, group.group_snapshot_id) == group
    assert await got(driver, group.group_snapshot_id, ids_of(group)[::-1]) == group
    third = (await driver.create("three", size=SIZE)).volume_id
    for others in ([volumes[0]], [volumes[0], third], [*volumes, third]):
        with refused(grpc.StatusCode.ALREADY_EXISTS, "is of other volumes"):
            await create(driver, others)
    assert sorted(await listed(driver)) == sorted(ids_of(group))
    (entry,) = (await driver.controller.ListSnapshots(csi.ListSnapshotsRequest(snapshot_id=ids_of(group)[0]))).entries
    assert entry.snapshot == group.snapshots[0]
    one = await driver.controller.GetSnapshot(csi.GetSnapshotRequest(snapshot_id=ids_of(group)[1]))
    assert one.snapshot == group.snapshots[1]


async def test_a_group_is_deleted_as_a_whole_and_only_by_its_own_id(two: tuple[Driver, list[str]]) -> None:
    driver, volumes = two
    group = await taken(driver, volumes)
    alone = (await snapshot(driver, volumes[0])).snapshot_id
    members = ids_of(group)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, f"is part of group snapshot {group.group_snapshot_id}"):
        await driver.controller.DeleteSnapshot(csi.DeleteSnapshotRequest(snapshot_id=members[0]))
    for wrong in (members[:1], [*members, alone], [members[0], alone]):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "snapshot_ids are not those"):
            await deleted(driver, group.group_snapshot_id, wrong)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "snapshot_ids are not those"):
            await got(driver, group.group_snapshot_id, wrong)
    with driver.guard.reading(members[1]), refused(grpc.StatusCode.ABORTED, "is being copied"):
        await deleted(driver, group.group_snapshot_id, members)
    assert sorted(await listed(driver)) == sorted([*members, alone])
    restored = await copy(driver, snapshot=members[0], size=SIZE)
    for _ in range(2):
        await deleted(driver, group.group_snapshot_id, members)
        assert await listed(driver) == [alone]
    with refused(grpc.StatusCode.NOT_FOUND, "is not on"):
        await got(driver, group.group_snapshot_id)
    await deleted(driver, "fake-group-id", ["fake-id"])
    await driver.controller.DeleteSnapshot(csi.DeleteSnapshotRequest(snapshot_id=alone))
    for volume in (*volumes, restored.volume_id):
        await driver.delete(volume)
    await driver.emptied()
    assert driver.left() == []


async def test_a_request_that_cannot_be_is_refused_and_nothing_begins(two: tuple[Driver, list[str]]) -> None:
    driver, (one, other) = two
    for name, volumes, parameters, word in (
        ("", [one], {}, "name is missing"),
        ("n" * 129, [one], {}, "name has 129 bytes"),
        ("group", [], {}, "source_volume_ids are missing"),
        ("group", ["x"] * 101, {}, "allowed are 100"),
        ("group", [one, other, one], {}, f"name {one} twice"),
        ("group", [one, ""], {}, "is missing"),
        ("group", [one, "../etc"], {}, "look of a path"),
        ("group", [one], {"colour": "red"}, "parameter 'colour' is not known"),
    ):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, word):
            await create(driver, volumes, name, parameters)
    for bad in ("", "a/b", "g" * 129):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "group_snapshot_id"):
            await deleted(driver, bad)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "group_snapshot_id"):
            await got(driver, bad)
    with refused(grpc.StatusCode.NOT_FOUND, "vol-0000"):
        await create(driver, [one, "vol-" + "0" * 32])
    with refused(grpc.StatusCode.NOT_FOUND, "is not on"):
        await got(driver, "grp-" + "0" * 32)
    assert not any((driver.pool / "snapshots").iterdir())
    with driver.guard.reading(other), refused(grpc.StatusCode.ABORTED, f"{other} is being copied"):
        await create(driver, [one, other])
    await driver.publish(one, driver.target("pod"))
    with driver.guard.holding([one]), refused(grpc.StatusCode.ABORTED):
        await driver.unpublish(one, driver.target("pod"))
    await driver.unpublish(one, driver.target("pod"))
    assert not any((driver.pool / "snapshots").iterdir())


async def test_a_directory_in_use_is_refused_and_one_that_nobody_uses_is_taken(area: Path) -> None:
    async with running(area) as driver:
        image = (await driver.create("image", size=SIZE)).volume_id
        directory = (await driver.create("directory", size=SIZE, parameters=DIRECTORY)).volume_id
        await _refused_in_use(driver, image, directory, DIRECTORY)


async def test_a_subvolume_in_use_is_refused_and_one_that_nobody_uses_is_taken(area: Path) -> None:
    with filesystem(area, "btrfs", size=640 * MIB) as place:
        async with running(area, [PoolSettings(name="default", path=str(place / "pool"))]) as driver:
            parameters = {"backend": "btrfs", "quota": "best-effort"}
            image = (await driver.create("image", size=SIZE, parameters={"backend": "image"})).volume_id
            subvolume = (await driver.create("subvolume", size=SIZE, parameters=parameters)).volume_id
            await _refused_in_use(driver, image, subvolume, parameters)


async def _refused_in_use(driver: Driver, image: str, directory: str, parameters: dict[str, str]) -> None:
    targets = driver.target("image"), driver.target("directory")
    for volume, target in zip((image, directory), targets, strict=True):
        await driver.publish(volume, target)
        (target / "kept").write_text("kept")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, f"volume {directory} cannot be", "end the pods"):
        await create(driver, [image, directory])
    (targets[0] / "later").write_text("nobody is kept still")
    assert not any((driver.pool / "snapshots").iterdir())
    await driver.unpublish(directory, targets[1])
    group = await taken(driver, [image, directory])
    members = {each.source_volume_id: each.snapshot_id for each in group.snapshots}
    await driver.unpublish(image, targets[0])
    for volume, more in ((image, {"backend": "image"}), (directory, parameters)):
        back = (
            await copy(driver, snapshot=members[volume], name=f"{volume}-back", size=SIZE, parameters=more)
        ).volume_id
        target = driver.target(f"{volume}-back")
        await driver.publish(back, target)
        assert (target / "kept").read_text() == "kept"
        await driver.unpublish(back, target)
        await driver.delete(back)
    await deleted(driver, group.group_snapshot_id, list(members.values()))
    for volume in (image, directory):
        await driver.delete(volume)
    await driver.emptied()
    assert driver.left() == []


async def test_a_device_in_use_and_a_filesystem_that_is_frozen_are_refused(two: tuple[Driver, list[str]]) -> None:
    driver, (one, _) = two
    block = (await driver.create("block", size=SIZE, wanted=capability(block=True))).volume_id
    device, target = driver.target("device"), driver.target("pod")
    await driver.publish(block, device, wanted=capability(block=True))
    await driver.publish(one, target)
    try:
        with refused(grpc.StatusCode.FAILED_PRECONDITION, f"volume {block} cannot be", "used as a device"):
            await create(driver, [one, block])
        await driver.unpublish(block, device)
        fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with (
                freezing.frozen(fd, seconds=20),
                refused(grpc.StatusCode.ABORTED, "frozen", "somebody else", "fsfreeze -u"),
            ):
                await create(driver, [one, block])
        finally:
            os.close(fd)
        assert (await taken(driver, [one, block])).ready_to_use
    finally:
        await driver.unpublish(block, device)
        await driver.unpublish(one, target)


async def test_volumes_of_a_pool_that_others_share_are_refused(area: Path) -> None:
    pools = [
        PoolSettings(name="default", path=str(area / "pool")),
        PoolSettings(name="shared", path=str(area / "shared"), shared=True),
    ]
    async with running(area, pools) as driver:
        own = (await driver.create("own", size=SIZE)).volume_id
        shared = (await driver.create("shared", size=SIZE, parameters={**DIRECTORY, "pool": "shared"})).volume_id
        with refused(grpc.StatusCode.FAILED_PRECONDITION, f"volume {shared} is in pool shared"):
            await create(driver, [own, shared])
        assert not any((area / "pool" / "snapshots").iterdir())


async def test_a_group_without_room_leaves_nothing(area: Path) -> None:
    with filesystem(area, "ext4") as place:
        pools = [
            PoolSettings(name="default", path=str(area / "pool")),
            PoolSettings(name="small", path=str(place / "pool")),
        ]
        async with running(area, pools) as driver:
            one = (await driver.create("one", size=SIZE)).volume_id
            small = (await driver.create("small", size=200 * MIB, parameters={"pool": "small"})).volume_id
            target = driver.target("pod")
            await driver.publish(small, target)
            (target / "data").write_bytes(b"x" * (150 * MIB))
            with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "has no room"):
                await create(driver, [one, small])
            await driver.unpublish(small, target)
            assert not any((area / "pool" / "snapshots").iterdir())
            assert not any((place / "pool" / "snapshots").iterdir())


async def test_what_takes_long_is_told_as_not_ready_and_nothing_of_it_is_listed(
    two: tuple[Driver, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, volumes = two
    go_on = threading.Event()
    real = Image.copy

    def slow(self: Image, *arguments: Any, **more: Any) -> None:
        go_on.wait(60)
        real(self, *arguments, **more)

    monkeypatch.setattr(Image, "copy", slow)
    try:
        began = time.monotonic()
        group = await create(driver, volumes)
        assert 1.5 < time.monotonic() - began < 30
        assert not group.ready_to_use
        assert [each.ready_to_use for each in group.snapshots] == [False, False]
        assert await listed(driver) == []
        assert not (await got(driver, group.group_snapshot_id)).ready_to_use
        member = ids_of(group)[0]
        one = await driver.controller.GetSnapshot(csi.GetSnapshotRequest(snapshot_id=member))
        assert not one.snapshot.ready_to_use
        with refused(grpc.StatusCode.ABORTED, f"{member} is kept as it is"):
            await copy(driver, snapshot=member, size=SIZE)
        with refused(grpc.StatusCode.ALREADY_EXISTS, "is of other volumes"):
            await create(driver, volumes[:1])
        for call in (
            driver.delete(volumes[0]),
            driver.publish(volumes[1], driver.target("pod")),
            deleted(driver, group.group_snapshot_id),
        ):
            with refused(grpc.StatusCode.ABORTED):
                await call
    finally:
        go_on.set()
    assert ids_of(await taken(driver, volumes)) == ids_of(group)
    assert sorted(await listed(driver)) == sorted(ids_of(group))


async def test_what_takes_too_long_while_others_wait_is_given_up(
    two: tuple[Driver, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, volumes = two
    monkeypatch.setattr(moment, "HELD_SECONDS", 0.3)
    real = Image.copy

    def slow(self: Image, *arguments: Any, **more: Any) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            more["pace"]()
            threading.Event().wait(0.02)
        real(self, *arguments, **more)

    targets = [driver.target(f"pod-{number}") for number in range(2)]
    for volume, target in zip(volumes, targets, strict=True):
        await driver.publish(volume, target)
    monkeypatch.setattr(Image, "copy", slow)
    try:
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "cannot be copied of one moment", "takes longer"):
            await create(driver, volumes)
        for target in targets:
            (target / "file").write_text("nobody is kept still")
        assert not any((driver.pool / "snapshots").iterdir())
    finally:
        for volume, target in zip(volumes, targets, strict=True):
            await driver.unpublish(volume, target)
