"""The volumes of the cluster by how they stand: free for the taking, kept for somebody, used up.

Every volume has one standing, so the counts add up to all there are, and a claim that cannot bind can be told what was
wrong with each of them without looking at a single one. Free and used-up volumes are on shelves, by what a claim
asks for; bound ones are only counted.

A volume that a write in flight is about to reserve is *held*: it is off the shelf until the answer is there, so
that two claims decided at the same moment do not both choose it.
"""

import enum
from collections import Counter
from typing import TYPE_CHECKING, Final

from moorage_operator.model.volume import ANY_CLAIM, AVAILABLE, BOUND, FAILED, RELEASED, Volume
from moorage_operator.shelf import Place, Shelf

if TYPE_CHECKING:
    from collections.abc import Mapping


class Standing(enum.StrEnum):
    """How a volume stands towards claims that look for one."""

    FREE = "free"
    """Available, and kept for nobody but perhaps a namespace."""
    RESERVED = "reserved"
    """Kept for one claim, which has not got it yet."""
    BOUND = "bound"
    RELEASED = "released"
    """Its claim is gone; its data may be there."""
    FAILED = "failed"
    """Its claim is gone and it could not be reclaimed."""
    DELETING = "deleting"
    PENDING = "pending"
    """Nobody has called it Available yet."""


SHELVED: Final = frozenset({Standing.FREE, Standing.RELEASED, Standing.FAILED, Standing.RESERVED})


def standing(volume: Volume) -> Standing:
    """How a volume stands."""
    if volume.deleting:
        return Standing.DELETING
    if volume.phase == RELEASED:
        return Standing.RELEASED
    if volume.phase == FAILED:
        return Standing.FAILED
    claim = volume.claim
    if claim is not None and claim.name != ANY_CLAIM:
        return Standing.BOUND if volume.phase == BOUND else Standing.RESERVED
    if volume.phase != AVAILABLE:
        return Standing.PENDING
    return Standing.RESERVED if "/" in volume.reserved_for and claim is None else Standing.FREE


def kept_for(volume: Volume) -> str:
    """The namespace that a free volume is kept for; empty when it is for everybody."""
    if volume.claim is not None and volume.claim.name == ANY_CLAIM:
        return volume.claim.namespace
    return volume.reserved_for


class Stock:
    """Every volume's standing."""

    def __init__(self) -> None:
        self.shelves: Final[Mapping[Standing, Shelf]] = {each: Shelf() for each in SHELVED}
        self.counts: Counter[Standing] = Counter()
        self._held: set[str] = set()

    @property
    def free(self) -> Shelf:
        """What can be taken."""
        return self.shelves[Standing.FREE]

    def put(self, volume: Volume) -> None:
        """Take in a volume; it must not be in stock."""
        stands = standing(volume)
        self.counts[stands] += 1
        if stands in SHELVED and not (stands is Standing.FREE and volume.name in self._held):
            self.shelves[stands].put(
                volume, Place.of_volume(volume, kept_for(volume) if stands is Standing.FREE else "")
            )

    def take(self, volume: Volume) -> None:
        """Give out a volume, by the same record that was put in."""
        stands = standing(volume)
        self.counts[stands] -= 1
        if stands in SHELVED:
            self.shelves[stands].take(volume.name)

    def hold(self, volume: Volume) -> None:
        """Keep a volume off the shelf while a write is about to reserve or to bind it."""
        self._held.add(volume.name)
        self.free.take(volume.name)

    def held(self, name: str) -> bool:
        """Whether a write is about to reserve or to bind it."""
        return name in self._held

    def let_go(self, name: str, volume: Volume | None) -> None:
        """That write has been answered; a volume that is still free goes back on the shelf.

        Args:
            name: of the volume.
            volume: the newest record of it; None when it is gone.
        """
        if name not in self._held:
            return
        self._held.discard(name)
        if volume is not None and standing(volume) is Standing.FREE and name not in self.free:
            self.free.put(volume, Place.of_volume(volume, kept_for(volume)))
