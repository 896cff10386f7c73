"""What the Controller promises, counts, refuses and leaves alone, over gRPC."""

import asyncio
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from moorage_csi import quantity
from moorage_csi.host import filesystems, loops, mounts
from moorage_csi.host.commands import CommandError
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.rpc.validation import volume_id_for
from moorage_csi.volumes.pool import Pool, PoolSettings
from tests.kernel.rpc_driver import (
    DIRECTORY,
    MIB,
    SIZE,
    Driver,
    Modes,
    capability,
    detached,
    refused,
    running,
)

pytestmark = pytest.mark.kernel

ABSENT = "vol-" + "0" * 32


@pytest.fixture
def small_disk(area: Path) -> Iterator[Path]:
    """A filesystem of 256 MiB, as a disk of its own for a pool."""
    image, disk = area / "disk.img", area / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(256 * MIB)
    asyncio.run(filesystems.make(path=str(image), filesystem="ext4", uuid="6ba7b810-9dad-11d1-80b4-00c04fd430c8"))
    target = os.open(disk, os.O_PATH | os.O_DIRECTORY)
    with image.open("r+b") as disk_file, loops.attach(backing_fd=disk_file.fileno(), name="disk.img") as loop:
        mounts.filesystem_mount(device=loop.path, filesystem="ext4", target_fd=target)
    os.close(target)
    try:
        yield disk
    finally:
        mounts.unmount(str(disk))
        asyncio.run(detached(image))


async def outcomes(calls: list["asyncio.Task[csi.Volume]"]) -> tuple[list[csi.Volume], list[grpc.aio.AioRpcError]]:
    results = await asyncio.gather(*calls, return_exceptions=True)
    made = [one for one in results if isinstance(one, csi.Volume)]
    failed = [one for one in results if isinstance(one, grpc.aio.AioRpcError)]
    assert len(made) + len(failed) == len(results)
    return made, failed


def append(path: Path, size: int) -> None:
    """Write as long as there is room, and longer."""
    with path.open("ab", buffering=0) as file:
        while True:
            file.write(b"x" * size)


async def capacity(driver: Driver) -> int:
    return (await driver.controller.GetCapacity(csi.GetCapacityRequest())).available_capacity


async def test_racing_creates_never_promise_more_than_there_is(small_disk: Path, area: Path) -> None:
    settings = [PoolSettings(name="default", path=str(small_disk / "pool"))]
    async with running(area, settings) as driver:
        before = await capacity(driver)
        # A volume takes a few blocks beside its size: its folder and its record.
        size = (before - MIB) // 5
        size -= size % 4096
        made, failed = await outcomes(
            [
                asyncio.create_task(driver.create(f"pvc-{n}", size=size, wanted=capability(block=True)))
                for n in range(20)
            ]
        )
        assert len(made) == 5
        assert {error.code() for error in failed} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert "promised to volumes" in (failed[0].details() or "")
        assert await capacity(driver) < size
        folders = {path.name for path in (driver.pool / "volumes").iterdir()}
        assert folders == {volume.volume_id for volume in made}
        # Every promise can be kept: all volumes are written to their ends.
        for volume in made:
            with (driver.volume_folder(volume.volume_id) / "image").open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        await driver.delete(made[0].volume_id)
        await driver.emptied()
        assert await capacity(driver) >= size - MIB


async def test_a_reserve_is_never_promised_and_overcommit_promises_more(small_disk: Path, area: Path) -> None:
    reserved = [PoolSettings(name="default", path=str(small_disk / "pool"), reserve_bytes=64 * MIB)]
    async with running(area, reserved) as driver:
        plain = await capacity(driver)
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "64Mi reserved"):
            await driver.create(size=plain + 4096, wanted=capability(block=True))
    over = [PoolSettings(name="default", path=str(small_disk / "pool"), reserve_bytes=64 * MIB, overcommit=2)]
    async with running(area, over) as driver:
        twice = await capacity(driver)
        assert plain * 1.9 < twice < plain * 2.5
        await driver.create(size=plain + MIB, wanted=capability(block=True))
        assert await capacity(driver) <= twice - plain


