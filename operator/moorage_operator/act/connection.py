"""How the API server is reached: address, trust, credentials, and one pool of connections.

Two ways in: the service account of the pod, or a kubeconfig. Both end as one ``Connection``, which
hands out ``aiohttp`` sessions over one shared pool: one to ``act.api``, and one to kopf for its
watches. Nothing here imports kopf; the wiring does it in two lines::

    @kopf.on.login()
    async def login(**_):
        return kopf.AiohttpSession(**connection.kopf_credentials(streams))

kopf *closes* the session it was given when the API server answers 401 and asks the login handler
again, so each call of ``kopf_credentials`` makes a new session; the pool below belongs to us and
stays. Service-account tokens rotate about hourly: the file is looked at again every few seconds and
at every 401, so that a rotation costs nothing and a revoked token one request.

The HTTP library never sends anything again by itself. aiohttp repeats GET, PUT and DELETE when a kept
connection turns out dead; whether a write was carried out is then unknown, and only a new decision may
answer that. ``_send_once`` turns this off for our own session, and ``act.api`` decides.
"""

import logging
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp
import orjson

from moorage_operator.act import kubeconfig
from moorage_operator.errors import SettingsError

logger = logging.getLogger(__name__)

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")

POOL_SIZE: Final = 64
"""Sockets to the API server. Thirty-two workers and half a dozen watches stay well below it."""

TOTAL_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 5.0
KEEPALIVE_SECONDS: Final = 60.0
TOKEN_SECONDS: Final = 10.0
"""How old our knowledge of a token file may become; a rotated token's predecessor lives far longer."""

UNAUTHORIZED: Final = 401


class Token(Protocol):
    """Where the bearer token comes from."""

    def current(self) -> str | None:
        """The token to send now; None sends none (a client certificate speaks for us)."""
        ...

    def renew(self) -> bool:
        """Look again after a 401; True when there is another token than before."""
        ...


@dataclass(frozen=True, slots=True)
class FixedToken:
    """A token that was given once, or none."""

    value: str | None

    def current(self) -> str | None:
        """The same at all times."""
        return self.value

    def renew(self) -> bool:
        """Never anything new."""
        return False


class FileToken:
    """A token in a file that others replace.

    A file that cannot be read for a moment (a volume being swapped) leaves the last token in use.

    Raises:
        SettingsError: at construction, when there is no readable token.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._read_at = clock()
        try:
            self._value = path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise SettingsError(f"token file {path} cannot be read: {error.strerror}") from error
        if not self._value:
            raise SettingsError(f"token file {path} is empty")

    def current(self) -> str | None:
        """The token, at most ``TOKEN_SECONDS`` behind the file."""
        if self._clock() - self._read_at >= TOKEN_SECONDS:
            self.renew()
        return self._value

    def renew(self) -> bool:
        """Read the file now."""
        self._read_at = self._clock()
        try:
            value = self._path.read_text(encoding="utf-8").strip()
        except OSError as error:
            logger.warning("Token file cannot be read, going on with the last token error=%s", error.strerror)
            return False
        if not value or value == self._value:
            return False
        self._value = value
        return True


class BrokenError(aiohttp.ClientError):
    """A connection broke under a request; raised in place of what aiohttp would answer by sending again."""


class Connection:
    """The API server, as found by ``connect``.

    Attributes:
        base_url: without a trailing slash.
        namespace: the kubeconfig context's or the service account's; None when neither says.
    """

    def __init__(
        self,
        *,
        base_url: str,
        tls: ssl.SSLContext | None,
        token: Token,
        version: str,
        namespace: str | None = None,
        server_name: str | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.namespace = namespace
        self._tls = tls
        self._token = token
        self._user_agent = f"moorage-operator/{version}"
        self._server_name = server_name
        self._pool: aiohttp.TCPConnector | None = None

    async def token(self) -> str | None:
        """The bearer token to use now; None when a client certificate speaks for us."""
        return self._token.current()

    def session(self) -> aiohttp.ClientSession:
        """A session for ``act.api``: bounded in time, and it sends each request once.

        The caller closes it. Needs a running event loop.
        """
        return self._session(
            timeout=aiohttp.ClientTimeout(total=TOTAL_SECONDS, sock_connect=CONNECT_SECONDS),
            middlewares=(self._authorize, _send_once),
        )

    def kopf_credentials(self, streams: aiohttp.ClientMiddlewareType) -> dict[str, Any]:
        """Keyword arguments of ``kopf.AiohttpSession``, with a session that kopf may close.

        Watches hang for minutes on purpose: kopf sets a time limit of its own on each request.

        Args:
            streams: sees every request that is authorized, and its answer.
        """
        session = self._session(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            middlewares=(streams, self._authorize),
        )
        return {"server": self.base_url, "default_namespace": self.namespace, "aiohttp_session": session}

    async def close(self) -> None:
        """Close the pool, and with it every connection of every session."""
        if self._pool is not None:
            await self._pool.close()
            self._pool = None

    def _session(
        self, *, timeout: aiohttp.ClientTimeout, middlewares: tuple[aiohttp.ClientMiddlewareType, ...]
    ) -> aiohttp.ClientSession:
        if self._pool is None or self._pool.closed:
            self._pool = aiohttp.TCPConnector(
                limit=POOL_SIZE,
                ssl=self._tls if self._tls is not None else True,
                keepalive_timeout=KEEPALIVE_SECONDS,
            )
        return aiohttp.ClientSession(
            connector=self._pool,
            connector_owner=False,
            timeout=timeout,
            middlewares=middlewares,
            json_serialize_bytes=orjson.dumps,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._user_agent},
        )

    async def _authorize(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send today's token; after a 401 look for a newer one and try once more (a 401 did nothing)."""
        if self._server_name is not None:
            request.server_hostname = self._server_name
        token = self._token.current()
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
        response = await handler(request)
        if response.status != UNAUTHORIZED or not self._token.renew():
            return response
        response.release()
        request.headers["Authorization"] = f"Bearer {self._token.current()}"
        return await handler(request)


