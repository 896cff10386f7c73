import asyncio
import contextlib
import io
import re
import socket as socketlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from moorage_csi import contract
from moorage_csi.proto import csi_pb2, csi_pb2_grpc, moorage_pb2, moorage_pb2_grpc
from moorage_csi.server import ExitCode, Program
from moorage_csi.settings import Address
from moorage_csi.tls import Certificates, CertificatesError, read
from tests.unit.csi_server.authority import Authority, Leaf, SecretMount
from tests.unit.csi_server.puppet import LOOPBACK, Puppet, connected, running, settings, status_of, until

Code = grpc.StatusCode


@contextlib.asynccontextmanager
async def secured(port: int, *, ca: bytes, client: Leaf | None) -> AsyncIterator[grpc.aio.Channel]:
    credentials = grpc.ssl_channel_credentials(
        ca, client.key if client is not None else None, client.certificate if client is not None else None
    )
    options = [
        ("grpc.ssl_target_name_override", contract.NODE_SERVER_NAME),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        yield channel


async def probed(port: int, *, ca: bytes, client: Leaf | None) -> tuple[Code, str]:
    async with secured(port, ca=ca, client=client) as channel:
        return await status_of(csi_pb2_grpc.IdentityStub(channel).Probe(csi_pb2.ProbeRequest(), timeout=3))


async def port_of(log: io.StringIO) -> int:
    found: list[str] = []

    def logged() -> bool:
        found[:] = re.findall(r"serving the operator .*port=(\d+)", log.getvalue())
        return bool(found)

    await until(logged)
    return int(found[0])


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def mount(place: Path, authority: Authority) -> SecretMount:
    mounted = SecretMount(place / "tls")
    mounted.put(ca=authority.certificate, leaf=authority.leaf(contract.NODE_SERVER_NAME))
    return mounted


@contextlib.asynccontextmanager
async def serving(place: Path, puppet: Puppet, log: io.StringIO) -> AsyncIterator[tuple[Program, int]]:
    async with running(settings(place, listen=LOOPBACK), puppet) as (program, _):
        yield program, await port_of(log)


async def test_the_operator_is_served_identity_controllers_and_volumes_and_no_node(
    place: Path, puppet: Puppet, log: io.StringIO, authority: Authority, mount: SecretMount
) -> None:
    operator = authority.leaf(contract.OPERATOR_CLIENT_NAME)
    async with serving(place, puppet, log) as (_, port):
        assert await probed(port, ca=authority.certificate, client=operator) == (Code.OK, "")
        async with secured(port, ca=authority.certificate, client=operator) as channel:
            controller = csi_pb2_grpc.ControllerStub(channel)
            await controller.CreateVolume(csi_pb2.CreateVolumeRequest(name="v"), timeout=5)
            groups = csi_pb2_grpc.GroupControllerStub(channel)
            await groups.GetVolumeGroupSnapshot(csi_pb2.GetVolumeGroupSnapshotRequest(group_snapshot_id="g"), timeout=5)
            volumes = moorage_pb2_grpc.VolumesStub(channel)
            await volumes.WipeVolume(moorage_pb2.WipeVolumeRequest(volume_id="v", released_uid="u"), timeout=5)
            call = csi_pb2_grpc.NodeStub(channel).NodeGetInfo(csi_pb2.NodeGetInfoRequest(), timeout=5)
            assert (await status_of(call))[0] is Code.UNIMPLEMENTED


async def test_nobody_without_a_certificate_is_served(
    place: Path, puppet: Puppet, log: io.StringIO, authority: Authority, mount: SecretMount
) -> None:
    async with serving(place, puppet, log) as (_, port):
        assert (await probed(port, ca=authority.certificate, client=None))[0] is Code.UNAVAILABLE
        with pytest.raises(OSError, match=r"."):
            await plain_text(port)


async def plain_text(port: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        code, details = await status_of(csi_pb2_grpc.IdentityStub(channel).Probe(csi_pb2.ProbeRequest(), timeout=3))
        assert code is not Code.OK
        raise OSError(details)


async def test_a_certificate_of_another_ca_or_one_that_ended_is_not_served(
    place: Path, puppet: Puppet, log: io.StringIO, authority: Authority, mount: SecretMount
) -> None:
    stranger = Authority("stranger").leaf(contract.OPERATOR_CLIENT_NAME)
    ended = authority.leaf(contract.OPERATOR_CLIENT_NAME, valid=False)
    async with serving(place, puppet, log) as (_, port):
        for client in (stranger, ended):
            assert (await probed(port, ca=authority.certificate, client=client))[0] is Code.UNAVAILABLE


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ((contract.NODE_SERVER_NAME,), Code.PERMISSION_DENIED),
        (("operator.csi.moorage.dev.evil.example",), Code.PERMISSION_DENIED),
        (("*.csi.moorage.dev",), Code.PERMISSION_DENIED),
        ((), Code.UNAUTHENTICATED),
    ],
)
async def test_a_certificate_of_our_ca_for_another_name_is_refused(  # noqa: PLR0917 - fixtures
    place: Path,
    puppet: Puppet,
    log: io.StringIO,
    authority: Authority,
    mount: SecretMount,
    names: tuple[str, ...],
    code: Code,
) -> None:
    asked: list[str] = []

    async def notes(method: str, *_: object) -> object:
        asked.append(method)
        return csi_pb2.CreateVolumeResponse()

    puppet.behaviour = notes
    async with (
        serving(place, puppet, log) as (_, port),
        secured(port, ca=authority.certificate, client=authority.leaf(*names)) as channel,
    ):
        call = csi_pb2_grpc.ControllerStub(channel).CreateVolume(csi_pb2.CreateVolumeRequest(name="v"), timeout=5)
        got, details = await status_of(call)
        assert got is code
        assert contract.OPERATOR_CLIENT_NAME in details
    assert asked == []


