"""Leadership: one replica acts, the others stand by.

A ``coordination.k8s.io/v1`` Lease names the holder. Every change of it is conditional on its
resourceVersion, so of two who try at once one wins. Time is never compared between machines: a
standby measures with its own monotonic clock how long the Lease has not changed, and the holder
measures with its own since when it could not renew.

The holder's right ends by itself, and before anybody else's begins. A renewal that the server
stored at some moment *s* lets others take over from *s* + duration. The holder knows only that *s*
lies between the start and the end of its request, so it leads until

    min(end + renew deadline, start + ``DRIFT_SAFE`` * duration)

which is before *s* + duration whatever *s* was. ``is_leader`` compares the clock at each call: a
process that was stopped and goes on is no leader from its first instruction.

A slow API server is a pause and never a reason to exit: leadership is lost, work stops, the trying
goes on. Whoever wants patience with slow disks sets 60/40/10 s instead of 15/10/2 s.

Crash safety: a holder that dies without releasing is replaced after ``duration``; its identity has
to be unique to the *process* (a pod's name alone is reused by a restarted container), since a
Lease that names us is ours to renew. On a clean stop the holder's name is emptied, and a standby
takes over at its next look, within ``retry``. Leadership only keeps replicas from wasting each
other's work; every write is conditional all the same.
"""

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from moorage_operator.errors import AlreadyExistsError, ApiError, ConflictError, NotFoundError
from moorage_operator.metrics import Metrics

logger = logging.getLogger(__name__)

DRIFT_SAFE: Final = 0.9
"""Two clocks may differ in speed by a tenth before two replicas could lead at once."""

RELEASE_SECONDS: Final = 2.0
JITTER: Final = 0.2


class Store(Protocol):
    """What leadership needs of the API server; ``act.api.Api`` has it."""

    async def get(self, path: str) -> dict[str, Any]:
        """Read one object."""
        ...

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object."""
        ...

    async def replace(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Replace an object of the body's resourceVersion."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How long leadership lasts, in seconds.

    Attributes:
        duration: how long a Lease that is not renewed keeps others out.
        renew: how long the holder goes on without a successful renewal.
        retry: how often the holder renews and a standby looks.
    """

    duration: float = 15.0
    renew: float = 10.0
    retry: float = 2.0

    def __post_init__(self) -> None:
        """Refuse terms under which two could lead, or nobody for long."""
        if not self.duration > self.renew > self.retry > 0:
            raise ValueError(
                f"lease duration {self.duration:g}, renew {self.renew:g}, retry {self.retry:g}: "
                "expected duration > renew > retry > 0, such as 15, 10, 2"
            )


