"""What an answer of the API server means: its ``Status`` as one of our errors, and the resource a path names.

Pure, so that every answer ever seen can be a test case.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import orjson

from moorage_operator.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    ServerError,
    ThrottledError,
)

PATCH_NOT_APPLICABLE: Final = "the JSON patch could not be applied: something that it tests is no longer so"
MAX_QUOTED: Final = 500

_BY_STATUS: Final[Mapping[int, type[ApiError]]] = {
    HTTPStatus.BAD_REQUEST: InvalidError,
    HTTPStatus.UNAUTHORIZED: ForbiddenError,
    HTTPStatus.FORBIDDEN: ForbiddenError,
    HTTPStatus.NOT_FOUND: NotFoundError,
    HTTPStatus.CONFLICT: ConflictError,
    HTTPStatus.UNPROCESSABLE_ENTITY: InvalidError,
    HTTPStatus.TOO_MANY_REQUESTS: ThrottledError,
}


def error(*, verb: str, path: str, status: int, body: bytes, retry_after: str | None) -> ApiError:
    """The error that this answer is.

    The server answers a failed ``test`` of a JSON patch like any patch that cannot be applied: 422
    with empty details, where a validation failure names causes. Ours always carry a ``test``, so it
    is a conflict.

    Args:
        verb: what was asked, for the message.
        path: of what, for the message.
        status: the HTTP status.
        body: the answer's body; a Kubernetes ``Status``, or a proxy's page.
        retry_after: the header of that name.
    """
    parsed = _status_object(body)
    reason = str(parsed.get("reason") or "")
    details = parsed.get("details") or {}
    message = str(parsed.get("message") or body[:MAX_QUOTED].decode("utf-8", "replace") or "no message")
    kind = _BY_STATUS.get(status, ServerError if status >= HTTPStatus.INTERNAL_SERVER_ERROR else ApiError)
    if kind is ConflictError and reason == "AlreadyExists":
        kind = AlreadyExistsError
    if kind is InvalidError and verb == "patch" and not details.get("causes") and status != HTTPStatus.BAD_REQUEST:
        kind, message = ConflictError, PATCH_NOT_APPLICABLE
    return kind(
        f"{verb} {path}: {status} {reason or _phrase(status)}: {message}",
        status=status,
        reason=reason,
        retry_after=_seconds(retry_after, details.get("retryAfterSeconds")),
    )


def resource(path: str) -> str:
    """The resource (and subresource) a path names, for counting: ``persistentvolumes/status``.

    Names and namespaces are left out, so that the number of time series stays small.
    """
    parts = path.partition("?")[0].strip("/").split("/")
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    # Everything in a namespace has at least a resource behind the namespace's name.
    if len(rest) > 2 and rest[0] == "namespaces" and rest[2] not in {"status", "finalize"}:  # noqa: PLR2004
        rest = rest[2:]
    return "/".join(rest[::2]) if len(rest) > 2 else rest[0] if rest else "unknown"  # noqa: PLR2004


def _status_object(body: bytes) -> dict[str, Any]:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return parsed if isinstance(parsed, dict) and parsed.get("kind") == "Status" else {}


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "unknown status"


def _seconds(header: str | None, detail: object) -> float | None:
    """Seconds to wait, from the header or the Status; a date form of the header is not for us to time."""
    if header is not None and header.strip().isdigit():
        return float(header)
    return float(detail) if isinstance(detail, int) and detail > 0 else None
