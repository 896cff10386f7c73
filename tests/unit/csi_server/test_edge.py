import asyncio
import errno
import io
import re
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from moorage_csi import errors
from moorage_csi.host.commands import CommandError, CommandTimeoutError
from moorage_csi.proto import csi_pb2, csi_pb2_grpc
from moorage_csi.rpc.edge import MAX_DETAILS, READ_ONLY, failure_of
from tests.unit.csi_server.puppet import Puppet, connected, raw_call, running, settings, status_of

Code = grpc.StatusCode

LEAVES = {
    errors.InvalidArgumentError: Code.INVALID_ARGUMENT,
    errors.OutOfRangeError: Code.OUT_OF_RANGE,
    errors.NotFoundError: Code.NOT_FOUND,
    errors.AlreadyExistsError: Code.ALREADY_EXISTS,
    errors.ExhaustedError: Code.RESOURCE_EXHAUSTED,
    errors.PreconditionError: Code.FAILED_PRECONDITION,
    errors.InFlightError: Code.ABORTED,
    errors.UnavailableError: Code.UNAVAILABLE,
    errors.UnimplementedError: Code.UNIMPLEMENTED,
    errors.InternalError: Code.INTERNAL,
}

UNFORESEEN: list[tuple[Exception, Code, Code]] = [
    (OSError(errno.ENOSPC, "No space left on device"), Code.RESOURCE_EXHAUSTED, Code.RESOURCE_EXHAUSTED),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), Code.RESOURCE_EXHAUSTED, Code.RESOURCE_EXHAUSTED),
    (OSError(errno.EIO, "Input/output error"), Code.UNAVAILABLE, Code.INTERNAL),
    (OSError(errno.ETIMEDOUT, "timed out"), Code.DEADLINE_EXCEEDED, Code.DEADLINE_EXCEEDED),
    (TimeoutError(), Code.DEADLINE_EXCEEDED, Code.DEADLINE_EXCEEDED),
    (
        CommandTimeoutError(["mkfs.ext4"], exit_code=None, stderr="", reason="took too long"),
        Code.DEADLINE_EXCEEDED,
        Code.DEADLINE_EXCEEDED,
    ),
    (CommandError(["mkfs.ext4"], exit_code=1, stderr="no", reason="ended"), Code.UNAVAILABLE, Code.INTERNAL),
    (KeyError("volume"), Code.UNAVAILABLE, Code.INTERNAL),
    (RuntimeError("boom"), Code.UNAVAILABLE, Code.INTERNAL),
    (RecursionError(), Code.UNAVAILABLE, Code.INTERNAL),
    (NotImplementedError(), Code.UNIMPLEMENTED, Code.UNIMPLEMENTED),
]


def leaves(base: type[errors.DriverError]) -> set[type[errors.DriverError]]:
    return {leaf for child in base.__subclasses__() for leaf in ({child} | leaves(child))}


def test_every_error_of_the_driver_is_in_the_table() -> None:
    ours = {leaf for leaf in leaves(errors.DriverError) if leaf.__module__.startswith("moorage_csi")}
    assert {leaf.code for leaf in ours} <= set(LEAVES.values())
    assert {leaf for leaf in ours if leaf.__module__ == errors.__name__} == set(LEAVES)


def test_every_method_of_the_protocol_that_may_change_something_is_not_among_the_reading_ones() -> None:
    changing = re.compile("(Create|Delete|Publish|Unpublish|Stage|Unstage|Expand|Modify)(Volume|Snapshot)")
    methods = [method.name for service in csi_pb2.DESCRIPTOR.services_by_name.values() for method in service.methods]
    assert not [name for name in methods if changing.search(name) and name in READ_ONLY]
    assert len([name for name in methods if changing.search(name)]) > 10


@pytest.mark.parametrize(("error", "code"), [(leaf("why"), code) for leaf, code in LEAVES.items()])
async def test_an_error_of_ours_becomes_its_code_and_keeps_its_message(
    place: Path, puppet: Puppet, error: errors.DriverError, code: Code
) -> None:
    async def raises(*_: Any) -> Any:
        raise error

    puppet.behaviour = raises
    async with running(settings(place), puppet), connected(place / "csi.sock") as channel:
        call = csi_pb2_grpc.ControllerStub(channel).CreateVolume(csi_pb2.CreateVolumeRequest(name="v"), timeout=5)
        assert await status_of(call) == (code, "why")


