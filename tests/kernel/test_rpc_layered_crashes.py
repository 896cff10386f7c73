"""Layered volumes when drivers die, when calls meet, and when the disk ends: nothing written is lost, and nothing is left.

See ``crash_points`` for how a driver is killed at every point.
"""

import asyncio
import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest

from moorage_csi.backends import layers
from moorage_csi.errors import UnavailableError
from moorage_csi.host import syscalls
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.rpc.shapes import shape_of
from moorage_csi.rpc.validation import volume_id_for
from moorage_csi.volumes.ids import VolumeId
from moorage_csi.volumes.pool import PoolSettings
from moorage_csi.volumes.record import State
from tests.kernel.crash_points import areas_of
from tests.kernel.loop_filesystem import filesystem, fill
from tests.kernel.machine import names
from tests.kernel.rpc_driver import MIB, SIZE, Driver, detached, mounted_below, refused, running
from tests.kernel.test_rpc_expanding import expand
from tests.kernel.test_rpc_layered import METADATA, chain, clone, create, published, read, written
from tests.kernel.test_rpc_snapshots import snapshot

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

CONTENT = {"kept": b"what must not be lost"}

_VICTIM = """
import asyncio, json, os, sys, time
from moorage_csi.backends import layers
from moorage_csi.host.paths import Directory
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.rpc import validation
from moorage_csi.rpc.provisioning import Provisioner
from moorage_csi.rpc.sources import Source
from moorage_csi.rpc.station import Station
from moorage_csi.volumes.disk import Disks
from moorage_csi.rpc.shapes import shape_of
from moorage_csi.rpc.validation import volume_id_for
from moorage_csi.volumes.ids import VolumeId
from moorage_csi.volumes.pool import PoolSettings
from moorage_csi.volumes.record import State
from tests.kernel.crash_points import die_at

area = sys.argv[1]

def wish(name):
    return validation.creation(
        csi.CreateVolumeRequest(
            name=name,
            capacity_range=csi.CapacityRange(required_bytes=64 << 20),
            parameters={"backend": "layered"},
            volume_capabilities=[csi.VolumeCapability(
                mount=csi.VolumeCapability.MountVolume(),
                access_mode=csi.VolumeCapability.AccessMode(mode=1))],
        ),
        pools=["default"],
    )

async def scenario(path, fatal):
    os.mkdir(path)
    station = Station(PoolSettings(name="default", path=path + "/pool"), node="node-1", disks=Disks())
    provisioner = Provisioner(node_name="node-1", clock=time.time)
    record = await provisioner.create(station, wish("source"))
    opened = await station.open()
    with opened.pool.folder(record.id) as folder:
        fd = layers.opened(folder)
        with layers.written(fd) as top:
            upper = Directory(layers.upper_of(top))
            upper.write_atomic("kept", b"what must not be lost")
            upper.close()
        os.close(fd)

    async def source():
        return Source(pool=opened, what=record)

    die_at(fatal)
    await provisioner.create(station, wish("copy"), find_source=source)

areas = []
for fatal in range(1, 400):
    path = f"{area}/{fatal}"
    areas.append(path)
    child = os.fork()
    if child == 0:
        asyncio.run(scenario(path, fatal))
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(json.dumps(areas))
"""

