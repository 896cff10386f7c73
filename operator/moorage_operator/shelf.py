"""Volumes by what decides whether a claim may have them, ordered by size.

A *place* on a shelf is what has to be equal between a claim and a volume (class, volume mode, attributes class);
within it volumes stand by their exact set of access modes, since the smallest set that serves a claim is searched
first (binding.md 1.3). Within such a row they are sorted, so the smallest that fits is found by bisection.

Labels are indexed too: of the conditions of a selector that name exact values, the one that the fewest volumes meet
is followed, unless those that the node can use are fewer still. No index of bearable size knows beforehand which
conditions never hold together, so a selector that has made us look at PATIENCE volumes in vain is remembered
with what it takes, and that is kept up to date: the first such search looks at all that the rarest label has, the next
ones at nothing that does not fit. A row remembers the MOST_SELECTIONS selectors that were asked for last.
"""

import bisect
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from moorage_operator.lot import Entry, Lot, merged, remove
from moorage_operator.model.affinity import Affinity, fits
from moorage_operator.model.claim import Claim
from moorage_operator.model.node import Node
from moorage_operator.model.requirement import EXISTS, IN, Requirements, hold
from moorage_operator.model.volume import Volume

PATIENCE: Final = 16
"""Volumes looked at in vain before a selector is remembered."""
MOST_SELECTIONS: Final = 64
"""Selectors that a row remembers: each costs a look at every volume put or taken, and 16 bytes for each it takes."""

Modes = frozenset[str]
Label = tuple[str, str | None]
"""A key with a value, or with None for any value."""


class Place(NamedTuple):
    """What a volume and a claim must have in common.

    ``namespace`` is empty for what everybody may take, else the one whose claims alone may.
    """

    class_name: str
    volume_mode: str
    attributes_class: str
    namespace: str = ""

    @classmethod
    def of_volume(cls, volume: Volume, namespace: str = "") -> "Place":
        """Where a volume stands."""
        return cls(volume.class_name, volume.volume_mode, volume.attributes_class, namespace)

    @classmethod
    def of_claim(cls, claim: Claim, namespace: str = "") -> "Place":
        """Where a claim looks; one without a class looks among volumes without one."""
        return cls(claim.class_name or "", claim.volume_mode, claim.attributes_class, namespace)


class Item(NamedTuple):
    """What a row remembers of a volume."""

    entry: Entry
    labels: Mapping[str, str]
    affinity: Affinity | None


