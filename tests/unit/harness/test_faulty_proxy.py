"""The faulty proxy: each fault does what it says and is counted, and a calm proxy is as good as none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import yarl
from aiohttp import web

from tests.harness.components import Access
from tests.harness.faulty_proxy import FaultyProxy
from tests.harness.faulty_proxy_faults import Chance, Fault, Faults
from tests.harness.faulty_proxy_traps import Moment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

VOLUME = "/api/v1/persistentvolumes/one"
VOLUMES = "/api/v1/persistentvolumes"
WATCH = f"{VOLUMES}?watch=true&resourceVersion=7"
SECONDS = 5
SEED = 1


@dataclass(slots=True)
class Upstream:
    """A small API server: it notes what it is asked, and tells what it is given to tell."""

    seen: list[tuple[str, str, bytes, str]] = field(default_factory=list)
    events: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    watching: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if "watch" in request.query:
            return await self._tell(request)
        who = request.headers.get("Authorization", "")
        self.seen.append((request.method, request.raw_path, await request.read(), who))
        if request.path.endswith("missing"):
            return web.json_response({"code": 404}, status=404, headers={"Warning": "299 - gone"})
        return web.json_response({"done": True})

    async def _tell(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        self.watching.set()
        try:
            while (event := await self.events.get()) is not None:
                await response.write(json.dumps(event).encode() + b"\n")
        except asyncio.CancelledError:
            self.left.set()
            raise
        return response

    def tell(self, kind: str, uid: str, version: int) -> None:
        metadata = {"uid": uid, "resourceVersion": str(version)}
        self.events.put_nowait({"type": kind, "object": {"metadata": metadata}})

    def end(self) -> None:
        self.events.put_nowait(None)


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    serving = Upstream()
    runner = web.ServerRunner(web.Server(serving.answer, handler_cancellation=True), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    serving.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield serving
    await runner.cleanup()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS)) as session:
        yield session


def proxy(upstream: Upstream, **faults: Any) -> FaultyProxy:
    nowhere = Path("/nonexistent")
    return FaultyProxy(
        Access(upstream.url, "operator", nowhere, nowhere),
        rival=Access(upstream.url, "rival", nowhere, nowhere),
        faults=Faults(**faults),
        random=random.Random(SEED),  # noqa: S311 (a schedule, not a secret)
    )


async def heard(session: aiohttp.ClientSession, url: str) -> list[tuple[str, str, str]]:
    """All that a watch tells until its end: type, uid, and version or code."""
    events = []
    async with session.get(url) as answer:
        assert answer.status == 200
        async for line in answer.content:
            event = json.loads(line)
            metadata = event["object"]["metadata"]
            version = metadata.get("resourceVersion") or str(event["object"].get("code", ""))
            events.append((event["type"], metadata.get("uid", ""), version))
    return events


async def test_without_faults_everything_passes(upstream: Upstream, session: aiohttp.ClientSession) -> None:
    with proxy(upstream) as between:
        async with session.patch(yarl.URL(f"{between.url}{VOLUME}?a=b%2Fc", encoded=True), data=b"[]") as answer:
            assert await answer.json() == {"done": True}
        async with session.get(f"{between.url}/missing") as answer:
            assert (answer.status, answer.headers["Warning"]) == (404, "299 - gone")
            assert await answer.json() == {"code": 404}
        assert upstream.seen == [
            ("PATCH", f"{VOLUME}?a=b%2Fc", b"[]", "Bearer operator"),
            ("GET", "/missing", b"", "Bearer operator"),
        ]
        assert not between.counts


@pytest.mark.parametrize(
    ("fault", "code", "reason"),
    [
        (Fault.CONFLICT, 409, "Conflict"),
        (Fault.BUSY, 429, "TooManyRequests"),
        (Fault.ERROR, 500, "InternalError"),
    ],
)
async def test_a_refused_write_is_not_carried_out(
    upstream: Upstream, session: aiohttp.ClientSession, fault: Fault, code: int, reason: str
) -> None:
    with proxy(upstream, retry_after=3, **{fault.value: 1.0}) as between:
        async with session.post(between.url + VOLUMES, data=b"{}") as answer:
            body = await answer.json()
            assert (answer.status, body["kind"], body["reason"], body["code"]) == (code, "Status", reason, code)
            assert answer.headers.get("Retry-After") == ("3" if fault is Fault.BUSY else None)
        assert not upstream.seen
        assert between.counts == {fault: 1}


async def test_a_lost_answer_is_500_after_the_write(upstream: Upstream, session: aiohttp.ClientSession) -> None:
    with proxy(upstream, lost=1.0) as between:
        async with session.post(between.url + VOLUMES, data=b"{}") as answer:
            assert answer.status == 500
        assert [seen[0] for seen in upstream.seen] == ["POST"]
        assert between.counts == {Fault.LOST: 1}


@pytest.mark.parametrize(("fault", "carried_out"), [(Fault.RESET, 0), (Fault.CUT, 1)])
async def test_a_connection_is_reset_before_or_after_the_write(
    upstream: Upstream, session: aiohttp.ClientSession, fault: Fault, carried_out: int
) -> None:
    with proxy(upstream, **{fault.value: 1.0}) as between:
        with pytest.raises(aiohttp.ClientConnectionError) as caught:
            await session.post(between.url + VOLUMES, data=b"{}")
        assert isinstance(caught.value, OSError), "a reset, not an end"
        assert len(upstream.seen) == carried_out
        assert between.counts == {fault: 1}


async def test_an_overtaken_change_is_refused_after_somebody_elses(
    upstream: Upstream, session: aiohttp.ClientSession
) -> None:
    with proxy(upstream, overtaken=1.0) as between:
        async with session.patch(f"{between.url}{VOLUME}/status", data=b"[]") as answer:
            assert (answer.status, (await answer.json())["reason"]) == (409, "Conflict")
        ((verb, path, body, who),) = upstream.seen
        assert (verb, path, who) == ("PATCH", VOLUME, "Bearer rival")
        assert json.loads(body) == {"metadata": {"annotations": {"moorage.test/touched": "0"}}}
        async with session.patch(f"{between.url}{VOLUMES}/missing", data=b"[]") as answer:
            assert answer.status == 404, "what does not exist is not overtaken"
        assert between.counts == {Fault.OVERTAKEN: 1}


async def test_reads_meet_no_fault_of_writes(upstream: Upstream, session: aiohttp.ClientSession) -> None:
    with proxy(upstream, conflict=0.4, lost=0.3, cut=0.3) as between:
        for _ in range(20):
            async with session.get(between.url + VOLUME) as answer:
                assert answer.status == 200
        assert not between.counts


async def test_calm_lets_everything_pass_until_the_next_storm(
    upstream: Upstream, session: aiohttp.ClientSession
) -> None:
    with proxy(upstream, error=1.0) as between:
        between.calm()
        async with session.get(between.url + VOLUME) as answer:
            assert answer.status == 200
        between.storm()
        async with session.get(between.url + VOLUME) as answer:
            assert answer.status == 500
        between.storm(Faults(busy=1.0))
        async with session.get(between.url + VOLUME) as answer:
            assert answer.status == 429


async def test_a_calm_watch_is_told_everything_in_order(upstream: Upstream, session: aiohttp.ClientSession) -> None:
    with proxy(upstream) as between:
        for version in range(8, 28):
            upstream.tell("MODIFIED", f"u{version % 3}", version)
        upstream.tell("BOOKMARK", "", 30)
        upstream.end()
        events = await heard(session, between.url + WATCH)
        assert [version for _, _, version in events] == [str(version) for version in [*range(8, 28), 30]]


async def test_a_watch_is_sent_each_event_at_once(upstream: Upstream, session: aiohttp.ClientSession) -> None:
    with proxy(upstream) as between:
        async with session.get(between.url + WATCH) as answer:
            for version in (8, 9):
                upstream.tell("ADDED", "a", version)
                line = await asyncio.wait_for(answer.content.readline(), SECONDS)
                assert json.loads(line)["object"]["metadata"]["resourceVersion"] == str(version)


async def test_who_leaves_a_watch_leaves_the_server_too(upstream: Upstream, session: aiohttp.ClientSession) -> None:
    with proxy(upstream) as between:
        async with session.get(between.url + WATCH):
            await asyncio.wait_for(upstream.watching.wait(), SECONDS)
        await asyncio.wait_for(upstream.left.wait(), SECONDS)


async def test_what_falls_into_a_gap_is_never_told_and_410_ends_it(
    upstream: Upstream, session: aiohttp.ClientSession
) -> None:
    with proxy(upstream, deletion_gap=1.0, gap_seconds=0.2) as between:
        upstream.tell("ADDED", "a", 8)
        upstream.tell("DELETED", "a", 9)
        upstream.tell("ADDED", "b", 10)
        upstream.tell("DELETED", "b", 11)
        events = await heard(session, between.url + WATCH)
        assert events == [("ADDED", "a", "8"), ("ERROR", "", "410")]
        assert between.counts == {Fault.GAP: 1, Fault.UNSEEN_DELETION: 2}


async def test_what_is_held_back_falls_into_the_gap(upstream: Upstream, session: aiohttp.ClientSession) -> None:
    with proxy(upstream, late=1.0, deletion_gap=1.0, gap_seconds=0.05, late_seconds=30.0) as between:
        upstream.tell("ADDED", "a", 8)
        upstream.tell("DELETED", "b", 9)
        assert await heard(session, between.url + WATCH) == [("ERROR", "", "410")]


async def test_a_repeated_event_comes_again_before_the_next_of_its_object(
    upstream: Upstream, session: aiohttp.ClientSession
) -> None:
    with proxy(upstream, twice=1.0, late_seconds=0.1) as between:
        for version in (8, 9, 10):
            upstream.tell("MODIFIED", "a", version)
        upstream.end()
        events = await heard(session, between.url + WATCH)
        assert [version for _, _, version in events] == ["8", "8", "9", "9", "10", "10"]
        assert between.counts == {Fault.TWICE: 3}


async def test_late_events_are_overtaken_by_others_and_keep_the_order_of_their_object(
    upstream: Upstream, session: aiohttp.ClientSession
) -> None:
    with proxy(upstream, late=0.5, late_seconds=0.2) as between:
        sent = [(f"u{version % 4}", str(version)) for version in range(8, 48)]
        for uid, version in sent:
            upstream.tell("MODIFIED", uid, int(version))
        upstream.tell("BOOKMARK", "", 50)
        reading = asyncio.create_task(heard(session, between.url + WATCH))
        await asyncio.sleep(0.5)
        upstream.end()
        events = [(uid, version) for _, uid, version in await reading]
        assert sorted(events) == sorted(sent), "nothing lost, nothing twice, and no promise that all was told"
        assert events != sent, "some were overtaken"
        for uid in ("u0", "u1", "u2", "u3"):
            assert [event for event in events if event[0] == uid] == [event for event in sent if event[0] == uid]
        assert between.counts[Fault.LATE] > 5


async def test_a_stream_that_ends_has_told_everything_until_then(
    upstream: Upstream, session: aiohttp.ClientSession
) -> None:
    with proxy(upstream, end=1.0) as between:
        upstream.tell("ADDED", "a", 8)
        upstream.tell("ADDED", "b", 9)
        assert await heard(session, between.url + WATCH) == [("ADDED", "a", "8")]
        assert between.counts == {Fault.END: 1}


async def test_a_watch_can_be_told_at_once_that_it_is_too_old_or_cannot_go_on(
    upstream: Upstream, session: aiohttp.ClientSession
) -> None:
    with proxy(upstream, gone=1.0) as between:
        async with session.get(between.url + WATCH) as answer:
            assert (answer.status, (await answer.json())["reason"]) == (410, "Expired")
        upstream.end()
        assert await heard(session, f"{between.url}{VOLUMES}?watch=true") == []
        assert between.counts == {Fault.GONE: 1}
    with proxy(upstream, expired=1.0) as between:
        assert await heard(session, between.url + WATCH) == [("ERROR", "", "410")]
        assert between.counts == {Fault.EXPIRED: 1}
    with proxy(upstream, failed=1.0) as between:
        assert await heard(session, between.url + WATCH) == [("ERROR", "", "500")]
        assert between.counts == {Fault.FAILED: 1}


@pytest.mark.parametrize(("moment", "carried_out"), [(Moment.BEFORE, 1), (Moment.AFTER, 2)])
async def test_a_trap_acts_at_its_write_and_the_client_never_hears_of_it(
    upstream: Upstream, session: aiohttp.ClientSession, moment: Moment, carried_out: int
) -> None:
    acted: list[int] = []
    with proxy(upstream) as between:
        between.trap(lambda writes: len(writes) == 2, moment, lambda: acted.append(len(upstream.seen)))
        async with session.post(f"{between.url}/api/v1/namespaces/x/events", data=b"{}") as answer:
            assert answer.status == 200
        upstream.seen.clear()
        async with session.post(between.url + VOLUMES, data=b"{}") as answer:
            assert answer.status == 200
        assert (between.caught, between.sprung) == ("", False)
        claim = f"{between.url}/api/v1/namespaces/x/persistentvolumeclaims/persistentvolumes/status"
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.patch(claim, data=b"[]")
        assert (between.caught, between.sprung) == ("PATCH persistentvolumeclaims/status", True)
        assert acted == [carried_out]
        assert list(between.writes) == ["POST persistentvolumes", "PATCH persistentvolumeclaims/status"]
        async with session.patch(claim, data=b"[]") as answer:
            assert answer.status == 200, "once"
        between.untrap()
        async with session.patch(claim, data=b"[]") as answer:
            assert answer.status == 200
        assert list(between.writes) == ["PATCH persistentvolumeclaims/status"]


async def test_a_trap_acts_to_its_end_although_the_client_is_gone(
    upstream: Upstream, session: aiohttp.ClientSession
) -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def act() -> None:
        begun.set()
        assert go_on.wait(SECONDS)
        ended.set()

    with proxy(upstream) as between:
        between.trap(lambda _: True, Moment.BEFORE, act)
        writing = asyncio.create_task(_post(session, between.url + VOLUMES))
        assert await asyncio.to_thread(begun.wait, SECONDS)
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
        go_on.set()
        assert await asyncio.to_thread(ended.wait, SECONDS)
        assert not upstream.seen


async def test_the_kubeconfig_leads_to_the_proxy(upstream: Upstream, tmp_path: Path) -> None:
    with proxy(upstream) as between:
        content = json.loads(between.kubeconfig(tmp_path / "kubeconfig").read_text())
        assert content["clusters"][0]["cluster"] == {"server": between.url}
        assert "users" not in content


def test_the_same_seed_decides_the_same() -> None:
    faults = Faults(conflict=0.1, busy=0.1, error=0.1, lost=0.1, cut=0.1, overtaken=0.1)

    def decide(seed: int) -> list[Fault | None]:
        chance = Chance(faults, random.Random(seed))  # noqa: S311 (a schedule, not a secret)
        return [chance.of_request(write=True, change=True) for _ in range(200)]

    assert decide(5) == decide(5) != decide(6)
    assert set(decide(5)) == {None, Fault.CONFLICT, Fault.BUSY, Fault.ERROR, Fault.LOST, Fault.CUT, Fault.OVERTAKEN}


async def _post(session: aiohttp.ClientSession, url: str) -> None:
    async with session.post(url, data=b"{}"):
        pass
