"""The three paths over real HTTP."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from moorage_operator.errors import SettingsError
from moorage_operator.health import Health, parse_listen
from moorage_operator.metrics import Metrics


class Ward:
    """A served Health whose clock a test turns."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.now = 0.0
        self.health = Health(registry=registry, clock=lambda: self.now, stale_after=30)
        self.url = ""

    async def get(self, path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(self.url + path) as response:
            return response.status, await response.text()


@asynccontextmanager
async def ward(metrics: Metrics) -> AsyncIterator[Ward]:
    made = Ward(metrics.registry)
    port = await made.health.start("127.0.0.1:0")
    made.url = f"http://127.0.0.1:{port}"
    try:
        yield made
    finally:
        await made.health.stop()


async def test_alive_while_every_heart_beats(metrics: Metrics) -> None:
    async with ward(metrics) as at:
        beat = at.health.heart("workers")
        assert await at.get("/healthz") == (200, "ok\n")
        at.now = 31
        code, body = await at.get("/healthz")
        assert code == 503
        assert "workers: no sign of life for 31 s (limit 30 s)" in body
        beat()
        assert "workers" not in (await at.get("/healthz"))[1]


async def test_ready_when_every_condition_holds_and_the_reason_when_not(metrics: Metrics) -> None:
    async with ward(metrics) as at:
        problem: str | None = "claims have not been listed yet"
        at.health.condition("caches", lambda: problem)
        at.health.condition("lease", lambda: None)
        assert await at.get("/readyz") == (503, "caches: claims have not been listed yet\n")
        problem = None
        assert await at.get("/readyz") == (200, "ok\n")


async def test_metrics_are_those_of_the_registry(metrics: Metrics) -> None:
    metrics.watch_queue(lambda: 7)
    async with ward(metrics) as at:
        code, body = await at.get("/metrics")
    assert code == 200
    assert 'moorage_build_info{version="0.0.test"} 1.0' in body
    assert "moorage_queue_depth 7.0" in body
    assert "process_resident_memory_bytes" in body


async def test_an_address_in_use_is_named(metrics: Metrics) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        listen = f"127.0.0.1:{port}"
        with pytest.raises(SettingsError, match=f"{listen}.*in use"):
            await Health(registry=metrics.registry).start(listen)


@pytest.mark.parametrize(
    ("listen", "parsed"),
    [("0.0.0.0:9742", ("0.0.0.0", 9742)), (":9742", ("0.0.0.0", 9742)), ("[::1]:80", ("::1", 80))],  # noqa: S104
)
def test_addresses_that_can_be_read(listen: str, parsed: tuple[str, int]) -> None:
    assert parse_listen(listen) == parsed


@pytest.mark.parametrize("listen", ["9742", "", "host:", "host:http", "host:70000", "host:-1", "host:٣"])
def test_addresses_that_cannot(listen: str) -> None:
    with pytest.raises(SettingsError, match="expected HOST:PORT"):
        parse_listen(listen)


async def test_stopping_twice_or_before_starting_is_harmless(metrics: Metrics) -> None:
    health = Health(registry=metrics.registry)
    await health.stop()
    await health.start("127.0.0.1:0")
    await health.stop()
    await health.stop()
