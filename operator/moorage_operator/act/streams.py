"""Lists and watches, so that kopf goes on with what would end it.

kopf starts a watch over when the API server sends the event ERROR with code 410, and when a connection breaks. Anything
else that is refused ends it, and the operator with it: HTTP 410 or 400, a token of a paged list that has run out, an
ERROR of another code (the API server sends those when its store is away), or half a line at a stream's end. None of
that says more than that what exists has to be listed anew; so that is what kopf is told, ever less often while it
goes on. What is refused for who asks (401, 403) or for how often (429) stays kopf's.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final, cast

import aiohttp

logger = logging.getLogger(__name__)

FIRST_REST: Final = 0.5
MOST_REST: Final = 30.0
QUIET: Final = 60.0
"""Seconds without another failure, after which the next one is a first one."""

_KOPFS: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS})
_ERROR: Final = b'{"type":"ERROR"'
_LOOK: Final = 24
_GONE: Final = b'{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","code":410}}\n'
_SHOWN: Final = 300


class Streams:
    """A middleware for the session that kopf lists and watches with.

    Args:
        listed: told the path of each collection that is about to be listed from its beginning.
        clock: monotonic seconds.
        rest: sleeps so many seconds.
    """

    def __init__(
        self,
        *,
        listed: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        rest: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._listed = listed
        self._clock = clock
        self._rest = rest
        self._failures: dict[str, tuple[int, float]] = {}

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send the request.

        Raises:
            aiohttp.ClientPayloadError: the list was refused; kopf begins it anew.
        """
        path, query = request.url.path, request.url.query
        watches = "watch" in query
        response = await handler(request)
        if watches and response.ok:
            response.content = cast("aiohttp.StreamReader", _Lines(response.content, lambda why: self._tire(path, why)))
        elif response.status < HTTPStatus.INTERNAL_SERVER_ERROR and not response.ok and response.status not in _KOPFS:
            why = f"HTTP {response.status}: {await response.text()}"
            await self._tire(path, why)
            if not watches:
                raise aiohttp.ClientPayloadError(why)
            response.status = HTTPStatus.OK
            response.content = cast("aiohttp.StreamReader", _Gone(response.content))
        elif response.ok and not watches and "continue" not in query:
            self._listed(path)
        return response

    async def _tire(self, path: str, why: str) -> None:
        """Rest before the next list, the longer the more often it was needed lately."""
        times, last = self._failures.get(path, (0, 0.0))
        now = self._clock()
        if now - last > QUIET:
            times = 0
        self._failures[path] = times + 1, now
        seconds = min(FIRST_REST * 2**times, MOST_REST)
        logger.info("Watch has failed, listing anew path=%s in=%.1f s why=%s", path, seconds, why[:_SHOWN])
        await self._rest(seconds)


class _Content:
    """Stands in for a response's content, whose bytes are read as chunks."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)


class _Gone(_Content):
    """A stream with one event: list anew."""

    async def iter_chunked(self, _: int) -> AsyncIterator[bytes]:
        """That event."""
        yield _GONE


class _Lines(_Content):
    """The whole lines of a watch, up to the first that is an error."""

    def __init__(self, content: aiohttp.StreamReader, failed: Callable[[str], Awaitable[None]]) -> None:
        super().__init__(content)
        self._failed = failed

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """The events as they come; half a line at the end was never told."""
        rest = b""
        async for data in self._content.iter_chunked(size):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line[:_LOOK].replace(b" ", b"").startswith(_ERROR):
                    await self._failed(line.decode(errors="replace"))
                    yield _GONE
                    return
                yield line + b"\n"
