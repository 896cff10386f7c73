"""Events become records, and what the watch never mentions is found by a sweep."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from moorage_operator import watch
from moorage_operator.ledger import Ledger
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import claim_key
from moorage_operator.watch import RESOURCES, Watch
from moorage_operator.workqueue import WorkQueue
from tests.unit.operator.objects import claim_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

DATA = claim_key("ns", "data")
CLAIMS = "/api/v1/persistentvolumeclaims"


class Lists:
    """The API server's lists: uids of claims, and nothing else exists."""

    def __init__(self) -> None:
        self.claims: set[str] = set()
        self.asked = 0

    async def list_uids(self, path: str) -> set[str]:
        if not path.endswith("/persistentvolumeclaims"):
            return set()
        self.asked += 1
        return set(self.claims)


class Running:
    def __init__(self) -> None:
        self.lists, self.ledger, self.queue = Lists(), Ledger(), WorkQueue()
        self.watch = Watch(ledger=self.ledger, queue=self.queue, lists=self.lists)

    async def tell(self, kind: str | None, body: dict[str, Any]) -> None:
        event: Any = {"type": kind, "object": body}
        await self.watch.see(event=event, param=Claim)


@pytest.fixture
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.005)
    monkeypatch.setattr(watch, "SETTLE_SECONDS", 0.01)
    one = Running()
    one.lists.claims = {"u1"}
    task = asyncio.create_task(one.watch.run())
    yield one
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_event_becomes_a_record_and_a_key(running: Running) -> None:
    await running.tell("ADDED", claim_body())
    assert running.ledger.claim(DATA) is not None
    assert await running.queue.get() == DATA
    running.queue.done(DATA)
    await running.tell("DELETED", claim_body())
    assert running.ledger.claim(DATA) is None
    assert await running.queue.get() == DATA


async def test_an_object_that_cannot_be_read_stops_nothing(running: Running) -> None:
    await running.tell("ADDED", {"metadata": {"name": "half"}})
    await running.tell("ADDED", claim_body(size="10%"))
    assert running.ledger.claim(DATA) is None


async def test_it_is_synced_once_all_that_was_listed_is_known(running: Running) -> None:
    await asyncio.sleep(0.05)
    assert running.watch.missing == "1 of 1 persistentvolumeclaims are not known yet"
    await running.tell(None, claim_body())
    await asyncio.wait_for(running.watch.wait_synced(), 2)
    assert running.watch.missing is None


async def test_a_deletion_in_a_gap_of_the_watch_is_found_after_the_new_list(running: Running) -> None:
    """Also when the list is empty, so that nothing in it tells that something is missing."""
    await running.tell(None, claim_body())
    running.watch.listed(CLAIMS)
    await asyncio.wait_for(running.watch.wait_synced(), 2)
    asked = running.lists.asked
    running.lists.claims = set()
    await asyncio.sleep(0.05)
    assert running.lists.asked == asked, "the first list is no reason to look again"
    running.watch.listed(CLAIMS)
    await until(lambda: running.ledger.claim(DATA) is None)


async def test_a_list_that_comes_before_all_is_known_is_looked_at_as_well(running: Running) -> None:
    running.watch.listed(CLAIMS)
    await asyncio.sleep(0.02)
    running.watch.listed(CLAIMS)
    asked = running.lists.asked
    await running.tell(None, claim_body())
    await asyncio.wait_for(running.watch.wait_synced(), 2)
    await until(lambda: running.lists.asked > asked)


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(2):
        while not check():  # noqa: ASYNC110 (what is waited for is no event of ours)
            await asyncio.sleep(0.005)


def test_every_kind_has_a_handler_that_only_looks() -> None:
    registry = Watch(ledger=Ledger(), queue=WorkQueue(), lists=Lists()).registry()
    handlers = registry._watching._handlers
    assert sorted(handler.id for handler in handlers) == sorted(plural for _, _, plural in RESOURCES.values())
    assert not registry._changing._handlers
    assert not registry._spawning._handlers
    assert not registry._indexing._handlers
