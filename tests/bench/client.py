"""A plain API client for measuring: no cache, no limiter, no retries, so that it costs next to nothing."""

import asyncio
import base64
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import yaml

MERGE_PATCH = "application/merge-patch+json"


class RequestFailedError(Exception):
    """The API server refused: its status and its own sentence."""


@dataclass(frozen=True, slots=True)
class Client:
    """One session against one API server, as the user of a kubeconfig."""

    server: str
    session: aiohttp.ClientSession

    async def request(self, verb: str, path: str, body: Any = None, *, content: str = "application/json") -> Any:
        """Send once and return the parsed answer; raise RequestFailedError for any status of 400 and above."""
        data = None if body is None else orjson.dumps(body)
        async with self.session.request(
            verb, self.server + path, data=data, headers={"Content-Type": content}
        ) as answer:
            raw = await answer.read()
            if answer.status >= 400:
                raise RequestFailedError(f"{verb} {path}: {answer.status} {raw[:300].decode(errors='replace')}")
            return orjson.loads(raw)

    async def watch(self, path: str, *, resource_version: str) -> AsyncGenerator[dict[str, Any], None]:
        """Yield watch events after a resource version until the caller stops asking.

        Raises:
            RequestFailedError: the server ended the watch, or said that it cannot be continued.
        """
        parameters = {"watch": "true", "resourceVersion": resource_version}
        async with self.session.get(self.server + path, params=parameters) as answer:
            while line := await answer.content.readline():
                event = orjson.loads(line)
                if event["type"] == "ERROR":
                    raise RequestFailedError(f"watch of {path}: {event['object']}")
                yield event
        raise RequestFailedError(f"watch of {path}: the server ended it")


@asynccontextmanager
async def connect(kubeconfig: Path) -> AsyncIterator[Client]:
    """Open a session as the current context of a kubeconfig that carries a token and a CA, as the harness writes it."""
    config = yaml.safe_load(kubeconfig.read_text())  # noqa: ASYNC240 - read once, before anything is timed
    context = next(c["context"] for c in config["contexts"] if c["name"] == config["current-context"])
    cluster = next(c["cluster"] for c in config["clusters"] if c["name"] == context["cluster"])
    user = next(u["user"] for u in config["users"] if u["name"] == context["user"])
    trust = ssl.create_default_context(
        cafile=cluster.get("certificate-authority"),
        cadata=_decoded(cluster.get("certificate-authority-data")),
    )
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=trust, limit=64),
        headers={"Authorization": f"Bearer {user['token']}", "Accept": "application/json"},
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
        read_bufsize=2**20,
    ) as session:
        yield Client(server=cluster["server"], session=session)


def _decoded(data: str | None) -> str | None:
    return None if data is None else base64.b64decode(data).decode()


async def make_namespaces(client: Client, *names: str) -> None:
    """Make namespaces that are not there."""
    for name in names:
        await client.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})


async def gather_bounded(*, limit: int, jobs: list[Any]) -> list[Any]:
    """Await coroutines with at most `limit` of them in flight; the first failure is raised."""
    gate = asyncio.Semaphore(limit)

    async def one(job: Any) -> Any:
        async with gate:
            return await job

    return await asyncio.gather(*(one(job) for job in jobs))
