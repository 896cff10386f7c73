"""Between our records and CSI's messages, and between gRPC's codes and what may be believed.

Pure: no connection is needed to test any of it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import grpc

from moorage_csi.proto import csi_pb2
from moorage_operator.errors import (
    DriverCallError,
    DriverExhaustedError,
    DriverFinalError,
    DriverInfeasibleError,
    DriverRunningError,
)
from moorage_operator.model.provisioning import Created, CreateRequest

AccessMode = csi_pb2.VolumeCapability.AccessMode

# The driver has the capability SINGLE_NODE_MULTI_WRITER, which splits ReadWriteOnce (one node, any
# number of pods) from ReadWriteOncePod.
_MODES: Final[Mapping[str, AccessMode.Mode.ValueType]] = MappingProxyType(
    {
        "ReadWriteOnce": AccessMode.SINGLE_NODE_MULTI_WRITER,
        "ReadWriteOncePod": AccessMode.SINGLE_NODE_SINGLE_WRITER,
        "ReadOnlyMany": AccessMode.MULTI_NODE_READER_ONLY,
        "ReadWriteMany": AccessMode.MULTI_NODE_MULTI_WRITER,
    }
)

_CLASSES: Final[Mapping[grpc.StatusCode, type[DriverCallError]]] = MappingProxyType(
    {
        grpc.StatusCode.CANCELLED: DriverRunningError,
        grpc.StatusCode.DEADLINE_EXCEEDED: DriverRunningError,
        grpc.StatusCode.UNAVAILABLE: DriverRunningError,
        grpc.StatusCode.ABORTED: DriverRunningError,
        grpc.StatusCode.RESOURCE_EXHAUSTED: DriverExhaustedError,
        grpc.StatusCode.INVALID_ARGUMENT: DriverInfeasibleError,
        grpc.StatusCode.OUT_OF_RANGE: DriverInfeasibleError,
    }
)

CONNECTION_CODES: Final = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAVAILABLE,
    }
)
"""Codes after which the connection itself is in doubt, and the node's address with it."""


def failure(*, method: str, node: str, code: grpc.StatusCode, details: str) -> DriverCallError:
    """The error that a call ended with, once it was sent."""
    kind = _CLASSES.get(code, DriverFinalError)
    return kind(f"{method} on node {node}: {code.name}: {details or 'no details'}", node=node, code=code.name)


def create_request(request: CreateRequest, *, node: str) -> csi_pb2.CreateVolumeRequest:
    """The CSI message of a request.

    Raises:
        DriverInfeasibleError: an access mode that CSI has no word for.
    """
    message = csi_pb2.CreateVolumeRequest(
        name=request.name,
        capacity_range=csi_pb2.CapacityRange(required_bytes=request.required_bytes),
        parameters=request.parameters,
        volume_capabilities=[_capability(request, mode, node=node) for mode in request.access_modes],
    )
    if request.topology:
        segment = csi_pb2.Topology(segments=request.topology)
        message.accessibility_requirements.CopyFrom(
            csi_pb2.TopologyRequirement(requisite=[segment], preferred=[segment])
        )
    return message


def created(answer: csi_pb2.CreateVolumeResponse, *, node: str) -> Created:
    """Our record of what was made.

    Raises:
        DriverRunningError: the answer names no volume: something may have been made, only asking
            again can tell.
    """
    if not answer.volume.volume_id:
        raise DriverRunningError(f"CreateVolume on node {node}: the answer has no volume id", node=node, code="OK")
    return Created(
        volume_id=answer.volume.volume_id,
        capacity_bytes=answer.volume.capacity_bytes,
        context=dict(answer.volume.volume_context),
        topology=tuple(dict(one.segments) for one in answer.volume.accessible_topology),
    )


def _capability(request: CreateRequest, mode: str, *, node: str) -> csi_pb2.VolumeCapability:
    if mode not in _MODES:
        raise DriverInfeasibleError(f"access mode {mode!r} is unknown; known: {', '.join(_MODES)}", node=node)
    capability = csi_pb2.VolumeCapability(access_mode=AccessMode(mode=_MODES[mode]))
    if request.volume_mode == "Block":
        capability.block.SetInParent()
    else:
        capability.mount.fs_type = request.filesystem
        capability.mount.mount_flags.extend(request.mount_options)
        capability.mount.SetInParent()
    return capability
