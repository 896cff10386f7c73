"""/healthz, /readyz and /metrics: what the kubelet and Prometheus ask.

*Alive* means: what has to happen again and again has happened lately. The event loop is watched by
a heart of our own; the loop of workers and others may add theirs. An answer at all already says
that the event loop turns, so a red /healthz names the heart that stopped, and the kubelet restarts us.

*Ready* means: this replica does its part, as leader or as standby. Each condition answers with None,
or with the sentence that a person reads in the body of the 503.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from moorage_operator.errors import SettingsError

logger = logging.getLogger(__name__)

TICK: Final = 1.0
STALE_AFTER: Final = 30.0
MAX_PORT: Final = 65535


def parse_listen(listen: str) -> tuple[str, int]:
    """Split ``host:port``; an empty host is every address, IPv6 stands in brackets.

    Raises:
        SettingsError: it has no port, or one that is none.
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > MAX_PORT:
        raise SettingsError(f"listen address {listen!r}: expected HOST:PORT such as 0.0.0.0:9742 or [::]:9742")
    host = host.removeprefix("[").removesuffix("]")
    return host or "0.0.0.0", int(port)  # noqa: S104 (an empty host asks for every address)


class Pages(Protocol):
    """Pages that somebody else answers."""

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Add them."""
        ...


class Health:
    """The server of the three paths; a running event loop is needed to start it.

    Args:
        registry: what /metrics shows.
        clock: monotonic seconds.
        stale_after: seconds without a beat after which a heart counts as stopped.
    """

    def __init__(
        self,
        *,
        registry: CollectorRegistry,
        clock: Callable[[], float] = time.monotonic,
        stale_after: float = STALE_AFTER,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._stale_after = stale_after
        self._hearts: dict[str, float] = {}
        self._conditions: dict[str, Callable[[], str | None]] = {}
        self._pages: list[Pages] = []
        self._runner: web.AppRunner | None = None
        self._ticker: asyncio.Task[None] | None = None

    def heart(self, name: str) -> Callable[[], None]:
        """Watch a heart from now on; the function returned is its beat."""
        self._hearts[name] = self._clock()

        def beat() -> None:
            self._hearts[name] = self._clock()

        return beat

    def condition(self, name: str, check: Callable[[], str | None]) -> None:
        """Make readiness depend on ``check``: None is fine, a sentence is why not."""
        self._conditions[name] = check

    def serve(self, pages: Pages) -> None:
        """Serve more pages beside the three; before ``start``."""
        self._pages.append(pages)

    def stopped(self) -> list[str]:
        """Which hearts have stopped, each as a sentence; empty when all beat."""
        now = self._clock()
        return [
            f"{name}: no sign of life for {now - beaten:.0f} s (limit {self._stale_after:.0f} s)"
            for name, beaten in self._hearts.items()
            if now - beaten > self._stale_after
        ]

    def unready(self) -> list[str]:
        """Which conditions do not hold, each as a sentence; empty when ready."""
        answers = ((name, check()) for name, check in self._conditions.items())
        return [f"{name}: {why}" for name, why in answers if why is not None]

    async def start(self, listen: str) -> int:
        """Serve on ``host:port`` until ``stop``; port 0 picks a free one.

        Returns:
            The port that is served.

        Raises:
            SettingsError: ``listen`` cannot be read, or cannot be bound.
        """
        host, port = parse_listen(listen)
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        for pages in self._pages:
            pages.add_to(app.router)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self.stop()
            raise SettingsError(f"listen address {listen!r} cannot be served: {error.strerror or error}") from error
        self._ticker = asyncio.create_task(self._tick(), name="health")
        served = int(self._runner.addresses[0][1])
        logger.info("Serving health and metrics host=%s port=%d", host, served)
        return served

    async def stop(self) -> None:
        """Stop serving; harmless when it never started."""
        if self._ticker is not None:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker
            self._ticker = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _tick(self) -> None:
        beat = self.heart("event loop")
        while True:
            beat()
            await asyncio.sleep(TICK)

    async def _healthz(self, _: web.Request) -> web.Response:
        return _verdict(self.stopped())

    async def _readyz(self, _: web.Request) -> web.Response:
        return _verdict(self.unready())

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _verdict(faults: list[str]) -> web.Response:
    if faults:
        return web.Response(status=503, text="\n".join(faults) + "\n")
    return web.Response(text="ok\n")
