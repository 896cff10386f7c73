"""The one edge between our errors and gRPC.

Every RPC passes here, as bytes in and bytes out, so that a message that cannot be read or written gets
a chosen status too. Callers decide from the status what may be left behind (see ``errors``): UNKNOWN
never leaves, and a failure that nobody foresaw is UNAVAILABLE ("ask again") when the RPC may have begun
something and INTERNAL only when it changes nothing.

One line a call is logged: the method, the volume, the duration and the code; never a request. The
values of all fields that the protocol marks as ``csi_secret`` are blanked in everything that is logged
while the call is being answered, and in the message that the caller gets, because that one ends in
events which anybody in the namespace can read.
"""

import asyncio
import dataclasses
import errno
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Protocol, TypeAlias

import grpc
import grpc.aio
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from moorage_csi import errors, logs
from moorage_csi.host.commands import CommandTimeoutError
from moorage_csi.proto import csi_pb2

_log = logging.getLogger(__name__)

READ_ONLY: Final = frozenset(
    {
        "GetPluginInfo",
        "GetPluginCapabilities",
        "Probe",
        "ValidateVolumeCapabilities",
        "ListVolumes",
        "GetCapacity",
        "ControllerGetCapabilities",
        "ControllerGetVolume",
        "ListSnapshots",
        "GetSnapshot",
        "GroupControllerGetCapabilities",
        "NodeGetVolumeStats",
        "NodeGetCapabilities",
        "NodeGetInfo",
        "GetInfo",
        "NotifyRegistrationStatus",
        "ListDeleted",
    }
)
"""RPCs that begin nothing. Any other name counts as changing something, so that a new one errs on the safe side."""

MAX_DETAILS: Final = 6000
"""Bytes of a message on the wire. It travels in a header, and gRPC drops answers with more than 8 KiB of those."""

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"

_PEER_NAMES: Final = "x509_subject_alternative_name"

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Meter(Protocol):
    """Where calls are counted and timed."""

    def began(self, method: str) -> None:
        """A call of ``method`` has begun."""

    def ended(self, method: str, code: str, seconds: float) -> None:
        """The call has been answered with ``code`` after ``seconds``."""


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """What a caller is told."""

    code: grpc.StatusCode
    details: str


def failure_of(error: Exception, *, method: str) -> Failure:
    """Return what the caller of ``method`` is told about ``error``. Never UNKNOWN."""
    match error:
        case errors.DriverError():
            return Failure(error.code, str(error) or type(error).__name__)
        case TimeoutError() | CommandTimeoutError():
            return Failure(grpc.StatusCode.DEADLINE_EXCEEDED, str(error) or f"{method} did not end in time: ask again")
        case OSError(errno=number) if number in _FULL:
            return Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        case NotImplementedError():
            return Failure(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not implemented by this driver")
        case _:
            code = grpc.StatusCode.INTERNAL if method in READ_ONLY else grpc.StatusCode.UNAVAILABLE
            return Failure(code, f"{type(error).__name__}: {error}")


def sendable(text: str) -> str:
    """Return the text as a header can hold it: cut to its bytes there, and without what UTF-8 cannot say.

    The latter comes from file names that are no text.
    """
    text = text.encode("utf-8", "backslashreplace").decode()
    left = MAX_DETAILS
    for index, character in enumerate(text):
        left -= 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode())
        if left < 0:
            return f"{text[:index]}…"
    return text


def secrets_of(message: Message) -> Iterator[str]:
    """Yield the value of every field of ``message`` that the protocol marks as a secret, however deep."""
    for field, value in message.ListFields():
        if field.GetOptions().Extensions[csi_pb2.csi_secret]:
            yield from _strings(field, value)
        elif field.type == FieldDescriptor.TYPE_MESSAGE and not _is_map(field):
            for part in value if field.is_repeated else (value,):
                yield from secrets_of(part)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _strings(field: FieldDescriptor, value: Any) -> Iterator[str]:
    if _is_map(field):
        yield from (str(part) for part in value.values())
    elif field.is_repeated:
        yield from (str(part) for part in value)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        for inner, part in value.ListFields():
            yield from _strings(inner, part)
    else:
        yield str(value)


def subject_of(message: Message) -> str:
    """Return the id or name of what the request is about; empty when it is about nothing in particular."""
    for key in ("volume_id", "snapshot_id", "group_snapshot_id", "name", "id"):
        if key in message.DESCRIPTOR.fields_by_name and (value := getattr(message, key)):
            return str(value)
    return ""


@dataclasses.dataclass(slots=True, kw_only=True)
class _Call:
    """One RPC while it is being answered."""

    method: str
    request: str
    started: float
    subject: str = ""
    secrets: logs.Secrets = dataclasses.field(default_factory=logs.Secrets)
    code: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""

    def understood(self, message: Message) -> None:
        """Take from the request what may be logged, and what must not be."""
        self.subject = subject_of(message)
        self.secrets = logs.Secrets.of(secrets_of(message))
        logs.SCOPE.set(logs.Scope(request=self.request, secrets=self.secrets))

    def failed(self, failure: Failure) -> None:
        """Keep what the caller is to be told, without secrets and short enough for a header."""
        self.code = failure.code
        self.details = sendable(self.secrets.blanked(failure.details))


