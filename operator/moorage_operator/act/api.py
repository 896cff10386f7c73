"""The API server, one conditional write at a time.

Every write that changes an object says what it was decided upon: a PUT carries the resourceVersion in its
body, a JSON patch tests it or the very fields that matter, a delete names the uid. So two
operators, or an operator and its own past, can never undo each other's work; the loser gets a
``ConflictError`` and decides anew. A write without such a condition is refused here, with
``ValueError``, because only a mistake of ours would send one.

What is sent again, and what is not:

==================  ==========================  ====================================================
answer              GET and list                writes
==================  ==========================  ====================================================
429                 again, as Retry-After says  again, as Retry-After says: it was not carried out
5xx                 again                       ``ServerError``: it may have been carried out
no answer, broken   again                       ``UnreachableError``: it may have been carried out
==================  ==========================  ====================================================

"Again" is bounded: ``ATTEMPTS`` tries, ``MAX_WAIT`` seconds between two of them; after that comes
the error. Nothing is held here between requests, so a crash loses nothing.
"""

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

import aiohttp
import orjson

from moorage_operator.act import answers
from moorage_operator.act.connection import Connection
from moorage_operator.act.limiter import Limiter
from moorage_operator.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    NotFoundError,
    ServerError,
    ThrottledError,
    UnreachableError,
)
from moorage_operator.metrics import Metrics

logger = logging.getLogger(__name__)

Object = dict[str, Any]
Objects = list[Object]
_Kept = TypeVar("_Kept")
_Items = list[_Kept]

ATTEMPTS: Final = 4
FIRST_WAIT: Final = 0.1
MAX_WAIT: Final = 10.0
PAGE: Final = 500
RELISTS: Final = 3
GONE: Final = 410
BAD: Final = 400

JSON: Final = "application/json"
JSON_PATCH: Final = "application/json-patch+json"
METADATA_LIST: Final = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
UID: Final = "/metadata/uid"
VERSION: Final = "/metadata/resourceVersion"

_METHODS: Final[Mapping[str, str]] = {
    "get": "GET",
    "list": "GET",
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
}


