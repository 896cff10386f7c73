"""The driver as its callers see it: a gRPC server on a unix socket, its pools in a directory of the test."""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import pytest

from moorage_csi.host import loops, mounts
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.proto import csi_pb2_grpc
from moorage_csi.rpc.controller import Controller
from moorage_csi.rpc.edge import Edge
from moorage_csi.rpc.groups import GroupController
from moorage_csi.rpc.guard import Guard
from moorage_csi.rpc.node import Node
from moorage_csi.rpc.pools import Pools
from moorage_csi.volumes.pool import PoolSettings

MIB = 1 << 20
SIZE = 64 * MIB
NODE = "node-1"

Modes = csi.VolumeCapability.AccessMode

DIRECTORY = {"backend": "directory", "quota": "best-effort"}
IMAGE = {"backend": "image"}
"""What is made where a test asks for nothing else, whatever ``auto`` means on the disk below it."""


class _Unmetered:
    def began(self, method: str) -> None: ...

    def ended(self, method: str, code: str, seconds: float) -> None: ...


def capability(
    *,
    block: bool = False,
    mode: "csi.VolumeCapability.AccessMode.Mode.ValueType" = Modes.SINGLE_NODE_WRITER,
    filesystem: str = "",
    flags: Sequence[str] = (),
    group: int | str | None = None,
) -> csi.VolumeCapability:
    access_mode = Modes(mode=mode)
    if block:
        return csi.VolumeCapability(block=csi.VolumeCapability.BlockVolume(), access_mode=access_mode)
    mount = csi.VolumeCapability.MountVolume(
        fs_type=filesystem, mount_flags=flags, volume_mount_group="" if group is None else str(group)
    )
    return csi.VolumeCapability(mount=mount, access_mode=access_mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """A running driver and a client's view of it."""

    controller: "csi_pb2_grpc.ControllerAsyncStub"
    groups: "csi_pb2_grpc.GroupControllerAsyncStub"
    node: "csi_pb2_grpc.NodeAsyncStub"
    pools: Pools
    guard: Guard
    pool: Path
    kubelet: Path

    async def create(
        self,
        name: str = "pvc-1",
        *,
        size: int = SIZE,
        parameters: Mapping[str, str] | None = None,
        wanted: csi.VolumeCapability | None = None,
    ) -> csi.Volume:
        response = await self.controller.CreateVolume(
            csi.CreateVolumeRequest(
                name=name,
                capacity_range=csi.CapacityRange(required_bytes=size),
                volume_capabilities=[wanted or capability()],
                parameters=parameters or IMAGE,
            )
        )
        return response.volume

    async def delete(self, volume: str) -> None:
        await self.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id=volume))

    async def publish(
        self,
        volume: str,
        target: Path | str,
        *,
        readonly: bool = False,
        wanted: csi.VolumeCapability | None = None,
        context: Mapping[str, str] | None = None,
    ) -> None:
        await self.node.NodePublishVolume(
            csi.NodePublishVolumeRequest(
                volume_id=volume,
                target_path=str(target),
                volume_capability=wanted or capability(),
                readonly=readonly,
                volume_context=context or {},
            )
        )

    async def unpublish(self, volume: str, target: Path | str) -> None:
        await self.node.NodeUnpublishVolume(csi.NodeUnpublishVolumeRequest(volume_id=volume, target_path=str(target)))

    async def stats(self, volume: str, path: Path | str) -> dict[str, csi.VolumeUsage]:
        response = await self.node.NodeGetVolumeStats(
            csi.NodeGetVolumeStatsRequest(volume_id=volume, volume_path=str(path))
        )
        return {csi.VolumeUsage.Unit.Name(usage.unit): usage for usage in response.usage}

    def target(self, pod: str) -> Path:
        """A path as the kubelet gives it: the parent is there, the last part is not."""
        parent = self.kubelet / "pods" / pod / "volumes"
        parent.mkdir(parents=True, exist_ok=True)
        return parent / "mount"

    def volume_folder(self, volume: str) -> Path:
        return self.pool / "volumes" / volume

    async def emptied(self, *, within: float = 20) -> None:
        """Wait until the trash is empty."""
        deadline = time.monotonic() + within
        while any((self.pool / "trash").iterdir()):
            assert time.monotonic() < deadline, (
                f"left in the trash: {sorted(path.name for path in (self.pool / 'trash').iterdir())}"
            )
            for station in self.pools:
                station.discarded()
            await asyncio.sleep(0.02)

    def left(self) -> list[str]:
        """Every path in the pool that is neither the pool's own nor in the trash."""
        return sorted(
            str(path.relative_to(self.pool))
            for path in self.pool.rglob("*")
            if path.relative_to(self.pool).parts[0] not in ("pool.json", "trash")
            and len(path.relative_to(self.pool).parts) > 1
        )


