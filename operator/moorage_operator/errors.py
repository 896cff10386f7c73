"""Every error of the operator, in one tree.

A leaf carries as data what its catchers need to know, so that nobody reads messages: an API error
its HTTP status, a driver error its *retry class*, which is what the caller may believe about the
storage after the call (CSI's codes are many, the beliefs are few).
"""

import enum
from typing import ClassVar


class OperatorError(Exception):
    """The base of all errors that the operator raises itself."""


class SettingsError(OperatorError):
    """A flag or environment variable that cannot be used; the message names it and what is allowed."""


class QuantityError(OperatorError, ValueError):
    """A Kubernetes quantity that cannot be read; the message holds the value."""


class MalformedObjectError(OperatorError, ValueError):
    """An object from the API server that lacks what every such object has."""


class DecisionError(OperatorError):
    """An object from which nothing can be decided, although it could be read; the message says what is wrong with it."""


class PluginError(OperatorError):
    """A plugin inside this process failed; the message says with what."""


class ApiError(OperatorError):
    """The API server refused, or could not be asked.

    Attributes:
        status: the HTTP status of the answer; 0 when there was none.
        reason: ``Status.reason`` of the answer, e.g. ``Conflict``; empty when there was none.
        retry_after: seconds the server asked us to wait; None when it did not.
    """

    status: int
    reason: str
    retry_after: float | None

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after


class ConflictError(ApiError):
    """The object is not what the write was made for (409, or a failed ``test`` of a JSON patch): decide anew."""


class AlreadyExistsError(ApiError):
    """A create found an object of that name (409 AlreadyExists)."""


class NotFoundError(ApiError):
    """There is no such object (404), or none with the uid asked for."""


class ForbiddenError(ApiError):
    """Our role does not allow it, or admission refused it (401, 403)."""


class InvalidError(ApiError):
    """The object or patch is not valid (400, 422): sending it again cannot help."""


class ThrottledError(ApiError):
    """The API server is busy (429); ``retry_after`` says for how long, if it said so."""


class ServerError(ApiError):
    """The API server failed (5xx): whether the write happened is not known."""


class UnreachableError(ApiError):
    """No answer: connection refused, reset or timed out. Whether the write happened is not known."""


class RetryClass(enum.Enum):
    """What may be believed about the storage after a failed call to the driver."""

    RUNNING = "running"
    """It may still be running, or have succeeded: the same call again is the only way to know."""
    FINAL = "final"
    """It failed and left nothing: the call may be made again, or never."""
    INFEASIBLE = "infeasible"
    """It failed and will fail until the request changes: wait for a new class or claim, or 5 minutes."""
    EXHAUSTED = "exhausted"
    """It failed on this node for want of room and left nothing: another node may do."""
    UNREACHABLE = "unreachable"
    """The node's plugin cannot be reached: this call was not sent. An earlier one may have been carried out."""


class DriverCallError(OperatorError):
    """A CSI call that did not succeed.

    Attributes:
        retry_class: what may be believed about the storage now.
        node: the node whose plugin was called.
        code: the gRPC status name, e.g. ``RESOURCE_EXHAUSTED``; empty when there was no call.
    """

    retry_class: ClassVar[RetryClass]
    node: str
    code: str

    def __init__(self, message: str, *, node: str, code: str = "") -> None:
        super().__init__(message)
        self.node = node
        self.code = code


class DriverRunningError(DriverCallError):
    """ABORTED, CANCELLED, DEADLINE_EXCEEDED, or a broken connection after the call was sent."""

    retry_class = RetryClass.RUNNING


class DriverFinalError(DriverCallError):
    """Any code without a leaf of its own: the driver has undone what it began."""

    retry_class = RetryClass.FINAL


class DriverInfeasibleError(DriverCallError):
    """INVALID_ARGUMENT or OUT_OF_RANGE: the class or the claim asks for what the driver cannot make."""

    retry_class = RetryClass.INFEASIBLE


class DriverExhaustedError(DriverCallError):
    """RESOURCE_EXHAUSTED: the node has no room for it."""

    retry_class = RetryClass.EXHAUSTED


class DriverUnreachableError(DriverCallError):
    """The node plugin is down or was never there; the message says which node and why."""

    retry_class = RetryClass.UNREACHABLE
