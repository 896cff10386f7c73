"""The program as a process: how it starts, what it costs, how it ends, and what it leaves alone."""

import asyncio
import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from moorage_csi import listeners, server
from moorage_csi.host import mounts
from moorage_csi.proto import csi_pb2, csi_pb2_grpc
from moorage_csi.server import ExitCode
from tests.unit.csi_server.puppet import Puppet, connected, running, settings, status_of, until

MNT_DETACH = 2
ROOT = Path(__file__).resolve().parents[3]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def arguments(place: Path, *more: str) -> list[str]:
    (place / "kubelet").mkdir(exist_ok=True)
    (place / "pools.json").write_text(json.dumps({"pools": [{"name": "default", "path": str(place / "pool")}]}))
    return [
        *(sys.executable, "-m", "moorage_csi", "--endpoint", f"unix://{place}/csi.sock", "--listen", ""),
        *("--registration-dir", "", "--metrics-listen", "", "--node-name", "n1"),
        *("--pools-file", f"{place}/pools.json", "--kubelet-dir", f"{place}/kubelet", *more),
    ]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "csi"), **more}


@contextlib.contextmanager
def process(place: Path, *more: str, prefix: Sequence[str] = (), **changed: str) -> Iterator[subprocess.Popen[bytes]]:
    """A driver process that serves, or has ended."""
    argv = [*prefix, *arguments(place, *more)]
    with (
        (place / "log").open("ab") as log,
        subprocess.Popen(argv, stderr=log, stdout=log, env=environment(**changed)) as child,
    ):
        try:
            deadline = time.monotonic() + 20
            while not (place / "csi.sock").exists() and child.poll() is None:
                assert time.monotonic() < deadline, (place / "log").read_text()
                time.sleep(0.01)
            yield child
        finally:
            child.kill()


def said(place: Path) -> str:
    return (place / "log").read_text()


def ended(place: Path, *more: str, prefix: Sequence[str] = (), **changed: str) -> tuple[int, str]:
    done = subprocess.run(
        [*prefix, *arguments(place, *more)],
        capture_output=True,
        text=True,
        env=environment(**changed),
        timeout=30,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_the_socket_is_gone(place: Path, number: int) -> None:
    with process(place) as child:
        child.send_signal(number)
        assert child.wait(20) == ExitCode.STOPPED
    assert not (place / "csi.sock").exists()
    assert "stopped code=0" in said(place)
    assert "Traceback" not in said(place)


def test_after_sigkill_it_starts_again_over_its_own_stale_socket(place: Path) -> None:
    with process(place) as child:
        child.kill()
        child.wait(20)
    assert (place / "csi.sock").exists()
    stale = (place / "csi.sock").lstat().st_ino
    with process(place):
        deadline = time.monotonic() + 20
        while (place / "csi.sock").lstat().st_ino == stale:
            assert time.monotonic() < deadline, said(place)
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("more", "changed", "expected"),
    [
        (("--node-name", ""), {}, "moorage-csi: --node-name is needed"),
        ((), {"MOORAGE_TLS_DIR": "tls"}, "moorage-csi: --tls-dir 'tls' is not an absolute path"),
        (("--pools-file", "/nowhere.json"), {}, "moorage-csi: the pools file /nowhere.json cannot be read"),
        (("--nonsense",), {}, "unrecognized arguments: --nonsense"),
    ],
)
def test_a_mistake_is_one_line_and_touches_nothing(
    place: Path, more: tuple[str, ...], changed: dict[str, str], expected: str
) -> None:
    code, text = ended(place, *more, **changed)
    assert code == ExitCode.USAGE
    assert expected in text
    assert "Traceback" not in text
    assert not (place / "csi.sock").exists()
    assert not (place / "pool").exists()


def test_a_pool_that_cannot_be_opened_keeps_the_rest_served_and_says_why(place: Path) -> None:
    (place / "pool").write_text("this is a file")
    with process(place), grpc.insecure_channel(f"unix://{place}/csi.sock") as channel:
        answer = csi_pb2_grpc.IdentityStub(channel).Probe(csi_pb2.ProbeRequest(), timeout=5)
        assert not answer.ready.value
    assert re.search(r"pool=default .*reason=", said(place))


def test_log_lines_can_be_json(place: Path) -> None:
    with process(place, "--log-format", "json") as child:
        child.terminate()
        child.wait(20)
    entries = [json.loads(line) for line in said(place).splitlines()]
    assert {"serving", "stopping", "stopped"} <= {entry["message"] for entry in entries}


@as_root
@pytest.mark.kernel
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare(1) is needed for a mount namespace of our own")
def test_without_shared_propagation_it_refuses_to_register(place: Path) -> None:
    private = ["unshare", "--mount", "--propagation", "private"]
    code, text = ended(place, "--registration-dir", f"{place}/reg", prefix=private)
    assert code == ExitCode.UNSUITABLE
    assert f"mounts made beneath {place}/kubelet would not be seen outside" in text
    assert "mountPropagation: Bidirectional" in text
    assert not (place / "reg").exists()
    assert not (place / "csi.sock").exists()


