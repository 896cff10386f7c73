"""What kopf is told of lists and watches that fail: only ever to list anew, and ever less often."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from moorage_operator.act.streams import FIRST_REST, MOST_REST, QUIET, Streams
from tests.unit.operator_edges.scripted import Answer, Scripted, status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CLAIMS = "/api/v1/persistentvolumeclaims"
ADDED = b'{"type":"ADDED","object":{"metadata":{"name":"data"}}}\n'


class Listener:
    """A session as kopf has it, at a server that answers by a script."""

    def __init__(self, server: Scripted, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session

    async def watch(self) -> list[Any]:
        """The events of one watch, read as kopf reads them."""
        async with self.session.get(self.server.url + CLAIMS, params={"watch": "true"}) as response:
            assert response.status == 200
            body = b"".join([data async for data in response.content.iter_chunked(1 << 20)])
        return [json.loads(line) for line in body.splitlines()]

    async def list(self, **params: str) -> int:
        async with self.session.get(self.server.url + CLAIMS, params=params) as response:
            return response.status


class Heard:
    """What the middleware has told, and how long it has rested."""

    def __init__(self) -> None:
        self.lists: list[str] = []
        self.rests: list[float] = []
        self.now = 1000.0

    async def rest(self, seconds: float) -> None:
        self.rests.append(seconds)

    @asynccontextmanager
    async def at(self, *script: Answer) -> AsyncIterator[Listener]:
        streams = Streams(listed=self.lists.append, clock=lambda: self.now, rest=self.rest)
        async with Scripted(*script).serve() as server, aiohttp.ClientSession(middlewares=(streams,)) as session:
            yield Listener(server, session)


@pytest.fixture
def heard() -> Heard:
    return Heard()


async def test_events_pass_as_they_are(heard: Heard) -> None:
    async with heard.at(Answer(body=ADDED * 3)) as listener:
        assert await listener.watch() == [json.loads(ADDED)] * 3
    assert heard.rests == []
    assert heard.lists == []


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("code", [410, 500, 503, 429])
async def test_an_error_in_the_stream_says_list_anew_and_is_the_last_event(
    heard: Heard, code: int, separators: tuple[str, str]
) -> None:
    error = {"type": "ERROR", "object": {"kind": "Status", "code": code, "message": "the store is away"}}
    lines = ADDED + json.dumps(error, separators=separators).encode() + b"\n" + ADDED
    async with heard.at(Answer(body=lines)) as listener:
        events = await listener.watch()
    assert [event["type"] for event in events] == ["ADDED", "ERROR"]
    assert events[1]["object"]["code"] == 410
    assert heard.rests == [FIRST_REST]


async def test_half_a_line_at_the_end_was_never_told(heard: Heard) -> None:
    async with heard.at(Answer(body=ADDED + ADDED[:20])) as listener:
        assert await listener.watch() == [json.loads(ADDED)]


@pytest.mark.parametrize("code", [400, 404, 410, 422])
async def test_a_watch_that_is_refused_says_list_anew(heard: Heard, code: int) -> None:
    async with heard.at(status(code, "Expired")) as listener:
        (event,) = await listener.watch()
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)
    assert heard.rests == [FIRST_REST]


@pytest.mark.parametrize("code", [401, 403, 429, 500, 503])
async def test_what_kopf_tries_again_by_itself_is_left_to_it(heard: Heard, code: int) -> None:
    async with heard.at(status(code, "Not now")) as listener:
        assert await listener.list() == code
        async with listener.session.get(f"{listener.server.url}{CLAIMS}?watch=true") as response:
            assert response.status == code
    assert heard.rests == []
    assert heard.lists == []


async def test_a_list_whose_token_has_run_out_is_begun_anew(heard: Heard) -> None:
    async with heard.at(status(410, "Expired")) as listener:
        with pytest.raises(aiohttp.ClientPayloadError, match="HTTP 410"):
            await listener.list(**{"continue": "old"})
    assert heard.rests == [FIRST_REST]
    assert heard.lists == []


async def test_each_list_is_told_once_however_many_pages_it_has(heard: Heard) -> None:
    async with heard.at(Answer()) as listener:
        await listener.list(limit="500")
        await listener.list(**{"continue": "more"})
        await listener.list(limit="500")
    assert heard.lists == [CLAIMS, CLAIMS]


async def test_it_rests_ever_longer_until_it_was_quiet_for_a_while(heard: Heard) -> None:
    async with heard.at(status(410, "Expired")) as listener:
        for _ in range(9):
            await listener.watch()
            heard.now += MOST_REST
        assert heard.rests == [min(FIRST_REST * 2**times, MOST_REST) for times in range(9)]
        heard.now += QUIET
        await listener.watch()
    assert heard.rests[-1] == FIRST_REST
