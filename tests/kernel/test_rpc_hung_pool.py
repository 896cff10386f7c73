"""A pool whose disk hangs: nobody who does not need that disk notices, and when it goes on everything comes to its end.

The disk hangs as a real one does: a frozen filesystem lets whoever writes to it wait, unkillably, until it is thawed. The
driver is a process of its own, so that its threads hang and not the test's.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import statistics
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from moorage_csi.backends.backend import Shape
from moorage_csi.backends.image import Image
from moorage_csi.host import freezing, mounts
from moorage_csi.host.paths import Directory
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.proto import csi_pb2_grpc
from moorage_csi.volumes.pool import PoolSettings
from tests.harness.plugin import Plugin
from tests.kernel.loop_filesystem import MIB, filesystem
from tests.kernel.machine import names
from tests.kernel.rpc_driver import DIRECTORY, SIZE, capability, running

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

HUNG = 20
"""Operations on the pool that hangs."""

ROUNDS = 20
MEDIAN_SECONDS = 0.1
"""What the others' answers may take; of the slowest only that it is no waiting for the disk is asked: the machine is shared."""
SLOWEST_SECONDS = 2.0

GRACE_SECONDS = 25.0
WATCHDOG_SECONDS = 90.0

_FREEZE = 0xC0045877

Deadline = grpc.StatusCode.DEADLINE_EXCEEDED


class Disk:
    """A filesystem that can be made to hang; thawed at the end whatever happens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self._watchdog: threading.Timer | None = None

    def hang(self) -> None:
        self._watchdog = threading.Timer(WATCHDOG_SECONDS, freezing.thaw, (self._fd,))
        self._watchdog.start()
        fcntl.ioctl(self._fd, _FREEZE, 0)

    def go_on(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        freezing.thaw(self._fd)

    def close(self) -> None:
        self.go_on()
        os.close(self._fd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A caller with its own connection."""

    identity: "csi_pb2_grpc.IdentityAsyncStub"
    controller: "csi_pb2_grpc.ControllerAsyncStub"
    node: "csi_pb2_grpc.NodeAsyncStub"

    async def create(self, name: str, pool: str, *, timeout: float, backend: str = "image") -> str:  # noqa: ASYNC109
        """A volume; its id."""
        more = DIRECTORY if backend == "directory" else {"backend": backend}
        request = csi.CreateVolumeRequest(
            name=name,
            capacity_range=csi.CapacityRange(required_bytes=SIZE),
            volume_capabilities=[capability()],
            parameters={"pool": pool, **more},
        )
        return (await self.controller.CreateVolume(request, timeout=timeout)).volume.volume_id

    async def insist(self, name: str, pool: str) -> str:
        """The same as an orchestrator asks for it: until it is there."""
        async with asyncio.timeout(60):
            while True:
                try:
                    return await self.create(name, pool, timeout=10)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in (Deadline, grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE):
                        raise
                    await asyncio.sleep(0.1)

    async def delete(self, volume: str) -> None:
        await self.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id=volume), timeout=20)


@contextlib.asynccontextmanager
async def connected(plugin: Plugin) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(f"unix:{plugin.socket}") as channel:
        yield Client(
            identity=csi_pb2_grpc.IdentityStub(channel),
            controller=csi_pb2_grpc.ControllerStub(channel),
            node=csi_pb2_grpc.NodeStub(channel),
        )


@pytest.fixture
def disk(area: Path) -> Iterator[Disk]:
    with filesystem(area, "ext4", size=4096 * MIB) as path:
        disk = Disk(path)
        try:
            yield disk
        finally:
            disk.close()


@pytest.fixture
def plugin(area: Path, disk: Disk) -> Iterator[Plugin]:
    """The pool whose disk will hang is the first, the one that every look for a volume begins with."""
    plugin = at(area, disk)
    try:
        plugin.start()
        yield plugin
    finally:
        disk.go_on()
        plugin.stop()
        for mount in reversed(mounts.mounts()):
            if mount.target.startswith(f"{area}/kubelet/"):
                mounts.unmount(mount.target)