async def detached(image: Path) -> None:
    """The file has no loop device any more; one that another program happens to look at goes a moment later."""
    deadline = time.monotonic() + 2
    while attached(image):
        assert time.monotonic() < deadline, attached(image)
        await asyncio.sleep(0.01)


def attached(image: Path) -> list[loops.LoopStatus]:
    """The loop devices of a file."""
    found = image.stat()
    return loops.find(found.st_dev, found.st_ino)


def mounted_below(path: Path) -> list[str]:
    return [mount.target for mount in mounts.mounts() if mount.target.startswith(f"{path}/")]


@contextlib.asynccontextmanager
async def running(
    area: Path,
    settings: Sequence[PoolSettings] | None = None,
    *,
    node: str = NODE,
    importable: Sequence[str] = (),
    max_volumes: int = 0,
) -> AsyncIterator[Driver]:
    """A driver on ``area``; started again on the same area it finds what the first one left."""
    # As in production: a line that cannot be written must fail a test, not the first user's call.
    logging.getLogger("moorage_csi").setLevel(logging.DEBUG)
    pool = area / "pool"
    kubelet = area / "kubelet"
    kubelet.mkdir(exist_ok=True)
    pools = Pools(settings or [PoolSettings(name="default", path=str(pool))], node_name=node)
    await pools.start()
    guard = Guard()
    server = grpc.aio.server(interceptors=[Edge(meter=_Unmetered(), clock=time.monotonic, requests=itertools.count(1))])
    csi_pb2_grpc.add_ControllerServicer_to_server(Controller(pools=pools, node_name=node, guard=guard), server)
    groups = GroupController(pools=pools, node_name=node, guard=guard)
    await groups.settle()
    csi_pb2_grpc.add_GroupControllerServicer_to_server(groups, server)
    node_service = Node(
        pools=pools,
        node_name=node,
        kubelet_dir=str(kubelet),
        guard=guard,
        importable=importable,
        max_volumes=max_volumes,
    )
    node_service.start()
    csi_pb2_grpc.add_NodeServicer_to_server(node_service, server)
    address = f"unix:{area}/csi.sock"
    server.add_insecure_port(address)
    await server.start()
    channel = grpc.aio.insecure_channel(address)
    try:
        yield Driver(
            controller=csi_pb2_grpc.ControllerStub(channel),
            groups=csi_pb2_grpc.GroupControllerStub(channel),
            node=csi_pb2_grpc.NodeStub(channel),
            pools=pools,
            guard=guard,
            pool=Path(next(iter(pools)).settings.path),
            kubelet=kubelet,
        )
    finally:
        await channel.close()
        await server.stop(grace=None)
        assert await guard.drain(20)
        await node_service.close()
        groups.close()
        await pools.close()
        for station in pools:
            station.release()
        if not mounted_below(area):
            for image in pool.glob("volumes/*/image"):
                await detached(image)


@contextlib.contextmanager
def refused(code: grpc.StatusCode, *words: str) -> Iterator[None]:
    """The block must end in this status, with all these words in its message."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is code, caught.value.details()
    for word in words:
        assert word in (caught.value.details() or "")
