"""Sixty-four callers at once on fifty names, who give up, ask again and ask twice: what is left is what a model says.

Each caller does what an orchestrator does: it asks again as long as the answer is that it may, and takes every other answer
for the end. Deadlines end calls in the middle, and now and then a second orchestrator asks for the same at the same time.
When the storm is over all calls are brought to their end; then sizes, contents, the account and the disks have to be right,
and when all is deleted nothing may be left.

``MOORAGE_STORM_SECONDS`` is how long it lasts, ``MOORAGE_STORM_SEED`` gives the callers the same dice again.
"""

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import pytest

from moorage_csi.host import mounts
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.proto import csi_pb2_grpc
from moorage_csi.volumes import record, snapshot
from tests.harness.plugin import Plugin
from tests.kernel.kinds import counting
from tests.kernel.loop_filesystem import MIB, filesystem
from tests.kernel.machine import names
from tests.kernel.rpc_driver import DIRECTORY, Modes, capability
from tests.kernel.storm_model import EMPTY, Kind, Life, Model, Show, mark, read, write

SECONDS = float(os.environ.get("MOORAGE_STORM_SECONDS", "15"))
SEED = int(os.environ.get("MOORAGE_STORM_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(SECONDS * 6 + 240)]

CLIENTS: Final = 64
VOLUMES: Final = 36
SNAPSHOTS: Final = 14
SIZES: Final = (64 * MIB, 80 * MIB, 128 * MIB)
DISKS: Final = {"plain": 1536 * MIB, "sub": 1024 * MIB}
"""Too small for all that is asked for."""

KINDS: Final = (
    Kind(name="image", pool="plain", parameters={"pool": "plain", "backend": "image"}),
    Kind(name="directory", pool="plain", parameters={"pool": "plain", **DIRECTORY}),
    Kind(name="btrfs", pool="sub", parameters={"pool": "sub", "backend": "btrfs"}),
)

PATIENCE_SECONDS: Final = 90.0

Code = grpc.StatusCode

AGAIN: Final = frozenset({Code.ABORTED, Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE, Code.CANCELLED})
"""After which an orchestrator asks again: the call may still be running."""


@dataclass(slots=True, kw_only=True)
class Caller:
    """One client with a connection and dice of its own."""

    controller: "csi_pb2_grpc.ControllerAsyncStub"
    node: "csi_pb2_grpc.NodeAsyncStub"
    model: Model
    kubelet: Path
    chance: random.Random
    quiet: bool = False

    async def storm(self, until: float) -> None:
        """Do one thing after another, each under a name that nobody else works on."""
        volumes, snapshots = self.model.volumes, self.model.snapshots
        deeds = (
            *((self.make, volumes), (self.make, volumes), (self.use, volumes), (self.use, volumes)),
            *((self.duel, volumes), (self.grow, volumes), (self.remove, volumes)),
            *((self.take, snapshots), (self.drop, snapshots)),
        )
        while time.monotonic() < until:
            deed, names = self.chance.choice(deeds)
            name = self.chance.choice(names)
            if self.chance.random() < 0.05:
                await self.look()
            elif self.model.locks[name].locked():
                await asyncio.sleep(0.005)
            else:
                async with self.model.locks[name]:
                    await deed(name, self.model.alive(name))

    async def ask(self, call: Callable[..., Awaitable[Any]], request: Any, *refusals: grpc.StatusCode) -> Any:
        """The answer, or one of the codes that are an end too; asks again as long as it is told that it may."""
        name = type(request).__name__.removesuffix("Request")
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            hurried = not self.quiet and self.chance.random() < 0.3
            try:
                answer = await call(request, timeout=self.chance.uniform(0.0005, 0.05) if hurried else 60)
            except grpc.aio.AioRpcError as error:
                self.model.answers[name, error.code().name] += 1
                if error.code() in refusals:
                    return error.code()
                if error.code() not in AGAIN or time.monotonic() > until:
                    pytest.fail(f"{name}: {error.code()} {error.details()}")
                await asyncio.sleep(self.chance.uniform(0.005, 0.1))
            else:
                self.model.answers[name, "OK"] += 1
                return answer

    async def insist(self, call: Callable[..., Awaitable[Any]], request: Any, *refusals: grpc.StatusCode) -> Any:
        """The same, and now and then there are two orchestrators; returns the better answer."""
        if self.quiet or self.chance.random() < 0.8:
            return await self.ask(call, request, *refusals)
        both = await asyncio.gather(self.ask(call, request, *refusals), self.ask(call, request, *refusals))
        better = [answer for answer in both if not isinstance(answer, Code)]
        return better[0] if better else both[0]

    def source_of(self, kind: Kind) -> tuple[str, csi.VolumeContentSource | None]:
        """Something of that kind to make a copy of, and mostly nothing."""
        lives = [
            life for life in self.model.all_alive((*self.model.volumes, *self.model.snapshots)) if life.kind is kind
        ]
        if not lives or self.chance.random() < 0.4:
            return "", None
        life = self.chance.choice(lives)
        source = csi.VolumeContentSource()
        if life.name in self.model.snapshots:
            source.snapshot.snapshot_id = life.id
        else:
            source.volume.volume_id = life.id
        return life.name, source

    async def make(self, name: str, life: Life | None) -> None:
        """A volume, empty or a copy."""
        if life is not None:
            return
        kind = self.chance.choice(KINDS)
        source, content = self.source_of(kind)
        request = csi.CreateVolumeRequest(
            name=name,
            capacity_range=csi.CapacityRange(required_bytes=self.chance.choice(SIZES)),
            volume_capabilities=[capability()],
            parameters=kind.parameters,
            volume_content_source=content,
        )
        began = self.model.tick()
        # Until the call is answered a source may be gone, and its name that of a volume of another kind.
        refusals = {Code.RESOURCE_EXHAUSTED, *([Code.NOT_FOUND, Code.INVALID_ARGUMENT] if source else [])}
        held = self.held_by(source, began)
        with self.model.expecting(name, held):
            answer = await self.insist(self.controller.CreateVolume, request, *refusals)
            if isinstance(answer, Code):
                return
            made = answer.volume
            assert made.capacity_bytes >= request.capacity_range.required_bytes
            assert held(), f"{name} is a copy of {source}, which was not there at any time"
            self.model.born(
                name, identity=made.volume_id, kind=kind, size=made.capacity_bytes, began=began, contents=held()
            )

    def held_by(self, source: str, began: int) -> Callable[[], frozenset[str]]:
        """What a copy of that holds which is being made since ``began``; of nothing: nothing."""
        return lambda: self.model.shown(source, began) if source else frozenset({EMPTY})

    async def take(self, name: str, life: Life | None) -> None:
        """A snapshot."""
        lives = list(self.model.all_alive(self.model.volumes))
        if life is not None or not lives:
            return
        source = self.chance.choice(lives)
        request = csi.CreateSnapshotRequest(name=name, source_volume_id=source.id)
        began = self.model.tick()
        refusals = (Code.RESOURCE_EXHAUSTED, Code.NOT_FOUND)
        held = self.held_by(source.name, began)
        with self.model.expecting(name, held):
            answer = await self.insist(self.controller.CreateSnapshot, request, *refusals)
            while not isinstance(answer, Code) and not answer.snapshot.ready_to_use:
                await asyncio.sleep(0.05)
                answer = await self.ask(self.controller.CreateSnapshot, request, *refusals)
            if isinstance(answer, Code):
                return
            assert held(), f"{name} is of {source.name}, which was not there at any time"
            taken = answer.snapshot
            identity, size = taken.snapshot_id, taken.size_bytes
            self.model.born(name, identity=identity, kind=source.kind, size=size, began=began, contents=held())

    async def use(self, _: str, life: Life | None) -> None:
        """Publish a volume, look what is in it, write something else, and mostly unpublish it."""
        if life is not None:
            await self.used(life)

    async def used(self, life: Life, *, writing: bool = True) -> None:
        target = self.target(life)
        request = csi.NodePublishVolumeRequest(
            volume_id=life.id, target_path=str(target), volume_capability=capability()
        )
        await self.insist(self.node.NodePublishVolume, request)
        life.targets.add(target)
        life.seen(await asyncio.to_thread(read, target))
        if writing:
            content = mark(life, self.model.tick())
            before = life.shows[-1]
            life.shows.append(Show(contents=frozenset({content}), since=self.model.tick()))
            await asyncio.to_thread(write, target, content)
            before.until = self.model.tick()
            life.seen(await asyncio.to_thread(read, target))
        stats = csi.NodeGetVolumeStatsRequest(volume_id=life.id, volume_path=str(target))
        await self.ask(self.node.NodeGetVolumeStats, stats)
        if not writing or self.chance.random() < 0.7:
            await self.unpublished(life)

    def target(self, life: Life) -> Path:
        target = self.kubelet / "pods" / f"{life.name}-{self.chance.randrange(4)}" / "mount"
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    async def unpublished(self, life: Life) -> None:
        for target in sorted(life.targets):
            request = csi.NodeUnpublishVolumeRequest(volume_id=life.id, target_path=str(target))
            await self.insist(self.node.NodeUnpublishVolume, request)
            life.targets.discard(target)

    async def duel(self, _: str, life: Life | None) -> None:
        """Four pods want a volume that is for one alone."""
        if life is None:
            return
        await self.unpublished(life)
        alone = capability(mode=Modes.SINGLE_NODE_SINGLE_WRITER)
        pods = [self.kubelet / "pods" / f"{life.name}-{number}" / "mount" for number in range(4)]
        for target in pods:
            target.parent.mkdir(parents=True, exist_ok=True)
        life.targets.update(pods)
        requests = [
            csi.NodePublishVolumeRequest(volume_id=life.id, target_path=str(target), volume_capability=alone)
            for target in pods
        ]
        publish = self.node.NodePublishVolume
        answers = await asyncio.gather(*(self.ask(publish, one, Code.FAILED_PRECONDITION) for one in requests))
        won = [answer for answer in answers if not isinstance(answer, Code)]
        assert len(won) == 1, f"{life.name} is for one pod alone: {answers}"
        mounted = [mount.target for mount in mounts.mounts() if mount.target in map(str, pods)]
        assert len(mounted) == 1, f"{life.name} is for one pod alone: {mounted}"
        await self.unpublished(life)

    async def grow(self, _: str, life: Life | None) -> None:
        """Make a volume larger, used or not."""
        if life is not None:
            await self.grown(life, max(life.size, life.growing_to) + self.chance.choice((8, 32)) * MIB)

    async def grown(self, life: Life, size: int) -> None:
        life_before = life.size
        request = csi.ControllerExpandVolumeRequest(
            volume_id=life.id, capacity_range=csi.CapacityRange(required_bytes=size)
        )
        answer = await self.insist(self.controller.ControllerExpandVolume, request, Code.RESOURCE_EXHAUSTED)
        if isinstance(answer, Code):
            return
        assert answer.capacity_bytes == size, (life.name, life_before)
        if answer.node_expansion_required:
            life.growing_to = size
        else:
            life.size, life.growing_to = size, 0

    async def remove(self, _: str, life: Life | None) -> None:
        """Delete a volume."""
        if life is not None:
            await self.removed(life)

    async def removed(self, life: Life) -> None:
        request = csi.DeleteVolumeRequest(volume_id=life.id)
        if life.targets:
            answer = await self.insist(self.controller.DeleteVolume, request, Code.FAILED_PRECONDITION)
            assert answer is Code.FAILED_PRECONDITION, f"{life.name} was deleted while {life.targets} used it"
            await self.unpublished(life)
        await self.insist(self.controller.DeleteVolume, request)
        self.model.died(life)

    async def drop(self, _: str, life: Life | None) -> None:
        """Delete a snapshot."""
        if life is not None:
            await self.dropped(life)

    async def dropped(self, life: Life) -> None:
        await self.insist(self.controller.DeleteSnapshot, csi.DeleteSnapshotRequest(snapshot_id=life.id))
        self.model.died(life)

    async def look(self) -> None:
        """Ask for lists, for room and for one of the volumes; and whether more was promised than there is."""
        at_once = await self.listed()
        for pool, size in DISKS.items():
            promised = sum(each.capacity_bytes for each in at_once if each.volume_context["pool"] == pool)
            assert promised <= size, f"{promised} bytes of volumes in pool {pool}"
        by_pages = [each.volume_id for each in await self.listed(7)]
        assert len(set(by_pages)) == len(by_pages)
        await self.ask(self.controller.ListSnapshots, csi.ListSnapshotsRequest())
        await self.ask(self.controller.GetCapacity, csi.GetCapacityRequest(parameters={"pool": "plain"}))
        lives = list(self.model.all_alive(self.model.volumes))
        if lives:
            request = csi.ControllerGetVolumeRequest(volume_id=self.chance.choice(lives).id)
            await self.ask(self.controller.ControllerGetVolume, request, Code.NOT_FOUND)

    async def listed(self, most: int = 0) -> list[csi.Volume]:
        found: list[csi.Volume] = []
        token = ""
        while True:
            request = csi.ListVolumesRequest(max_entries=most, starting_token=token)
            answer = await self.ask(self.controller.ListVolumes, request)
            found += [entry.volume for entry in answer.entries]
            if not (token := answer.next_token):
                return found


@pytest.fixture
def plugin(area: Path) -> Iterator[Plugin]:
    with filesystem(area, "ext4", size=DISKS["plain"]) as plain, filesystem(area, "btrfs", size=DISKS["sub"]) as sub:
        counting(sub, simple=True)
        pools = [{"name": "plain", "path": str(plain / "pool")}, {"name": "sub", "path": str(sub / "pool")}]
        try:
            with Plugin(area, pools, "--metrics-listen", "127.0.0.1:0") as plugin:
                yield plugin
        finally:
            for mount in reversed(mounts.mounts()):
                if mount.target.startswith(f"{area}/kubelet/"):
                    mounts.unmount(mount.target)


@contextlib.asynccontextmanager
async def callers(plugin: Plugin, model: Model) -> AsyncIterator[list[Caller]]:
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for number in range(CLIENTS):
            # Without this all channels to one address share one connection.
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.aio.insecure_channel(f"unix:{plugin.socket}", options=options)
            await stack.enter_async_context(channel)
            found.append(
                Caller(
                    controller=csi_pb2_grpc.ControllerStub(channel),
                    node=csi_pb2_grpc.NodeStub(channel),
                    model=model,
                    kubelet=plugin.kubelet,
                    chance=random.Random(SEED + number),  # noqa: S311 - to be repeated, not to be secret
                )
            )
        yield found


async def test_what_a_storm_of_calls_leaves_is_what_the_model_says(area: Path, plugin: Plugin) -> None:
    print(f"MOORAGE_STORM_SEED={SEED} MOORAGE_STORM_SECONDS={SECONDS:g}")  # noqa: T201 - to repeat a failure
    model = Model(volumes=VOLUMES, snapshots=SNAPSHOTS)
    async with callers(plugin, model) as all_of_them:
        until = time.monotonic() + SECONDS
        async with asyncio.TaskGroup() as group:
            for each in all_of_them:
                group.create_task(each.storm(until))
        _figures(model)
        print(f"the storm was over after {time.monotonic() - until + SECONDS:.1f} s")  # noqa: T201
        caller = all_of_them[0]
        caller.quiet = True
        await _all_is_as_the_model_says(caller, model)
        await _account_is_right(plugin, area)
        for life in [*model.all_alive(model.volumes), *model.all_alive(model.snapshots)]:
            await (caller.removed(life) if life.name in model.volumes else caller.dropped(life))
        assert await caller.listed() == []
        await _nothing_is_left(plugin, area)
        # gRPC's own say only that a caller was gone when he was to be answered.
        errors = [line for line in plugin.log.read_text().splitlines() if " ERROR " in line and " grpc." not in line]
        assert errors == []


def _figures(model: Model) -> None:
    for name in sorted({name for name, _ in model.answers}):
        codes = {code: count for (what, code), count in sorted(model.answers.items()) if what == name}
        print(name, codes)  # noqa: T201
    seen = {code for _, code in model.answers}
    assert {"OK", "ABORTED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"} <= seen, "it was no storm"


async def _all_is_as_the_model_says(caller: Caller, model: Model) -> None:
    volumes = list(model.all_alive(model.volumes))
    for life in volumes:
        await caller.unpublished(life)
        if life.growing_to:
            await caller.grown(life, life.growing_to)
    for life in volumes:
        # Publishing is where what only grows in use has grown.
        await caller.used(life, writing=False)
    assert {each.volume_id: each.capacity_bytes for each in await caller.listed()} == {
        life.id: life.growing_to or life.size for life in volumes
    }
    answer = await caller.ask(caller.controller.ListSnapshots, csi.ListSnapshotsRequest())
    taken = list(model.all_alive(model.snapshots))
    assert {entry.snapshot.snapshot_id for entry in answer.entries} == {life.id for life in taken}
    for life in taken:
        await _restored(caller, model, life)


async def _restored(caller: Caller, model: Model, taken: Life) -> None:
    """What is in a snapshot, by way of a volume that is made of it, if there is room for that."""
    source = csi.VolumeContentSource(snapshot=csi.VolumeContentSource.SnapshotSource(snapshot_id=taken.id))
    request = csi.CreateVolumeRequest(
        name="look",
        volume_capabilities=[capability()],
        capacity_range=csi.CapacityRange(required_bytes=SIZES[0]),
        parameters=taken.kind.parameters,
        volume_content_source=source,
    )
    answer = await caller.ask(caller.controller.CreateVolume, request, Code.RESOURCE_EXHAUSTED)
    if isinstance(answer, Code):
        return
    made = answer.volume
    shows = [Show(contents=taken.shows[-1].contents, since=model.tick())]
    life = Life(name="look", id=made.volume_id, kind=taken.kind, size=made.capacity_bytes, began=1, shows=shows)
    await caller.used(life, writing=False)
    await caller.ask(caller.controller.DeleteVolume, csi.DeleteVolumeRequest(volume_id=made.volume_id))


async def _account_is_right(plugin: Plugin, area: Path) -> None:
    """What the driver says that it has promised is what its records say, and no more than there is."""
    page = await _metrics(plugin)
    for pool, folder in _pools(area).items():
        volumes = [record.parse(path.read_bytes()) for path in folder.glob("volumes/*/record.json")]
        snapshots = [snapshot.parse(path.read_bytes()) for path in folder.glob("snapshots/*/record.json")]
        promised = sum(max(each.size, each.growing_to or 0) for each in volumes) + sum(each.holds for each in snapshots)
        figure = f'moorage_pool_promised_bytes{{pool="{pool}"}} '
        said = next(line.removeprefix(figure) for line in page.splitlines() if line.startswith(figure))
        assert float(said) == promised
        assert promised <= DISKS[pool]


async def _metrics(plugin: Plugin) -> str:
    line = next(line for line in plugin.log.read_text().splitlines() if "serving pages" in line)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(line.partition("port=")[2].split()[0]))
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(20):
        page = await reader.read()
    writer.close()
    await writer.wait_closed()
    return page.decode()


def _pools(area: Path) -> dict[str, Path]:
    return {"plain": area / "ext4" / "pool", "sub": area / "btrfs" / "pool"}


async def _nothing_is_left(plugin: Plugin, area: Path) -> None:
    deadline = time.monotonic() + 60
    folders = ("volumes", "snapshots", "making", "trash")
    while left := [name for pool in _pools(area).values() for folder in folders for name in names(pool / folder)]:
        assert time.monotonic() < deadline, left
        await asyncio.sleep(0.05)
    assert [mount.target for mount in mounts.mounts() if mount.target.startswith(f"{plugin.kubelet}/")] == []
    await _account_is_right(plugin, area)
