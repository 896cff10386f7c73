"""The Volumes service beside a driver under test, and a client's view of it."""

import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc.aio

from moorage_csi.proto import moorage_pb2, moorage_pb2_grpc
from moorage_csi.rpc.edge import Edge
from moorage_csi.rpc.volumes import Volumes
from tests.kernel.rpc_driver import NODE, Driver


class _Unmetered:
    def began(self, method: str) -> None: ...

    def ended(self, method: str, code: str, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wipes:
    """Calls WipeVolume."""

    volumes: "moorage_pb2_grpc.VolumesAsyncStub"

    async def __call__(self, volume: str, uid: str = "uid-1") -> None:
        await self.volumes.WipeVolume(moorage_pb2.WipeVolumeRequest(volume_id=volume, released_uid=uid))


@contextlib.asynccontextmanager
async def wiping(driver: Driver, *, node: str = NODE) -> AsyncIterator[Wipes]:
    """Serve the driver's pools on a socket of its own; the volumes' keys are the driver's."""
    address = f"unix:{driver.kubelet.parent}/volumes.sock"
    server = grpc.aio.server(interceptors=[Edge(meter=_Unmetered(), clock=time.monotonic, requests=itertools.count(1))])
    service = Volumes(pools=driver.pools, node_name=node, guard=driver.guard)
    moorage_pb2_grpc.add_VolumesServicer_to_server(service, server)
    server.add_insecure_port(address)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Wipes(volumes=moorage_pb2_grpc.VolumesStub(channel))
    finally:
        await server.stop(grace=None)


def record_of(driver: Driver, volume: str) -> dict[str, Any]:
    """The volume's record as it lies on the disk."""
    document: dict[str, Any] = json.loads((driver.volume_folder(volume) / "record.json").read_text(encoding="utf-8"))
    return document
