"""Volumes by what decides whether a claim may have them, ordered by size.

A *place* on a shelf is what has to be equal between a claim and a volume (class, volume mode, attributes class);
within it volumes stand by their exact set of access modes, since the smallest set that serves a claim is searched
first (binding.md 1.3). Within such a row they are sorted, so the smallest that fits is found by bisection.

Labels are indexed too, so that a selector which hardly anything matches does not make us look at everything: of the
conditions that name exact values, the one that the fewest volumes meet is followed.
"""

import bisect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from moorage_operator.model.claim import Claim
from moorage_operator.model.requirement import EXISTS, IN, Requirements
from moorage_operator.model.volume import Volume

Modes = frozenset[str]
Entry = tuple[int, str]
"""Capacity in bytes, and the volume's name."""
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


@dataclass(slots=True)
class Row:
    """Volumes of one place and one set of modes, sorted by size."""

    entries: list[Entry] = field(default_factory=list)
    by_label: dict[Label, list[Entry]] = field(default_factory=dict)

    def put(self, entry: Entry, labels: Mapping[str, str]) -> None:
        """Add a volume."""
        bisect.insort(self.entries, entry)
        for label in _indexed(labels):
            bisect.insort(self.by_label.setdefault(label, []), entry)

    def take(self, entry: Entry, labels: Mapping[str, str]) -> None:
        """Remove a volume that was put with the same entry and labels."""
        _remove(self.entries, entry)
        for label in _indexed(labels):
            entries = self.by_label[label]
            _remove(entries, entry)
            if not entries:
                del self.by_label[label]

    def from_size(self, size: int, requirements: Requirements | None) -> Iterator[Entry]:
        """What is at least that large, smallest first, as far as the label index can tell.

        Whether a selector really matches is still to be looked at.
        """
        entries = self._fewest(requirements or ())
        position = bisect.bisect_left(entries, (size, ""))
        for index in range(position, len(entries)):
            yield entries[index]

    def _fewest(self, requirements: Requirements) -> list[Entry]:
        best: list[Entry] = self.entries
        for requirement in requirements:
            values: Iterable[str | None] = dict.fromkeys(requirement.values)
            if requirement.operator == EXISTS:
                values = (None,)
            elif requirement.operator != IN:
                continue
            found = [self.by_label.get((requirement.key, value), _NONE) for value in values]
            if sum(map(len, found)) < len(best):
                # A volume has one value for a key, so these never hold the same volume twice.
                best = found[0] if len(found) == 1 else sorted(entry for entries in found for entry in entries)
        return best


class Shelf:
    """Volumes that stand ready, each once."""

    def __init__(self) -> None:
        self._places: dict[Place, dict[Modes, Row]] = {}
        self._standing: dict[str, tuple[Place, Modes, Entry, Mapping[str, str]]] = {}

    def __len__(self) -> int:
        return len(self._standing)

    def __contains__(self, name: str) -> bool:
        return name in self._standing

    def put(self, volume: Volume, place: Place) -> None:
        """Let a volume stand at a place; it must not stand on this shelf already."""
        modes = frozenset(volume.access_modes)
        entry = (volume.capacity, volume.name)
        self._places.setdefault(place, {}).setdefault(modes, Row()).put(entry, volume.labels)
        self._standing[volume.name] = (place, modes, entry, volume.labels)

    def take(self, name: str) -> None:
        """Take a volume off; harmless when it does not stand here."""
        standing = self._standing.pop(name, None)
        if standing is None:
            return
        place, modes, entry, labels = standing
        rows = self._places[place]
        rows[modes].take(entry, labels)
        if not rows[modes].entries:
            del rows[modes]
            if not rows:
                del self._places[place]

    def labels(self, name: str) -> Mapping[str, str]:
        """The labels of a volume that stands here."""
        return self._standing[name][3]

    def rows(self, place: Place) -> Mapping[Modes, Row]:
        """The rows of a place by their sets of modes."""
        return self._places.get(place, _EMPTY)

    def places(self) -> Mapping[Place, Mapping[Modes, Row]]:
        """Every place that holds anything: as many as there are classes and modes in use."""
        return self._places


_NONE: Final[list[Entry]] = []
_EMPTY: Final[Mapping[Modes, Row]] = {}


def _indexed(labels: Mapping[str, str]) -> Iterator[Label]:
    """Each label by its value, and by its key alone."""
    for key, value in labels.items():
        yield key, value
        yield key, None


def _remove(entries: list[Entry], entry: Entry) -> None:
    del entries[bisect.bisect_left(entries, entry)]
