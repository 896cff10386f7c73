"""A driver whose every answer the test decides, and a program around it on real sockets."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc.aio

from moorage_csi.metrics import PoolFigures
from moorage_csi.proto import csi_pb2, csi_pb2_grpc, moorage_pb2, moorage_pb2_grpc
from moorage_csi.server import ExitCode, Program
from moorage_csi.settings import Address, Settings
from moorage_csi.volumes.pool import PoolSettings

Behaviour = Callable[[str, Any, Any], Awaitable[Any]]


async def answers_emptily(method: str, request: Any, context: Any) -> Any:
    """Answer with an empty response of the right type."""
    protocol = moorage_pb2 if method == "WipeVolume" else csi_pb2
    return getattr(protocol, f"{method}Response")()


class Puppet:
    """The services; ``behaviour`` is asked for every answer."""

    def __init__(self) -> None:
        self.behaviour: Behaviour = answers_emptily
        self.is_ready = True
        self.drained = True
        self.pool_figures: list[PoolFigures] = []
        self.controller: Any = self._service(csi_pb2_grpc.ControllerServicer, csi_pb2, "Controller")
        self.groups: Any = self._service(csi_pb2_grpc.GroupControllerServicer, csi_pb2, "GroupController")
        self.volumes: Any = self._service(moorage_pb2_grpc.VolumesServicer, moorage_pb2, "Volumes")
        self.node: Any = self._service(csi_pb2_grpc.NodeServicer, csi_pb2, "Node")

    def _service(self, base: type[Any], protocol: Any, name: str) -> Any:
        service = protocol.DESCRIPTOR.services_by_name[name]
        methods = {method.name: self._method(method.name) for method in service.methods}
        return type(f"Puppet{name}", (base,), methods)()

    def _method(self, name: str) -> Any:
        async def answer(_: Any, request: Any, context: Any) -> Any:
            return await self.behaviour(name, request, context)

        return answer

    def ready(self) -> bool:
        return self.is_ready

    async def figures(self) -> Sequence[PoolFigures]:
        return self.pool_figures

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109, ARG002 - as the protocol has it
        return self.drained


def settings(place: Path, **changes: Any) -> Settings:
    """Settings with everything but the unix socket switched off."""
    given: dict[str, Any] = {
        "endpoint": place / "csi.sock",
        "listen": None,
        "tls_dir": place / "tls",
        "registration_dir": None,
        "kubelet_endpoint": str(place / "csi.sock"),
        "node_name": "n1",
        "pools": (PoolSettings(name="default", path=str(place / "pool")),),
        "metrics_listen": None,
        "kubelet_dir": place,
        "log_level": "debug",
        "log_format": "text",
    }
    return Settings(**{**given, **changes})


@contextlib.asynccontextmanager
async def running(
    given: Settings, services: Any, *, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[tuple[Program, "asyncio.Task[ExitCode]"]]:
    """Run the program until the block ends."""
    program = Program(given, services, version="1.2.3", clock=clock)
    stop = asyncio.Event()
    task = asyncio.create_task(program.run(stop))
    try:
        await until(lambda: given.endpoint.exists() or task.done())
        # The pages come after the socket: on a busy machine a moment later.
        await until(lambda: given.metrics_listen is None or program.pages_port or task.done())
        yield program, task
    finally:
        stop.set()
        await asyncio.wait_for(task, 20)


async def until(condition: Callable[[], Any], *, seconds: float = 10.0) -> None:
    """Wait for the condition, at most ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def connected(path: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a unix socket, with no connection shared with another one."""
    async with grpc.aio.insecure_channel(f"unix://{path}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield channel


def raw_call(channel: grpc.aio.Channel, path: str) -> Callable[..., Awaitable[bytes]]:
    """A method of any name, bytes in and bytes out."""
    method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
    return method


async def status_of(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    """The status of a call that fails."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


LOOPBACK = Address(host="127.0.0.1", port=0)
