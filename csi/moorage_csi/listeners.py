"""Where gRPC is served: unix sockets that can be replaced, and TCP.

gRPC removes the path it was bound to when a server ends, whoever owns the path by then. So a server is
bound to a hidden name beside the path and renamed onto it. That replaces a stale socket in one step,
shows the path only with its final mode, and leaves to us to remove on a clean stop what is still ours.
The kubelet ignores names that begin with a dot and notices the rename.
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import grpc.aio

_log = logging.getLogger(__name__)

SOCKET_MODE: Final = 0o660
_DIRECTORY_MODE: Final = 0o750
CHECK_SECONDS: Final = 5.0
_MAX_SOCKET_PATH: Final = 107
_OPTIONS: Final[Sequence[tuple[str, Any]]] = (
    # A second instance must fail to bind, not take every other connection.
    ("grpc.so_reuseport", 0),
    # A peer whose certificate has been replaced does not stay connected for ever.
    ("grpc.max_connection_age_ms", 3_600_000),
)

Assemble = Callable[[grpc.aio.Server], None]
"""Adds the services to a new server, which has no port yet."""


class ListenError(Exception):
    """The address cannot be served; the message says which and why."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Identity:
    """Which file lies at a path, so that one of the same name that came later is told apart."""

    device: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> "_Identity | None":
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None
        return cls(status.st_dev, status.st_ino)


class UnixListener:
    """A gRPC server on a unix socket, put back when somebody removed the socket.

    A kubelet directory that was emptied, as ``kubeadm reset`` and some upgrades do, would otherwise leave
    a driver that runs and cannot be reached.
    """

    def __init__(self, path: Path, *, assemble: Assemble, interceptor: grpc.aio.ServerInterceptor) -> None:
        self.path = path
        self._hidden = path.with_name(f".{path.name}.new")
        self._assemble = assemble
        self._interceptor = interceptor
        self._server: grpc.aio.Server | None = None
        self._bound: _Identity | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Serve at the path, in place of what stale socket lies there.

        Raises:
            ListenError: the path is too long, is no socket, or cannot be bound.
        """
        if len(os.fsencode(self._hidden)) > _MAX_SOCKET_PATH:
            raise ListenError(f"the socket path {self.path} is too long: {_MAX_SOCKET_PATH - 5} bytes are possible")
        server = grpc.aio.server(interceptors=[self._interceptor])
        self._assemble(server)
        try:
            self.path.parent.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
            self._refuse_foreign()
            self._hidden.unlink(missing_ok=True)
            server.add_insecure_port(f"unix://{self._hidden}")
            self._hidden.chmod(SOCKET_MODE)
            await server.start()
            self._bound = _Identity.of(self._hidden)
            self._hidden.rename(self.path)
        except (OSError, RuntimeError) as error:
            await server.stop(None)
            raise ListenError(f"the socket {self.path} cannot be served: {error}") from error
        self._server = server

    def _refuse_foreign(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self.path.lstat().st_mode):
                raise ListenError(f"{self.path} exists and is no socket: it is not ours to replace")

    @property
    def present(self) -> bool:
        """Whether our socket is what lies at the path."""
        return self._bound is not None and _Identity.of(self.path) == self._bound

    async def reopen(self, *, grace: float) -> None:
        """Serve at the path anew. Calls in flight end on the old server within ``grace`` seconds."""
        old = self._server
        await self.open()
        if old is not None:
            task = asyncio.create_task(old.stop(grace), name=f"old server of {self.path}")
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    def lost(self) -> str | None:
        """Return why the socket cannot be reached any more, or ``None``."""
        return None if self.present else "the socket is gone"

    async def mend(self, reason: str, *, grace: float) -> None:
        """Serve the socket anew because of ``reason``. Where that fails it is logged, for the next look to try again."""
        _log.warning("serving the socket anew", extra={"path": str(self.path), "reason": reason})
        try:
            await self.reopen(grace=grace)
        except ListenError as error:
            _log.warning("the socket cannot be put back: trying again", extra={"reason": str(error)})

    async def watch(self, *, grace: float, every: float = CHECK_SECONDS) -> None:
        """Put the socket back whenever it is gone, looking every ``every`` seconds, until cancelled."""
        while True:
            await asyncio.sleep(every)
            if (reason := self.lost()) is not None:
                await self.mend(reason, grace=grace)

    async def close(self, *, grace: float) -> None:
        """Accept no more calls, wait up to ``grace`` seconds for those in flight, remove our own socket."""
        if self.present:
            self.path.unlink(missing_ok=True)
        if self._server is not None:
            await self._server.stop(grace)
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=grace)


class TcpListener:
    """A gRPC server on a TCP address, with mutual TLS."""

    def __init__(self, address: str, *, assemble: Assemble, interceptor: grpc.aio.ServerInterceptor) -> None:
        self._address = address
        self._server = grpc.aio.server(interceptors=[interceptor], options=_OPTIONS)
        assemble(self._server)

    async def open(self, credentials: grpc.ServerCredentials) -> int:
        """Serve, and return the port.

        Raises:
            ListenError: the address cannot be bound.
        """
        try:
            port = self._server.add_secure_port(self._address, credentials)
        except RuntimeError as error:
            raise ListenError(f"the address {self._address} cannot be served: {error}") from error
        await self._server.start()
        return port

    async def close(self, *, grace: float) -> None:
        """Accept no more calls, and wait up to ``grace`` seconds for those in flight."""
        await self._server.stop(grace)
