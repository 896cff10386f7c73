"""Secrets are seen by nobody: not in a log line, not in a traceback, not in what the caller is told."""

import asyncio
import io
import json
import logging
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from moorage_csi import errors, logs
from moorage_csi.proto import csi_pb2, csi_pb2_grpc
from moorage_csi.rpc.edge import secrets_of
from tests.unit.csi_server.puppet import Puppet, connected, raw_call, running, settings, status_of

UNARY = [
    (service.name, method)
    for name in ("Controller", "Node")
    for service in [csi_pb2.DESCRIPTOR.services_by_name[name]]
    for method in service.methods
]
WITH_SECRETS = [
    (service, method)
    for service, method in UNARY
    if any(field.GetOptions().Extensions[csi_pb2.csi_secret] for field in method.input_type.fields)
]

MARKER = "pA5s-W0rd"
secret_texts = st.text(max_size=40).map(lambda text: f"{MARKER}{text}{MARKER}")


def test_the_protocol_has_the_secrets_that_we_think_it_has() -> None:
    names = {method.name for _, method in WITH_SECRETS}
    assert {"CreateVolume", "DeleteVolume", "NodePublishVolume", "NodeStageVolume", "CreateSnapshot"} <= names
    assert len(names) >= 14


def test_a_secret_is_found_however_deep_it_lies() -> None:
    request = csi_pb2.CreateVolumeRequest(secrets={"one": "first", "two": ""}, parameters={"backend": "image"})
    assert sorted(secrets_of(request)) == ["", "first"]
    assert list(secrets_of(csi_pb2.ProbeRequest())) == []


@pytest.mark.parametrize("said", ["str", "repr", "dict", "json", "traceback"])
@given(value=secret_texts, extra=st.dictionaries(st.text(max_size=5), secret_texts, max_size=3))
@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_secret_is_blanked_in_every_spelling(said: str, value: str, extra: dict[str, str]) -> None:
    request = csi_pb2.NodePublishVolumeRequest(volume_id="vol-1", secrets={"key": value, **extra})
    secrets = logs.Secrets.of(secrets_of(request))
    texts = {
        "str": str(request),
        "repr": repr(request),
        "dict": f"{dict(request.secrets)}",
        "json": json.dumps(dict(request.secrets)),
        "traceback": repr(ValueError(dict(request.secrets))),
    }
    text = secrets.blanked(texts[said])
    assert MARKER not in text
    assert logs.BLANK in text


async def test_no_secret_of_any_request_is_logged_or_told(place: Path, puppet: Puppet, log: io.StringIO) -> None:
    """Every method, every secret field, with handlers that do all that they must not do."""
    careless = logging.getLogger("careless")

    async def behaves_badly(method: str, request: Any, context: Any) -> Any:
        careless.warning("request %s", request)
        careless.warning("fields", extra={"secrets": dict(request.secrets), "all": request})
        await asyncio.to_thread(careless.warning, "from a thread %r", dict(request.secrets))
        if method.endswith("Volume"):
            raise errors.PreconditionError(f"cannot log in with {dict(request.secrets)}")
        raise RuntimeError(f"unforeseen {request}")

    puppet.behaviour = behaves_badly
    async with running(settings(place), puppet), connected(place / "csi.sock") as channel:
        for number, (service, method) in enumerate(WITH_SECRETS):
            request = fill(method.input_type, f"{MARKER}-{number}-é\"'\\\n{MARKER}")
            call = raw_call(channel, f"/csi.v1.{service}/{method.name}")(request.SerializeToString(), timeout=5)
            code, details = await status_of(call)
            assert code not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)
            assert MARKER not in details
            assert logs.BLANK in details
    assert MARKER not in log.getvalue()
    assert log.getvalue().count(logs.BLANK) >= 3 * len(WITH_SECRETS)


async def test_one_request_does_not_blank_the_lines_of_another(place: Path, puppet: Puppet, log: io.StringIO) -> None:
    line = logging.getLogger("driver")

    async def says(method: str, request: Any, context: Any) -> Any:
        line.info("working", extra={"volume": request.volume_id})
        await asyncio.sleep(0.05)
        return csi_pb2.DeleteVolumeResponse()

    puppet.behaviour = says
    async with running(settings(place), puppet), connected(place / "csi.sock") as channel:
        stub = csi_pb2_grpc.ControllerStub(channel)
        await asyncio.gather(
            stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="apple", secrets={"k": "pear"})),
            stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="pear", secrets={"k": "apple"})),
            stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="plum")),
        )
    said = log.getvalue()
    assert "volume=plum" in said
    assert "volume=apple" in said
    assert "volume=pear" in said
    assert len({part for part in said.split() if part.startswith("request=")}) == 3


def fill(descriptor: Any, marker: str) -> Message:
    """A request of this type with the marker in every secret field, and something harmless in every name."""
    request: Message = getattr(csi_pb2, descriptor.name)()
    for field in descriptor.fields:
        if field.GetOptions().Extensions[csi_pb2.csi_secret]:
            getattr(request, field.name)["key"] = marker
        elif field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
            setattr(request, field.name, "harmless")
    return request
