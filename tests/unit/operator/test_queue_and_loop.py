"""The queue gives each key to one worker at a time; the loop works while it leads, and survives surprises."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from moorage_operator.act.performer import Outcome, Verdict
from moorage_operator.loop import Loop
from moorage_operator.metrics import Metrics
from moorage_operator.model.ids import Key, claim_key
from moorage_operator.workqueue import WorkQueue

A, B = claim_key("ns", "a"), claim_key("ns", "b")


@pytest.fixture
def queue() -> WorkQueue:
    return WorkQueue(jitter=lambda: 0.0)


async def test_a_key_is_queued_once_and_comes_back_when_added_during_its_work(queue: WorkQueue) -> None:
    queue.add_all([A, A, B])
    assert await queue.get() == A
    queue.add(A)
    assert await queue.get() == B
    assert len(queue) == 0
    queue.done(A)
    assert await queue.get() == A


async def test_the_earlier_of_two_moments_counts(queue: WorkQueue) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    queue.add_after(A, 5)
    queue.add_after(A, 0.05)
    queue.add_after(A, 5)
    assert await queue.get() == A
    assert loop.time() - started < 1
    queue.add_after(B, 5)
    queue.add(B)
    assert await queue.get() == B


async def test_retries_double_until_it_goes_well(queue: WorkQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []
    monkeypatch.setattr(queue, "add_after", lambda _key, seconds: delays.append(seconds))
    for _ in range(12):
        queue.retry(A)
    queue.settle(A)
    queue.retry(A)
    assert delays[:3] == [0.2, 0.4, 0.8]
    assert delays[11:] == [300.0, 0.2]


async def test_a_cancelled_getter_loses_no_key(queue: WorkQueue) -> None:
    first, second = asyncio.create_task(queue.get()), asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add(A)
    first.cancel()
    assert await asyncio.wait_for(second, 1) == A


class Leading:
    def __init__(self) -> None:
        self.leads = asyncio.Event()
        self.lost = asyncio.Event()

    async def wait(self) -> None:
        await self.leads.wait()

    async def wait_lost(self) -> None:
        await self.lost.wait()


class Scripted:
    """A reconciler whose answers are written down."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.seen: list[Key] = []
        self.hang = asyncio.Event()

    async def reconcile(self, key: Key) -> Outcome | None:
        self.seen.append(key)
        answer = self.answers.pop(0) if self.answers else None
        if answer == "hang":
            await self.hang.wait()
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Outcome) else None


async def run(queue: WorkQueue, reconciler: Scripted, leading: Leading) -> asyncio.Task[None]:
    metrics = Metrics(CollectorRegistry(), version="0")
    loop: Any = Loop(
        queue=queue,
        reconciler=reconciler,  # type: ignore[arg-type]
        leadership=leading,
        metrics=metrics,
        workers=2,
    )
    return asyncio.create_task(loop.run())


async def until(check: Any) -> None:
    async with asyncio.timeout(5):
        while not check():  # noqa: ASYNC110 (what is waited for is no event of ours)
            await asyncio.sleep(0.005)


async def test_nothing_is_done_before_it_leads_and_a_surprise_only_delays_its_key(queue: WorkQueue) -> None:
    leading, reconciler = Leading(), Scripted(RuntimeError("surprise"), None, None)
    task = await run(queue, reconciler, leading)
    queue.add_all([A, B])
    await asyncio.sleep(0.05)
    assert not reconciler.seen
    leading.leads.set()
    await until(lambda: reconciler.seen == [A, B, A])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_work_under_way_is_given_up_when_leadership_is_lost_and_taken_up_again(queue: WorkQueue) -> None:
    leading, reconciler = Leading(), Scripted("hang", None)
    leading.leads.set()
    task = await run(queue, reconciler, leading)
    queue.add(A)
    await until(lambda: reconciler.seen == [A])
    leading.leads.clear()
    leading.lost.set()
    await asyncio.sleep(0.05)
    assert reconciler.seen == [A]
    leading.lost.clear()
    leading.leads.set()
    await until(lambda: reconciler.seen == [A, A])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_key_that_waits_comes_back_in_time(queue: WorkQueue) -> None:
    leading, reconciler = Leading(), Scripted(Outcome(verdict=Verdict.WAIT, after=0.05), None)
    leading.leads.set()
    task = await run(queue, reconciler, leading)
    queue.add(A)
    await until(lambda: reconciler.seen == [A, A])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
