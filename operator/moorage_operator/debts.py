"""What the in-tree binder has still to write, seen from outside: whether it can know a volume already.

It works off volumes one after the other, in the order in which it heard of them, and each that needs a write keeps
it for as long as its rate limit (20 requests a second for everything it does). A claim that we complete before it
has come to that claim's volume is called Lost by it, for a moment, with an event that data is lost (binding.md C13, C16;
measured: 77 of 100 claims beside 400 new volumes). So beside it a bind is completed only when nothing is left
that it heard of before that volume. On a machine short of processors that is not enough, because it hears of its own
answer later than we do (measured: 9 of 60 claims): it must have written on something that it heard of later, or have
had a while.

Only the order counts: what it heard of later it comes to later.
"""

import bisect

from moorage_operator.model.volume import AVAILABLE, BOUND, FAILED, RELEASED, Volume


def owes(volume: Volume, *, claim_lives: bool) -> bool:
    """Whether the in-tree binder has a phase to write: Available on what is nobody's, Released on what a claim left."""
    if not volume.claim_uid:
        return volume.phase != AVAILABLE and not volume.deleting
    return not claim_lives and volume.phase not in {RELEASED, FAILED}


class Debts:
    """Volumes that keep the in-tree binder, by when it heard of them: the order is that of resourceVersions."""

    def __init__(self) -> None:
        self._owed: dict[str, int] = {}
        self._oldest: list[tuple[int, str]] = []
        self._heard: dict[str, int] = {}
        self._newest = 0
        self._reached = 0

    def note(self, volume: Volume, *, owed: bool, news: bool) -> None:
        """Take in a volume.

        Args:
            volume: as it is now.
            owed: whether something has to be written on it.
            news: whether its claimRef names a claim that it did not name before.
        """
        version = volume.resource_version
        self._newest = max(self._newest, int(version) if version.isdecimal() else self._newest + 1)
        if not owed:
            paid = self._pay(volume.name)
            if paid is not None and volume.phase == AVAILABLE:
                self._reached = max(self._reached, paid)
        elif volume.name not in self._owed:
            # A volume whose claim has gone is owed something since now, however old it is.
            since = int(version) if version.isdecimal() and not volume.claim_uid else self._newest
            self._owed[volume.name] = since
            bisect.insort(self._oldest, (since, volume.name))
        if volume.phase == BOUND or not volume.claim_uid:
            self._heard.pop(volume.name, None)
        elif news or volume.name not in self._heard:
            self._heard[volume.name] = int(version) if version.isdecimal() else self._newest

    def forget(self, name: str) -> None:
        """A volume is gone."""
        self._pay(name)
        self._heard.pop(name, None)

    def awaits(self, name: str) -> bool:
        """Whether the volume is kept for a claim, and not bound yet."""
        return name in self._heard

    def before(self, name: str) -> bool:
        """Whether anything is owed that the in-tree binder heard of before that volume, or before its claimRef."""
        heard = self._heard.get(name)
        return heard is not None and bool(self._oldest) and self._oldest[0][0] < heard

    def reached(self, name: str) -> bool:
        """Whether the in-tree binder has written on a new volume that it heard of after that volume: so it knows that one."""
        heard = self._heard.get(name)
        return heard is not None and heard < self._reached

    def _pay(self, name: str) -> int | None:
        """Nothing is owed to a volume any more; returns the order in which it was, None where nothing was."""
        order = self._owed.pop(name, None)
        if order is not None:
            del self._oldest[bisect.bisect_left(self._oldest, (order, name))]
        return order
