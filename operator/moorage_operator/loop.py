"""The workers: take a key, decide, carry out, decide anew, until nothing is left to be done for it.

Level-based: a key says which object to look at, and everything is decided from what is known at that
moment. Workers run only while this replica leads; when it ceases to, work under way is cancelled,
and its keys wait for the next time.

This is one of the two places of the operator that catch every exception: a key whose decision fails for
a reason nobody foresaw is logged and comes back after a back-off, and everybody else goes on.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, Protocol, assert_never

from moorage_operator.act.performer import Outcome, Performer, Verdict
from moorage_operator.decide.abandoning import decide_orphan
from moorage_operator.decide.claims import decide_claim
from moorage_operator.decide.plan import Plan
from moorage_operator.decide.volumes import decide_volume
from moorage_operator.ledger import Ledger
from moorage_operator.metrics import Metrics
from moorage_operator.model.ids import Key, Kind
from moorage_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

MOST_ROUNDS: Final = 64
MOST_CONFLICTS: Final = 8


class Leadership(Protocol):
    """Whether we may act; ``lease.Lease`` has it."""

    async def wait(self) -> None:
        """Return when we lead."""
        ...

    async def wait_lost(self) -> None:
        """Return when we do not."""
        ...


class Reconciler:
    """Brings one key to rest.

    Args:
        ledger: what is known.
        performer: carries out the plans.
        clock: monotonic seconds, the same as the performer's.
    """

    def __init__(self, *, ledger: Ledger, performer: Performer, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._performer = performer
        self._clock = clock

    def decide(self, key: Key) -> Plan:
        """What is to be done next for a key; empty when it is at rest."""
        match key.kind:
            case Kind.CLAIM:
                return decide_claim(self._ledger, key, self._clock())
            case Kind.VOLUME:
                return decide_volume(self._ledger, key)
            case Kind.ORPHAN:
                return decide_orphan(self._ledger, key, self._clock())
        assert_never(key.kind)

    async def reconcile(self, key: Key) -> Outcome | None:
        """Decide and act until nothing is left to be done, or until it has to wait.

        A crash at any await is like never having begun the step, or like having lost its answer; both are
        what the next decision expects.

        Returns:
            None when the key is at rest; else whether and when to come back.
        """
        conflicts = 0
        for _ in range(MOST_ROUNDS):
            plan = self.decide(key)
            if not plan:
                return None
            outcome = await self._performer.perform(plan)
            if outcome.verdict is Verdict.STOP:
                return None
            if outcome.verdict is Verdict.CONFLICT:
                conflicts += 1
            elif outcome.verdict is not Verdict.AGAIN:
                return outcome
            if conflicts > MOST_CONFLICTS:
                break
        logger.warning("Key does not come to rest, trying again later key=%s conflicts=%d", key, conflicts)
        return Outcome(verdict=Verdict.RETRY)


class Loop:
    """Workers over a queue.

    Args:
        queue: of keys.
        reconciler: what is done with each.
        leadership: when it may be done.
        metrics: where decisions are counted and timed.
        workers: how many keys are worked on at the same time.
    """

    def __init__(
        self,
        *,
        queue: WorkQueue,
        reconciler: Reconciler,
        leadership: Leadership,
        metrics: Metrics,
        workers: int,
    ) -> None:
        self._queue = queue
        self._reconciler = reconciler
        self._leadership = leadership
        self._metrics = metrics
        self._workers = workers

    async def run(self) -> None:
        """Work while we lead, until cancelled."""
        while True:
            await self._leadership.wait()
            workers = [asyncio.create_task(self._work(), name=f"worker-{number}") for number in range(self._workers)]
            lost = asyncio.create_task(self._leadership.wait_lost(), name="leadership")
            try:
                await asyncio.wait([lost, *workers], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (lost, *workers):
                    task.cancel()
                await asyncio.gather(lost, *workers, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            started = time.perf_counter()
            try:
                outcome = await self._reconciler.reconcile(key)
            except asyncio.CancelledError:
                self._queue.add(key)
                raise
            except Exception:
                logger.exception("Decision failed, trying again later key=%s", key)
                self._count(key, "error", started)
                self._queue.retry(key)
            else:
                self._place(key, outcome, started)
            finally:
                self._queue.done(key)

    def _place(self, key: Key, outcome: Outcome | None, started: float) -> None:
        """Say when the key is looked at again."""
        if outcome is None:
            self._queue.settle(key)
            self._count(key, "rest", started)
        elif outcome.verdict is Verdict.WAIT:
            self._queue.settle(key)
            self._queue.add_after(key, outcome.after)
            self._count(key, "wait", started)
        else:
            self._metrics.queue_retries.labels("failure").inc()
            self._queue.retry(key)
            self._count(key, "retry", started)

    def _count(self, key: Key, outcome: str, started: float) -> None:
        self._metrics.decisions.labels(key.kind, outcome).inc()
        self._metrics.decision_seconds.labels(key.kind).observe(time.perf_counter() - started)
