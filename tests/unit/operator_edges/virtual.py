"""An event loop whose time jumps to the next timer, so that minutes of waiting take microseconds.

A test that waits for what never happens ends after a day of virtual time.
"""

import asyncio
import heapq
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still while something can run, and jumps when nothing can. No sockets."""

    def __init__(self) -> None:
        super().__init__()
        self._virtual = 1000.0
        self._end = self._virtual + 86_400.0

    def time(self) -> float:
        return self._virtual

    def _run_once(self) -> None:
        ready: Any = self._ready  # type: ignore[attr-defined]
        timers: Any = self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0]._cancelled:
            self._timer_cancelled_count -= 1  # type: ignore[attr-defined]
            heapq.heappop(timers)._scheduled = False
        if not ready and timers:
            self._virtual = max(self._virtual, timers[0]._when)
        if self._virtual > self._end:
            self._end = float("inf")
            raise AssertionError("a day of virtual time has passed")
        super()._run_once()  # type: ignore[misc]


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end on a virtual loop."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def clock() -> float:
    """The running loop's time: hand it to code that takes a clock."""
    return asyncio.get_running_loop().time()
