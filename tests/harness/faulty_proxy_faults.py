"""What goes wrong on the way to an API server, how often, and how often it did.

Every fault here is one that a client of a real API server can meet: nothing is made up that no server would
ever do, because a client need not survive that. So nothing is lost from a watch without a 410 after it, and the
events of one object keep their order.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random


class Fault(enum.StrEnum):
    """One kind of misfortune."""

    CONFLICT = "conflict"
    """409 instead of carrying out a write: the object is as it was."""
    OVERTAKEN = "overtaken"
    """Somebody else changes the object first; 409."""
    BUSY = "busy"
    """429 with Retry-After; nothing is carried out."""
    ERROR = "error"
    """500; nothing is carried out."""
    LOST = "lost"
    """A write is carried out and answered with 500."""
    RESET = "reset"
    """The connection is reset; nothing is carried out."""
    CUT = "cut"
    """A write is carried out, and the connection is reset before the answer."""
    GONE = "gone"
    """A watch that goes on from a version is answered with HTTP 410."""
    EXPIRED = "expired"
    """The same, with HTTP 200 and an ERROR event of code 410, as the API server itself does it."""
    FAILED = "failed"
    """A watch is answered with HTTP 200 and an ERROR event of code 500, as when etcd has no leader."""
    GAP = "gap"
    """A stream says nothing for a while, then 410: what happened meanwhile is never told."""
    UNSEEN_DELETION = "unseen deletion"
    """A DELETED event that fell into a gap."""
    TWICE = "twice"
    """An event comes again, at once or later."""
    LATE = "late"
    """An event comes late: events of other objects overtake it."""
    END = "end"
    """A stream ends after an event, as after its time limit or a restart; what follows can be had from there on."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How probable each fault is, from 0 to 1; none of them by default.

    Attributes:
        conflict: of each write.
        overtaken: of each change of an existing object.
        busy: of each request.
        error: of each request.
        lost: of each write.
        reset: of each request.
        cut: of each write.
        gone: of each watch that goes on from a version.
        expired: likewise.
        failed: of each watch.
        gap: of each event, to open a gap.
        deletion_gap: of each deletion, to open a gap that swallows it.
        twice: of each event.
        late: of each event.
        end: of each event, to be its stream's last one.
        gap_seconds: the longest gap.
        late_seconds: the longest delay.
        retry_after: what a 429 asks for, in seconds.
    """

    conflict: float = 0.0
    overtaken: float = 0.0
    busy: float = 0.0
    error: float = 0.0
    lost: float = 0.0
    reset: float = 0.0
    cut: float = 0.0
    gone: float = 0.0
    expired: float = 0.0
    failed: float = 0.0
    gap: float = 0.0
    deletion_gap: float = 0.0
    twice: float = 0.0
    late: float = 0.0
    end: float = 0.0
    gap_seconds: float = 0.5
    late_seconds: float = 0.5
    retry_after: int = 1


class Chance:
    """Decides what goes wrong next, and counts what did.

    Args:
        faults: the probabilities.
        random: seeded by whoever wants to see the same again. The order of requests is not in anybody's hand, so
            a seed gives the same mixture rather than the same run.
    """

    def __init__(self, faults: Faults, random: random.Random) -> None:
        self.faults = faults
        self.calm = False
        self.counts: Counter[Fault] = Counter()
        self._random = random

    def of_request(self, *, write: bool, change: bool) -> Fault | None:
        """Choose for a request.

        Args:
            write: it is not a GET.
            change: it changes an object that exists.
        """
        chances = [(Fault.BUSY, self.faults.busy), (Fault.ERROR, self.faults.error), (Fault.RESET, self.faults.reset)]
        if write:
            chances += [
                (Fault.CONFLICT, self.faults.conflict),
                (Fault.LOST, self.faults.lost),
                (Fault.CUT, self.faults.cut),
            ]
        if change:
            chances.append((Fault.OVERTAKEN, self.faults.overtaken))
        return self._one_of(chances)

    def of_watch(self, *, continued: bool) -> Fault | None:
        """Choose for a watch that begins; only one that goes on from a version can come too late."""
        chances = [
            (Fault.BUSY, self.faults.busy),
            (Fault.ERROR, self.faults.error),
            (Fault.RESET, self.faults.reset),
            (Fault.FAILED, self.faults.failed),
        ]
        if continued:
            chances += [(Fault.GONE, self.faults.gone), (Fault.EXPIRED, self.faults.expired)]
        return self._one_of(chances)

    def of_event(self, *, deletion: bool) -> Fault | None:
        """Choose for an event."""
        return self._one_of(
            [
                (Fault.GAP, max(self.faults.gap, self.faults.deletion_gap if deletion else 0.0)),
                (Fault.TWICE, self.faults.twice),
                (Fault.LATE, self.faults.late),
                (Fault.END, self.faults.end),
            ]
        )

    def did(self, fault: Fault) -> None:
        """Count a fault that has happened."""
        self.counts[fault] += 1

    def seconds(self, most: float) -> float:
        """Choose a time."""
        return self._random.uniform(0.0, most)

    def _one_of(self, chances: list[tuple[Fault, float]]) -> Fault | None:
        if self.calm:
            return None
        rolled = self._random.random()
        for fault, probability in chances:
            rolled -= probability
            if rolled < 0:
                return fault
        return None
