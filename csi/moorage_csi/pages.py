"""The three pages that Kubernetes and Prometheus ask for, over the smallest HTTP that serves them.

One request a connection, a bounded head, no body, a bound on time and on connections. They are answered
by the event loop itself, so that ``/healthz`` shows that the loop turns.
"""

import asyncio
import contextlib
import http
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from moorage_csi.listeners import ListenError

_HEAD_BYTES: Final = 8192
_READ_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 10.0
_MOST_CONNECTIONS: Final = 32
_TEXT: Final = "text/plain; charset=utf-8"


class Page:
    """An answer: status, content type and body."""

    __slots__ = ("body", "content_type", "status")

    def __init__(self, status: http.HTTPStatus, body: bytes, content_type: str = _TEXT) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type


def plain(status: http.HTTPStatus, text: str) -> Page:
    """Return a page of one text."""
    return Page(status, text.encode() + b"\n")


class Pages:
    """Serves ``pages``, a maker of an answer by path."""

    def __init__(self, pages: Mapping[str, Callable[[], Awaitable[Page]]]) -> None:
        self._pages = pages
        self._server: asyncio.Server | None = None
        self._connections = 0

    async def open(self, host: str, port: int) -> int:
        """Listen, and return the port.

        Raises:
            ListenError: the address cannot be bound.
        """
        try:
            self._server = await asyncio.start_server(self._connected, host, port, limit=_HEAD_BYTES)
        except OSError as error:
            raise ListenError(f"the address {host}:{port} cannot be served: {error.strerror}") from error
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Accept no more connections; those that are open end within their own bounds."""
        if self._server is not None:
            self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            page, with_body = await self._answer(reader)
            if page is not None:
                _write(writer, page, with_body=with_body)
                await asyncio.wait_for(writer.drain(), _READ_SECONDS)
        except (TimeoutError, ConnectionError):
            pass  # the peer went away or does not read: there is nobody to tell
        finally:
            self._connections -= 1
            writer.close()
            with contextlib.suppress(ConnectionError, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), _READ_SECONDS)

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[Page | None, bool]:
        """Return the page, ``None`` where nothing came, and whether its body is wanted."""
        if self._connections > _MOST_CONNECTIONS:
            return plain(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many connections"), True
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _READ_SECONDS)
        except asyncio.LimitOverrunError:
            return plain(http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request's head is too large"), True
        except asyncio.IncompleteReadError:
            return None, False
        parts = head.split(b"\r\n", 1)[0].split(b" ")
        if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):  # noqa: PLR2004 - method, target, version
            return plain(http.HTTPStatus.BAD_REQUEST, "not a request of HTTP/1"), True
        method, target = parts[0], parts[1].split(b"?", 1)[0].decode("latin-1")
        if method not in (b"GET", b"HEAD"):
            return plain(http.HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are served"), True
        return await self._page(target), method == b"GET"

    async def _page(self, target: str) -> Page:
        make = self._pages.get(target)
        if make is None:
            return plain(http.HTTPStatus.NOT_FOUND, "there is " + " ".join(sorted(self._pages)))
        try:
            return await asyncio.wait_for(make(), _ANSWER_SECONDS)
        except TimeoutError:
            return plain(http.HTTPStatus.SERVICE_UNAVAILABLE, "the answer took too long")


def _write(writer: asyncio.StreamWriter, page: Page, *, with_body: bool) -> None:
    head = (
        f"HTTP/1.1 {page.status.value} {page.status.phrase}\r\n"
        f"Content-Type: {page.content_type}\r\n"
        f"Content-Length: {len(page.body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    writer.write(head.encode("ascii") + (page.body if with_body else b""))
