"""A node plugin on a real TLS socket: real gRPC, real certificates, and an answer to order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
import grpc.aio

from moorage_csi.contract import DRIVER_NAME, TOPOLOGY_KEY
from moorage_csi.proto import csi_pb2, csi_pb2_grpc, moorage_pb2, moorage_pb2_grpc
from moorage_operator import authority
from moorage_operator.authority import Contents
from moorage_operator.certificates import ClientTls
from moorage_operator.errors import DriverUnreachableError

Reply = Callable[[Any, Any], Awaitable[Any]]

# The generated servicers answer UNIMPLEMENTED to what is not overridden; their stubs call that abstract.
Unimplemented: Any = type(
    "Unimplemented",
    (csi_pb2_grpc.IdentityServicer, csi_pb2_grpc.ControllerServicer, moorage_pb2_grpc.VolumesServicer),
    {},
)


def certificates() -> Contents:
    return authority.plan(Contents(), now=datetime.now(UTC)).contents


def client_tls(held: Contents) -> ClientTls:
    return ClientTls(
        authorities=held.authority["ca.crt"],
        certificate=held.authority["client.crt"],
        key=held.authority["client.key"],
    )


class Plugin(Unimplemented):  # type: ignore[misc]
    """Identity as it is, Controller and Volumes by order; counts what it heard."""

    def __init__(self, *, name: str = DRIVER_NAME, node: str | None = "node-a") -> None:
        self.name = name
        self.node = node
        self.greetings = 0
        self.heard: list[Any] = []
        self.reply: Reply | None = None

    async def GetPluginInfo(self, request: Any, context: Any) -> csi_pb2.GetPluginInfoResponse:  # noqa: N802
        del request, context
        self.greetings += 1
        manifest = {TOPOLOGY_KEY: self.node} if self.node is not None else {}
        return csi_pb2.GetPluginInfoResponse(name=self.name, manifest=manifest)

    async def CreateVolume(self, request: Any, context: Any) -> csi_pb2.CreateVolumeResponse:  # noqa: N802
        self.heard.append(request)
        if self.reply is not None:
            return await self.reply(request, context)  # type: ignore[no-any-return]
        volume = csi_pb2.Volume(
            volume_id="vol-1",
            capacity_bytes=request.capacity_range.required_bytes,
            volume_context={"backend": "image"},
            accessible_topology=[csi_pb2.Topology(segments={TOPOLOGY_KEY: "node-a"})],
        )
        return csi_pb2.CreateVolumeResponse(volume=volume)

    async def DeleteVolume(self, request: Any, context: Any) -> csi_pb2.DeleteVolumeResponse:  # noqa: N802
        del context
        self.heard.append(request)
        return csi_pb2.DeleteVolumeResponse()

    async def WipeVolume(self, request: Any, context: Any) -> moorage_pb2.WipeVolumeResponse:  # noqa: N802
        self.heard.append(request)
        if self.reply is not None:
            return await self.reply(request, context)  # type: ignore[no-any-return]
        return moorage_pb2.WipeVolumeResponse()

    async def GetCapacity(self, request: Any, context: Any) -> csi_pb2.GetCapacityResponse:  # noqa: N802
        del context
        self.heard.append(request)
        return csi_pb2.GetCapacityResponse(available_capacity=1 << 40)


@asynccontextmanager
async def serve(plugin: Plugin, held: Contents, *, port: int = 0) -> AsyncIterator[int]:
    server = grpc.aio.server()
    csi_pb2_grpc.add_IdentityServicer_to_server(plugin, server)
    csi_pb2_grpc.add_ControllerServicer_to_server(plugin, server)
    moorage_pb2_grpc.add_VolumesServicer_to_server(plugin, server)
    credentials = grpc.ssl_server_credentials(
        [(held.node["tls.key"], held.node["tls.crt"])],
        root_certificates=held.node["ca.crt"],
        require_client_auth=True,
    )
    bound = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(0)


class Directory:
    """Where plugins are, as a test says."""

    def __init__(self, **addresses: str) -> None:
        self.addresses = addresses
        self.asked = 0

    async def address(self, node: str) -> str:
        self.asked += 1
        await asyncio.sleep(0)
        if node not in self.addresses:
            raise DriverUnreachableError(f"there is no node plugin on node {node}", node=node)
        return self.addresses[node]


class Keeper:
    """The operator's certificate, as a test says."""

    def __init__(self, client: ClientTls | None) -> None:
        self.client = client
        self.problem: str | None = None if client else "it has not been made yet"