_PUBLISHER = """
import os, signal, sys
from moorage_csi.backends.backend import Publication, Shape
from moorage_csi.backends.layered import Layered
from moorage_csi.host.paths import Directory

folder, target, kubelet = sys.argv[1:]
shape = Shape(uuid="", size=64 << 20, block=False, filesystem="ext4", permissions=0o770, quota="enforced")
publication = Publication(target=target, kubelet_dir=kubelet, readonly=False, exclusive=False, options=())
Layered(no_overlay=None).publish(Directory.open(folder), shape, publication)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _able() -> None:
    try:
        os.close(syscalls.fsopen("overlay"))
    except OSError as error:
        pytest.skip(f"the kernel has no overlay: {error}")


async def unused(driver: Driver) -> None:
    """No device is left of anything in the pool."""
    for path in driver.pool.rglob("*"):
        if path.name == "image" or path.parent.name == "layers":
            await detached(path)


async def test_a_copy_killed_at_any_point_leaves_the_source_whole(area: Path) -> None:
    source, found = volume_id_for("source"), set()
    for crashed in areas_of("-c", _VICTIM, str(area)):
        async with running(crashed) as driver:
            await driver.emptied()
            made = [each for each in names(driver.pool / "volumes") if each != source]
            image = driver.volume_folder(source) / "image"
            tops = [path.stat().st_ino for path in chain(driver, source)]
            found.add((len(made), len(tops), image.stat().st_ino in tops))
            assert await read(driver, source) == CONTENT, crashed
            assert image.stat().st_ino not in [path.stat().st_ino for path in chain(driver, source)]
            copy = await clone(driver, "copy", volume=source)
            assert made in ([], [copy])
            await written(driver, source, more=b"more")
            assert await read(driver, copy) == CONTENT, crashed
            assert await read(driver, source) == {**CONTENT, "more": b"more"}
            await unused(driver)
            for volume in (source, copy):
                await driver.delete(volume)
            await driver.emptied()
            assert driver.left() == []
    assert found == {(0, 0, False), (0, 1, True), (0, 1, False), (1, 1, False)}, "a step was not met"


async def test_a_driver_that_dies_leaves_the_mount_at_work_and_the_next_one_takes_it_away(area: Path) -> None:
    async with running(area) as driver:
        base = await create(driver, "base")
        await written(driver, base, **CONTENT)
        volume = await clone(driver, "clone", volume=base)
        target = driver.target("pod")
        folder, kubelet = driver.volume_folder(volume), driver.kubelet
    victim = [sys.executable, "-c", _PUBLISHER, *map(str, (folder, target, kubelet))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    died = await asyncio.to_thread(lambda: subprocess.run(victim, env=environment, timeout=60, check=False))
    assert died.returncode < 0
    assert (target / "kept").read_bytes() == CONTENT["kept"]
    (target / "later").write_bytes(b"later")
    async with running(area) as driver:
        await driver.publish(volume, target)
        assert mounted_below(area) == [str(target)]
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "in use", str(target)):
            await driver.delete(volume)
        await driver.unpublish(volume, target)
        await unused(driver)
        assert await read(driver, volume) == {**CONTENT, "later": b"later"}
        await unused(driver)


async def test_copies_meet_the_publishing_and_growing_of_their_source(area: Path) -> None:
    """Whatever comes first: no layer is written to, and each copy is of one moment."""
    async with running(area) as driver:
        volume = await create(driver)
        size, copies = SIZE, []
        for number in range(10):
            target = driver.target(f"pod-{number}")

            async def use(target: Path = target, number: int = number) -> None:
                await asyncio.sleep(0.01 * (number % 5))
                await driver.publish(volume, target)
                for name in ("first", "second"):
                    (target / "new").write_bytes(b"%d" % number)
                    (target / "new").replace(target / name)
                await driver.unpublish(volume, target)

            work = [use(), clone(driver, f"one-{number}", volume=volume), clone(driver, f"two-{number}", volume=volume)]
            if number % 3 == 2:
                size += 16 * MIB
                work.append(expand(driver, volume, size))  # type: ignore[arg-type]
            answers = await asyncio.gather(*work, return_exceptions=True)
            for answer in answers:
                if isinstance(answer, grpc.aio.AioRpcError):
                    assert answer.code() in _AGAIN, answer
                elif isinstance(answer, BaseException):
                    raise answer
            copies += [answer for answer in answers if isinstance(answer, str)]
            if target.exists():
                await driver.unpublish(volume, target)
            inodes = [path.stat().st_ino for path in (driver.volume_folder(volume) / "image", *chain(driver, volume))]
            assert len(set(inodes)) == len(inodes)
        assert len(copies) > 5
        for copy in copies:
            files = await read(driver, copy)
            assert int(files.get("second", b"-1")) <= int(files.get("first", b"-1")), files
        await unused(driver)


_AGAIN = (grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION)


@pytest.mark.parametrize("disk", ["ext4", "xfs"])
async def test_all_that_is_promised_can_be_written_after_snapshots_and_copies(area: Path, disk: str) -> None:
    """A copy of a full volume lets it write all of its size once more, which has to be there."""
    with filesystem(area, disk, size=640 * MIB) as root:
        settings = [PoolSettings(name="default", path=str(root / "pool"))]
        async with running(area, settings) as driver:
            (station,) = driver.pools
            opened = await station.open()
            volume = await create(driver)
            async with published(driver, volume) as target:
                fill(target / "first", end=errno.ENOSPC)
            os.sync()
            had = (driver.volume_folder(volume) / "image").stat().st_blocks * 512
            before = opened.pool.room().by_filesystem
            volumes = [volume, await clone(driver, "clone", volume=volume)]
            os.sync()
            # The copy's size, and what the source had written and can write once more.
            assert abs(before - opened.pool.room().by_filesystem - SIZE - had) < METADATA
            await snapshot(driver, volume)
            refusal = None
            for number in range(20):
                try:
                    volumes.append(await clone(driver, f"clone-{number}", volume=volumes[-1]))
                except grpc.aio.AioRpcError as error:
                    refusal = error.code()
                    break
                await written(driver, volumes[-1], **{f"own-{number}": b"o" * 8 * MIB})
            assert refusal is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert len(volumes) > 3
            assert opened.pool.room().by_filesystem >= -METADATA
            for each in volumes:
                async with published(driver, each) as target:
                    fill(target / "second", end=errno.ENOSPC)
                    assert (await driver.stats(each, target))["BYTES"].available < MIB
            for each in volumes:
                found = await driver.controller.ControllerGetVolume(csi.ControllerGetVolumeRequest(volume_id=each))
                assert not found.status.volume_condition.abnormal, found.status.volume_condition.message
                async with published(driver, each, readonly=True) as target:
                    assert (target / "second").read_bytes().count(b"x") == (target / "second").stat().st_size
            await unused(driver)


async def test_a_copy_is_refused_that_would_let_its_source_write_what_is_not_there(area: Path) -> None:
    with filesystem(area, "ext4", size=512 * MIB) as root:
        settings = [PoolSettings(name="default", path=str(root / "pool"))]
        async with running(area, settings) as driver:
            (station,) = driver.pools
            pool = (await station.open()).pool
            volume = await create(driver)
            async with published(driver, volume) as target:
                fill(target / "first", end=errno.ENOSPC)
            os.sync()
            had = (driver.volume_folder(volume) / "image").stat().st_blocks * 512
            filling = (pool.room().free - SIZE - had // 2) // MIB * MIB
            await driver.create("filling", size=filling, parameters={"backend": "image"})
            with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "has no room"):
                await clone(driver, "clone", volume=volume)
            assert chain(driver, volume) == []
            await driver.delete(volume_id_for("filling"))
            await driver.emptied()
            # What one that is being made needs is promised to it, whoever asks meanwhile.
            record = pool.records[VolumeId(volume)]
            begun = replace(
                record, id=volume_id_for("begun"), name="begun", source=record.id, state=State.CREATING, formatted=False
            )
            before = pool.claims()
            pool.begin(begun)
            assert [after - then for after, then in zip(pool.claims(), before, strict=True)] == [SIZE + had] * 2
            pool.discard(begun)
            assert pool.claims() == before


async def test_a_filesystem_grows_only_while_its_image_stays_one(area: Path) -> None:
    async with running(area) as driver:
        volume = await create(driver)
        (station,) = driver.pools
        opened = await station.open()
        backend, shape = opened.backends["layered"], shape_of(opened.pool.records[VolumeId(volume)])
        with opened.pool.folder(VolumeId(volume)) as folder:
            with folder.child("layers") as mine:
                layers.lock(mine)
                growing = asyncio.ensure_future(backend.fit(folder, shape))
                done, _ = await asyncio.wait([growing], timeout=0.5)
                assert not done, "what is becoming a layer is not written to"
            assert await growing
            fd = layers.opened(folder)
            try:
                with layers.written(fd), pytest.raises(UnavailableError, match="ask again"):
                    await backend.fit(folder, shape)
            finally:
                os.close(fd)