def at(area: Path, disk: Disk) -> Plugin:
    pools = [{"name": "hung", "path": str(disk.path / "pool")}, {"name": "well", "path": str(area / "well")}]
    return Plugin(area, pools, "--metrics-listen", "127.0.0.1:0")


async def _code(call: Awaitable[object]) -> grpc.StatusCode:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def _timed(took: dict[str, list[float]], what: str, call: Awaitable[Any]) -> Any:
    began = time.monotonic()
    answer = await call
    took.setdefault(what, []).append(time.monotonic() - began)
    return answer


async def _live(client: Client, plugin: Plugin, *, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """All that a node does all day, in the pool that is well, and Probe; returns what each took, in seconds."""
    took: dict[str, list[float]] = {}
    for number in range(rounds):
        target = plugin.kubelet / "pods" / f"pod-{number}" / "mount"
        target.parent.mkdir(parents=True, exist_ok=True)
        probe = await _timed(took, "Probe", client.identity.Probe(csi.ProbeRequest(), timeout=20))
        assert probe.ready.value
        creation = client.create(f"well-{number}", "well", timeout=20, backend="directory")
        volume = await _timed(took, "CreateVolume", creation)
        published = csi.NodePublishVolumeRequest(
            volume_id=volume, target_path=str(target), volume_capability=capability()
        )
        await _timed(took, "NodePublishVolume", client.node.NodePublishVolume(published, timeout=20))
        stats = csi.NodeGetVolumeStatsRequest(volume_id=volume, volume_path=str(target))
        await _timed(took, "NodeGetVolumeStats", client.node.NodeGetVolumeStats(stats, timeout=20))
        gone = csi.NodeUnpublishVolumeRequest(volume_id=volume, target_path=str(target))
        await _timed(took, "NodeUnpublishVolume", client.node.NodeUnpublishVolume(gone, timeout=20))
        await _timed(took, "DeleteVolume", client.delete(volume))
    image = client.create("well-image", "well", timeout=20)
    await client.delete(await _timed(took, "CreateVolume of an image", image))
    return took


def _judge(took: dict[str, list[float]], plain: dict[str, list[float]]) -> None:
    for what, seconds in took.items():
        median, usual = statistics.median(seconds), statistics.median(plain[what])
        print(f"{what}: median {median * 1e3:.1f} ms, longest {max(seconds) * 1e3:.1f} ms, before {usual * 1e3:.1f} ms")  # noqa: T201
    for what, seconds in took.items():
        if not what.endswith("image"):
            assert statistics.median(seconds) <= MEDIAN_SECONDS, what
        assert max(seconds) <= SLOWEST_SECONDS, what


async def _metrics(plugin: Plugin) -> str:
    """The page, from the port that the log tells."""
    port = next(line for line in plugin.log.read_text().splitlines() if "serving pages" in line)
    number = int(port.partition("port=")[2].split()[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", number)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(15):
        page = await reader.read()
    writer.close()
    await writer.wait_closed()
    return page.decode()


async def _converges(client: Client, area: Path, disk: Disk, plugin: Plugin) -> None:
    """Whoever asks again gets his volume, once; and it goes again, with nothing left."""
    volumes = await asyncio.gather(*(client.insist(f"hung-{number}", "hung") for number in range(HUNG)))
    assert len(set(volumes)) == HUNG
    listed = await client.controller.ListVolumes(csi.ListVolumesRequest(), timeout=20)
    assert {entry.volume.volume_id for entry in listed.entries} == set(volumes)
    await asyncio.gather(*map(client.delete, volumes))
    deadline = time.monotonic() + 30
    while left := [str(path) for pool in (disk.path / "pool", area / "well") for path in _left(pool)]:
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.05)
    assert _children(plugin) == []


def _left(pool: Path) -> list[Path]:
    return [path for folder in ("volumes", "making", "trash") for path in (pool / folder).iterdir()]


def _children(plugin: Plugin) -> list[str]:
    """The names of the programs that the driver runs."""
    assert plugin._process is not None
    found: list[str] = []
    for task in Path(f"/proc/{plugin._process.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children = (task / "children").read_text(encoding="ascii").split()
            found += (Path(f"/proc/{child}/comm").read_text(encoding="ascii").strip() for child in children)
    return found


async def _all_hang(calls: list["asyncio.Task[str]"]) -> None:
    await asyncio.sleep(0.5)
    assert not any(call.done() for call in calls)


async def test_twenty_creations_that_hang_hold_up_nobody_else(area: Path, disk: Disk, plugin: Plugin) -> None:
    async with connected(plugin) as client:
        plain = await _live(client, plugin)
        disk.hang()
        calls = [
            asyncio.create_task(client.create(f"hung-{number}", "hung", timeout=8 if number % 2 else 120))
            for number in range(HUNG)
        ]
        await _all_hang(calls)
        _judge(await _live(client, plugin), plain)
        assert "moorage" in await _metrics(plugin)
        listing = client.controller.ListVolumes(csi.ListVolumesRequest(), timeout=1)
        room = client.controller.GetCapacity(csi.GetCapacityRequest(parameters={"pool": "hung"}), timeout=1)
        assert [await _code(listing), await _code(room)] == [Deadline, Deadline]
        assert await _code(client.create("hung-0", "hung", timeout=5)) is grpc.StatusCode.ABORTED
        codes = [await _code(call) for call in calls[1::2]]
        assert codes == [Deadline] * len(codes)
        assert await _code(client.create("hung-1", "hung", timeout=5)) is grpc.StatusCode.ABORTED
        assert not any(call.done() for call in calls[::2])
        disk.go_on()
        assert [await _code(call) for call in calls[::2]] == [grpc.StatusCode.OK] * (HUNG // 2)
        await _converges(client, area, disk, plugin)


async def test_programs_that_hang_hold_up_nobody_else_and_are_not_left(area: Path, disk: Disk, plugin: Plugin) -> None:
    """The disk hangs when filesystems are being made on it."""
    async with connected(plugin) as client:
        plain = await _live(client, plugin)
        calls = await _caught_making(client, disk, plugin)
        await _all_hang([call for call in calls if not call.done()])
        children = _children(plugin)
        _judge(await _live(client, plugin), plain)
        assert 0 < children.count("mkfs.ext4") <= 4, children
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert await _code(client.create(f"hung-{HUNG - 1}", "hung", timeout=5)) is grpc.StatusCode.ABORTED
        assert len(_children(plugin)) == len(children), "a call that is given up ends no mkfs, and begins none"
        disk.go_on()
        await _converges(client, area, disk, plugin)


async def _caught_making(client: Client, disk: Disk, plugin: Plugin) -> list["asyncio.Task[str]"]:
    """Creations on a disk that hangs since a program of one of them was running, which is still at it."""
    for _ in range(20):
        calls = [asyncio.create_task(client.create(f"hung-{number}", "hung", timeout=100)) for number in range(HUNG)]
        await _until(lambda: "mkfs.ext4" in _children(plugin))
        disk.hang()
        await asyncio.sleep(0.2)
        if "mkfs.ext4" in _children(plugin):
            return calls
        disk.go_on()
        await asyncio.gather(*map(client.delete, await asyncio.gather(*calls)))
    pytest.fail("every program was done before the disk hung")


async def _until(met: Callable[[], bool], *, within: float = 20, every: float = 0.001) -> None:
    """Wait until that is so."""
    deadline = time.monotonic() + within
    while not met():
        assert time.monotonic() < deadline, "it never was so"
        await asyncio.sleep(every)


class _Stuck(Image):
    """Images on a disk on which not even a file can be opened."""

    def __init__(self) -> None:
        super().__init__()
        self.going_on = threading.Event()
        self.stuck = threading.Semaphore(0)

    async def format(self, folder: Directory, shape: Shape) -> None:
        self.stuck.release()
        self.going_on.wait(60)
        await super().format(folder, shape)


async def test_making_a_filesystem_blocks_neither_the_event_loop_nor_the_other_pools(area: Path) -> None:
    """Opening the file, and what else is done around the program, hangs too where the disk does."""
    pools = [PoolSettings(name=name, path=str(area / name)) for name in ("one", "two", "three")]
    stuck = [_Stuck(), _Stuck()]
    async with running(area, pools) as driver:
        try:
            for backend, station in zip(stuck, driver.pools, strict=False):
                assert station.ready is not None
                station.ready.backends["image"] = backend
            names = [(f"{pool.name}-{number}", pool.name) for pool in pools[:2] for number in range(HUNG // 2)]
            calls = [
                asyncio.create_task(driver.create(name, parameters={"pool": pool, "backend": "image"}))
                for name, pool in names
            ]
            for backend in stuck:
                assert await asyncio.to_thread(backend.stuck.acquire, timeout=20)
            took: dict[str, list[float]] = {}
            for number in range(3):
                creation = driver.create(f"three-{number}", parameters={"pool": "three", "backend": "image"})
                await _timed(took, "CreateVolume", creation)
            assert max(took["CreateVolume"]) <= SLOWEST_SECONDS
            assert not any(call.done() for call in calls)
        finally:
            for backend in stuck:
                backend.going_on.set()
        await asyncio.gather(*calls)


async def test_a_pool_that_hangs_at_the_start_holds_up_nobody_else(area: Path, disk: Disk) -> None:
    disk.hang()
    plugin = at(area, disk)
    try:
        assert plugin.start() < 15
        async with connected(plugin) as client:
            plain = await _live(client, plugin)
            _judge(plain, plain)
            assert await _code(client.create("hung-0", "hung", timeout=15)) is grpc.StatusCode.UNAVAILABLE
            unknown = client.controller.ControllerGetVolume(
                csi.ControllerGetVolumeRequest(volume_id=f"vol-{'0' * 32}"), timeout=15
            )
            assert await _code(unknown) is grpc.StatusCode.UNAVAILABLE, "it may be in the pool that hangs"
            disk.go_on()
            await _converges(client, area, disk, plugin)
    finally:
        disk.go_on()
        plugin.stop()


async def test_the_driver_stops_within_its_grace_and_the_next_has_the_other_pools(
    area: Path, disk: Disk, plugin: Plugin
) -> None:
    """Threads that hang stay until the disk goes on: the kernel can end no such process. It serves nobody any more."""
    async with connected(plugin) as client:
        disk.hang()
        calls = [asyncio.create_task(client.create(f"hung-{number}", "hung", timeout=100)) for number in range(HUNG)]
        await _all_hang(calls)
        process = plugin._process
        assert process is not None
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        await _until(lambda: "stopped" in plugin.log.read_text(), within=GRACE_SECONDS + 10, every=0.05)
        print(f"stopped after {time.monotonic() - began:.1f} s")  # noqa: T201
        assert not plugin.socket.exists()
        codes = {await _code(call) for call in calls}
        assert codes <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}
    (area / "next").mkdir()
    after = Plugin(area / "next", plugin._pools, "--kubelet-dir", str(plugin.kubelet))
    try:
        after.start()
        async with connected(after) as client:
            await _live(client, plugin, rounds=2)
            disk.go_on()
            await asyncio.to_thread(process.wait, 20)
            await _converges(client, area, disk, after)
    finally:
        disk.go_on()
        after.stop()
    assert names(disk.path / "pool" / "volumes") == []
