"""What happens in the cluster: kopf's events in, records into the ledger, keys into the queue.

Only ``on.event`` handlers that return nothing, because those never write: no annotation, no finalizer, no
status on anybody's object. An event is taken for what it is, news of one object's newest state; what it
was before and why it changed does not matter to anybody here.

kopf's streams have one gap. When one has to start over (410 Gone), what exists is listed, and what
was deleted meanwhile is never mentioned. So a *sweep* compares uids with a list of metadata: once at
the start (where it also tells when everything that exists is known), after every such new list, and every
few minutes.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final, Protocol

import kopf

from moorage_operator.errors import ApiError, MalformedObjectError, QuantityError
from moorage_operator.ledger import Ledger, Record
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import Uid
from moorage_operator.model.node import Node, NodeDrivers
from moorage_operator.model.pod import Pod
from moorage_operator.model.storage_class import Class
from moorage_operator.model.volume import Volume
from moorage_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

RESOURCES: Final[Mapping[type[Record], tuple[str, str, str]]] = {
    Claim: ("", "v1", "persistentvolumeclaims"),
    Volume: ("", "v1", "persistentvolumes"),
    Class: ("storage.k8s.io", "v1", "storageclasses"),
    Node: ("", "v1", "nodes"),
    NodeDrivers: ("storage.k8s.io", "v1", "csinodes"),
    Pod: ("", "v1", "pods"),
}

SWEEP_SECONDS: Final = 300.0
SETTLE_SECONDS: Final = 2.0
"""A stream that starts over mentions many known objects: one sweep a moment later is enough for all."""
LOOK_SECONDS: Final = 0.1
KNOWN_WITHIN: Final = 10.0
ERROR_REST: Final = 2.0


class Lists(Protocol):
    """What a sweep needs of the API server; ``act.api.Api`` has it."""

    async def list_uids(self, path: str) -> Collection[str]:
        """The uids of the objects of a collection."""
        ...


class Watch:
    """Feeds the ledger; belongs to one event loop.

    Args:
        ledger: what is known.
        queue: told about what a change concerns.
        lists: for the sweeps.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        queue: WorkQueue,
        lists: Lists,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._queue = queue
        self._lists = lists
        self._clock = clock
        self._listed: set[str] = set()
        self._relisted = asyncio.Event()
        self._synced = asyncio.Event()
        self.missing: str | None = "the API server has not been listed yet"
        """What is not known yet after the start; None once everything is."""

    def registry(self) -> kopf.OperatorRegistry:
        """Handlers for kopf: one for each kind of object."""
        registry = kopf.OperatorRegistry()
        for kind, (group, version, plural) in RESOURCES.items():
            kopf.on.event(group, version, plural, id=plural, registry=registry, param=kind)(self.see)
        return registry

    def listed(self, path: str) -> None:
        """A collection is listed by kopf: not for the first time means that a stream had to start over."""
        if path in self._listed:
            self._relisted.set()
        self._listed.add(path)

    async def see(self, *, event: kopf.RawEvent, param: Any = None, **_: Any) -> None:
        """Take in one event; an object that cannot be read is left alone, and said so."""
        kind: type[Record] = param
        body = event["object"]
        uid = Uid((body.get("metadata") or {}).get("uid") or "")
        listed = event.get("type") is None
        if event.get("type") == "DELETED":
            self._queue.add_all(self._ledger.forget(kind, uid))
            return
        try:
            record = kind.from_api(body)
        except (MalformedObjectError, QuantityError) as error:
            logger.warning("Object cannot be read kind=%s uid=%s error=%s", kind.__name__, uid, error)
            return
        self._queue.add_all(self._ledger.apply(record, listed=listed))

    async def wait_synced(self) -> None:
        """Return when everything that existed at the start is known."""
        await self._synced.wait()

    async def run(self) -> None:
        """Sweep at the start, after new lists, and every few minutes, until cancelled."""
        while True:
            try:
                await self._sweep()
            except ApiError as error:
                logger.warning("Sweep failed, trying again error=%s", error)
                await asyncio.sleep(ERROR_REST)
                continue
            if self._synced.is_set():
                await self._rest()

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(SWEEP_SECONDS):
                await self._relisted.wait()
            await asyncio.sleep(SETTLE_SECONDS)
        except TimeoutError:
            pass

    async def _sweep(self) -> None:
        """Forget what is gone; on the first time, wait until all that is there is known."""
        self._relisted.clear()
        for kind, (group, version, plural) in RESOURCES.items():
            known = self._ledger.uids(kind)
            listed = await self._lists.list_uids(
                f"/apis/{group}/{version}/{plural}" if group else f"/api/{version}/{plural}"
            )
            gone = self._ledger.sweep(kind, known=known, listed=listed)
            if gone:
                logger.info("Sweep found deletions that the watch has not told kind=%s keys=%d", plural, len(gone))
            self._queue.add_all(gone)
            if not self._synced.is_set() and not await self._is_known(kind, plural, listed):
                return
        self.missing = None
        self._synced.set()
        # The safety net: whatever should have woken them, they are looked at again. That costs no write.
        self._queue.add_all(self._ledger.waiting())

    async def _is_known(self, kind: type[Record], plural: str, listed: Collection[str]) -> bool:
        """Wait until the watch has told about everything listed; an object may be gone before it could.

        As long as there are fewer unknown ones each time, the list stays good enough.
        """
        deadline, fewest = self._clock() + KNOWN_WITHIN, len(listed)
        while True:
            unknown = len(set(listed) - self._ledger.uids(kind))
            if not unknown:
                return True
            if unknown < fewest:
                deadline, fewest = self._clock() + KNOWN_WITHIN, unknown
            self.missing = f"{unknown} of {len(listed)} {plural} are not known yet"
            if self._clock() >= deadline:
                return False
            await asyncio.sleep(LOOK_SECONDS)


