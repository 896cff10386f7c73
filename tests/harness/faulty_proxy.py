"""A way to an API server on which things go wrong: a proxy on loopback that fails requests and spoils watches.

It runs in a thread of its own with an event loop of its own, so that tests stay plain functions. Towards its clients it
speaks HTTP without TLS and asks for no credentials; towards the API server it speaks as one of its users. It answers
with faults until it is told to be calm, and passes everything on from then.

It also counts the writes of claims and volumes, and can do something to the client at any of them, before the write
is carried out or before the client hears of it: that is where a program is killed.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING, Self

import aiohttp
import orjson
import yarl
from aiohttp import web

from tests.harness import faulty_proxy_answers as answers
from tests.harness.faulty_proxy_faults import Chance, Fault, Faults
from tests.harness.faulty_proxy_stream import FaultyStream
from tests.harness.faulty_proxy_traps import Moment, Trap, Traps, written

if TYPE_CHECKING:
    import random
    from collections import Counter
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    from tests.harness.components import Access

LOOPBACK = "127.0.0.1"
TOUCHED = "moorage.test/touched"
MERGE_PATCH = "application/merge-patch+json"
HOPS = {"host", "connection", "keep-alive", "content-length", "transfer-encoding", "accept-encoding", "authorization"}
"""Headers that belong to one connection only, and the credentials."""

PASSED = ("Retry-After", "Warning")
LINE_BUFFER = 4 * 2**20
START_SECONDS = 10
END_SECONDS = 0.1


class _ResetError(Exception):
    """The client's connection is to be reset instead of an answer."""


