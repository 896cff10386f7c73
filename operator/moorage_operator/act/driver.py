"""Calls to the node plugins: the operator asks the one on the chosen node, by gRPC over mutual TLS.

What the caller may believe after a failure is the error's class (``errors.RetryClass``). The line
that matters runs between *unreachable* and *running*: an unreachable plugin has not heard of this
call, a running one may have carried it out. So each connection is opened and greeted
(``GetPluginInfo``, which changes nothing) before the first real call goes over it, and everything
that fails until then is unreachable. A connection that breaks under a call is running.

The greeting also makes sure whom we talk to: a pod's address can be another pod's a moment later,
and a volume made on the wrong node would belong to nobody.

Crash safety: nothing is remembered here but connections. A call that was under way when the operator
died is made again by its successor with the same name or id, and the driver answers it with what the
first one made.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import grpc
import grpc.aio

from moorage_csi.contract import DRIVER_NAME, NODE_SERVER_NAME, TOPOLOGY_KEY
from moorage_csi.proto import csi_pb2, csi_pb2_grpc, moorage_pb2, moorage_pb2_grpc
from moorage_operator.act import messages
from moorage_operator.certificates import ClientTls
from moorage_operator.errors import DriverUnreachableError
from moorage_operator.metrics import Metrics
from moorage_operator.model.provisioning import Created, CreateRequest

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

CONNECT_SECONDS: Final = 5.0
REFUSED_SECONDS: Final = 1.0
"""How long "unreachable" is believed: a burst of claims for a dead node costs one look a second."""
IDLE_SECONDS: Final = 600.0
MAX_CONNECTIONS: Final = 256

OPTIONS: Final[tuple[tuple[str, str | int], ...]] = (
    ("grpc.ssl_target_name_override", NODE_SERVER_NAME),
    # A new connection really is one: no sharing with an old one's backoff or certificates.
    ("grpc.use_local_subchannel_pool", 1),
    # Pod addresses are never behind the proxy that the environment may name.
    ("grpc.enable_http_proxy", 0),
    # A call is sent once. Whether it may be sent again is for the caller to decide.
    ("grpc.enable_retries", 0),
    # Find a vanished node before the deadline does.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)


class Addresses(Protocol):
    """Where plugins listen; ``act.nodes.Nodes`` knows."""

    async def address(self, node: str) -> str:
        """``host:port``, or ``DriverUnreachableError``."""
        ...


class Identity(Protocol):
    """What to show them; ``certificates.Certificates`` has it."""

    @property
    def client(self) -> ClientTls | None:
        """The client certificate, None when there is none yet."""
        ...

    @property
    def problem(self) -> str | None:
        """Why there is none."""
        ...


@dataclass(slots=True, kw_only=True, eq=False)
class _Connection:
    """One greeted channel to one node."""

    channel: grpc.aio.Channel
    tls: ClientTls
    controller: "csi_pb2_grpc.ControllerAsyncStub"
    volumes: "moorage_pb2_grpc.VolumesAsyncStub"
    used_at: float
    calls: int = 0
    retired: bool = False


class Driver:
    """The driver, wherever it runs. Belongs to one event loop.

    Args:
        nodes: where plugins listen.
        identity: our certificate; a renewed one is used for the next connection, at once.
        timeout: of one call, in seconds.
        metrics: where calls are timed.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        nodes: Addresses,
        identity: Identity,
        timeout: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nodes = nodes
        self._identity = identity
        self._timeout = timeout
        self._metrics = metrics
        self._clock = clock
        self._connections: dict[str, _Connection] = {}
        self._opening: dict[str, asyncio.Task[_Connection | DriverUnreachableError]] = {}
        self._refused: dict[str, tuple[float, str]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def create_volume(self, node: str, request: CreateRequest) -> Created:
        """Make a volume on a node, or find the one that an earlier call of this name made.

        Raises:
            DriverCallError: a leaf of it says what may be believed now.
        """
        message = messages.create_request(request, node=node)
        answer = await self._call(
            node, "CreateVolume", lambda at: at.controller.CreateVolume(message, timeout=self._timeout)
        )
        return messages.created(answer, node=node)

    async def delete_volume(self, node: str, volume_id: str) -> None:
        """Delete a volume on a node; one that is gone already is a success.

        Raises:
            DriverCallError: a leaf of it says what may be believed now.
        """
        message = csi_pb2.DeleteVolumeRequest(volume_id=volume_id)
        await self._call(node, "DeleteVolume", lambda at: at.controller.DeleteVolume(message, timeout=self._timeout))

    async def wipe_volume(self, node: str, volume_id: str, *, released_uid: str) -> None:
        """Replace a volume's content on a node by nothing, once for each claim that had it.

        Args:
            node: where the volume lies.
            volume_id: the volume.
            released_uid: the uid of the claim that was released. The same uid again, however late, is a
                success that touches nothing, so the next claim's data is never met.

        Raises:
            DriverCallError: a leaf of it says what may be believed now.
        """
        message = moorage_pb2.WipeVolumeRequest(volume_id=volume_id, released_uid=released_uid)
        await self._call(node, "WipeVolume", lambda at: at.volumes.WipeVolume(message, timeout=self._timeout))

    async def reach(self, node: str) -> None:
        """Make sure that the node's plugin can be called now, so that a call that follows is sent at once.

        Raises:
            DriverUnreachableError: it cannot.
        """
        await self._connection(node)

    async def capacity(self, node: str, parameters: Mapping[str, str]) -> int:
        """Bytes that a volume of these class parameters could still have on a node.

        Raises:
            DriverCallError: a leaf of it says why it is not known.
        """
        message = csi_pb2.GetCapacityRequest(parameters=parameters)
        answer = await self._call(
            node, "GetCapacity", lambda at: at.controller.GetCapacity(message, timeout=self._timeout)
        )
        return answer.available_capacity

    async def close(self) -> None:
        """Close every connection; stop whoever calls first, since their calls end as if cancelled."""
        for task in self._opening.values():
            task.cancel()
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        for node in list(self._connections):
            self._retire(node, self._connections[node], force=True)
        await asyncio.gather(*self._closing)

    async def _call(
        self,
        node: str,
        method: str,
        send: Callable[[_Connection], Awaitable[Answer]],
    ) -> Answer:
        started = self._clock()
        code = "UNREACHABLE"
        try:
            connection = await self._connection(node)
            connection.calls += 1
            try:
                answer = await send(connection)
            except grpc.aio.AioRpcError as error:
                code = error.code().name
                if error.code() in messages.CONNECTION_CODES:
                    self._retire(node, connection)
                raise messages.failure(
                    method=method, node=node, code=error.code(), details=error.details() or ""
                ) from error
            finally:
                connection.calls -= 1
                connection.used_at = self._clock()
                self._close_if_done(connection)
            code = "OK"
            return answer
        finally:
            self._metrics.driver_seconds.labels(method, code).observe(self._clock() - started)

    async def _connection(self, node: str) -> _Connection:
        """The greeted connection to a node, opened if need be; many who ask at once share one opening."""
        current = self._connections.get(node)
        if current is not None:
            if current.tls is self._identity.client and current.channel.get_state() is grpc.ChannelConnectivity.READY:
                return current
            self._retire(node, current)
        until, why = self._refused.get(node, (float("-inf"), ""))
        if self._clock() < until:
            raise DriverUnreachableError(why, node=node)
        task = self._opening.get(node)
        if task is None:
            task = self._opening[node] = asyncio.create_task(self._open(node), name=f"connect {node}")
            task.add_done_callback(lambda _: self._opening.pop(node, None))
        opened = await asyncio.shield(task)
        if isinstance(opened, DriverUnreachableError):
            raise DriverUnreachableError(str(opened), node=node) from opened
        if opened.retired:
            raise DriverUnreachableError(f"the connection to node {node} was closed while it was waited for", node=node)
        return opened

    async def _open(self, node: str) -> _Connection | DriverUnreachableError:
        """Find, connect, greet. The error is a value, so that nobody has to wait for it."""
        self._prune()
        try:
            connection = await self._greet(node)
        except DriverUnreachableError as error:
            self._refused[node] = (self._clock() + REFUSED_SECONDS, str(error))
            logger.info("Node plugin is unreachable node=%s why=%s", node, error)
            return error
        self._refused.pop(node, None)
        self._connections[node] = connection
        self._metrics.driver_channels.set(len(self._connections))
        return connection

    async def _greet(self, node: str) -> _Connection:
        tls = self._identity.client
        if tls is None:
            raise DriverUnreachableError(f"node {node} cannot be called yet: {self._identity.problem}", node=node)
        address = await self._nodes.address(node)
        credentials = grpc.ssl_channel_credentials(
            root_certificates=tls.authorities, private_key=tls.key, certificate_chain=tls.certificate
        )
        channel = grpc.aio.secure_channel(address, credentials, options=OPTIONS)
        try:
            # Not waiting for ready: a refused connection or a failed handshake ends the call at
            # once, with its reason in the details.
            info = await csi_pb2_grpc.IdentityStub(channel).GetPluginInfo(
                csi_pb2.GetPluginInfoRequest(), timeout=CONNECT_SECONDS
            )
            _check(info, node=node, address=address)
        except grpc.aio.AioRpcError as error:
            await channel.close()
            raise DriverUnreachableError(_unreachable(node, address, error), node=node) from error
        except BaseException:
            await channel.close()
            raise
        return _Connection(
            channel=channel,
            tls=tls,
            controller=csi_pb2_grpc.ControllerStub(channel),
            volumes=moorage_pb2_grpc.VolumesStub(channel),
            used_at=self._clock(),
        )

    def _retire(self, node: str, connection: _Connection, *, force: bool = False) -> None:
        """Give no more calls to a connection, and close it after its last one (now, with ``force``)."""
        if self._connections.get(node) is connection:
            del self._connections[node]
            self._metrics.driver_channels.set(len(self._connections))
        if not connection.retired:
            connection.retired = True
            if force:
                connection.calls = 0
            self._close_if_done(connection)

    def _close_if_done(self, connection: _Connection) -> None:
        if connection.retired and connection.calls == 0:
            task = asyncio.ensure_future(connection.channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _prune(self) -> None:
        """Close what has been idle for long, and the longest idle of what is too many."""
        now = self._clock()
        idle = sorted(((one.used_at, node) for node, one in self._connections.items() if one.calls == 0), reverse=True)
        surplus = len(self._connections) - MAX_CONNECTIONS + 1
        while idle and (surplus > 0 or now - idle[-1][0] > IDLE_SECONDS):
            node = idle.pop()[1]
            self._retire(node, self._connections[node])
            surplus -= 1
        self._refused = {node: entry for node, entry in self._refused.items() if now < entry[0]}


def _check(info: csi_pb2.GetPluginInfoResponse, *, node: str, address: str) -> None:
    """Make sure that it is our driver, and on that node where it says on which it is."""
    if info.name != DRIVER_NAME:
        raise DriverUnreachableError(
            f"what answers at {address} for node {node} is {info.name!r}, not {DRIVER_NAME}", node=node
        )
    answering = info.manifest.get(TOPOLOGY_KEY, node)
    if answering != node:
        raise DriverUnreachableError(
            f"what answers at {address} for node {node} is the plugin of node {answering}: its pod has just changed",
            node=node,
        )


def _unreachable(node: str, address: str, error: grpc.aio.AioRpcError) -> str:
    details = error.details() or ""
    said = f"the node plugin on node {node} cannot be reached at {address}"
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return (
            f"{said}: no answer within {CONNECT_SECONDS:.0f} s; see whether a network policy or firewall is in the way"
        )
    lowered = details.lower()
    if "handshake" in lowered or "certificate" in lowered:
        return (
            f"{said}: the TLS handshake failed; its certificate is not one of ours yet or any more, which ends within "
            f"two minutes of a renewal ({details})"
        )
    if "socket closed" in lowered or "reset" in lowered:
        return f"{said}: it closed the connection, stopping or not trusting our certificate yet ({details})"
    return f"{said}: {details or error.code().name}; see whether its pod is running"