async def test_certificates_are_replaced_while_a_call_runs_and_without_a_restart(
    place: Path, puppet: Puppet, log: io.StringIO, authority: Authority, mount: SecretMount
) -> None:
    release = asyncio.Event()

    async def waits(*_: object) -> object:
        await release.wait()
        return csi_pb2.CreateVolumeResponse()

    puppet.behaviour = waits
    operator = authority.leaf(contract.OPERATOR_CLIENT_NAME)
    newer = Authority("newer")
    async with (
        serving(place, puppet, log) as (_, port),
        secured(port, ca=authority.certificate, client=operator) as channel,
    ):
        stub = csi_pb2_grpc.ControllerStub(channel)
        call = asyncio.ensure_future(status_of(stub.CreateVolume(csi_pb2.CreateVolumeRequest(name="v"), timeout=20)))
        assert (await probed(port, ca=authority.certificate, client=operator))[0] is Code.OK
        mount.put(ca=newer.certificate, leaf=newer.leaf(contract.NODE_SERVER_NAME))
        assert (await probed(port, ca=newer.certificate, client=newer.leaf(contract.OPERATOR_CLIENT_NAME)))[
            0
        ] is Code.OK
        assert (await probed(port, ca=authority.certificate, client=operator))[0] is Code.UNAVAILABLE
        release.set()
        assert (await call)[0] is Code.OK
    assert log.getvalue().count("took up new certificates") == 1


async def test_a_set_that_does_not_fit_together_is_reported_once_and_the_old_one_stays(
    place: Path, puppet: Puppet, log: io.StringIO, authority: Authority, mount: SecretMount
) -> None:
    operator = authority.leaf(contract.OPERATOR_CLIENT_NAME)
    one, other = authority.leaf(contract.NODE_SERVER_NAME), authority.leaf(contract.NODE_SERVER_NAME)
    async with serving(place, puppet, log) as (_, port):
        mount.put(ca=authority.certificate, leaf=Leaf(certificate=one.certificate, key=other.key))
        for _ in range(3):
            assert (await probed(port, ca=authority.certificate, client=operator))[0] is Code.OK
        assert log.getvalue().count("keeping the present ones") == 1
        mount.put(ca=b"junk", leaf=one)
        assert (await probed(port, ca=authority.certificate, client=operator))[0] is Code.OK
        assert log.getvalue().count("keeping the present ones") == 2
        mount.put(ca=authority.certificate, leaf=other)
        assert (await probed(port, ca=authority.certificate, client=operator))[0] is Code.OK
        assert "took up new certificates" in log.getvalue()


async def test_without_certificates_the_unix_socket_is_served_and_readiness_says_what_is_awaited(
    place: Path, puppet: Puppet, log: io.StringIO, authority: Authority
) -> None:
    mount = SecretMount(place / "tls")
    async with running(settings(place, listen=LOOPBACK), puppet) as (program, _):
        async with connected(place / "csi.sock") as channel:
            await csi_pb2_grpc.IdentityStub(channel).Probe(csi_pb2.ProbeRequest(), timeout=5)
        await until(lambda: "ca.crt" in str(program.readiness.reasons))
        mount.put(ca=authority.certificate, leaf=authority.leaf(contract.NODE_SERVER_NAME))
        port = await port_of(log)
        await until(lambda: program.readiness.ready)
        operator = authority.leaf(contract.OPERATOR_CLIENT_NAME)
        assert (await probed(port, ca=authority.certificate, client=operator))[0] is Code.OK


async def test_it_stops_while_it_waits_for_certificates(place: Path, puppet: Puppet) -> None:
    async with running(settings(place, listen=LOOPBACK), puppet) as (program, task):
        await until(lambda: "certificates" in program.readiness.reasons)
    assert task.result() is ExitCode.STOPPED


async def test_an_address_that_is_taken_ends_the_program(place: Path, puppet: Puppet, mount: SecretMount) -> None:
    with socketlib.create_server(("127.0.0.1", 0)) as taken:
        address = Address(host="127.0.0.1", port=taken.getsockname()[1])
        async with running(settings(place, listen=address), puppet) as (_, task):
            await until(task.done)
            assert task.result() is ExitCode.UNSUITABLE


def test_a_newer_set_is_handed_on_once(mount: SecretMount, authority: Authority) -> None:
    certificates = Certificates(mount.directory)
    assert certificates.fetch() is not None
    assert certificates.fetch() is None
    mount.put(ca=authority.certificate, leaf=authority.leaf(contract.NODE_SERVER_NAME))
    assert certificates.fetch() is not None
    assert certificates.fetch() is None


@pytest.mark.parametrize("missing", ["ca.crt", "tls.crt", "tls.key"])
def test_a_missing_file_is_named(place: Path, authority: Authority, missing: str) -> None:
    leaf = authority.leaf(contract.NODE_SERVER_NAME)
    for name, content in {"ca.crt": authority.certificate, "tls.crt": leaf.certificate, "tls.key": leaf.key}.items():
        if name != missing:
            (place / name).write_bytes(content)
    with pytest.raises(CertificatesError, match=missing):
        read(place)
