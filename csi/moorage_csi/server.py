"""The program put together: what is served where, from the first socket to the last answer.

    unix socket      Identity, Controller, GroupController, Volumes, Node    the kubelet, and sidecars that people have
    TCP, mutual TLS  Identity, Controller, GroupController, Volumes          the operator, and nobody else
    registration     Registration                                            the kubelet
    pages            /metrics /healthz /readyz                               Prometheus and the kubelet's probes

The unix socket does not wait for certificates, and nothing waits for the kubelet. Stopping ends
listening, waits for what is being answered and for the work behind it, and touches no volume: what is
mounted stays mounted, and the next process finds it.
"""

import asyncio
import enum
import gc
import http
import itertools
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Final, Protocol

import grpc.aio

from moorage_csi import contract
from moorage_csi.kubelet import Registration, RegistrationRefusedError
from moorage_csi.listeners import CHECK_SECONDS, ListenError, TcpListener, UnixListener
from moorage_csi.metrics import CONTENT_TYPE, Metrics, PoolFigures
from moorage_csi.pages import Page, Pages, plain
from moorage_csi.proto import csi_pb2_grpc, moorage_pb2_grpc
from moorage_csi.readiness import Readiness
from moorage_csi.rpc.edge import Edge
from moorage_csi.rpc.identity import Identity
from moorage_csi.settings import Settings
from moorage_csi.tls import Certificates

_log = logging.getLogger(__name__)

GRACE_SECONDS: Final = 25.0
"""For everything that runs when we are told to stop; a pod gets 30 seconds before it is killed."""

_TLS: Final = "certificates"
_SERVING: Final = "serving"


class ExitCode(enum.IntEnum):
    """How the process ends."""

    STOPPED = 0
    """Told to stop, and did."""
    FAILED = 1
    """Something that nobody foresaw; the log has a traceback."""
    USAGE = 2
    """A flag, the environment or the pools file is wrong."""
    UNSUITABLE = 3
    """The host does not give what is needed: a socket, an address, a pool, mount propagation."""
    REFUSED = 4
    """The kubelet does not take the plugin."""


class Services(Protocol):
    """The driver behind the RPCs."""

    @property
    def controller(self) -> csi_pb2_grpc.ControllerServicer:
        """The Controller service."""

    @property
    def groups(self) -> csi_pb2_grpc.GroupControllerServicer:
        """The GroupController service."""

    @property
    def volumes(self) -> moorage_pb2_grpc.VolumesServicer:
        """What is done to volumes beside CSI."""

    @property
    def node(self) -> csi_pb2_grpc.NodeServicer:
        """The Node service."""

    def ready(self) -> bool:
        """Whether a pool is open; from memory."""

    async def figures(self) -> Sequence[PoolFigures]:
        """Every pool's figures, within a bound on time even where a disk hangs."""

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - a bound on waiting, not on the work
        """Wait up to ``timeout`` seconds for work that outlives its call; say whether all ended."""