@pytest.mark.parametrize("parameters", [{}, DIRECTORY], ids=["image", "directory"])
async def test_a_full_disk_leaves_nothing_behind_and_can_still_lose_a_volume(
    small_disk: Path, area: Path, parameters: dict[str, str]
) -> None:
    # Promised nine times over, so that it is the disk and not the account that says no.
    settings = [PoolSettings(name="default", path=str(small_disk / "pool"), overcommit=9)]
    async with running(area, settings) as driver:
        first = await driver.create("pvc-1", size=64 * MIB)
        filler = small_disk / "filler"
        for size in (MIB, 4096, 1):
            with pytest.raises(OSError, match="No space left"):
                append(filler, size)
        before = driver.left()
        for _ in range(3):
            with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
                await driver.create("pvc-2", size=64 * MIB, parameters=parameters)
        assert driver.left() == before
        await driver.delete(first.volume_id)
        await driver.emptied()
        assert driver.left() == []
        filler.unlink()
        await driver.create("pvc-2", size=64 * MIB, parameters=parameters)


async def test_mkfs_that_fails_leaves_nothing(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(**_: object) -> None:
        raise CommandError(["mkfs.ext4"], exit_code=1, stderr="broken", reason="failed")

    monkeypatch.setattr(filesystems, "make", failing)
    with refused(grpc.StatusCode.INTERNAL, "nothing of it is left", "broken"):
        await driver.create()
    await driver.emptied()
    assert driver.left() == []
    monkeypatch.undo()
    await driver.create()


async def test_what_cannot_be_undone_is_told_as_unavailable_and_cleared_by_the_retry(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(**_: object) -> None:
        raise OSError(errno.EIO, "mkfs lost its disk")

    def stuck(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "rename lost its disk")

    monkeypatch.setattr(filesystems, "make", failing)
    monkeypatch.setattr(Pool, "discard", stuck)
    with refused(grpc.StatusCode.UNAVAILABLE, "mkfs lost its disk", "rename lost its disk"):
        await driver.create()
    monkeypatch.undo()
    # Held open, so that its inode's number cannot be given to the new file.
    with (driver.volume_folder(volume_id_for("pvc-1")) / "image").open("rb") as half:
        volume = await driver.create()
        image = driver.volume_folder(volume.volume_id) / "image"
        assert image.stat().st_ino != os.fstat(half.fileno()).st_ino
    await driver.emptied()


async def test_a_deadline_ends_the_call_but_neither_the_work_nor_its_guard(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, may_end, calls = filesystems.make, threading.Event(), []

    async def slow(**arguments: object) -> None:
        calls.append(arguments)
        assert await asyncio.to_thread(may_end.wait, 20)
        await real(**arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(filesystems, "make", slow)
    request = csi.CreateVolumeRequest(
        name="pvc-1", capacity_range=csi.CapacityRange(required_bytes=SIZE), volume_capabilities=[capability()]
    )
    with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
        await driver.controller.CreateVolume(request, timeout=0.3)
    with refused(grpc.StatusCode.ABORTED, "has not ended"):
        await driver.controller.CreateVolume(request)
    with refused(grpc.StatusCode.ABORTED):
        await driver.delete(volume_id_for("pvc-1"))
    may_end.set()
    assert await driver.guard.drain(20)
    await driver.create()
    assert len(calls) == 1


async def test_one_name_with_other_arguments_is_refused(driver: Driver) -> None:
    await driver.create(size=64 * MIB)
    with refused(grpc.StatusCode.ALREADY_EXISTS, str(64 * MIB)):
        await driver.create(size=128 * MIB)
    with refused(grpc.StatusCode.ALREADY_EXISTS, "backend"):
        await driver.create(parameters=DIRECTORY)
    with refused(grpc.StatusCode.ALREADY_EXISTS, "mode"):
        await driver.create(wanted=capability(block=True))
    with refused(grpc.StatusCode.ALREADY_EXISTS, "ext4"):
        await driver.create(wanted=capability(filesystem="xfs"))
    with refused(grpc.StatusCode.ALREADY_EXISTS, "onDelete"):
        await driver.create(parameters={"onDelete": "retain"})
    await driver.create(size=32 * MIB, parameters={"backend": "image"}, wanted=capability(filesystem="ext4"))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"backend": "zfs"}, ["backend", "zfs", "auto", "image", "directory"]),
        ({"pool": "other"}, ["pool", "other", "default"]),
        ({"quota": "hard"}, ["quota", "hard", "required", "best-effort", "none"]),
        ({"onDelete": "keep"}, ["onDelete", "keep", "delete", "retain", "archive"]),
        ({"mountPermissions": "rwx"}, ["mountPermissions", "rwx", "0770"]),
        ({"mountPermissions": "7777"}, ["mountPermissions", "7777"]),
        ({"csi.storage.k8s.io/fstype": "ntfs"}, ["fstype", "ntfs", "ext4", "xfs"]),
        ({"bakend": "image"}, ["bakend", "backend"]),
        ({"backend": ""}, ["backend", "''"]),
    ],
)
async def test_a_parameter_that_cannot_be_meant_is_named_with_what_is_allowed(
    driver: Driver, parameters: dict[str, str], words: list[str]
) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, *words):
        await driver.create(parameters=parameters)
    assert driver.left() == []


