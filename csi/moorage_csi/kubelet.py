"""Registration with the kubelet, by ourselves and in this process.

The kubelet watches a directory for sockets. It calls the Registration service on each new one, calls
the driver on the endpoint named there, and then says whether it took the plugin. While the socket
lies there the plugin counts as present, so a clean stop removes it, and one that vanished is put back.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import grpc.aio

from moorage_csi import contract
from moorage_csi.listeners import CHECK_SECONDS, UnixListener
from moorage_csi.proto import registration_pb2, registration_pb2_grpc
from moorage_csi.readiness import Readiness

_log = logging.getLogger(__name__)

CONDITION: Final = "registered"
_PLUGIN_TYPE: Final = "CSIPlugin"
_SUPPORTED_VERSIONS: Final = ("1.0.0",)
"""Versions of the CSI protocol, not ours: the kubelet compares the major number only."""

PATIENCE_SECONDS: Final = 30.0
"""How long a refusal may stand. The kubelet tries again every second, so what lasts longer does not mend by itself."""

SILENCE_SECONDS: Final = 60.0
"""How long the kubelet may take to notice the socket before we show it once more."""


class RegistrationRefusedError(Exception):
    """The kubelet does not take the plugin; the message is the kubelet's."""


class _Service(registration_pb2_grpc.RegistrationServicer):
    """The two RPCs. Both may come again at any time: the kubelet asks anew after its own restart."""

    def __init__(self, registration: "Registration") -> None:
        self._registration = registration

    async def GetInfo(  # noqa: N802 - the protocol's name
        self, request: registration_pb2.InfoRequest, context: object
    ) -> registration_pb2.PluginInfo:
        """Say who we are and where the kubelet finds the CSI services."""
        del request, context
        return registration_pb2.PluginInfo(
            type=_PLUGIN_TYPE,
            name=contract.DRIVER_NAME,
            endpoint=self._registration.endpoint,
            supported_versions=_SUPPORTED_VERSIONS,
        )

    async def NotifyRegistrationStatus(  # noqa: N802 - the protocol's name
        self, request: registration_pb2.RegistrationStatus, context: object
    ) -> registration_pb2.RegistrationStatusResponse:
        """Take note of the kubelet's decision."""
        del context
        if request.plugin_registered:
            self._registration.accepted()
        else:
            self._registration.refused(request.error or "the kubelet gave no reason")
        return registration_pb2.RegistrationStatusResponse()


class Registration:
    """Shows the plugin to the kubelet and keeps it shown.

    ``endpoint`` is the CSI socket's path as the kubelet sees it. ``clock`` returns monotonic seconds.
    """

    def __init__(
        self,
        *,
        directory: Path,
        endpoint: str,
        readiness: Readiness,
        interceptor: grpc.aio.ServerInterceptor,
        clock: Callable[[], float],
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self.endpoint = endpoint
        self._readiness = readiness
        self._clock = clock
        self._patience = patience
        self._shown = clock()
        self._refused_since: float | None = None
        self._reason = ""
        self._registered = False
        self._listener = UnixListener(
            directory / f"{contract.DRIVER_NAME}-reg.sock", assemble=self._assemble, interceptor=interceptor
        )

    def _assemble(self, server: grpc.aio.Server) -> None:
        # Every new socket is a new beginning: the kubelet forgets a plugin whose socket went away.
        self._registered = False
        self._shown = self._clock()
        self._readiness.unmet(CONDITION, "the kubelet has not registered the plugin yet")
        registration_pb2_grpc.add_RegistrationServicer_to_server(_Service(self), server)

    async def open(self) -> None:
        """Show the socket.

        Raises:
            ListenError: it cannot be served.
        """
        await self._listener.open()

    async def run(self, *, grace: float, every: float = CHECK_SECONDS) -> None:
        """Keep the socket there until cancelled.

        Raises:
            RegistrationRefusedError: the kubelet's refusal has stood for longer than the patience.
        """
        while True:
            await asyncio.sleep(every)
            if self._given_up():
                raise RegistrationRefusedError(self._reason)
            if (reason := self._lost()) is not None:
                await self._listener.mend(reason, grace=grace)

    async def close(self, *, grace: float) -> None:
        """Remove the socket, whereupon the kubelet forgets the plugin until it comes back."""
        await self._listener.close(grace=grace)

    def accepted(self) -> None:
        """The kubelet took the plugin."""
        self._refused_since = None
        self._registered = True
        self._readiness.met(CONDITION)
        _log.info("registered with the kubelet", extra={"endpoint": self.endpoint})

    def refused(self, reason: str) -> None:
        """The kubelet did not take the plugin; the patience runs from the first refusal in a row."""
        self._registered = False
        self._reason = reason
        if self._refused_since is None:
            self._refused_since = self._clock()
        self._readiness.unmet(CONDITION, f"the kubelet refused the plugin: {reason}")
        _log.error("refused by the kubelet", extra={"reason": reason})

    def _given_up(self) -> bool:
        return self._refused_since is not None and self._clock() - self._refused_since >= self._patience

    def _lost(self) -> str | None:
        if (reason := self._listener.lost()) is not None:
            return reason
        if not self._registered and self._refused_since is None and self._clock() - self._shown >= SILENCE_SECONDS:
            return f"the kubelet has not registered the plugin for {SILENCE_SECONDS:.0f} s"
        return None