class Edge(grpc.aio.ServerInterceptor):
    """The interceptor of one server.

    ``client_name`` is the DNS name that the peer's certificate must carry. ``None`` serves everybody who
    can open the socket, which on the unix socket the file's mode decides.
    """

    def __init__(
        self,
        *,
        meter: Meter,
        clock: Callable[[], float],
        requests: Iterator[int],
        client_name: str | None = None,
    ) -> None:
        self._meter = meter
        self._clock = clock
        self._requests = requests
        self._client_name = client_name

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Put the edge around the handler; a method that nobody serves gets one that says so."""
        handler = await continuation(handler_call_details)
        return grpc.unary_unary_rpc_method_handler(
            functools.partial(self._answer, handler, str(handler_call_details.method))
        )

    async def _answer(self, handler: Any, path: str, raw: bytes, context: Context) -> bytes:
        """Answer one call. Ends with the response's bytes, or with an abort, whatever happens inside."""
        known = handler is not None and handler.unary_unary is not None
        # An unknown name does not become a label of a metric: anybody could make as many as they like.
        method = path.rpartition("/")[2] if known else "unknown"
        call = _Call(method=method, request=str(next(self._requests)), started=self._clock())
        logs.SCOPE.set(logs.Scope(request=call.request, secrets=call.secrets))
        self._meter.began(method)
        try:
            if (refusal := refusal_of(context, self._client_name)) is not None:
                call.failed(refusal)
            elif known:
                return await _served(handler, raw, context, call)
            else:
                call.failed(Failure(grpc.StatusCode.UNIMPLEMENTED, f"{path} is not served here"))
        except grpc.aio.AbortError:
            call.code = _code_of(context)
            raise
        except asyncio.CancelledError:
            # One that leaks from a handler would leave the client without an answer (grpc#29248). Where the
            # client went away or ran out of time nobody reads the answer, and it does no harm.
            call.failed(_cancellation(context, method))
        except Exception as error:  # noqa: BLE001 - this is the edge
            call.failed(failure_of(error, method=method))
            if not isinstance(error, errors.DriverError):
                _log.exception("unforeseen failure", extra={"method": method, "error": type(error).__name__})
        finally:
            self._ended(call)
        return await context.abort(call.code, call.details)

    def _ended(self, call: _Call) -> None:
        seconds = self._clock() - call.started
        self._meter.ended(call.method, call.code.name, seconds)
        said: dict[str, object] = {"method": call.method, "code": call.code.name, "ms": round(seconds * 1000, 1)}
        if call.subject:
            said["subject"] = call.subject
        if call.details:
            said["details"] = call.details
        _log.log(_level(call), "answered", extra=said)


async def _served(handler: Any, raw: bytes, context: Context, call: _Call) -> bytes:
    try:
        request = handler.request_deserializer(raw)
    except DecodeError as error:
        raise errors.InvalidArgumentError(f"the request of {call.method} cannot be read: {error}") from error
    call.understood(request)
    response = handler.unary_unary(request, context)
    if inspect.isawaitable(response):
        response = await response
    answer: bytes = handler.response_serializer(response)
    return answer


def refusal_of(context: Context, client_name: str | None) -> Failure | None:
    """Return why the peer is not served, or ``None``: its certificate must carry ``client_name``."""
    if client_name is None:
        return None
    names = [name.decode("utf-8", "replace") for name in context.auth_context().get(_PEER_NAMES, ())]
    if client_name in names:
        return None
    if not names:
        return Failure(grpc.StatusCode.UNAUTHENTICATED, f"a client certificate for {client_name} is needed")
    return Failure(
        grpc.StatusCode.PERMISSION_DENIED,
        f"the client certificate is for {', '.join(names)}; only {client_name} is served",
    )


def _cancellation(context: Context, method: str) -> Failure:
    """Tell the client's deadline, the client's leaving (or our stopping) and a leak from inside apart."""
    remaining = context.time_remaining()
    task = asyncio.current_task()
    if remaining is not None and remaining <= 0:
        return Failure(grpc.StatusCode.DEADLINE_EXCEEDED, f"{method} did not end before the caller's deadline")
    if task is not None and task.cancelling():
        return Failure(grpc.StatusCode.CANCELLED, f"{method} was given up by the caller, or the driver is stopping")
    return Failure(grpc.StatusCode.UNAVAILABLE, f"{method} was interrupted: ask again")


def _code_of(context: Context) -> grpc.StatusCode:
    number = context.code()
    return next((code for code in grpc.StatusCode if number in (code, code.value[0])), grpc.StatusCode.UNKNOWN)


def _level(call: _Call) -> int:
    if call.code is grpc.StatusCode.OK:
        return logging.DEBUG if call.method in READ_ONLY else logging.INFO
    return logging.WARNING