@as_root
@pytest.mark.kernel
def test_stopping_and_killing_leave_mounts_and_data_alone(place: Path) -> None:
    target = place / "kubelet" / "target"
    capability = csi_pb2.VolumeCapability(
        mount=csi_pb2.VolumeCapability.MountVolume(),
        access_mode=csi_pb2.VolumeCapability.AccessMode(mode=csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_WRITER),
    )
    parameters = {"backend": "directory", "quota": "best-effort"}
    create = csi_pb2.CreateVolumeRequest(name="pvc-1", volume_capabilities=[capability], parameters=parameters)
    try:
        with process(place) as child, grpc.insecure_channel(f"unix://{place}/csi.sock") as channel:
            made = csi_pb2_grpc.ControllerStub(channel).CreateVolume(create, timeout=10).volume
            publish = csi_pb2.NodePublishVolumeRequest(
                volume_id=made.volume_id,
                target_path=str(target),
                volume_capability=capability,
                volume_context=made.volume_context,
            )
            csi_pb2_grpc.NodeStub(channel).NodePublishVolume(publish, timeout=10)
            (target / "data").write_text("precious")
            child.terminate()
            assert child.wait(20) == ExitCode.STOPPED
        assert mounts.mount_at(str(target)) is not None
        assert (target / "data").read_text() == "precious"
        with process(place) as child, grpc.insecure_channel(f"unix://{place}/csi.sock") as channel:
            csi_pb2_grpc.NodeStub(channel).NodePublishVolume(publish, timeout=10, wait_for_ready=True)
            child.kill()
            child.wait(20)
        assert (target / "data").read_text() == "precious"
        (place / "csi.sock").unlink()
        with process(place), grpc.insecure_channel(f"unix://{place}/csi.sock") as channel:
            unpublish = csi_pb2.NodeUnpublishVolumeRequest(volume_id=made.volume_id, target_path=str(target))
            csi_pb2_grpc.NodeStub(channel).NodeUnpublishVolume(unpublish, timeout=10, wait_for_ready=True)
            assert not target.exists()
            again = csi_pb2_grpc.ControllerStub(channel).CreateVolume(create, timeout=10).volume
            assert again.volume_id == made.volume_id
            kept = [path for path in (place / "pool").rglob("data") if path.is_file()]
            assert [path.read_text() for path in kept] == ["precious"]
    finally:
        ctypes.CDLL(None).umount2(os.fsencode(target), MNT_DETACH)


def test_idle_it_is_small(place: Path) -> None:
    """The budget is 45 MiB; the allowance above it is for other builds of Python and gRPC."""
    cache = {"PYTHONPYCACHEPREFIX": str(place / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}
    with process(place, **cache) as child:
        child.terminate()
        child.wait(20)
    with process(place, **cache) as child:
        time.sleep(0.3)
        status = Path(f"/proc/{child.pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match is not None
    assert int(match[1]) <= 47 * 1024


async def test_a_call_in_flight_is_answered_before_the_program_ends(place: Path, puppet: Puppet) -> None:
    begun = asyncio.Event()

    async def slow(*_: Any) -> Any:
        begun.set()
        await asyncio.sleep(0.5)
        return csi_pb2.CreateVolumeResponse(volume=csi_pb2.Volume(volume_id="late"))

    puppet.behaviour = slow
    async with connected(place / "csi.sock") as channel:
        async with running(settings(place), puppet):
            stub = csi_pb2_grpc.ControllerStub(channel)
            call = asyncio.ensure_future(asyncio.wait_for(stub.CreateVolume(csi_pb2.CreateVolumeRequest(name="v")), 20))
            await asyncio.wait_for(begun.wait(), 5)
        assert (await call).volume.volume_id == "late"


async def test_a_call_that_does_not_end_holds_the_program_no_longer_than_the_grace(
    place: Path, puppet: Puppet, monkeypatch: pytest.MonkeyPatch, log: Any
) -> None:
    monkeypatch.setattr(server, "GRACE_SECONDS", 0.3)
    puppet.drained = False
    begun = asyncio.Event()

    async def hangs(*_: Any) -> Any:
        begun.set()
        await asyncio.sleep(60)

    puppet.behaviour = hangs
    async with connected(place / "csi.sock") as channel:
        async with running(settings(place), puppet) as (_, task):
            stub = csi_pb2_grpc.ControllerStub(channel)
            call = asyncio.ensure_future(status_of(stub.CreateVolume(csi_pb2.CreateVolumeRequest(name="v"))))
            await asyncio.wait_for(begun.wait(), 5)
            started = time.monotonic()
        assert task.result() is ExitCode.STOPPED
        assert time.monotonic() - started < 5
        code, _ = await asyncio.wait_for(call, 5)
        assert code is not grpc.StatusCode.OK
        assert code is not grpc.StatusCode.UNKNOWN
    assert "stopping with work unfinished" in log.getvalue()


async def test_a_programming_error_in_the_background_ends_the_program_with_a_traceback(
    place: Path, puppet: Puppet, monkeypatch: pytest.MonkeyPatch, log: Any
) -> None:
    async def breaks(*_: Any, **__: Any) -> None:
        raise LookupError("a mistake of ours")

    monkeypatch.setattr(listeners.UnixListener, "watch", breaks)
    async with running(settings(place), puppet) as (_, task):
        await until(task.done)
        assert task.result() is ExitCode.FAILED
    assert "a mistake of ours" in log.getvalue()
