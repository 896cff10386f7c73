"""A token bucket that paces our requests to the API server.

The limit is ours alone and far above the 5 to 50 requests a second that Kubernetes' own clients
allow themselves: it is there to keep a bug or a flood from being felt by others, not to be reached
(the API server's fairness answers 429 before that, and ``api.py`` honours it).

A request reserves its moment when it asks, without waiting for anybody, so the order of asking is
the order of going: nobody is overtaken and no lock is needed. Whoever is cancelled while waiting
gives its token back.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable


class Limiter:
    """At most ``burst`` requests at once, ``qps`` a second on average; ``qps`` 0 is no limit.

    Belongs to one event loop.
    """

    __slots__ = ("_burst", "_clock", "_qps", "_sleep", "_tokens", "_updated")

    def __init__(
        self,
        *,
        qps: float,
        burst: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        if qps < 0:
            raise ValueError(f"qps is {qps}: it has to be 0 (no limit) or more")
        if qps and burst < 1:
            raise ValueError(f"burst is {burst}: with a limit it has to be at least 1")
        self._qps = qps
        self._burst = float(burst)
        self._clock = clock
        self._sleep = sleep
        self._tokens = float(burst)
        self._updated = clock()

    async def take(self) -> None:
        """Wait for our turn.

        Cancelling gives the token back; the requests behind keep the moments they reserved.
        """
        if not self._qps:
            return
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._qps) - 1.0
        self._updated = now
        if self._tokens >= 0:
            return
        try:
            await self._sleep(-self._tokens / self._qps)
        except asyncio.CancelledError:
            self._tokens += 1.0
            raise