async def _send_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending a request again; see the module's docstring.

    An error in connecting is passed on: nothing was sent then, and aiohttp does not try again.
    """
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise BrokenError(f"connection lost before an answer: {error or type(error).__name__}") from error


def connect(
    *,
    kubeconfig_path: Path | None,
    environ: Mapping[str, str],
    home: Path | None,
    version: str,
    context: str | None = None,
    service_account: Path = SERVICE_ACCOUNT,
) -> Connection:
    """Find the API server: the path given, else the pod's service account, else ``KUBECONFIG``, else ``~/.kube/config``.

    Args:
        kubeconfig_path: ``--kubeconfig``; it wins over everything.
        environ: the process's environment.
        home: the home directory; None when there is none.
        version: of this operator, for the user agent.
        context: a kubeconfig context other than the current one.
        service_account: the directory Kubernetes mounts into a pod.

    Raises:
        SettingsError: none of them is there, or the first one found cannot be used; says why.
    """
    if kubeconfig_path is not None:
        return _from_kubeconfig([kubeconfig_path], context=context, version=version)
    if environ.get("KUBERNETES_SERVICE_HOST") and (service_account / "token").exists():
        return _in_cluster(environ, service_account, version=version)
    listed = [Path(entry) for entry in environ.get("KUBECONFIG", "").split(":") if entry]
    if listed:
        return _from_kubeconfig(listed, context=context, version=version)
    if home is not None and (home / ".kube" / "config").exists():
        return _from_kubeconfig([home / ".kube" / "config"], context=context, version=version)
    raise SettingsError(
        "no API server to talk to: not in a pod (KUBERNETES_SERVICE_HOST and a service account token), "
        "KUBECONFIG is not set, and there is no ~/.kube/config; pass --kubeconfig PATH"
    )


def _in_cluster(environ: Mapping[str, str], service_account: Path, *, version: str) -> Connection:
    host = environ["KUBERNETES_SERVICE_HOST"]
    port = environ.get("KUBERNETES_SERVICE_PORT", "443")
    ca_file = service_account / "ca.crt"
    try:
        tls = ssl.create_default_context(cafile=str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"{ca_file}, the API server's certificate authority, cannot be used: {error}") from error
    namespace_file = service_account / "namespace"
    namespace = namespace_file.read_text(encoding="utf-8").strip() if namespace_file.exists() else None
    return Connection(
        base_url=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        tls=tls,
        token=FileToken(service_account / "token"),
        version=version,
        namespace=namespace,
    )


def _from_kubeconfig(paths: list[Path], *, context: str | None, version: str) -> Connection:
    access = kubeconfig.read(paths, context=context)
    if access.token_file is not None:
        token: Token = FileToken(access.token_file)
    else:
        token = FixedToken(access.token)
    return Connection(
        base_url=access.server,
        tls=kubeconfig.tls_context(access),
        token=token,
        version=version,
        namespace=access.namespace,
        server_name=access.server_name,
    )