class Api:
    """Requests to one API server.

    Belongs to one event loop. Paths are absolute (``/api/v1/persistentvolumes/pvc-1``), objects are
    the plain dictionaries of their JSON.

    All methods raise the leaves of ``ApiError``; ``asyncio.CancelledError`` may leave a write
    carried out or not, as a lost answer would.

    Args:
        connection: the server.
        limiter: paces every request, also the ones sent again.
        metrics: where writes, conflicts and retries are counted.
        sleep: waits between tries.
        jitter: a number in [0, 1) that spreads the waits of many.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        limiter: Limiter,
        metrics: Metrics,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._base_url = connection.base_url
        self._session = connection.session()
        self._limiter = limiter
        self._metrics = metrics
        self._sleep = sleep
        self._jitter = jitter

    async def close(self) -> None:
        """Close the session; the connection's pool stays."""
        await self._session.close()

    async def get(self, path: str) -> Object:
        """Read one object.

        Raises:
            NotFoundError: there is none.
        """
        return await self._request("get", path)

    async def list(self, path: str, *, labels: str = "", fields: str = "") -> Objects:
        """Read a collection, page by page.

        Items are as the server lists them: without ``kind`` and ``apiVersion``. A page that comes too
        late (410, the snapshot was compacted) starts the list over, at most ``RELISTS`` times.

        Args:
            path: of the collection.
            labels: a label selector.
            fields: a field selector.
        """
        return await self._list(path, labels=labels, fields=fields, accept=JSON, keep=_whole)

    async def list_uids(self, path: str, *, labels: str = "") -> set[str]:
        """The uids of a collection's objects, of which only the metadata are read: what a sweep compares."""
        return set(await self._list(path, labels=labels, fields="", accept=METADATA_LIST, keep=_uid))

    async def create(self, path: str, body: Mapping[str, Any]) -> Object:
        """Create an object in the collection ``path``; the server answers with the stored one.

        Raises:
            AlreadyExistsError: the name is taken, perhaps by an earlier try of ours.
        """
        return await self._request("create", path, body=body)

    async def replace(self, path: str, body: Mapping[str, Any]) -> Object:
        """Replace an object (or its subresource) that is still at the body's resourceVersion.

        Raises:
            ConflictError: it is not.
            ValueError: the body has no resourceVersion.
        """
        if not body.get("metadata", {}).get("resourceVersion"):
            raise ValueError(f"replace {path}: the body has no metadata.resourceVersion, so it would overwrite blindly")
        return await self._request("update", path, body=body)

    async def json_patch(self, path: str, ops: Sequence[Mapping[str, Any]]) -> Object:
        """Apply a JSON patch (RFC 6902) to an object of which everything is still true that the patch tests.

        Raises:
            ConflictError: it is not.
            ValueError: they do not begin with tests: of the resourceVersion, or of the uid and something more.
        """
        tested = [op["path"] for op in itertools.takewhile(lambda op: op["op"] == "test", ops) if "value" in op]
        if (tested[:1] != [VERSION] and (tested[:1] != [UID] or len(tested) == 1)) or not ops[0]["value"]:
            raise ValueError(f"patch {path}: no test of what it was decided upon, so it would overwrite blindly: {ops}")
        return await self._request("patch", path, body=list(ops), content_type=JSON_PATCH)

    async def delete(self, path: str, *, uid: str, resource_version: str | None = None) -> bool:
        """Delete the object of this uid, and of this version if one is given.

        Returns:
            False when there is no such object: gone already, which is as good.

        Raises:
            ConflictError: another object has the name now, or it is at another version.
            ValueError: the uid is empty.
        """
        if not uid:
            raise ValueError(f"delete {path}: no uid, so it could delete another object of that name")
        preconditions = {"uid": uid}
        if resource_version is not None:
            preconditions["resourceVersion"] = resource_version
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": preconditions,
            "propagationPolicy": "Background",
        }
        try:
            await self._request("delete", path, body=options)
        except NotFoundError:
            return False
        return True

    async def _list(
        self, path: str, *, labels: str, fields: str, accept: str, keep: Callable[[Object], _Kept]
    ) -> _Items[_Kept]:
        """Read all pages; only what is to be kept of an item outlives its page, which bounds the memory it takes."""
        for _ in range(RELISTS):
            try:
                return await self._pages(path, labels=labels, fields=fields, accept=accept, keep=keep)
            except ApiError as error:
                if error.status != GONE:
                    raise
                logger.info("List expired, starting over path=%s", path)
        raise ServerError(f"list {path}: expired {RELISTS} times before its last page", status=GONE, reason="Expired")

    async def _pages(
        self, path: str, *, labels: str, fields: str, accept: str, keep: Callable[[Object], _Kept]
    ) -> _Items[_Kept]:
        params = {"limit": str(PAGE)}
        if labels:
            params["labelSelector"] = labels
        if fields:
            params["fieldSelector"] = fields
        kept: list[_Kept] = []
        while True:
            page = await self._request("list", path, params=params, accept=accept)
            kept.extend(map(keep, page.get("items") or ()))
            token = page.get("metadata", {}).get("continue")
            if not token:
                return kept
            params["continue"] = token

    async def _request(
        self,
        verb: str,
        path: str,
        *,
        body: object = None,
        params: Mapping[str, str] | None = None,
        accept: str = JSON,
        content_type: str = JSON,
    ) -> Object:
        headers = {"Accept": accept}
        data = None
        if body is not None:
            headers["Content-Type"] = content_type
            data = orjson.dumps(body)
        for attempt in range(1, ATTEMPTS + 1):
            await self._limiter.take()
            try:
                answer = await self._send(verb, path, data=data, params=params, headers=headers)
            except ApiError as error:
                if isinstance(error, ConflictError | AlreadyExistsError):
                    self._metrics.api_conflicts.labels(verb, answers.resource(path)).inc()
                if attempt == ATTEMPTS or not _may_repeat(verb, error):
                    raise
                await self._pause(verb, attempt, error)
            else:
                if _METHODS[verb] != "GET":
                    self._metrics.api_writes.labels(verb, answers.resource(path)).inc()
                return answer
        raise AssertionError("the last attempt returns or raises")

    async def _send(
        self,
        verb: str,
        path: str,
        *,
        data: bytes | None,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
    ) -> Object:
        started = time.perf_counter()
        status = 0
        try:
            async with self._session.request(
                _METHODS[verb],
                self._base_url + path,
                params=params,
                data=data,
                headers=headers,
                allow_redirects=False,
            ) as response:
                status = response.status
                content = await response.read()
                retry_after = response.headers.get("Retry-After")
            if status >= BAD:
                raise answers.error(verb=verb, path=path, status=status, body=content, retry_after=retry_after)
            return cast("Object", orjson.loads(content))
        except TimeoutError as error:
            raise UnreachableError(f"{verb} {path}: no answer from the API server in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UnreachableError(f"{verb} {path}: {error or type(error).__name__}") from error
        except orjson.JSONDecodeError as error:
            raise ServerError(f"{verb} {path}: the answer is not JSON: {error}", status=status) from error
        finally:
            self._metrics.api_seconds.labels(verb, str(status)).observe(time.perf_counter() - started)

    async def _pause(self, verb: str, attempt: int, error: ApiError) -> None:
        wait = error.retry_after if error.retry_after is not None else FIRST_WAIT * 4.0 ** (attempt - 1)
        wait = min(wait, MAX_WAIT) * (1.0 + 0.25 * self._jitter())
        why = error.reason or type(error).__name__.removesuffix("Error")
        self._metrics.api_retries.labels(verb, why).inc()
        logger.info("API request is sent again verb=%s attempt=%d wait=%.2f error=%s", verb, attempt, wait, error)
        await self._sleep(wait)


def _may_repeat(verb: str, error: ApiError) -> bool:
    if isinstance(error, ThrottledError):
        return True
    return _METHODS[verb] == "GET" and isinstance(error, ServerError | UnreachableError)


def _whole(item: Object) -> Object:
    return item


def _uid(item: Object) -> str:
    return str(item["metadata"]["uid"])
