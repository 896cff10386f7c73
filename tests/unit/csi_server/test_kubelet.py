import asyncio
import os
import socket as socketlib
import stat
from pathlib import Path

import grpc
import pytest

from moorage_csi import kubelet, listeners, server
from moorage_csi.proto import csi_pb2, csi_pb2_grpc, registration_pb2, registration_pb2_grpc
from moorage_csi.server import ExitCode
from tests.unit.csi_server.puppet import Puppet, connected, running, settings, status_of, until

SOCKET = "csi.moorage.dev-reg.sock"


async def handshake(socket: Path, *, registered: bool = True, error: str = "") -> registration_pb2.PluginInfo:
    """What the kubelet does with a socket it found."""
    async with connected(socket) as channel:
        stub = registration_pb2_grpc.RegistrationStub(channel)
        info = await stub.GetInfo(registration_pb2.InfoRequest(), timeout=1)
        async with connected(Path(info.endpoint)) as driver:
            await csi_pb2_grpc.NodeStub(driver).NodeGetInfo(csi_pb2.NodeGetInfoRequest(), timeout=1)
        await stub.NotifyRegistrationStatus(
            registration_pb2.RegistrationStatus(plugin_registered=registered, error=error), timeout=1
        )
        return info


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(listeners, "CHECK_SECONDS", 0.05)


async def test_the_kubelet_finds_the_driver_through_the_socket_and_makes_it_ready(place: Path, puppet: Puppet) -> None:
    given = settings(place, registration_dir=place / "reg")
    async with running(given, puppet) as (program, _):
        await until((place / "reg" / SOCKET).exists)
        assert "registered" in program.readiness.reasons
        info = await handshake(place / "reg" / SOCKET)
        assert (info.type, info.name, list(info.supported_versions)) == ("CSIPlugin", "csi.moorage.dev", ["1.0.0"])
        assert info.endpoint == str(place / "csi.sock")
        assert program.readiness.ready
        assert [entry.name for entry in (place / "reg").iterdir()] == [SOCKET]
        assert stat.S_IMODE((place / "reg" / SOCKET).stat().st_mode) == 0o660
    assert list((place / "reg").iterdir()) == []
    assert not (place / "csi.sock").exists()


async def test_a_refusal_that_stands_ends_the_program_and_one_that_passes_does_not(
    place: Path, puppet: Puppet, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubelet, "PATIENCE_SECONDS", 30.0)
    now = [1000.0]
    given = settings(place, registration_dir=place / "reg")
    async with running(given, puppet, clock=lambda: now[0]) as (program, task):
        await until((place / "reg" / SOCKET).exists)
        await handshake(place / "reg" / SOCKET, registered=False, error="no such topology key")
        assert "no such topology key" in program.readiness.reasons["registered"]
        now[0] += 29
        await handshake(place / "reg" / SOCKET)
        now[0] += 100
        await asyncio.sleep(0.2)
        assert program.readiness.ready
        assert not task.done()
        await handshake(place / "reg" / SOCKET, registered=False, error="still no topology key")
        now[0] += 31
        assert await asyncio.wait_for(task, 10) is ExitCode.REFUSED


async def test_a_second_refusal_does_not_renew_the_patience(place: Path, puppet: Puppet, quick: None) -> None:
    now = [1000.0]
    given = settings(place, registration_dir=place / "reg")
    async with running(given, puppet, clock=lambda: now[0]) as (_, task):
        await until((place / "reg" / SOCKET).exists)
        for _ in range(3):
            await handshake(place / "reg" / SOCKET, registered=False, error="no")
            now[0] += 12
        assert await asyncio.wait_for(task, 10) is ExitCode.REFUSED


