"""One watch on its way to the client: events held back, repeated, swallowed before a 410, or cut off.

What a client may rely on stays true: the events of one object come in their order, an event that is missing is
one that a 410 follows, and a stream that just ends has told everything up to its last event. A bookmark promises
that everything before it was told, so it is dropped while something is held back.
"""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
import itertools
from typing import TYPE_CHECKING

import orjson

from tests.harness.faulty_proxy_answers import expired
from tests.harness.faulty_proxy_faults import Fault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.harness.faulty_proxy_faults import Chance

READ_SECONDS = 0.05
"""How long a client is given to read what it was sent, before its stream ends."""

BOOKMARK = "BOOKMARK"
DELETED = "DELETED"


@dataclasses.dataclass(order=True, slots=True)
class _Held:
    """An event that is sent later; the number keeps the order of what is due at the same moment."""

    due: float
    number: int
    line: bytes = dataclasses.field(compare=False)


class FaultyStream:
    """Passes the lines of one watch on.

    Args:
        chance: what goes wrong.
        send: sends bytes to the client.
    """

    def __init__(self, chance: Chance, send: Callable[[bytes], Awaitable[None]]) -> None:
        self._chance = chance
        self._send = send
        self._held: list[_Held] = []
        self._due: dict[str, float] = {}
        self._numbers = itertools.count()
        self._gap_ends: float | None = None
        self._over = False

    async def run(self, lines: AsyncIterator[bytes]) -> None:
        """Return when the stream is at its end, for whatever reason; the caller closes the connection."""
        reading: asyncio.Future[bytes] | None = None
        try:
            while not self._over:
                reading = reading or asyncio.ensure_future(anext(lines, b""))
                done, _ = await asyncio.wait({reading}, timeout=self._next_moment())
                await self._send_due()
                if self._gap_ends is not None and self._gap_ends <= _now():
                    await self._send(expired())
                    return
                if done:
                    line, reading = reading.result(), None
                    if not line:
                        await self._send_rest()
                        return
                    await self._take(line)
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    def _next_moment(self) -> float | None:
        """Return the seconds until something has to be done even though no line comes."""
        moments = [self._held[0].due] if self._held else []
        if self._gap_ends is not None:
            moments.append(self._gap_ends)
        return max(min(moments) - _now(), 0.0) if moments else None

    async def _take(self, line: bytes) -> None:
        event = orjson.loads(line)
        kind = event["type"]
        if self._gap_ends is not None:
            self._swallow(kind)
            return
        if kind == BOOKMARK:
            if not self._held:
                await self._send(line)
            return
        uid = event["object"].get("metadata", {}).get("uid", "")
        fault = self._chance.of_event(deletion=kind == DELETED)
        match fault:
            case Fault.GAP:
                self._open_gap(kind)
            case Fault.LATE:
                self._hold(uid, line, self._chance.seconds(self._chance.faults.late_seconds))
                self._chance.did(Fault.LATE)
            case Fault.TWICE:
                self._hold(uid, line, 0.0)
                self._hold(uid, line, self._chance.seconds(self._chance.faults.late_seconds))
                self._chance.did(Fault.TWICE)
            case _:
                self._hold(uid, line, 0.0)
        await self._send_due()
        if fault is Fault.END and not self._held:
            self._chance.did(Fault.END)
            await asyncio.sleep(READ_SECONDS)
            self._over = True

    def _open_gap(self, kind: str) -> None:
        """Swallow from now on; what is held back falls into the gap too."""
        self._chance.did(Fault.GAP)
        self._gap_ends = _now() + self._chance.seconds(self._chance.faults.gap_seconds)
        for held in self._held:
            self._swallow(orjson.loads(held.line)["type"])
        self._held.clear()
        self._swallow(kind)

    def _swallow(self, kind: str) -> None:
        if kind == DELETED:
            self._chance.did(Fault.UNSEEN_DELETION)

    def _hold(self, uid: str, line: bytes, seconds: float) -> None:
        """Send a line after that time, and never before an earlier one of the same object."""
        self._due[uid] = max(self._due.get(uid, 0.0), _now() + seconds)
        heapq.heappush(self._held, _Held(self._due[uid], next(self._numbers), line))

    async def _send_due(self) -> None:
        while self._held and self._held[0].due <= _now():
            await self._send(heapq.heappop(self._held).line)

    async def _send_rest(self) -> None:
        while self._held:
            await self._send(heapq.heappop(self._held).line)


def _now() -> float:
    return asyncio.get_running_loop().time()
