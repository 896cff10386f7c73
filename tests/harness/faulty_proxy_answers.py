"""The answers of a faulty proxy, in the API server's own words."""

from __future__ import annotations

import socket
import struct
from typing import Any

import orjson
from aiohttp import web

MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"
BROKEN = "an error on the server has prevented the request from succeeding"
TOO_OLD = "too old resource version: 1 (2)"


def refuse(code: int, reason: str, message: str, **details: Any) -> web.Response:
    """Return an error with a Status in it."""
    return web.json_response(_status(code, reason, message, **details), status=code)


def busy(seconds: int) -> web.Response:
    """Return 429 with the time to wait."""
    answer = refuse(429, "TooManyRequests", "too many requests, please try again later", retryAfterSeconds=seconds)
    answer.headers["Retry-After"] = str(seconds)
    return answer


def expired() -> bytes:
    """Return the event that tells a watch that its version is too old, as a line."""
    return _error(_status(410, "Expired", TOO_OLD))


def failed() -> bytes:
    """Return the event that tells a watch that the server cannot go on, as a line."""
    return _error(_status(500, "InternalError", "etcdserver: no leader"))


def reset(request: web.BaseRequest) -> web.Response:
    """Close a connection so that its other end reads a reset; returns what to return to the server's library."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response()


def _error(reason: dict[str, Any]) -> bytes:
    return orjson.dumps({"type": "ERROR", "object": reason}) + b"\n"


def _status(code: int, reason: str, message: str, **details: Any) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "details": details,
        "code": code,
    }
