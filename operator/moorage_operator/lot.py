"""Volumes sorted by size, and of them those that a node can use, without a look at the others.

Volumes of equal node affinity form a *group*: a node can use all of it or nothing. Groups are found by *pins*, labels
(or the name) one of which a node must have to use them: of every term of the affinity, the values of one ``In``. A
local volume is pinned to one label of one node, so a node finds its own volumes however many other nodes have some.
Groups with a term that has no ``In``, and the one without any affinity, are unpinned: every node tries them, each
group once.
"""

import bisect
import heapq
from collections.abc import Iterable, Iterator
from typing import Final, NewType

from moorage_operator.model.affinity import Affinity, fits
from moorage_operator.model.node import Node
from moorage_operator.model.requirement import IN, NAME, Requirements

Entry = tuple[int, str]
"""Capacity in bytes, and the volume's name."""
Pin = NewType("Pin", tuple[str, str])
"""A key and a value; the name of a node counts as a label of its own."""

UNPINNED: Final = Pin(("", ""))


class _Group:
    """Volumes of one affinity, sorted by size."""

    __slots__ = ("affinity", "entries", "pins")

    def __init__(self, affinity: Affinity | None, pins: frozenset[Pin]) -> None:
        self.affinity: Final = affinity
        self.pins: Final = pins
        self.entries: Final[list[Entry]] = []


class Lot:
    """Volumes sorted by size, each once."""

    __slots__ = ("_groups", "_pinned", "entries")

    def __init__(self) -> None:
        self.entries: Final[list[Entry]] = []
        self._groups: Final[dict[Affinity | None, _Group]] = {}
        self._pinned: Final[dict[Pin, set[_Group]]] = {}

    def put(self, entry: Entry, affinity: Affinity | None) -> None:
        """Add a volume."""
        bisect.insort(self.entries, entry)
        group = self._groups.get(affinity)
        if group is None:
            group = self._groups[affinity] = _Group(affinity, self._pins(affinity))
            for pin in group.pins:
                self._pinned.setdefault(pin, set()).add(group)
        bisect.insort(group.entries, entry)

    def take(self, entry: Entry, affinity: Affinity | None) -> None:
        """Remove a volume that was put with the same entry and affinity."""
        remove(self.entries, entry)
        group = self._groups[affinity]
        remove(group.entries, entry)
        if group.entries:
            return
        del self._groups[affinity]
        for pin in group.pins:
            self._pinned[pin].remove(group)
            if not self._pinned[pin]:
                del self._pinned[pin]

    def usable(self, node: Node | None) -> list[list[Entry]]:
        """Sorted lists, apart from each other, of all that the node can use and of nothing else; None can use all."""
        if node is None:
            return [self.entries]
        pins = (UNPINNED, Pin((NAME, node.name)), *map(Pin, node.labels.items()))
        groups = {group for pin in pins for group in self._pinned.get(pin, ())}
        return [group.entries for group in groups if fits(group.affinity, node)]

    def _pins(self, affinity: Affinity | None) -> frozenset[Pin]:
        """Of which a node must have one; there are none without terms, where no node will do."""
        if affinity is None:
            return frozenset((UNPINNED,))
        return frozenset(pin for term in affinity for pin in self._pins_of_term(*term))

    def _pins_of_term(self, expressions: Requirements, of_fields: Requirements) -> Iterable[Pin]:
        """Those of the ``In`` that the fewest groups share by now: the name of a host rather than that of its zone."""
        choices = [
            {Pin((each.key, value)) for value in each.values}
            for each in (*expressions, *of_fields)
            if each.operator == IN
        ]
        return min(choices, key=self._sharing, default=(UNPINNED,))

    def _sharing(self, pins: Iterable[Pin]) -> int:
        return sum(len(self._pinned.get(pin, ())) for pin in pins)


def merged(lists: Iterable[list[Entry]], start: Entry) -> Iterator[Entry]:
    """What sorted lists hold from some entry on, in order."""
    tails = [_tail(entries, start) for entries in lists]
    return tails[0] if len(tails) == 1 else heapq.merge(*tails)


def remove(entries: list[Entry], entry: Entry) -> None:
    """Take an entry out of a sorted list that holds it."""
    del entries[bisect.bisect_left(entries, entry)]


def _tail(entries: list[Entry], start: Entry) -> Iterator[Entry]:
    for index in range(bisect.bisect_left(entries, start), len(entries)):
        yield entries[index]
