"""One call at a time for one volume, for as long as its work really runs.

A caller's deadline ends the call, not the ``mkfs`` that the call started, and a second attempt beside
the first would format, delete or attach twice. So the guard runs the work as a task of its own, and
the key is free again only when that task has ended, whoever is still waiting for it. The second
attempt is told ABORTED, which callers read as "still running, ask again".

What is being copied may be used meanwhile, but not be taken away: it is *read*, by any number of copies at a
time, and work that would take it away is told ABORTED too.

What several volumes at a time are needed for *holds* them, all or none: nothing at all is done to them meanwhile. Nobody
ever waits for a key, so no two can wait for each other.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import TypeVar

from moorage_csi.errors import InFlightError

Answer = TypeVar("Answer")


class Guard:
    """The volumes that are being worked on; belongs to one event loop."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[object]] = {}
        self._readers: Counter[str] = Counter()
        self._taken: set[str] = set()
        self._held: set[str] = set()

    def runs(self, key: str) -> bool:
        """Whether work for the key has not ended yet."""
        return key in self._running

    @contextlib.contextmanager
    def reading(self, key: str) -> Iterator[None]:
        """Keep what the key stands for from being taken away for as long as the block lasts.

        Raises:
            InFlightError: it is being taken away at this moment.
        """
        if key in self._taken:
            raise InFlightError(f"{key} is being taken away: ask again later")
        if key in self._held:
            raise InFlightError(f"{key} is kept as it is for another call: ask again later")
        self._readers[key] += 1
        try:
            yield
        finally:
            self._readers[key] -= 1
            if not self._readers[key]:
                del self._readers[key]

    @contextlib.contextmanager
    def holding(self, keys: Collection[str]) -> Iterator[None]:
        """Keep all other work for these keys from beginning, reading too, for as long as the block lasts.

        Raises:
            InFlightError: one of them is worked on or read; none of them is held.
        """
        for key in keys:
            if key in self._running or key in self._held:
                raise InFlightError(f"another call for {key} has not ended yet: ask again later")
            if self._readers[key]:
                raise InFlightError(f"{key} is being copied: ask again when that has ended")
        self._held.update(keys)
        try:
            yield
        finally:
            self._held.difference_update(keys)

    async def run(self, key: str, work: Callable[[], Awaitable[Answer]], *, takes_away: bool = False) -> Answer:
        """Run ``work`` to its end while holding ``key``; cancelling the caller does not cancel the work.

        Args:
            key: what is worked on.
            work: begins when it is called.
            takes_away: whether it cannot be read while it runs, nor run while it is read.

        Raises:
            InFlightError: the key is held by an earlier call that has not ended, or is read.
        """
        if key in self._running or key in self._held:
            raise InFlightError(f"another call for {key} has not ended yet: ask again later")
        if takes_away:
            if self._readers[key]:
                raise InFlightError(f"{key} is being copied: ask again when that has ended")
            self._taken.add(key)

        async def held() -> Answer:
            return await work()

        task = asyncio.create_task(held(), name=f"guarded {key}")
        self._running[key] = task
        task.add_done_callback(lambda ended: self._release(key, ended))
        return await asyncio.shield(task)

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - a bound on waiting, not on the work, which goes on
        """Wait up to ``timeout`` seconds for the work that still runs; say whether all of it ended."""
        if not self._running:
            return True
        _, pending = await asyncio.wait(set(self._running.values()), timeout=timeout)
        return not pending

    def _release(self, key: str, ended: asyncio.Task[object]) -> None:
        self._running.pop(key, None)
        self._taken.discard(key)
        if not ended.cancelled():
            # Retrieved here too: where the caller has gone, asyncio would report it as never retrieved.
            ended.exception()
