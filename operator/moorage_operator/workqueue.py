"""The queue of keys: each key at most once, and never worked on by two at a time.

What is queued is *that* an object has to be looked at, not why: ten changes while a key waits are one look
at the newest state. A key that is added while somebody works on it comes back when that is done. Delays
are kept by earliest moment, so a reason to hurry beats a reason to wait.
"""

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from moorage_operator.model.ids import Key

FIRST_BACKOFF: Final = 0.2
MOST_BACKOFF: Final = 300.0
SPREAD: Final = 0.25
"""Delays are up to this much longer, so that what failed together does not come back together."""


class WorkQueue:
    """Keys that wait, that rest, and that are being worked on; belongs to one event loop.

    Args:
        jitter: a number in [0, 1).
    """

    def __init__(self, *, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter
        self._ready: deque[Key] = deque()
        self._queued: set[Key] = set()
        self._working: set[Key] = set()
        self._again: set[Key] = set()
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []
        self._failures: dict[Key, int] = {}
        self._getters: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._ready)

    def add(self, key: Key) -> None:
        """Look at the key as soon as somebody is free."""
        self._due.pop(key, None)
        if key in self._working:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._ready.append(key)
            self._wake_one()

    def add_all(self, keys: Iterable[Key]) -> None:
        """Look at each of the keys."""
        for key in keys:
            self.add(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Look at the key after that time at the latest (plus some spread)."""
        if key in self._queued or key in self._again:
            return
        due = asyncio.get_running_loop().time() + seconds * (1.0 + SPREAD * self._jitter())
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._heap, (due, key))
            self._arm()

    def retry(self, key: Key) -> None:
        """Look at the key after a delay that doubles with each retry in a row."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        self.add_after(key, min(FIRST_BACKOFF * 2.0 ** min(failures, 16), MOST_BACKOFF))

    def settle(self, key: Key) -> None:
        """It went well: the next retry begins with the shortest delay."""
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """The next key; nobody else gets it until ``done``."""
        while not self._ready:
            getter = asyncio.get_running_loop().create_future()
            self._getters.append(getter)
            try:
                await getter
            except asyncio.CancelledError:
                if getter.done() and not getter.cancelled():
                    self._wake_one()
                raise
        key = self._ready.popleft()
        self._queued.discard(key)
        self._working.add(key)
        return key

    def done(self, key: Key) -> None:
        """The work on a key has ended, well or not."""
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _wake_one(self) -> None:
        while self._getters:
            getter = self._getters.popleft()
            if not getter.done():
                getter.set_result(None)
                return

    def _arm(self) -> None:
        """Let the timer ring for the earliest key."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            self._timer = asyncio.get_running_loop().call_at(self._heap[0][0], self._ring)

    def _ring(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._heap and self._heap[0][0] <= now:
            due, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                self.add(key)
        self._arm()
