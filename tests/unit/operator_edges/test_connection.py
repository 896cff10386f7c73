"""Finding the API server, and proving who we are while tokens rotate."""

import base64
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import kopf
import pytest
import yaml
from aiohttp import web

from moorage_operator import authority
from moorage_operator.act import kubeconfig
from moorage_operator.act.connection import Connection, FileToken, FixedToken, connect
from moorage_operator.errors import SettingsError
from tests.unit.operator_edges.scripted import Answer, Request, Scripted, status


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def write(path: Path, *, cluster: dict[str, Any], user: dict[str, Any], namespace: str | None = None) -> Path:
    context: dict[str, Any] = {"cluster": "c", "user": "u"}
    if namespace:
        context["namespace"] = namespace
    path.write_text(
        yaml.safe_dump(
            {
                "current-context": "here",
                "contexts": [{"name": "here", "context": context}, {"name": "lost", "context": {"cluster": "none"}}],
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": user}],
            }
        )
    )
    return path


def found(path: Path | None, *, environ: dict[str, str] | None = None, **more: Any) -> Connection:
    return connect(kubeconfig_path=path, environ=environ or {}, version="1", **{"home": None, **more})


async def test_a_kubeconfig_with_a_token(tmp_path: Path) -> None:
    path = write(tmp_path / "config", cluster={"server": "http://h:1/"}, user={"token": "t"}, namespace="mine")
    connection = found(path)
    assert (connection.base_url, connection.namespace, await connection.token()) == ("http://h:1", "mine", "t")


async def test_a_relative_token_file_lies_beside_the_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    path = write(tmp_path / "config", cluster={"server": "http://h:1"}, user={"tokenFile": "token", "token": "other"})
    assert await found(path).token() == "from-file"


@pytest.mark.parametrize("plugin", ["exec", "auth-provider"])
def test_login_by_a_plugin_is_refused_with_a_way_out(tmp_path: Path, plugin: str) -> None:
    path = write(tmp_path / "config", cluster={"server": "https://h"}, user={plugin: {"command": "rm"}})
    with pytest.raises(SettingsError, match=f"by {plugin}, which is not supported; use a token"):
        found(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not YAML"),
        ("- 1", "is not a mapping"),
        ("{}", "no current-context"),
        ("{current-context: x}", "no 'x' in contexts"),
        ("{current-context: x, contexts: [1]}", "a mapping with a name"),
        ("{current-context: x, contexts: [{name: x, context: {cluster: y}}]}", "no 'y' in clusters"),
        (
            "{current-context: x, contexts: [{name: x, context: {cluster: y}}], clusters: [{name: y, cluster: {}}]}",
            "has no server",
        ),
    ],
)
def test_a_broken_kubeconfig_says_what_is_wrong(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "config"
    path.write_text(content)
    with pytest.raises(SettingsError, match=says):
        found(path)


def test_certificates_that_are_none_are_named(tmp_path: Path) -> None:
    bad = {"server": "https://h", "certificate-authority-data": b64(b"rubbish")}
    with pytest.raises(SettingsError, match="certificates cannot be used"):
        found(write(tmp_path / "config", cluster=bad, user={}))
    bad = {"server": "https://h", "certificate-authority-data": "!"}
    with pytest.raises(SettingsError, match="not base64"):
        found(write(tmp_path / "config", cluster=bad, user={}))
    bad = {"server": "https://h", "certificate-authority": "missing.crt"}
    with pytest.raises(SettingsError, match="cannot be read"):
        found(write(tmp_path / "config", cluster=bad, user={}))


def test_another_context_and_one_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "config", cluster={"server": "http://h:1"}, user={})
    with pytest.raises(SettingsError, match="no 'none' in clusters"):
        found(path, context="lost")
    with pytest.raises(SettingsError, match=r"no 'gone' in contexts \(there: here, lost"):
        found(path, context="gone")


