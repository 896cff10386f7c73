import asyncio
import re
import time
from pathlib import Path

import pytest

from moorage_csi import pages
from moorage_csi.metrics import PoolFigures
from tests.unit.csi_server.puppet import LOOPBACK, Puppet, running, settings, until


async def asked(port: int, request: bytes) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), 15)
    finally:
        writer.close()
    head, _, body = answer.decode().partition("\r\n\r\n")
    match = re.match(r"HTTP/1\.1 (\d+) ", head)
    return int(match[1]) if match else 0, body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def test_the_three_pages(place: Path, puppet: Puppet) -> None:
    given = settings(place, metrics_listen=LOOPBACK, registration_dir=place / "reg")
    puppet.pool_figures = [
        PoolFigures(name="default", capacity=100, available=40, promised=60, volumes=3),
        PoolFigures(name="hung"),
    ]
    async with running(given, puppet) as (program, _):
        port = program.pages_port
        assert await asked(port, get("/healthz")) == (200, "ok\n")
        status, body = await asked(port, get("/readyz"))
        assert status == 503
        assert "registered: the kubelet has not registered the plugin yet" in body
        program.readiness.met("registered")
        assert await asked(port, get("/readyz?verbose")) == (200, "ok\n")
        puppet.is_ready = False
        assert (await asked(port, get("/healthz")))[0] == 503

        status, body = await asked(port, get("/metrics"))
        assert status == 200
        for line in (
            'moorage_pool_available_bytes{pool="default"} 40.0',
            'moorage_pool_up{pool="default"} 1.0',
            'moorage_pool_up{pool="hung"} 0.0',
            'moorage_build_info{node="n1",version="1.2.3"} 1.0',
        ):
            assert line in body
        assert "process_resident_memory_bytes " in body
        assert 'moorage_pool_volumes{pool="hung"}' not in body

        puppet.pool_figures = [PoolFigures(name="default")]
        status, body = await asked(port, get("/metrics"))
        assert 'moorage_pool_available_bytes{pool="default"}' not in body
        assert 'moorage_pool_up{pool="default"} 0.0' in body


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/"), 404),
        (get("/metrics/../healthz"), 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 405),
        (b"HEAD /healthz HTTP/1.1\r\n\r\n", 200),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /healthz HTTP/2.0\r\n\r\n", 400),
        (b"\xff\xfe\x00 \xff HTTP/1.1\r\n\r\n", 405),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5000, 431),
    ],
)
async def test_a_strange_request_gets_a_status(place: Path, puppet: Puppet, request_: bytes, status: int) -> None:
    async with running(settings(place, metrics_listen=LOOPBACK), puppet) as (program, _):
        answer = await asked(program.pages_port, request_)
        assert answer[0] == status
        assert (await asked(program.pages_port, get("/healthz")))[0] == 200


async def test_one_who_sends_nothing_is_dropped_and_many_of_them_keep_nobody_out_for_long(
    place: Path, puppet: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_READ_SECONDS", 0.5)
    async with running(settings(place, metrics_listen=LOOPBACK), puppet) as (program, _):
        silent = [await asyncio.open_connection("127.0.0.1", program.pages_port) for _ in range(40)]
        assert (await asked(program.pages_port, get("/healthz")))[0] == 503
        started = time.monotonic()
        for reader, writer in silent:
            await asyncio.wait_for(reader.read(), 5)
            writer.close()
        assert time.monotonic() - started < 5
        assert (await asked(program.pages_port, get("/healthz")))[0] == 200


async def test_a_port_that_is_taken_ends_the_program(place: Path, puppet: Puppet) -> None:
    async with running(settings(place, metrics_listen=LOOPBACK), puppet) as (program, _):
        taken = type(LOOPBACK)(host="127.0.0.1", port=program.pages_port)
        other = settings(place, endpoint=place / "other.sock", metrics_listen=taken)
        async with running(other, puppet) as (_, task):
            await until(task.done)
            assert task.result() == 3
        assert not (place / "other.sock").exists()