class _Backoffs:
    """Ever longer waits, without end: a watch never gives up, since without it nothing can be decided."""

    def __iter__(self) -> Iterator[float]:
        wait = 0.5
        while True:
            yield wait
            wait = min(wait * 2.0, 30.0)


class _NoDiffs(kopf.DiffBaseStorage):
    """No object has any state that could differ from an earlier one.

    Left to itself, kopf copies each object several times before every event, to compare it with what it stored in
    an annotation at the last one. Handlers of plain events never use that, and it is half of what an event costs.
    """

    def build(self, **_: Any) -> Any:
        """Nothing of an object is compared."""
        return {}

    def fetch(self, **_: Any) -> Any:
        """Nothing was stored."""
        return None

    def store(self, **_: Any) -> None:
        """Nothing is stored."""


class _NoProgress(kopf.ProgressStorage):
    """No handler has any progress that would have to survive a restart."""

    def fetch(self, **_: Any) -> Any:
        """Nothing was stored."""
        return None

    def store(self, **_: Any) -> None:
        """Nothing is stored."""

    def purge(self, **_: Any) -> None:
        """There is nothing to be removed."""

    def touch(self, **_: Any) -> None:
        """There is nothing to be touched."""

    def clear(self, *, essence: Any) -> Any:
        """There is nothing in it."""
        return essence


def configure(settings: kopf.OperatorSettings) -> None:
    """Set everything about kopf that matters here, on purpose.

    Nothing is posted (our recorder does it), no peer is asked (a Lease decides), nothing is scanned for
    (the six kinds are built in), lists come in pages, and a worker per object ends soon after its event: the
    last two decide how much memory ten thousand objects take.
    """
    settings.posting.enabled = False
    settings.posting.level = logging.CRITICAL + 1
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.watching.chunk_size = 500
    settings.watching.server_timeout = 290
    settings.watching.client_timeout = 300
    settings.watching.connect_timeout = 10
    settings.watching.inactivity_timeout = 75
    settings.watching.reconnect_backoff = 0.1
    settings.queueing.idle_timeout = 0.02
    settings.queueing.exit_timeout = 0.5
    settings.networking.request_timeout = 60
    settings.networking.connect_timeout = 10
    settings.networking.error_backoffs = _Backoffs()
    settings.persistence.consistency_timeout = 0
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.persistence.progress_storage = _NoProgress()
    settings.process.ultimate_exiting_timeout = 30
