"""The threads of one pool: work that blocks, kept away from the event loop and from other pools.

A disk that hangs takes the threads that wait for it, so every pool has a few of its own: the others,
and Probe, never stand behind it. What waits for a thread is bounded too; beyond that the caller is
told at once that the pool is not getting through.
"""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from moorage_csi.errors import UnavailableError

THREADS: Final = 4
WAITING: Final = 512

Answer = TypeVar("Answer")


class Lane:
    """A small thread pool with a bounded queue."""

    def __init__(self, name: str, *, threads: int = THREADS, waiting: int = WAITING) -> None:
        self._name = name
        self._most = threads + waiting
        self._inside = 0
        self._threads = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)

    async def run(self, work: Callable[[], Answer]) -> Answer:
        """Run ``work`` in a thread, in a copy of the caller's context (log lines keep their request).

        Cancelling the caller leaves the thread at work.

        Raises:
            UnavailableError: so much is waiting that this call would not be served in time.
        """
        if self._inside >= self._most:
            raise UnavailableError(f"{self._name} has {self._inside} calls waiting, its disk may hang: ask again later")
        context = contextvars.copy_context()
        future = asyncio.get_running_loop().run_in_executor(self._threads, lambda: context.run(work))
        self._inside += 1
        future.add_done_callback(self._left)
        return await asyncio.shield(future)

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not self._inside

    def close(self) -> None:
        """Begin nothing more; what runs goes on."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _left(self, future: asyncio.Future[Answer]) -> None:
        self._inside -= 1
        if not future.cancelled():
            # Retrieved for the case that the caller has gone and nobody else does.
            future.exception()
