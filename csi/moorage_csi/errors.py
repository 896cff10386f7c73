"""The driver's own errors: one tree, each leaf carrying the gRPC status it becomes.

Handlers raise these; ``rpc/edge.py`` alone turns them into a status. The codes are chosen by what
callers do with them: a provisioner reads ABORTED, UNAVAILABLE and DEADLINE_EXCEEDED as "may still
be running" and asks again, RESOURCE_EXHAUSTED as "not on this node", and everything else as
"finished, nothing was left behind". UNKNOWN is never sent, and INTERNAL only when nothing was begun
or all of it was undone.

A message names what was wrong, the value, what is allowed, and what to do next.
"""

from typing import ClassVar

import grpc


class DriverError(Exception):
    """Base of everything that the driver answers with on purpose."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL


class InvalidArgumentError(DriverError):
    """The request can never succeed as it is written."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class OutOfRangeError(DriverError):
    """The size asked for is one that the backend cannot make."""

    code = grpc.StatusCode.OUT_OF_RANGE


class NotFoundError(DriverError):
    """No record has this id."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExistsError(DriverError):
    """The name is taken by a volume that was made from other arguments."""

    code = grpc.StatusCode.ALREADY_EXISTS


class ExhaustedError(DriverError):
    """The pool has no room: another node may have."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class PreconditionError(DriverError):
    """The volume or the host is in a state that somebody has to change first."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class InFlightError(DriverError):
    """Another call for the same volume has not ended yet."""

    code = grpc.StatusCode.ABORTED


class UnavailableError(DriverError):
    """Something may still be running or left over: ask again with the same arguments."""

    code = grpc.StatusCode.UNAVAILABLE


class UnimplementedError(DriverError):
    """The driver does not do this; its capabilities say so too."""

    code = grpc.StatusCode.UNIMPLEMENTED


class InternalError(DriverError):
    """It failed, and nothing was begun or all of it was undone."""

    code = grpc.StatusCode.INTERNAL