async def test_sizes_that_cannot_be_are_refused_with_the_minimum(driver: Driver) -> None:
    async def create(**range_: int) -> csi.Volume:
        response = await driver.controller.CreateVolume(
            csi.CreateVolumeRequest(
                name="pvc-1", capacity_range=csi.CapacityRange(**range_), volume_capabilities=[capability()]
            )
        )
        return response.volume

    minimum = quantity.text(filesystems.minimum("ext4"))
    for too_small in ({"required_bytes": 1}, {"required_bytes": 0}, {"limit_bytes": 4096}):
        with refused(grpc.StatusCode.OUT_OF_RANGE, minimum, "ext4"):
            await create(**too_small)
    for wrong in ({"required_bytes": -1}, {"limit_bytes": -5}, {"required_bytes": 2 * SIZE, "limit_bytes": SIZE}):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "capacity_range"):
            await create(**wrong)
    with refused(grpc.StatusCode.OUT_OF_RANGE, "4096"):
        await create(required_bytes=SIZE + 1, limit_bytes=SIZE + 2)
    for huge in (1 << 50, (1 << 63) - 1):
        with refused(grpc.StatusCode.OUT_OF_RANGE if huge > 1 << 60 else grpc.StatusCode.RESOURCE_EXHAUSTED):
            await create(required_bytes=huge)
    assert driver.left() == []
    assert (await create(required_bytes=SIZE + 1)).capacity_bytes == SIZE + 4096


async def test_no_range_at_all_means_the_default_size(driver: Driver) -> None:
    request = csi.CreateVolumeRequest(name="pvc-1", volume_capabilities=[capability()])
    assert (await driver.controller.CreateVolume(request)).volume.capacity_bytes == 1 << 30


async def test_a_volume_is_made_for_this_node_or_not_here(driver: Driver) -> None:
    def request(*places: str) -> csi.CreateVolumeRequest:
        wanted = [csi.Topology(segments={"topology.moorage.dev/node": place}) for place in places]
        return csi.CreateVolumeRequest(
            name="pvc-1",
            capacity_range=csi.CapacityRange(required_bytes=SIZE),
            volume_capabilities=[capability()],
            accessibility_requirements=csi.TopologyRequirement(requisite=wanted, preferred=wanted),
        )

    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "node-1"):
        await driver.controller.CreateVolume(request("node-2"))
    await driver.controller.CreateVolume(request("node-2", "node-1"))
    elsewhere = csi.GetCapacityRequest(
        accessible_topology=csi.Topology(segments={"topology.moorage.dev/node": "node-2"})
    )
    assert (await driver.controller.GetCapacity(elsewhere)).available_capacity == 0


async def test_capacity_is_that_of_what_is_asked_for(driver: Driver) -> None:
    def asked(**parameters: str) -> csi.GetCapacityRequest:
        return csi.GetCapacityRequest(parameters=parameters, volume_capabilities=[capability(filesystem="xfs")])

    answer = await driver.controller.GetCapacity(asked(backend="image"))
    assert answer.minimum_volume_size.value == 300 * MIB
    assert answer.maximum_volume_size.value == answer.available_capacity > 0
    many = csi.GetCapacityRequest(volume_capabilities=[capability(mode=Modes.MULTI_NODE_MULTI_WRITER)])
    assert (await driver.controller.GetCapacity(many)).available_capacity == 0
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "zfs"):
        await driver.controller.GetCapacity(asked(backend="zfs"))