class FaultyProxy:
    """A proxy in front of an API server.

    Args:
        access: the API server, and as whom to speak to it.
        rival: somebody else, who changes objects before a conflict.
        faults: what goes wrong, and how often.
        random: decides when.
    """

    def __init__(
        self, access: Access, *, rival: Access | None = None, faults: Faults | None = None, random: random.Random
    ) -> None:
        self._access = access
        self._rival = rival or access
        self._chance = Chance(faults or Faults(), random)
        self._traps = Traps()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="faulty proxy", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._upstream: aiohttp.ClientSession | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(START_SECONDS), "the proxy does not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def url(self) -> str:
        """Return where it listens."""
        return f"http://{LOOPBACK}:{self._port}"

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig that leads here and names no user; returns its path."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "faulty", "cluster": {"server": self.url}}],
            "contexts": [{"name": "faulty", "context": {"cluster": "faulty"}}],
            "current-context": "faulty",
        }
        path.write_text(json.dumps(content))
        return path

    def calm(self) -> None:
        """Let nothing more go wrong; a gap that is open ends as it would have."""
        self._chance.calm = True

    def storm(self, faults: Faults | None = None) -> None:
        """Let things go wrong (again), as before or as said."""
        if faults is not None:
            self._chance.faults = faults
        self._chance.calm = False

    @property
    def counts(self) -> Counter[Fault]:
        """How often each fault has happened."""
        return self._chance.counts.copy()

    def trap(self, at: Callable[[Sequence[str]], bool], moment: Moment, act: Callable[[], object]) -> None:
        """Count writes of claims and volumes from here on, and act at one of them; its connection is reset then.

        Args:
            at: tells by the writes so far whether their last one is the one.
            moment: whether that one is carried out.
            act: what to do.
        """
        self._traps.set(Trap(at=at, moment=moment, act=act))

    def untrap(self) -> None:
        """Count anew, and act no more."""
        self._traps.set(None)

    @property
    def caught(self) -> str:
        """The write at which the trap acts or has acted; empty until then."""
        return self._traps.caught

    @property
    def sprung(self) -> bool:
        """Whether what the trap does has been done."""
        return self._traps.sprung.is_set()

    @property
    def writes(self) -> tuple[str, ...]:
        """The writes of claims and volumes since the last trap was set, such as ``PATCH persistentvolumes/status``."""
        return tuple(self._traps.writes)

    # Everything below belongs to the thread.

    def _serve(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        tls: ssl.SSLContext | bool = True
        if self._access.url.startswith("https://"):
            tls = ssl.create_default_context(cafile=str(self._access.ca_file))
        connector = aiohttp.TCPConnector(limit=0, ssl=tls)
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            read_bufsize=LINE_BUFFER,
            auto_decompress=False,
        ) as self._upstream:
            server = web.Server(self._handle, handler_cancellation=True)
            runner = web.ServerRunner(server, shutdown_timeout=END_SECONDS)
            await runner.setup()
            site = web.TCPSite(runner, LOOPBACK, 0)
            await site.start()
            self._port = runner.addresses[0][1]
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            if request.method == "GET" and request.query.get("watch") in {"true", "1"}:
                return await self._watch(request)
            return await self._answer(request)
        except (_ResetError, aiohttp.ClientError):
            return answers.reset(request)

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        write = written(request)
        trap = self._traps.at(write) if write else None
        if trap is not None and trap.moment is Moment.BEFORE:
            await self._traps.spring(trap)
            raise _ResetError
        answer = await self._request(request)
        if trap is not None:
            await self._traps.spring(trap)
            raise _ResetError
        return answer

    async def _request(self, request: web.BaseRequest) -> web.Response:
        change = request.method in {"PUT", "PATCH"} and bool(written(request))
        fault = self._chance.of_request(write=request.method != "GET", change=change)
        refusal = self._refusal(fault)
        if refusal is not None:
            return refusal
        if fault is Fault.OVERTAKEN and await self._touch(request):
            self._chance.did(fault)
            return answers.refuse(409, "Conflict", answers.MODIFIED)
        answer = await self._forward(request)
        if fault in {Fault.LOST, Fault.CUT}:
            self._chance.did(fault)
            if fault is Fault.CUT:
                raise _ResetError
            return answers.refuse(500, "InternalError", answers.BROKEN)
        return answer

    def _refusal(self, fault: Fault | None) -> web.Response | None:
        """Return the answer of a request that is not carried out; None when it is to be."""
        match fault:
            case Fault.CONFLICT:
                answer = answers.refuse(409, "Conflict", answers.MODIFIED)
            case Fault.BUSY:
                answer = answers.busy(self._chance.faults.retry_after)
            case Fault.ERROR:
                answer = answers.refuse(500, "InternalError", answers.BROKEN)
            case Fault.GONE:
                answer = answers.refuse(410, "Expired", answers.TOO_OLD)
            case Fault.RESET:
                self._chance.did(Fault.RESET)
                raise _ResetError
            case _:
                return None
        self._chance.did(fault)
        return answer

    async def _watch(self, request: web.BaseRequest) -> web.StreamResponse:
        fault = self._chance.of_watch(continued=request.query.get("resourceVersion", "0") not in {"", "0"})
        refusal = self._refusal(fault)
        if refusal is not None:
            return refusal
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        if fault is not None:
            self._chance.did(fault)
            await response.prepare(request)
            await response.write(answers.expired() if fault is Fault.EXPIRED else answers.failed())
        else:
            async with self._open(request) as upstream:
                if upstream.status != HTTPStatus.OK:
                    return await _copy(upstream)
                await response.prepare(request)
                await FaultyStream(self._chance, response.write).run(aiter(upstream.content))
        await response.write_eof()
        return response

    async def _forward(self, request: web.BaseRequest) -> web.Response:
        async with self._open(request, body=await request.read()) as answer:
            return await _copy(answer)

    async def _touch(self, request: web.BaseRequest) -> bool:
        """Change the object that a request is about, as somebody else; False when there is none."""
        path = request.raw_path.partition("?")[0].removesuffix("/status")
        body = {"metadata": {"annotations": {TOUCHED: str(self._chance.counts[Fault.OVERTAKEN])}}}
        assert self._upstream is not None
        async with self._upstream.patch(
            yarl.URL(self._rival.url + path, encoded=True),
            data=orjson.dumps(body),
            headers={"Authorization": f"Bearer {self._rival.token}", "Content-Type": MERGE_PATCH},
        ) as answer:
            await answer.read()
            return answer.status == HTTPStatus.OK

    def _open(
        self, request: web.BaseRequest, *, body: bytes | None = None
    ) -> aiohttp.client._BaseRequestContextManager[aiohttp.ClientResponse]:
        assert self._upstream is not None
        headers = {key: value for key, value in request.headers.items() if key.lower() not in HOPS}
        headers |= {"Authorization": f"Bearer {self._access.token}", "Accept-Encoding": "identity"}
        return self._upstream.request(
            request.method,
            yarl.URL(self._access.url + request.raw_path, encoded=True),
            data=body or None,
            headers=headers,
            allow_redirects=False,
        )


async def _copy(answer: aiohttp.ClientResponse) -> web.Response:
    """Return what the API server has said, as it said it."""
    headers = {key: answer.headers[key] for key in PASSED if key in answer.headers}
    return web.Response(
        status=answer.status, body=await answer.read(), content_type=answer.content_type, headers=headers
    )