class Program:
    """Everything that listens. ``clock`` returns monotonic seconds."""

    def __init__(self, settings: Settings, services: Services, *, version: str, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._services = services
        self._clock = clock
        self._identity = Identity(version=version, node_name=settings.node_name, ready=services.ready)
        self.readiness = Readiness()
        self.metrics = Metrics(version=version, node=settings.node_name)
        self.pages_port = 0
        self._requests = itertools.count(1)
        self._endpoint = UnixListener(settings.endpoint, assemble=self._assemble_local, interceptor=self._edge())
        self._tcp: TcpListener | None = None
        if settings.listen is not None:
            self._tcp = TcpListener(
                str(settings.listen),
                assemble=self._assemble_remote,
                interceptor=self._edge(client_name=contract.OPERATOR_CLIENT_NAME),
            )
            self.readiness.unmet(_TLS, "the certificates have not been read yet")
        self._registration: Registration | None = None
        if settings.registration_dir is not None:
            self._registration = Registration(
                directory=settings.registration_dir,
                endpoint=settings.kubelet_endpoint,
                readiness=self.readiness,
                interceptor=self._edge(),
                clock=clock,
            )
        self._pages = Pages(
            {"/metrics": self._metrics_page, "/healthz": self._health_page, "/readyz": self._ready_page}
        )

    async def run(self, stop: asyncio.Event) -> ExitCode:
        """Serve until ``stop`` is set or something makes serving pointless, then stop within the grace."""
        try:
            await self._open()
        except ListenError as error:
            _log.error("cannot serve", extra={"reason": str(error)})
            await self._close()
            return ExitCode.UNSUITABLE
        # What was imported and built lives as long as the process: no collection needs to look at it again.
        gc.collect()
        gc.freeze()
        work = asyncio.create_task(self._work(), name="work")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        code = _verdict(work) if work.done() else ExitCode.STOPPED
        for task in (work, stopping):
            task.cancel()
        await asyncio.gather(work, stopping, return_exceptions=True)
        await self._close()
        return code

    async def _open(self) -> None:
        self.readiness.unmet(_SERVING, "starting")
        await self._endpoint.open()
        if (address := self._settings.metrics_listen) is not None:
            self.pages_port = await self._pages.open(address.host, address.port)
            _log.info("serving pages", extra={"host": address.host, "port": self.pages_port})
        if self._registration is not None:
            await self._registration.open()
        self.readiness.met(_SERVING)
        _log.info(
            "serving",
            extra={
                "endpoint": str(self._settings.endpoint),
                "node": self._settings.node_name,
                "pools": ",".join(pool.name for pool in self._settings.pools),
                "registration": str(self._settings.registration_dir or "off"),
            },
        )

    async def _work(self) -> None:
        """Keep the sockets there and serve TCP as soon as there are certificates; ends only by an error."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._endpoint.watch(grace=GRACE_SECONDS))
            if self._registration is not None:
                group.create_task(self._registration.run(grace=GRACE_SECONDS, every=CHECK_SECONDS))
            if self._tcp is not None:
                group.create_task(self._serve_tcp(self._tcp))

    async def _serve_tcp(self, listener: TcpListener) -> None:
        certificates = Certificates(self._settings.tls_dir)
        first = await certificates.wait(
            waiting=lambda reason: self.readiness.unmet(_TLS, f"waiting for certificates: {reason}")
        )
        port = await listener.open(certificates.credentials(first))
        self.readiness.met(_TLS)
        _log.info("serving the operator", extra={"address": str(self._settings.listen), "port": port})

    async def _close(self) -> None:
        """Stop listening, wait for what runs, at most the grace in all. Volumes and mounts are left as they are."""
        until = self._clock() + GRACE_SECONDS
        self.readiness.unmet(_SERVING, "stopping")
        _log.info("stopping", extra={"grace": GRACE_SECONDS})
        closing: list[Coroutine[None, None, None]] = [self._endpoint.close(grace=GRACE_SECONDS)]
        if self._registration is not None:
            closing.append(self._registration.close(grace=GRACE_SECONDS))
        if self._tcp is not None:
            closing.append(self._tcp.close(grace=GRACE_SECONDS))
        await asyncio.gather(*closing)
        if not await self._services.drain(max(0.0, until - self._clock())):
            _log.warning("stopping with work unfinished: it is taken up again when the caller asks again")
        await self._pages.close()

    def _edge(self, *, client_name: str | None = None) -> Edge:
        return Edge(meter=self.metrics, clock=self._clock, requests=self._requests, client_name=client_name)

    def _assemble_local(self, server: grpc.aio.Server) -> None:
        self._assemble_remote(server)
        csi_pb2_grpc.add_NodeServicer_to_server(self._services.node, server)

    def _assemble_remote(self, server: grpc.aio.Server) -> None:
        csi_pb2_grpc.add_IdentityServicer_to_server(self._identity, server)
        csi_pb2_grpc.add_ControllerServicer_to_server(self._services.controller, server)
        csi_pb2_grpc.add_GroupControllerServicer_to_server(self._services.groups, server)
        moorage_pb2_grpc.add_VolumesServicer_to_server(self._services.volumes, server)

    async def _metrics_page(self) -> Page:
        self.metrics.show(await self._services.figures())
        return Page(http.HTTPStatus.OK, self.metrics.exposition(), CONTENT_TYPE)

    async def _health_page(self) -> Page:
        if self._services.ready():
            return plain(http.HTTPStatus.OK, "ok")
        return plain(http.HTTPStatus.SERVICE_UNAVAILABLE, "no pool is open")

    async def _ready_page(self) -> Page:
        reasons = self.readiness.reasons
        if not reasons:
            return plain(http.HTTPStatus.OK, "ok")
        return plain(http.HTTPStatus.SERVICE_UNAVAILABLE, "\n".join(f"{key}: {why}" for key, why in reasons.items()))


def _verdict(work: asyncio.Task[None]) -> ExitCode:
    """Say why the work ended by itself."""
    error = work.exception()
    causes = error.exceptions if isinstance(error, BaseExceptionGroup) else (error,)
    for cause in causes:
        if isinstance(cause, RegistrationRefusedError):
            _log.error("the kubelet does not take the plugin: ending, to begin anew", extra={"reason": str(cause)})
            return ExitCode.REFUSED
        if isinstance(cause, ListenError):
            _log.error("cannot serve", extra={"reason": str(cause)})
            return ExitCode.UNSUITABLE
    _log.error("unforeseen failure", exc_info=error)
    return ExitCode.FAILED