async def test_modes_for_many_nodes_are_refused_in_a_pool_of_one(driver: Driver) -> None:
    for mode in (Modes.MULTI_NODE_READER_ONLY, Modes.MULTI_NODE_MULTI_WRITER):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "single-node", "default"):
            await driver.create(wanted=capability(mode=mode))
    for number, mode in enumerate((Modes.SINGLE_NODE_READER_ONLY, Modes.SINGLE_NODE_MULTI_WRITER)):
        await driver.create(f"pvc-{number}", wanted=capability(mode=mode))


async def test_requests_that_lack_something_are_refused(driver: Driver) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "name"):
        await driver.create("")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "volume_capabilities"):
        await driver.controller.CreateVolume(csi.CreateVolumeRequest(name="pvc-1"))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "access_type"):
        await driver.create(wanted=csi.VolumeCapability(access_mode=Modes(mode=Modes.SINGLE_NODE_WRITER)))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "access_mode"):
        await driver.create(wanted=csi.VolumeCapability(mount=csi.VolumeCapability.MountVolume()))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "block and mount"):
        await driver.controller.CreateVolume(
            csi.CreateVolumeRequest(name="pvc-1", volume_capabilities=[capability(), capability(block=True)])
        )
    nothing = csi.VolumeContentSource()
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "volume_content_source"):
        await driver.controller.CreateVolume(
            csi.CreateVolumeRequest(name="pvc-1", volume_capabilities=[capability()], volume_content_source=nothing)
        )


async def test_capabilities_of_a_volume_are_confirmed_or_denied_with_the_reason(driver: Driver) -> None:
    volume = await driver.create()

    async def ask(volume_id: str, wanted: csi.VolumeCapability) -> csi.ValidateVolumeCapabilitiesResponse:
        return await driver.controller.ValidateVolumeCapabilities(
            csi.ValidateVolumeCapabilitiesRequest(
                volume_id=volume_id, volume_capabilities=[wanted], volume_context=volume.volume_context
            )
        )

    yes = await ask(volume.volume_id, capability(filesystem="ext4"))
    assert yes.confirmed.volume_capabilities == [capability(filesystem="ext4")]
    for wanted in (
        capability(block=True),
        capability(filesystem="xfs"),
        capability(mode=Modes.MULTI_NODE_MULTI_WRITER),
    ):
        no = await ask(volume.volume_id, wanted)
        assert not no.HasField("confirmed")
        assert volume.volume_id in no.message
    with refused(grpc.StatusCode.NOT_FOUND, ABSENT):
        await ask(ABSENT, capability())
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await driver.controller.ValidateVolumeCapabilities(
            csi.ValidateVolumeCapabilitiesRequest(volume_id=volume.volume_id)
        )


async def test_unknown_volumes(driver: Driver, area: Path) -> None:
    for foreign in (ABSENT, "some-volid", "fake-vol-id-0", "volumes", "pool.json", "Ünïcode", "."):
        await driver.delete(foreign)
        with refused(grpc.StatusCode.NOT_FOUND):
            await driver.publish(foreign, driver.target("one"))
        with refused(grpc.StatusCode.NOT_FOUND):
            await driver.stats(foreign, "some/path")
        await driver.unpublish(foreign, driver.target("one"))
    volume = (await driver.create()).volume_id
    with refused(grpc.StatusCode.NOT_FOUND):
        await driver.stats(volume, "some/path")
    with refused(grpc.StatusCode.NOT_FOUND):
        await driver.stats(volume, driver.target("one"))


async def test_two_pools_on_one_disk_promise_from_the_same_room(small_disk: Path, area: Path) -> None:
    settings = [PoolSettings(name=name, path=str(small_disk / name)) for name in ("one", "two")]
    async with running(area, settings) as driver:
        size = (await capacity(driver) - MIB) // 4
        made, failed = await outcomes(
            [
                asyncio.create_task(
                    driver.create(f"pvc-{n}", size=size, wanted=capability(block=True), parameters={"pool": name})
                )
                for n, name in enumerate(["one", "two"] * 8)
            ]
        )
        assert {error.code() for error in failed} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert sum(volume.capacity_bytes for volume in made) <= 4 * (size + 4096)
        assert len(made) in (3, 4)