async def test_sockets_come_back_after_the_kubelet_directory_was_emptied(
    place: Path, puppet: Puppet, quick: None
) -> None:
    given = settings(
        place, endpoint=place / "plugins" / "csi.sock", kubelet_endpoint=str(place / "plugins" / "csi.sock")
    )
    given = settings(
        place, endpoint=given.endpoint, kubelet_endpoint=given.kubelet_endpoint, registration_dir=place / "reg"
    )
    release = asyncio.Event()

    async def waits(method: str, *_: object) -> object:
        if method == "NodePublishVolume":
            await release.wait()
        return getattr(csi_pb2, f"{method}Response")()

    puppet.behaviour = waits
    async with running(given, puppet) as (program, _), connected(given.endpoint) as channel:
        await handshake(place / "reg" / SOCKET)
        stub = csi_pb2_grpc.NodeStub(channel)
        call = stub.NodePublishVolume(csi_pb2.NodePublishVolumeRequest(volume_id="v"), timeout=20)
        waiting = asyncio.ensure_future(asyncio.wait_for(call, 20))
        await asyncio.sleep(0.1)
        for folder in (place / "reg", place / "plugins"):
            for entry in folder.iterdir():
                entry.unlink()
            folder.rmdir()
        await until(lambda: given.endpoint.exists() and (place / "reg" / SOCKET).exists())
        assert "registered" in program.readiness.reasons
        await handshake(place / "reg" / SOCKET)
        assert program.readiness.ready
        release.set()
        await waiting


async def test_a_kubelet_that_stays_silent_is_shown_the_socket_again(place: Path, puppet: Puppet, quick: None) -> None:
    now = [1000.0]
    given = settings(place, registration_dir=place / "reg")
    socket = place / "reg" / SOCKET
    async with running(given, puppet, clock=lambda: now[0]):
        await until(socket.exists)
        before = os.lstat(socket).st_ino
        await asyncio.sleep(0.2)
        assert os.lstat(socket).st_ino == before
        now[0] += 61
        await until(lambda: os.lstat(socket).st_ino != before)
        await handshake(socket)
        now[0] += 3600
        after = os.lstat(socket).st_ino
        await asyncio.sleep(0.2)
        assert os.lstat(socket).st_ino == after
        socket.unlink()
        await until(socket.exists)
        third = os.lstat(socket).st_ino
        now[0] += 61
        await until(lambda: os.lstat(socket).st_ino != third)


async def test_a_stale_socket_is_replaced_and_anything_else_is_left_alone(place: Path, puppet: Puppet) -> None:
    stale = place / "csi.sock"
    with socketlib.socket(socketlib.AF_UNIX) as dead:
        dead.bind(str(stale))
    async with running(settings(place), puppet):
        await until(lambda: stat.S_IMODE(stale.stat().st_mode) == 0o660)
        async with connected(stale) as channel:
            await csi_pb2_grpc.IdentityStub(channel).Probe(csi_pb2.ProbeRequest(), timeout=5)
    stale.write_text("somebody's file")
    async with running(settings(place), puppet) as (_, task):
        assert await asyncio.wait_for(task, 10) is ExitCode.UNSUITABLE
    assert stale.read_text() == "somebody's file"


async def test_a_socket_that_a_newer_process_put_there_is_not_removed(place: Path, puppet: Puppet) -> None:
    async with running(settings(place), puppet):
        await until((place / "csi.sock").exists)
        with socketlib.socket(socketlib.AF_UNIX) as newer:
            newer.bind(str(place / "newer.sock"))
            (place / "newer.sock").rename(place / "csi.sock")
            mark = os.lstat(place / "csi.sock").st_ino
    assert os.lstat(place / "csi.sock").st_ino == mark


async def test_an_unknown_call_on_the_registration_socket_is_unimplemented(place: Path, puppet: Puppet) -> None:
    async with (
        running(settings(place, registration_dir=place / "reg"), puppet),
        connected(place / "reg" / SOCKET) as channel,
    ):
        call = csi_pb2_grpc.NodeStub(channel).NodeGetInfo(csi_pb2.NodeGetInfoRequest(), timeout=5)
        assert (await status_of(call))[0] is grpc.StatusCode.UNIMPLEMENTED