async def test_the_order_of_looking(tmp_path: Path) -> None:
    service_account = tmp_path / "sa"
    service_account.mkdir()
    held = authority.plan(authority.Contents(), now=datetime.now(UTC)).contents.authority
    (service_account / "ca.crt").write_bytes(held["ca.crt"])
    (service_account / "token").write_text("pod-token")
    (service_account / "namespace").write_text("pod-ns\n")
    home = tmp_path / "home"
    (home / ".kube").mkdir(parents=True)
    write(home / ".kube" / "config", cluster={"server": "http://home:1"}, user={})
    listed = write(tmp_path / "listed", cluster={"server": "http://listed:1"}, user={})
    given = write(tmp_path / "given", cluster={"server": "http://given:1"}, user={})
    pod = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
    env = {"KUBECONFIG": f"{tmp_path / 'absent'}:{listed}"}

    def url(path: Path | None, environ: dict[str, str]) -> str:
        return found(path, environ=environ, home=home, service_account=service_account).base_url

    assert url(given, pod | env) == "http://given:1"
    assert url(None, pod | env) == "https://[fd00::1]:6443"
    assert url(None, env) == "http://listed:1"
    assert url(None, {}) == "http://home:1"
    connection = found(None, environ=pod, service_account=service_account)
    assert (connection.namespace, await connection.token()) == ("pod-ns", "pod-token")
    with pytest.raises(SettingsError, match="pass --kubeconfig PATH"):
        found(None)


def test_a_token_file_is_read_again_and_a_gap_keeps_the_last(tmp_path: Path) -> None:
    now = 0.0
    path = tmp_path / "token"
    path.write_text("one")
    token = FileToken(path, clock=lambda: now)
    path.write_text("two")
    now = 9.0
    assert token.current() == "one"
    now = 10.0
    assert token.current() == "two"
    path.unlink()
    now = 30.0
    assert token.current() == "two"
    assert not token.renew()
    path.write_text("three")
    assert token.renew()
    assert token.current() == "three"
    with pytest.raises(SettingsError, match="cannot be read"):
        FileToken(tmp_path / "absent")


async def test_a_401_makes_us_look_for_a_newer_token_once(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("old")

    def answer(request: Request) -> Answer:
        return Answer() if request.headers["authorization"] == "Bearer new" else status(401, "Unauthorized")

    async with Scripted(answer).serve() as server:
        connection = Connection(base_url=server.url, tls=None, token=FileToken(path), version="1")
        async with connection.session() as session:
            async with session.get(server.url) as response:
                assert response.status == 401
            assert len(server.requests) == 1
            path.write_text("new")
            async with session.put(server.url, data=b"body") as response:
                assert response.status == 200
            assert [request.body for request in server.requests[1:]] == [b"body", b"body"]
        await connection.close()


async def test_what_kopf_is_given_is_a_session_it_may_close() -> None:
    async with Scripted(Answer()).serve() as server:
        connection = Connection(base_url=server.url, tls=None, token=FixedToken("t"), version="1", namespace="ns")
        ours = connection.session()
        seen: list[str] = []

        async def streams(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
            seen.append(request.url.path)
            return await handler(request)

        info = kopf.AiohttpSession(**connection.kopf_credentials(streams))
        assert (info.server, info.default_namespace) == (server.url, "ns")
        async with info.aiohttp_session.get(server.url) as response:
            assert response.status == 200
        await info.aiohttp_session.close()
        async with ours.get(server.url) as response:
            assert response.status == 200
        assert server.requests[0].headers["authorization"] == "Bearer t"
        assert len(seen) == 1
        again = kopf.AiohttpSession(**connection.kopf_credentials(streams))
        assert not again.aiohttp_session.closed
        await again.aiohttp_session.close()
        await ours.close()
        await connection.close()


async def test_client_certificates_from_a_kubeconfig_over_real_tls(tmp_path: Path) -> None:
    made = authority.plan(authority.Contents(), now=datetime.now(UTC)).contents
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=made.node["ca.crt"].decode())
    server_tls.verify_mode = ssl.CERT_REQUIRED
    kubeconfig.load_client(server_tls, certificate=made.node["tls.crt"], key=made.node["tls.key"])

    async def who(request: web.Request) -> web.Response:
        assert request.transport is not None
        peer = request.transport.get_extra_info("peercert")
        return web.json_response(peer["subjectAltName"])

    app = web.Application()
    app.router.add_get("/", who)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_tls)
    await site.start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    (tmp_path / "key.pem").write_bytes(made.authority["client.key"])
    path = write(
        tmp_path / "config",
        cluster={
            "server": url,
            "certificate-authority-data": b64(made.authority["ca.crt"]),
            "tls-server-name": "node.csi.moorage.dev",
        },
        user={"client-certificate-data": b64(made.authority["client.crt"]), "client-key": "key.pem"},
    )
    connection = found(path)
    try:
        async with connection.session() as session, session.get(url) as response:
            assert await response.json() == [["DNS", "operator.csi.moorage.dev"]]
    finally:
        await connection.close()
        await runner.cleanup()
