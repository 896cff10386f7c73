"""Events: what a person reads in ``kubectl describe`` when a claim waits.

``core/v1`` Events, because that is what ``kubectl describe`` reads and shows best: a count, a first
and a last time, and the component. A new event costs one POST; the same one again (same object,
type, reason and message) costs at most one PATCH a minute, whatever is repeated. What is the same has the same
name, so a restarted or a second operator finds the event that is there, and counts it on instead of adding one.

Recording never waits and never fails: events go into a bounded queue that one task empties. What
is dropped is counted. The order of an object's events is kept.

Crash safety: events are hints; those still queued when the process dies are lost, and the deciding
part records them again when it meets the same state.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from moorage_operator.errors import AlreadyExistsError, ApiError, ConflictError, NotFoundError
from moorage_operator.metrics import Metrics
from moorage_operator.model.reference import Reference

logger = logging.getLogger(__name__)

COMPONENT: Final = "moorage-operator"

SAME_SECONDS: Final = 600.0
PATCH_SECONDS: Final = 60.0

OBJECT_BURST: Final = 25
OBJECT_REFILL_SECONDS: Final = 300.0

QUEUE_LIMIT: Final = 10_000
MEMORY_LIMIT: Final = 4096

MESSAGE_LIMIT: Final = 1024
"""What the API server accepts."""
NAME_LIMIT: Final = 253 - 17
"""Room for a dot and sixteen hexadecimal digits in an object's name."""


class Store(Protocol):
    """What recording needs of the API server; ``act.api.Api`` has it."""

    async def get(self, path: str) -> dict[str, Any]:
        """Read an object."""
        ...

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object."""
        ...

    async def json_patch(self, path: str, ops: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Patch an object of the tested resourceVersion."""
        ...


@dataclass(slots=True, kw_only=True)
class _Entry:
    """One event as we know it: how often it happened, and what of that the server has been told."""

    regarding: Reference
    type: str
    reason: str
    message: str
    first: datetime
    last: datetime
    seen_at: float
    count: int = 1
    queued: bool = False
    told_at: float = float("-inf")
    stored: dict[str, Any] | None = None