class Lease:
    """One replica's view of the Lease; run ``run`` as a task and look at ``is_leader``.

    Args:
        store: the API server. Give it a pacing of its own: renewals must not queue behind a burst.
        namespace: of the Lease.
        name: of the Lease.
        identity: who we are; unique to this process.
        metrics: where ``moorage_leader`` is set.
        terms: the three times.
        on_lost: called, synchronously, the moment leadership ends, also at a clean stop.
        clock: monotonic seconds.
        now: the wall clock, for the times people read in the Lease.
        jitter: a number in [0, 1) that keeps standbys from asking in step.
    """

    def __init__(
        self,
        store: Store,
        *,
        namespace: str,
        name: str,
        identity: str,
        metrics: Metrics,
        terms: Terms | None = None,
        on_lost: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        jitter: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._name = name
        self._identity = identity
        self._metrics = metrics
        self._terms = terms or Terms()
        self._on_lost = on_lost
        self._clock = clock
        self._now = now
        self._jitter = jitter
        self._sleep = sleep
        self._leading = asyncio.Event()
        self._lost = asyncio.Event()
        self._lost.set()
        self._until = float("-inf")
        self._seen: dict[str, Any] | None = None
        self._seen_at = float("-inf")
        self.problem: str | None = "the Lease has not been asked for yet"
        """Why this replica can be neither leader nor standby; None when it is one of them."""

    @property
    def is_leader(self) -> bool:
        """Whether this replica may act, at this very moment."""
        return self._leading.is_set() and self._clock() < self._until

    @property
    def holder(self) -> str:
        """Whom the Lease named when we last saw it; empty when nobody."""
        return _holder(self._seen) if self._seen is not None else ""

    async def wait(self) -> None:
        """Return when this replica leads."""
        await self._leading.wait()

    async def wait_lost(self) -> None:
        """Return when this replica does not lead."""
        await self._lost.wait()

    async def run(self) -> None:
        """Try to lead, and go on leading, until cancelled; then give the Lease back.

        Stop the workers before cancelling this: what they still write after the release is
        conditional, but wasted.
        """
        try:
            while True:
                started = self._clock()
                await self._round()
                period = self._terms.retry * (1.0 + JITTER * self._jitter())
                if self._leading.is_set():
                    # The next renewal is due a period after this one began, however slow it was.
                    await self._sleep(max(0.0, min(started + period, self._until) - self._clock()))
                else:
                    await self._sleep(period)
        finally:
            await self._release()

    async def _round(self) -> None:
        """One try, within the time that is left to us; every failure is a reason to try again."""
        self._check_time()
        # To begin takes a read and a write, each of which may be slow.
        limit = self._until - self._clock() if self._leading.is_set() else 2 * self._terms.renew
        try:
            async with asyncio.timeout(limit):
                await self._attempt()
        except TimeoutError:
            self.problem = f"the API server did not answer about the Lease within {limit:.1f} s"
            logger.warning("Lease request took too long limit=%.1f", limit)
        except ApiError as error:
            self.problem = f"the Lease cannot be read or written: {error}"
            logger.warning("Lease request failed error=%s", error)
        self._check_time()

    def _check_time(self) -> None:
        if self._leading.is_set() and self._clock() >= self._until:
            self._lose("it could not be renewed in time")

    async def _attempt(self) -> None:
        """Renew what is ours, or take what is free; leave the rest alone."""
        if not self._leading.is_set() or self._seen is None:
            await self._look()
        if self._seen is None:
            await self._write(creating=True)
        elif _holder(self._seen) == self._identity or self._is_free(self._seen):
            await self._write(creating=False)
        else:
            self.problem = None

    async def _look(self) -> None:
        """Read the Lease, and note when it last changed before our eyes."""
        try:
            found = await self._store.get(f"{self._collection}/{self._name}")
        except NotFoundError:
            self._seen = None
            return
        if self._seen is None or _version(self._seen) != _version(found):
            self._seen, self._seen_at = found, self._clock()

    def _is_free(self, lease: Mapping[str, Any]) -> bool:
        if not _holder(lease):
            return True
        duration = float(lease["spec"].get("leaseDurationSeconds") or self._terms.duration)
        return self._clock() - self._seen_at >= duration

    async def _write(self, *, creating: bool) -> None:
        """Put our name and the time into the Lease; a refusal means that somebody else was there."""
        started = self._clock()
        try:
            if creating:
                stored = await self._store.create(self._collection, self._body(None))
            else:
                stored = await self._store.replace(f"{self._collection}/{self._name}", self._body(self._seen))
        except (AlreadyExistsError, ConflictError, NotFoundError):
            # It changed since we looked. If it is still ours (somebody labelled it, or an answer of
            # ours was lost) the next look shows it; our time goes on running meanwhile.
            await self._look()
            self.problem = None
            if self._seen is None or _holder(self._seen) != self._identity:
                self._lose("another replica holds the Lease")
            elif not creating and self._leading.is_set():
                await self._renew_changed()
            return
        self._hold(stored, started=started)

    async def _renew_changed(self) -> None:
        started = self._clock()
        with contextlib.suppress(ConflictError, NotFoundError):
            stored = await self._store.replace(f"{self._collection}/{self._name}", self._body(self._seen))
            self._hold(stored, started=started)

    def _hold(self, stored: dict[str, Any], *, started: float) -> None:
        ended = self._clock()
        self._seen, self._seen_at = stored, ended
        self._until = min(ended + self._terms.renew, started + DRIFT_SAFE * self._terms.duration)
        self.problem = None
        if self._leading.is_set() or ended >= self._until:
            return
        self._leading.set()
        self._lost.clear()
        self._metrics.leader.set(1)
        logger.info("Leading identity=%s", self._identity)

    def _lose(self, why: str) -> None:
        if not self._leading.is_set():
            return
        self._leading.clear()
        self._lost.set()
        self._until = float("-inf")
        self._metrics.leader.set(0)
        logger.warning("No longer leading identity=%s why=%s", self._identity, why)
        if self._on_lost is not None:
            self._on_lost()

    async def _release(self) -> None:
        """Empty the holder's name, if it is ours; best effort, since the Lease runs out anyway."""
        held = self._seen
        self._lose("stopping")
        if held is None or _holder(held) != self._identity:
            return
        body = self._body(held)
        body["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                await self._store.replace(f"{self._collection}/{self._name}", body)
        except (ApiError, TimeoutError) as error:
            logger.info("Lease was not released, it will run out error=%s", error)

    def _body(self, current: Mapping[str, Any] | None) -> dict[str, Any]:
        """The Lease with our name, keeping what others put into its metadata."""
        moment = self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec: dict[str, Any] = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": math.ceil(self._terms.duration),
            "acquireTime": moment,
            "renewTime": moment,
            "leaseTransitions": 0,
        }
        metadata: Mapping[str, Any] = {"name": self._name}
        if current is not None:
            before = current.get("spec") or {}
            ours = before.get("holderIdentity") == self._identity
            spec["acquireTime"] = (before.get("acquireTime") if ours else None) or moment
            spec["leaseTransitions"] = int(before.get("leaseTransitions") or 0) + (0 if ours else 1)
            metadata = current["metadata"]
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": dict(metadata),
            "spec": spec,
        }


def _holder(lease: Mapping[str, Any]) -> str:
    return str((lease.get("spec") or {}).get("holderIdentity") or "")


def _version(lease: Mapping[str, Any]) -> str:
    return str(lease["metadata"]["resourceVersion"])
