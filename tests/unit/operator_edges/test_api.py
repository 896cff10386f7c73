"""The API server's contract: what is sent, what is sent again, and what each answer becomes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from moorage_operator.act import answers
from moorage_operator.act.api import Api
from moorage_operator.act.connection import Connection, FixedToken
from moorage_operator.act.limiter import Limiter
from moorage_operator.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    ServerError,
    ThrottledError,
    UnreachableError,
)
from moorage_operator.metrics import Metrics
from tests.unit.operator_edges.scripted import Answer, Request, Scripted, status

PV = "/api/v1/persistentvolumes/pvc-1"
PVS = "/api/v1/persistentvolumes"
STORED = {"metadata": {"name": "pvc-1", "uid": "u", "resourceVersion": "7"}}
OPS: list[dict[str, Any]] = [
    {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
    {"op": "add", "path": "/spec/x", "value": 1},
]
WRITES: dict[str, Callable[[Api], Any]] = {
    "create": lambda api: api.create(PVS, {"metadata": {"name": "pvc-1"}}),
    "update": lambda api: api.replace(PV, STORED),
    "patch": lambda api: api.json_patch(PV, OPS),
    "delete": lambda api: api.delete(PV, uid="u"),
}
READS: dict[str, Callable[[Api], Any]] = {"get": lambda api: api.get(PV), "list": lambda api: api.list(PVS)}
ALL = READS | WRITES


class Bench:
    """An Api over a scripted server, and the waits it asked for."""

    def __init__(self, api: Api, server: Scripted, waits: list[float], metrics: Metrics) -> None:
        self.api = api
        self.server = server
        self.waits = waits
        self.metrics = metrics

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def bench(metrics: Metrics, *script: Answer | Callable[[Request], Answer]) -> AsyncIterator[Bench]:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async with Scripted(*script).serve() as server:
        connection = Connection(base_url=server.url, tls=None, token=FixedToken("secret-token"), version="1.2.3")
        api = Api(connection, limiter=Limiter(qps=0, burst=0), metrics=metrics, sleep=sleep, jitter=lambda: 0.0)
        try:
            yield Bench(api, server, waits, metrics)
        finally:
            await api.close()
            await connection.close()


@pytest.mark.parametrize(
    ("call", "method", "content_type"),
    [
        ("get", "GET", None),
        ("list", "GET", None),
        ("create", "POST", "application/json"),
        ("update", "PUT", "application/json"),
        ("patch", "PATCH", "application/json-patch+json"),
        ("delete", "DELETE", "application/json"),
    ],
)
async def test_what_each_request_looks_like(metrics: Metrics, call: str, method: str, content_type: str | None) -> None:
    async with bench(metrics, Answer(body=STORED)) as at:
        await ALL[call](at.api)
    (request,) = at.server.requests
    assert request.method == method
    assert request.headers.get("content-type") == content_type
    assert request.headers["authorization"] == "Bearer secret-token"
    assert request.headers["user-agent"] == "moorage-operator/1.2.3"


async def test_a_delete_names_uid_and_version(metrics: Metrics) -> None:
    async with bench(metrics, Answer(body=STORED)) as at:
        assert await at.api.delete(PV, uid="u", resource_version="7")
    assert at.server.requests[0].json["preconditions"] == {"uid": "u", "resourceVersion": "7"}


async def test_a_delete_of_what_is_gone_is_false(metrics: Metrics) -> None:
    async with bench(metrics, status(404, "NotFound")) as at:
        assert not await at.api.delete(PV, uid="u")


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("replace", {"metadata": {"name": "x"}}),
        ("replace", {}),
        ("json_patch", []),
        ("json_patch", OPS[1:]),
        ("json_patch", [{"op": "test", "path": "/metadata/resourceVersion", "value": ""}]),
        ("json_patch", [{"op": "test", "path": "/metadata/uid", "value": "u"}]),
    ],
)
async def test_a_write_without_its_condition_is_never_sent(metrics: Metrics, verb: str, body: Any) -> None:
    async with bench(metrics, Answer()) as at:
        with pytest.raises(ValueError, match="blindly"):
            await getattr(at.api, verb)(PV, body)
        with pytest.raises(ValueError, match="no uid"):
            await at.api.delete(PV, uid="")
    assert at.server.requests == []


@pytest.mark.parametrize(
    ("call", "answer", "kind", "reason"),
    [
        ("get", status(404, "NotFound"), NotFoundError, "NotFound"),
        ("create", status(409, "AlreadyExists"), AlreadyExistsError, "AlreadyExists"),
        ("update", status(409, "Conflict"), ConflictError, "Conflict"),
        ("delete", status(409, "Conflict"), ConflictError, "Conflict"),
        ("patch", status(422, "Invalid"), ConflictError, "Invalid"),
        ("patch", status(422, "Invalid", causes=[{"field": "spec"}]), InvalidError, "Invalid"),
        ("patch", status(400, "BadRequest"), InvalidError, "BadRequest"),
        ("update", status(422, "Invalid"), InvalidError, "Invalid"),
        ("create", status(403, "Forbidden"), ForbiddenError, "Forbidden"),
        ("create", status(401, "Unauthorized"), ForbiddenError, "Unauthorized"),
        ("update", status(500, "InternalError"), ServerError, "InternalError"),
        ("update", status(503, "ServiceUnavailable"), ServerError, "ServiceUnavailable"),
        ("update", status(504, "Timeout"), ServerError, "Timeout"),
        ("update", Answer(status=502, body=b"<html>bad gateway"), ServerError, ""),
        ("update", Answer(status=307, body=b"", headers={"Location": "http://127.0.0.1:1/"}), ServerError, ""),
        ("update", Answer(body=b"not json"), ServerError, ""),
    ],
)
async def test_each_answer_becomes_its_error_with_the_servers_words(
    metrics: Metrics, call: str, answer: Answer, kind: type[ApiError], reason: str
) -> None:
    async with bench(metrics, answer) as at:
        with pytest.raises(kind) as caught:
            await ALL[call](at.api)
    assert type(caught.value) is kind
    assert caught.value.reason == reason
    assert caught.value.status == answer.status
    assert "secret-token" not in str(caught.value)
    assert len(at.server.requests) == 1


@pytest.mark.parametrize("call", ALL)
async def test_a_429_was_not_carried_out_and_is_sent_again_as_it_says(metrics: Metrics, call: str) -> None:
    busy = Answer(status=429, body={"kind": "Status", "reason": "TooManyRequests"}, headers={"Retry-After": "3"})
    async with bench(metrics, busy, busy, Answer(body=STORED)) as at:
        await ALL[call](at.api)
    assert at.waits == [3, 3]
    assert len(at.server.requests) == 3
    assert len({request.body for request in at.server.requests}) == 1


@pytest.mark.parametrize("call", ALL)
async def test_a_server_that_stays_busy_ends_in_an_error_within_the_bound(metrics: Metrics, call: str) -> None:
    busy = status(429, "TooManyRequests", retryAfterSeconds=3600)
    async with bench(metrics, busy) as at:
        with pytest.raises(ThrottledError) as caught:
            await ALL[call](at.api)
    assert caught.value.retry_after == 3600
    assert at.waits == [10, 10, 10]


@pytest.mark.parametrize("call", READS)
@pytest.mark.parametrize("fault", [status(503, "x"), status(500, "x"), Answer(wire="reset"), Answer(wire="half")])
async def test_a_read_is_repeated_with_growing_waits(metrics: Metrics, call: str, fault: Answer) -> None:
    async with bench(metrics, fault, fault, Answer(body=STORED)) as at:
        await READS[call](at.api)
    assert at.waits == pytest.approx([0.1, 0.4])


@pytest.mark.parametrize("call", READS)
@pytest.mark.parametrize("wire", ["reset", "half"])
async def test_a_read_that_never_comes_through_ends(metrics: Metrics, call: str, wire: str) -> None:
    async with bench(metrics, Answer(wire=wire)) as at:
        with pytest.raises(UnreachableError):
            await READS[call](at.api)
    assert at.waits == pytest.approx([0.1, 0.4, 1.6])


@pytest.mark.parametrize("call", WRITES)
@pytest.mark.parametrize("wire", ["reset", "half"])
@pytest.mark.parametrize("kept", [False, True])
async def test_a_write_whose_answer_is_lost_is_sent_once(metrics: Metrics, call: str, wire: str, kept: bool) -> None:
    """Also over a kept connection, where the HTTP library would send PUT and DELETE again by itself."""
    script = [Answer(body=STORED)] * kept + [Answer(wire=wire), Answer(body=STORED)]
    async with bench(metrics, *script) as at:
        if kept:
            await at.api.get(PV)
        with pytest.raises(UnreachableError):
            await WRITES[call](at.api)
        assert at.server.connections == 1
    assert len(at.server.requests) == 1 + kept
    assert at.waits == []


@pytest.mark.parametrize("call", WRITES)
async def test_a_write_that_hangs_is_unreachable_and_sent_once(metrics: Metrics, call: str) -> None:
    async with bench(metrics, Answer(wire="hang")) as at:
        at.api._session._timeout = aiohttp.ClientTimeout(total=0.2)
        with pytest.raises(UnreachableError, match="in time"):
            await WRITES[call](at.api)
    assert len(at.server.requests) == 1


async def test_nobody_there_is_unreachable(metrics: Metrics) -> None:
    async with bench(metrics, Answer()) as at:
        at.api._base_url = "http://127.0.0.1:1"
        with pytest.raises(UnreachableError, match=r"127\.0\.0\.1"):
            await WRITES["update"](at.api)


async def test_a_list_follows_its_pages(metrics: Metrics) -> None:
    pages = [
        Answer(body={"metadata": {"continue": "next"}, "items": [{"metadata": {"uid": "1"}}]}),
        Answer(body={"metadata": {}, "items": [{"metadata": {"uid": "2"}}]}),
    ]
    async with bench(metrics, *pages) as at:
        items = await at.api.list(PVS, labels="a=b,c=d", fields="spec.nodeName=n")
    assert [item["metadata"]["uid"] for item in items] == ["1", "2"]
    first, second = (request.path for request in at.server.requests)
    assert "limit=500" in first
    assert "labelSelector=a%3Db,c%3Dd" in first
    assert "fieldSelector=spec.nodeName%3Dn" in first
    assert "continue" not in first
    assert "continue=next" in second


async def test_a_list_that_expires_starts_over_and_not_for_ever(metrics: Metrics) -> None:
    page = Answer(body={"metadata": {"continue": "next"}, "items": [{"metadata": {"uid": "1"}}]})
    last = Answer(body={"metadata": {}, "items": [{"metadata": {"uid": "2"}}]})
    gone = status(410, "Expired")
    async with bench(metrics, page, gone, page, last) as at:
        assert await at.api.list_uids(PVS) == {"1", "2"}
        assert len(at.server.requests) == 4
    async with bench(metrics, gone) as at:
        with pytest.raises(ServerError, match="expired 3 times"):
            await at.api.list(PVS)
        assert len(at.server.requests) == 3


async def test_a_metadata_list_asks_for_metadata_alone(metrics: Metrics) -> None:
    async with bench(metrics, Answer(body={"metadata": {}, "items": [{"metadata": {"uid": "1"}}]})) as at:
        assert await at.api.list_uids(PVS) == {"1"}
    assert "PartialObjectMetadataList" in at.server.requests[0].headers["accept"]


async def test_writes_conflicts_and_retries_are_counted_by_resource(metrics: Metrics) -> None:
    busy = Answer(status=429, body={"kind": "Status", "reason": "TooManyRequests"}, headers={"Retry-After": "0"})
    async with bench(metrics, busy, Answer(body=STORED), status(409, "Conflict"), Answer(body=STORED)) as at:
        await at.api.replace(f"{PV}/status", STORED)
        with pytest.raises(ConflictError):
            await at.api.replace(PV, STORED)
        await at.api.get(PV)
    assert at.count("moorage_api_writes_total", verb="update", resource="persistentvolumes/status") == 1
    assert at.count("moorage_api_writes_total", verb="update", resource="persistentvolumes") == 0
    assert at.count("moorage_api_conflicts_total", verb="update", resource="persistentvolumes") == 1
    assert at.count("moorage_api_retries_total", verb="update", why="TooManyRequests") == 1
    assert at.count("moorage_api_request_seconds_count", verb="update", code="409") == 1


async def test_every_try_is_paced(metrics: Metrics) -> None:
    taken = 0

    class Counting(Limiter):
        async def take(self) -> None:
            nonlocal taken
            taken += 1
            await asyncio.sleep(0)

    async with bench(metrics, status(503, "x"), Answer(body=STORED)) as at:
        at.api._limiter = Counting(qps=0, burst=0)
        await at.api.get(PV)
    assert taken == 2


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        ("/api/v1/persistentvolumes", "persistentvolumes"),
        ("/api/v1/persistentvolumes/pvc-1", "persistentvolumes"),
        ("/api/v1/persistentvolumes/pvc-1/status", "persistentvolumes/status"),
        ("/api/v1/namespaces/a/persistentvolumeclaims/b", "persistentvolumeclaims"),
        ("/api/v1/namespaces/a/persistentvolumeclaims/b/status", "persistentvolumeclaims/status"),
        ("/api/v1/namespaces/a/events", "events"),
        ("/api/v1/namespaces/a", "namespaces"),
        ("/api/v1/namespaces", "namespaces"),
        ("/apis/coordination.k8s.io/v1/namespaces/a/leases/b", "leases"),
        ("/apis/storage.k8s.io/v1/storageclasses/x", "storageclasses"),
    ],
)
def test_the_resource_of_a_path(path: str, resource: str) -> None:
    assert answers.resource(path) == resource