class Recorder:
    """Writes events in the background; ``run`` is its task.

    Args:
        store: the API server.
        metrics: where events written and dropped are counted.
        instance: the pod's name, shown as the reporting instance.
        clock: monotonic seconds.
        now: the wall clock, for the times people read.
    """

    def __init__(
        self,
        store: Store,
        *,
        metrics: Metrics,
        instance: str,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._instance = instance
        self._clock = clock
        self._now = now
        self._entries: OrderedDict[tuple[str, ...], _Entry] = OrderedDict()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._queue: deque[_Entry] = deque()
        self._awake = asyncio.Event()
        self._sending = asyncio.Lock()

    def event(self, regarding: Reference, *, type: str, reason: str, message: str) -> None:  # noqa: A002 (the field's name)
        """Record that something happened to an object; returns at once.

        Args:
            regarding: the object.
            type: ``Normal`` or ``Warning``.
            reason: one word in CamelCase, the same for all events of a kind.
            message: a sentence; cut at 1024 characters.
        """
        message = message if len(message) <= MESSAGE_LIMIT else message[: MESSAGE_LIMIT - 1] + "…"
        subject = regarding.uid or f"{regarding.kind}/{regarding.namespace}/{regarding.name}"
        key = (subject, type, reason, message)
        clock = self._clock()
        entry = self._entries.get(key)
        if entry is not None and clock - entry.seen_at < SAME_SECONDS:
            self._entries.move_to_end(key)
            entry.count += 1
            entry.seen_at, entry.last = clock, self._now()
            if not entry.queued and clock - entry.told_at >= PATCH_SECONDS:
                self._enqueue(entry)
            return
        if not self._allowed(subject, clock):
            self._metrics.events_dropped.labels("object limit").inc()
            return
        now = self._now()
        entry = _Entry(
            regarding=regarding, type=type, reason=reason, message=message, first=now, last=now, seen_at=clock
        )
        self._entries[key] = entry
        self._entries.move_to_end(key)
        if len(self._entries) > MEMORY_LIMIT:
            self._entries.popitem(last=False)
        self._enqueue(entry)

    async def run(self) -> None:
        """Write what is queued until cancelled. Call ``stop`` afterwards."""
        while True:
            await self._awake.wait()
            await self._drain()

    async def stop(self, *, within: float = 2.0) -> None:
        """Write what is still queued, for at most ``within`` seconds; the rest is counted as dropped."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._drain()
        while self._queue:
            self._drop_oldest("stopped")

    def _allowed(self, subject: str, clock: float) -> bool:
        """A token bucket per object, so that one object in trouble cannot fill everybody's list."""
        tokens, updated = self._buckets.get(subject, (float(OBJECT_BURST), clock))
        tokens = min(float(OBJECT_BURST), tokens + (clock - updated) / OBJECT_REFILL_SECONDS)
        allowed = tokens >= 1.0
        self._buckets[subject] = (tokens - 1.0 if allowed else tokens, clock)
        self._buckets.move_to_end(subject)
        if len(self._buckets) > MEMORY_LIMIT:
            self._buckets.popitem(last=False)
        return allowed

    def _enqueue(self, entry: _Entry) -> None:
        if len(self._queue) >= QUEUE_LIMIT:
            self._drop_oldest("queue full")
        entry.queued = True
        self._queue.append(entry)
        self._awake.set()

    def _drop_oldest(self, why: str) -> None:
        self._queue.popleft().queued = False
        self._metrics.events_dropped.labels(why).inc()

    async def _drain(self) -> None:
        async with self._sending:
            while self._queue:
                entry = self._queue.popleft()
                entry.queued = False
                entry.told_at = self._clock()
                await self._tell(entry)
            self._awake.clear()

    async def _tell(self, entry: _Entry) -> None:
        """Write one event; a failure is logged and counted, and the next repetition tries again."""
        try:
            if entry.stored is not None and await self._recount(entry, entry.stored):
                return
            await self._create(entry)
        except ApiError as error:
            self._metrics.events_dropped.labels("refused").inc()
            logger.warning(
                "Event was not written reason=%s object=%s/%s error=%s",
                entry.reason,
                entry.regarding.namespace,
                entry.regarding.name,
                error,
            )

    async def _create(self, entry: _Entry) -> None:
        """Store a new event, or take up the one that an earlier life has left."""
        try:
            stored = await self._store.create(_collection(entry.regarding), self._body(entry))
        except AlreadyExistsError:
            found = await self._store.get(f"{_collection(entry.regarding)}/{_name(entry)}")
            entry.count = max(entry.count, int(found.get("count") or 0) + 1)
            if not await self._recount(entry, _kept(found)):
                self._metrics.events_dropped.labels("changed meanwhile").inc()
        else:
            entry.stored = _kept(stored)
            self._metrics.events.labels("create").inc()

    async def _recount(self, entry: _Entry, stored: dict[str, Any]) -> bool:
        """Raise the count of the stored event; False when it is gone or is no longer as we left it."""
        ops = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": stored["resourceVersion"]},
            {"op": "replace", "path": "/count", "value": entry.count},
            {"op": "replace", "path": "/lastTimestamp", "value": _stamp(entry.last)},
        ]
        try:
            patched = await self._store.json_patch(f"{_collection(entry.regarding)}/{stored['name']}", ops)
        except (ConflictError, NotFoundError):
            return False
        entry.stored = _kept(patched)
        self._metrics.events.labels("patch").inc()
        return True

    def _body(self, entry: _Entry) -> dict[str, Any]:
        regarding = entry.regarding
        involved = {
            "apiVersion": regarding.api_version,
            "kind": regarding.kind,
            "namespace": regarding.namespace,
            "name": regarding.name,
            "uid": regarding.uid,
            "resourceVersion": regarding.resource_version,
        }
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": _name(entry),
                "namespace": _namespace(regarding),
            },
            "involvedObject": {key: value for key, value in involved.items() if value},
            "type": entry.type,
            "reason": entry.reason,
            "message": entry.message,
            "count": entry.count,
            "firstTimestamp": _stamp(entry.first),
            "lastTimestamp": _stamp(entry.last),
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._instance,
        }


def _name(entry: _Entry) -> str:
    """The same for the same event of the same object, whoever records it."""
    regarding = entry.regarding
    said = f"{regarding.kind}\0{regarding.uid}\0{entry.type}\0{entry.reason}\0{entry.message}"
    return f"{regarding.name[:NAME_LIMIT].rstrip('.-')}.{hashlib.sha256(said.encode()).hexdigest()[:16]}"


def _namespace(regarding: Reference) -> str:
    """Events about objects without a namespace live in ``default``: the API server insists."""
    return regarding.namespace or "default"


def _collection(regarding: Reference) -> str:
    return f"/api/v1/namespaces/{_namespace(regarding)}/events"


def _kept(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Of the server's answer only what a later count needs."""
    metadata = stored["metadata"]
    return {"name": metadata["name"], "resourceVersion": metadata["resourceVersion"]}


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