class Row:
    """Volumes of one place and one set of modes, sorted by size."""

    __slots__ = ("_by_label", "_items", "_lot", "_selections", "modes", "place")

    def __init__(self, place: Place, modes: Modes) -> None:
        self.place: Final = place
        self.modes: Final = modes
        self._items: Final[dict[str, Item]] = {}
        self._lot: Final = Lot()
        self._by_label: Final[dict[Label, list[Entry]]] = {}
        self._selections: Final[OrderedDict[Requirements, Lot]] = OrderedDict()

    @property
    def entries(self) -> list[Entry]:
        """All of them, to be read only."""
        return self._lot.entries

    def put(self, volume: Volume) -> None:
        """Add a volume."""
        entry = (volume.capacity, volume.name)
        item = self._items[volume.name] = Item(entry, volume.labels, volume.affinity)
        for label in _indexed(item.labels):
            bisect.insort(self._by_label.setdefault(label, []), entry)
        for lot in self._lots(item.labels):
            lot.put(entry, item.affinity)

    def take(self, name: str) -> None:
        """Remove a volume that stands here."""
        entry, labels, affinity = self._items.pop(name)
        for label in _indexed(labels):
            entries = self._by_label[label]
            remove(entries, entry)
            if not entries:
                del self._by_label[label]
        for lot in self._lots(labels):
            lot.take(entry, affinity)

    def labels(self, name: str) -> Mapping[str, str]:
        """The labels of a volume that stands here."""
        return self._items[name].labels

    def from_size(self, size: int, requirements: Requirements | None) -> Iterator[Entry]:
        """What is at least that large, smallest first, as far as the label index can tell.

        Whether a selector really matches is still to be looked at.
        """
        return merged(self._labelled(requirements or ()), (size, ""))

    def fitting(self, size: int, selector: Requirements | None, node: Node | None = None) -> Iterator[Entry]:
        """What is at least that large, is taken by the selector and can be used on the node, smallest first.

        None, for a selector or a node, leaves nothing out. The row must not change meanwhile.
        """
        start = (size, "")
        lot = self._remembered(selector or ())
        return self._search(start, selector or (), node) if lot is None else merged(lot.usable(node), start)

    def _search(self, start: Entry, selector: Requirements, node: Node | None) -> Iterator[Entry]:
        """What fits, by looking at whichever are fewer: those with the rarest label or those that the node can use."""
        misses = 0
        for entry in merged(min(self._labelled(selector), self._lot.usable(node), key=_total), start):
            item = self._items[entry[1]]
            if hold(selector, item.labels) and (node is None or fits(item.affinity, node)):
                yield entry
            elif (misses := misses + 1) == PATIENCE:
                yield from merged(self._select(selector).usable(node), entry)
                return

    def _lots(self, labels: Mapping[str, str]) -> Iterator[Lot]:
        """Where a volume with those labels belongs."""
        yield self._lot
        for selector, lot in self._selections.items():
            if hold(selector, labels):
                yield lot

    def _remembered(self, selector: Requirements) -> Lot | None:
        """What a selector takes, if that is known; asking keeps it known for a while longer."""
        if not selector:
            return self._lot
        lot = self._selections.get(selector)
        if lot is not None:
            self._selections.move_to_end(selector)
        return lot

    def _select(self, selector: Requirements) -> Lot:
        """Remember what a selector takes, and forget about the one that was not asked for the longest."""
        lot = Lot()
        for entry in self.from_size(0, selector):
            item = self._items[entry[1]]
            if hold(selector, item.labels):
                lot.put(entry, item.affinity)
        self._selections[selector] = lot
        if len(self._selections) > MOST_SELECTIONS:
            self._selections.popitem(last=False)
        return lot

    def _labelled(self, requirements: Requirements) -> list[list[Entry]]:
        """Sorted lists, apart from each other, of all that meet the condition that the fewest meet."""
        best = [self.entries]
        for requirement in requirements:
            values: Iterable[str | None] = dict.fromkeys(requirement.values)
            if requirement.operator == EXISTS:
                values = (None,)
            elif requirement.operator != IN:
                continue
            # A volume has one value for a key, so these never hold the same volume twice.
            found = [self._by_label[label] for value in values if (label := (requirement.key, value)) in self._by_label]
            best = min(best, found, key=_total)
        return best


class Shelf:
    """Volumes that stand ready, each once."""

    def __init__(self) -> None:
        self._places: dict[Place, dict[Modes, Row]] = {}
        self._row_of: dict[str, Row] = {}

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, name: str) -> bool:
        return name in self._row_of

    def put(self, volume: Volume, place: Place) -> None:
        """Let a volume stand at a place; it must not stand on this shelf already."""
        modes = frozenset(volume.access_modes)
        rows = self._places.setdefault(place, {})
        row = rows.get(modes)
        if row is None:
            row = rows[modes] = Row(place, modes)
        row.put(volume)
        self._row_of[volume.name] = row

    def take(self, name: str) -> None:
        """Take a volume off; harmless when it does not stand here."""
        row = self._row_of.pop(name, None)
        if row is None:
            return
        row.take(name)
        if not row.entries:
            rows = self._places[row.place]
            del rows[row.modes]
            if not rows:
                del self._places[row.place]

    def labels(self, name: str) -> Mapping[str, str]:
        """The labels of a volume that stands here."""
        return self._row_of[name].labels(name)

    def rows(self, place: Place) -> Mapping[Modes, Row]:
        """The rows of a place by their sets of modes."""
        return self._places.get(place, _EMPTY)

    def places(self) -> Mapping[Place, Mapping[Modes, Row]]:
        """Every place that holds anything: as many as there are classes and modes in use."""
        return self._places


_EMPTY: Final[Mapping[Modes, Row]] = {}


def _indexed(labels: Mapping[str, str]) -> Iterator[Label]:
    """Each label by its value, and by its key alone."""
    for key, value in labels.items():
        yield key, value
        yield key, None


def _total(lists: Iterable[list[Entry]]) -> int:
    return sum(map(len, lists))
