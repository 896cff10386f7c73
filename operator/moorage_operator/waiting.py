"""Claims that would take a volume if there was one, so that a volume that becomes free wakes one that can use it.

Waking all of them would cost claims times volumes; so a volume is *offered* to one: the largest request that it
satisfies, and of equal ones the oldest. That claim decides for itself and may take another one by then; what it
was offered is then offered to the next. Nothing depends on this but speed: an offer that is lost is found again
by the sweep.
"""

import bisect
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import NamedTuple

from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import Key
from moorage_operator.model.requirement import hold
from moorage_operator.model.volume import Volume
from moorage_operator.shelf import Modes, Place
from moorage_operator.stock import kept_for


class _Seat(NamedTuple):
    """Sorts by size, and among equals the oldest last: the best candidate for a volume is the last that fits."""

    requested: int
    youth: float
    key: Key


class Waiting:
    """Claims by what they ask for."""

    def __init__(self) -> None:
        self._rows: defaultdict[Place, dict[Modes, list[_Seat]]] = defaultdict(dict)
        self._claims: dict[Key, Claim] = {}
        self._offered: dict[Key, set[str]] = {}
        self._offered_to: dict[str, Key] = {}

    def __len__(self) -> int:
        return len(self._claims)

    def put(self, claim: Claim) -> None:
        """The claim would take a volume; it must not wait already."""
        rows = self._rows[Place.of_claim(claim)]
        bisect.insort(rows.setdefault(frozenset(claim.access_modes), []), _seat(claim))
        self._claims[claim.key] = claim

    def take(self, claim: Claim) -> Collection[str]:
        """The claim does not wait any more; returns the volumes that it was offered, of which it took one at most."""
        if self._claims.pop(claim.key, None) is None:
            return ()
        place, modes, seat = Place.of_claim(claim), frozenset(claim.access_modes), _seat(claim)
        seats = self._rows[place][modes]
        del seats[bisect.bisect_left(seats, seat)]
        if not seats:
            del self._rows[place][modes]
            if not self._rows[place]:
                del self._rows[place]
        offered = self._offered.pop(claim.key, set())
        for name in offered:
            del self._offered_to[name]
        return offered

    def offer(self, volume: Volume) -> Key | None:
        """The claim that is to be woken for a free volume; None when nobody can use it."""
        best: _Seat | None = None
        for seat in self._candidates(volume):
            fresh = seat.key not in self._offered
            if best is None or (fresh, seat) > (best.key not in self._offered, best):
                best = seat
        if best is None:
            return None
        self.withdraw(volume.name)
        self._offered.setdefault(best.key, set()).add(volume.name)
        self._offered_to[volume.name] = best.key
        return best.key

    def withdraw(self, name: str) -> None:
        """The volume of that name is not what it was when it was offered; harmless when it was not."""
        key = self._offered_to.pop(name, None)
        if key is None:
            return
        self._offered[key].discard(name)
        if not self._offered[key]:
            del self._offered[key]

    def _candidates(self, volume: Volume) -> Iterator[_Seat]:
        """The best of each row, by size and age: the first without an offer, and the first at all."""
        modes = frozenset(volume.access_modes)
        for asked, seats in self._rows.get(Place.of_volume(volume), {}).items():
            if not asked <= modes:
                continue
            for index in range(
                bisect.bisect_right(seats, volume.capacity, key=lambda seat: seat.requested) - 1, -1, -1
            ):
                seat = seats[index]
                if self._could_take(seat.key, volume):
                    yield seat
                    if seat.key not in self._offered:
                        break

    def _could_take(self, key: Key, volume: Volume) -> bool:
        claim = self._claims[key]
        selects = claim.selector is None or hold(claim.selector, volume.labels)
        return selects and kept_for(volume) in {"", claim.namespace}


def _seat(claim: Claim) -> _Seat:
    return _Seat(claim.requested, -claim.created, claim.key)
