"""A node plugin with a table in memory instead of storage: real gRPC, real mutual TLS, CSI's own messages.

It is what the operator is tested against where the operator is the subject: it can be told to fail, and
it counts what was made and destroyed. The driver itself has tests of its own.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from concurrent import futures
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from moorage_csi.contract import DRIVER_NAME, NODE_SERVER_NAME, OPERATOR_CLIENT_NAME, TOPOLOGY_KEY, Context, Metadata
from moorage_csi.proto import csi_pb2, csi_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable

GIB = 2**30


@dataclass(kw_only=True)
class FakePlugin:
    """The plugin of one node.

    Attributes:
        node: its name.
        size: bytes it has room for.
        volumes: what exists, size by id.
        names: the name that each volume was asked for with.
        calls: how often each method was called.
        fault: asked before each CreateVolume and DeleteVolume; a status and a sentence fail it.
        delay: seconds that a CreateVolume takes.
    """

    node: str
    size: int = 1024 * GIB
    volumes: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    fault: Callable[[str, str], tuple[grpc.StatusCode, str] | None] = lambda _method, _name: None
    delay: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _server: grpc.Server | None = None

    def start(self, address: str, *, authority: bytes, certificate: bytes, key: bytes) -> None:
        """Serve with the certificate that the operator has put into its Secret."""
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
        # The operator calls none of the methods that are left out; gRPC answers them with UNIMPLEMENTED.
        csi_pb2_grpc.add_IdentityServicer_to_server(_Identity(self), server)  # type: ignore[abstract]
        csi_pb2_grpc.add_ControllerServicer_to_server(_Controller(self), server)  # type: ignore[abstract]
        credentials = grpc.ssl_server_credentials(
            [(key, certificate)], root_certificates=authority, require_client_auth=True
        )
        assert server.add_secure_port(address, credentials), address
        server.start()
        self._server = server

    def stop(self) -> None:
        """Stop serving; the table stays."""
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None

    @property
    def free(self) -> int:
        """Bytes of room that are left."""
        return self.size - sum(self.volumes.values())

    def create(self, request: csi_pb2.CreateVolumeRequest, context: Any) -> csi_pb2.CreateVolumeResponse:
        """Make or find the volume of that name."""
        _check_client(context)
        self.calls["CreateVolume"] += 1
        self._maybe_fail("CreateVolume", request.name, context)
        time.sleep(self.delay)
        volume_id = "vol-" + hashlib.sha256(request.name.encode()).hexdigest()[:32]
        wanted = request.capacity_range.required_bytes
        with self._lock:
            if volume_id not in self.volumes:
                if wanted > self.free:
                    _fail(
                        context, grpc.StatusCode.RESOURCE_EXHAUSTED, f"pool has {self.free} bytes free, {wanted} asked"
                    )
                self.volumes[volume_id] = wanted
                self.names[volume_id] = request.name
            size = self.volumes[volume_id]
        assert request.parameters[Metadata.VOLUME_NAME] == request.name
        volume = csi_pb2.Volume(
            volume_id=volume_id,
            capacity_bytes=size,
            volume_context={Context.BACKEND: "image", Context.FILESYSTEM: "ext4"},
            accessible_topology=[csi_pb2.Topology(segments={TOPOLOGY_KEY: self.node})],
        )
        return csi_pb2.CreateVolumeResponse(volume=volume)

    def delete(self, request: csi_pb2.DeleteVolumeRequest, context: Any) -> csi_pb2.DeleteVolumeResponse:
        """Remove the volume of that id."""
        _check_client(context)
        self.calls["DeleteVolume"] += 1
        self._maybe_fail("DeleteVolume", request.volume_id, context)
        with self._lock:
            self.volumes.pop(request.volume_id, None)
        return csi_pb2.DeleteVolumeResponse()

    def _maybe_fail(self, method: str, name: str, context: Any) -> None:
        fault = self.fault(method, name)
        if fault is not None:
            _fail(context, *fault)


class _Identity(csi_pb2_grpc.IdentityServicer):
    def __init__(self, plugin: FakePlugin) -> None:
        self._plugin = plugin

    def GetPluginInfo(self, _request: Any, _context: Any) -> csi_pb2.GetPluginInfoResponse:  # noqa: N802
        return csi_pb2.GetPluginInfoResponse(name=DRIVER_NAME, manifest={TOPOLOGY_KEY: self._plugin.node})


class _Controller(csi_pb2_grpc.ControllerServicer):
    def __init__(self, plugin: FakePlugin) -> None:
        self._plugin = plugin

    def CreateVolume(self, request: Any, context: Any) -> csi_pb2.CreateVolumeResponse:  # noqa: N802
        return self._plugin.create(request, context)

    def DeleteVolume(self, request: Any, context: Any) -> csi_pb2.DeleteVolumeResponse:  # noqa: N802
        return self._plugin.delete(request, context)

    def GetCapacity(self, _request: Any, _context: Any) -> csi_pb2.GetCapacityResponse:  # noqa: N802
        self._plugin.calls["GetCapacity"] += 1
        return csi_pb2.GetCapacityResponse(available_capacity=max(self._plugin.free, 0))


def _fail(context: Any, code: grpc.StatusCode, sentence: str) -> NoReturn:
    context.abort(code, sentence)
    raise AssertionError


def _check_client(context: Any) -> None:
    names = context.auth_context().get("x509_subject_alternative_name", ())
    if OPERATOR_CLIENT_NAME.encode() not in names:
        _fail(context, grpc.StatusCode.PERMISSION_DENIED, f"client certificate is for {names}, not the operator")
    assert NODE_SERVER_NAME.encode() not in names