@pytest.mark.parametrize(("error", "changing", "reading"), UNFORESEEN, ids=lambda value: str(value)[:30])
def test_any_other_error_is_never_unknown(error: Exception, changing: Code, reading: Code) -> None:
    assert failure_of(error, method="CreateVolume").code is changing
    assert failure_of(error, method="GetCapacity").code is reading
    assert failure_of(error, method="SomethingNew").code is changing
    assert failure_of(error, method="CreateVolume").details


async def test_what_nobody_foresaw_is_logged_with_its_traceback(place: Path, puppet: Puppet, log: io.StringIO) -> None:
    async def raises(*_: Any) -> Any:
        raise LookupError("the map is gone")

    puppet.behaviour = raises
    async with running(settings(place), puppet), connected(place / "csi.sock") as channel:
        stub = csi_pb2_grpc.ControllerStub(channel)
        code, details = await status_of(stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="vol-1"), timeout=5))
        assert (code, details) == (Code.UNAVAILABLE, "LookupError: the map is gone")
        assert (await status_of(stub.GetCapacity(csi_pb2.GetCapacityRequest(), timeout=5)))[0] is Code.INTERNAL
    assert log.getvalue().count("Traceback (most recent call last)") == 2


async def test_a_call_is_one_line_with_method_subject_code_and_duration(
    place: Path, puppet: Puppet, log: io.StringIO
) -> None:
    async with running(settings(place), puppet), connected(place / "csi.sock") as channel:
        await csi_pb2_grpc.ControllerStub(channel).CreateVolume(
            csi_pb2.CreateVolumeRequest(
                name='pvc-1 "\n forged level=error', parameters={"backend": "marker-parameter"}
            ),
            timeout=5,
        )
    (line,) = [line for line in log.getvalue().splitlines() if "CreateVolume" in line]
    assert re.search(r"answered method=CreateVolume code=OK ms=[0-9.]+ subject=\"pvc-1 .*\" request=1$", line), line
    assert "marker-parameter" not in log.getvalue()


async def test_a_cancellation_that_leaks_from_a_handler_does_not_hang_the_client(place: Path, puppet: Puppet) -> None:
    async def leaks(*_: Any) -> Any:
        inner = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_later(0.05, inner.cancel)
        await inner

    puppet.behaviour = leaks
    async with running(settings(place), puppet), connected(place / "csi.sock") as channel:
        stub = csi_pb2_grpc.ControllerStub(channel)
        started = time.monotonic()
        code, _ = await status_of(stub.CreateVolume(csi_pb2.CreateVolumeRequest(name="v"), timeout=20))
        assert code is Code.UNAVAILABLE
        assert time.monotonic() - started < 5


async def test_a_client_that_runs_out_of_time_cancels_the_handler_and_is_counted(
    place: Path, puppet: Puppet, log: io.StringIO
) -> None:
    cancelled = asyncio.Event()

    async def hangs(*_: Any) -> Any:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    puppet.behaviour = hangs
    async with running(settings(place), puppet) as (program, _), connected(place / "csi.sock") as channel:
        stub = csi_pb2_grpc.ControllerStub(channel)
        code, _ = await status_of(stub.CreateVolume(csi_pb2.CreateVolumeRequest(name="v"), timeout=0.2))
        assert code is Code.DEADLINE_EXCEEDED
        await asyncio.wait_for(cancelled.wait(), 5)
        await asyncio.sleep(0.05)
        text = program.metrics.exposition().decode()
        assert 'moorage_csi_rpcs_total{code="DEADLINE_EXCEEDED",method="CreateVolume"} 1.0' in text
        assert 'moorage_csi_rpcs_in_flight{method="CreateVolume"} 0.0' in text
    assert "code=DEADLINE_EXCEEDED" in log.getvalue()


async def test_a_client_that_goes_away_is_logged_as_cancelled(place: Path, puppet: Puppet, log: io.StringIO) -> None:
    begun = asyncio.Event()

    async def hangs(*_: Any) -> Any:
        begun.set()
        await asyncio.sleep(60)

    puppet.behaviour = hangs
    async with running(settings(place), puppet), connected(place / "csi.sock") as channel:
        call = csi_pb2_grpc.ControllerStub(channel).CreateVolume(csi_pb2.CreateVolumeRequest(name="v"))
        waiting = asyncio.ensure_future(status_of(call))
        await asyncio.wait_for(begun.wait(), 5)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0.1)
    assert "code=CANCELLED" in log.getvalue()


async def test_an_abort_by_the_handler_passes_and_is_counted_with_its_code(place: Path, puppet: Puppet) -> None:
    async def aborts(method: str, request: Any, context: Any) -> Any:
        await context.abort(Code.NOT_FOUND, "not here")

    puppet.behaviour = aborts
    async with running(settings(place), puppet) as (program, _), connected(place / "csi.sock") as channel:
        stub = csi_pb2_grpc.ControllerStub(channel)
        status = await status_of(stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="x"), timeout=5))
        assert status == (Code.NOT_FOUND, "not here")
        assert b'{code="NOT_FOUND",method="DeleteVolume"} 1.0' in program.metrics.exposition()


@pytest.mark.parametrize("path", ["/csi.v9.Nothing/Do", "/csi.v1.SnapshotMetadata/GetMetadataAllocated", "/x", "/"])
async def test_a_method_that_is_not_served_is_unimplemented_and_no_label(
    place: Path, puppet: Puppet, path: str
) -> None:
    async with running(settings(place), puppet) as (program, _), connected(place / "csi.sock") as channel:
        code, _ = await status_of(raw_call(channel, path)(b"", timeout=5))
        assert code is Code.UNIMPLEMENTED
        assert b'{code="UNIMPLEMENTED",method="unknown"} 1.0' in program.metrics.exposition()
        assert b"Nothing" not in program.metrics.exposition()


async def test_a_method_that_the_driver_leaves_out_is_unimplemented(place: Path, puppet: Puppet) -> None:
    puppet.node = type("Bare", (csi_pb2_grpc.NodeServicer,), {})()
    async with running(settings(place), puppet), connected(place / "csi.sock") as channel:
        call = csi_pb2_grpc.NodeStub(channel).NodeStageVolume(csi_pb2.NodeStageVolumeRequest(), timeout=5)
        code, details = await status_of(call)
        assert code is Code.UNIMPLEMENTED
        assert "NodeStageVolume" in details


async def test_bytes_that_are_no_request_are_refused_before_the_handler(place: Path, puppet: Puppet) -> None:
    asked: list[str] = []

    async def notes(method: str, *_: Any) -> Any:
        asked.append(method)

    puppet.behaviour = notes
    async with running(settings(place), puppet), connected(place / "csi.sock") as channel:
        call = raw_call(channel, "/csi.v1.Controller/CreateVolume")(b"\xff\xff\xff", timeout=5)
        code, details = await status_of(call)
        assert code is Code.INVALID_ARGUMENT
        assert "CreateVolume" in details
    assert asked == []


async def test_an_answer_of_the_wrong_kind_is_not_unknown(place: Path, puppet: Puppet) -> None:
    async def forgets(*_: Any) -> Any:
        return None

    puppet.behaviour = forgets
    async with running(settings(place), puppet), connected(place / "csi.sock") as channel:
        stub = csi_pb2_grpc.ControllerStub(channel)
        code, _ = await status_of(stub.CreateVolume(csi_pb2.CreateVolumeRequest(name="v"), timeout=5))
        assert code is Code.UNAVAILABLE


@pytest.mark.parametrize(
    "text", ["ж" * 100_000, "x" * 100_000, "%" * 100_000, "\U0001f6a2" * 9000, "a name \udcff\0\n"]
)
async def test_a_message_of_any_length_and_script_reaches_the_client(place: Path, puppet: Puppet, text: str) -> None:
    async def raises(*_: Any) -> Any:
        raise errors.PreconditionError(text)

    puppet.behaviour = raises
    async with running(settings(place), puppet), connected(place / "csi.sock") as channel:
        stub = csi_pb2_grpc.ControllerStub(channel)
        code, details = await status_of(stub.CreateVolume(csi_pb2.CreateVolumeRequest(name="v"), timeout=5))
        assert code is Code.FAILED_PRECONDITION
        assert details[:6] == text[:6]
        assert len(details) <= MAX_DETAILS + 1


async def test_probe_answers_while_every_other_call_hangs(place: Path, puppet: Puppet) -> None:
    async def hangs(*_: Any) -> Any:
        await asyncio.get_running_loop().run_in_executor(None, release.wait, 30)
        return csi_pb2.CreateVolumeResponse()

    release = threading.Event()
    puppet.behaviour = hangs
    async with running(settings(place), puppet), connected(place / "csi.sock") as channel:
        stub = csi_pb2_grpc.ControllerStub(channel)
        calls = [
            asyncio.ensure_future(status_of(stub.CreateVolume(csi_pb2.CreateVolumeRequest(name=f"v{n}"))))
            for n in range(100)
        ]
        try:
            await asyncio.sleep(0.3)
            started = time.monotonic()
            answer = await csi_pb2_grpc.IdentityStub(channel).Probe(csi_pb2.ProbeRequest(), timeout=5)
            assert answer.ready.value
            assert time.monotonic() - started < 1
            assert threading.active_count() < 64
        finally:
            release.set()
            await asyncio.gather(*calls)
