"""Why no volume fits a claim: how many there are of each shortcoming, and which one came nearest.

Counted from the shelves, whose number of places is that of the classes and modes in use; no volume is looked at but
the few that are named. Every volume is counted once, by the first thing that rules it out.
"""

import bisect
import enum
import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from moorage_operator.ledger import Ledger
from moorage_operator.lot import Entry
from moorage_operator.model.claim import Claim
from moorage_operator.model.quantity import format_bytes
from moorage_operator.model.requirement import hold
from moorage_operator.shelf import Modes, Place, Row, Shelf
from moorage_operator.stock import Standing

MOST_LOOKED: Final = 100
"""Volumes of a row that are looked at for an example, where a selector has to be tried on each."""


class Miss(enum.StrEnum):
    """What rules a volume out; first what comes nearest to fitting."""

    SELECTOR = "selector"
    RELEASED = "released"
    RESERVED = "reserved"
    SIZE = "too small"
    ACCESS_MODES = "access modes"
    ATTRIBUTES_CLASS = "attributes class"
    VOLUME_MODE = "volume mode"
    NAMESPACE = "namespace"
    CLASS = "class"
    FAILED = "failed"
    DELETING = "deleting"
    PENDING = "pending"
    BOUND = "bound"


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """What was wrong with all the volumes there are.

    Attributes:
        looked: how many there are.
        failed: how many for each reason, nearest first; they add up to ``looked``.
        nearest: the reason of the volume that came nearest; None when none came near.
        example: that volume's name; empty where one is as good as the other.
        largest: bytes of the largest volume that is too small and otherwise right; 0 when there is none.
    """

    looked: int
    failed: Mapping[Miss, int]
    nearest: Miss | None
    example: str
    largest: int


def census(ledger: Ledger, claim: Claim) -> Census:
    """Count why the claim can have none of the volumes, provided that it can have none."""
    stock = ledger.stock
    failed: Counter[Miss] = Counter()
    examples: dict[Miss, str] = {}
    largest = _free(stock.free, claim, failed, examples)
    for standing, miss in _OTHERS.items():
        failed[miss] += stock.counts[standing]
        if miss in {Miss.RELEASED, Miss.RESERVED} and stock.counts[standing]:
            fitting = _smallest(stock.shelves[standing], claim)
            if fitting:
                examples[miss] = fitting
    # Those that a write in flight holds are as good as reserved.
    failed[Miss.RESERVED] += stock.counts[Standing.FREE] - len(stock.free)
    looked = sum(stock.counts.values())
    nearest = next((miss for miss in Miss if failed[miss] and _is_near(miss, examples)), None)
    return Census(
        looked=looked,
        failed={miss: failed[miss] for miss in Miss if failed[miss]},
        nearest=nearest,
        example=examples.get(nearest, "") if nearest else "",
        largest=largest,
    )


_OTHERS: Final[Mapping[Standing, Miss]] = {
    Standing.RELEASED: Miss.RELEASED,
    Standing.RESERVED: Miss.RESERVED,
    Standing.FAILED: Miss.FAILED,
    Standing.DELETING: Miss.DELETING,
    Standing.PENDING: Miss.PENDING,
    Standing.BOUND: Miss.BOUND,
}


def describe(found: Census, claim: Claim) -> str:
    """The census as a sentence without its full stop."""
    if not found.looked:
        return "there is no volume at all"
    parts = ", ".join(_part(miss, count, found, claim) for miss, count in found.failed.items())
    volumes = "1 volume was" if found.looked == 1 else f"{found.looked} volumes were"
    return f"{volumes} looked at: {parts}"


def _part(miss: Miss, count: int, found: Census, claim: Claim) -> str:
    text = {
        Miss.SELECTOR: "{} not matched by the claim's selector",
        Miss.RELEASED: "{} Released",
        Miss.RESERVED: "{} reserved for a claim",
        Miss.SIZE: "{} too small",
        Miss.ACCESS_MODES: "{} without access mode " + " and ".join(claim.access_modes),
        Miss.ATTRIBUTES_CLASS: "{} of another volume attributes class",
        Miss.VOLUME_MODE: "{} of another volume mode",
        Miss.NAMESPACE: "{} reserved for another namespace",
        Miss.CLASS: "{} of another storage class",
        Miss.FAILED: "{} Failed",
        Miss.DELETING: "{} being deleted",
        Miss.PENDING: "{} not Available yet",
        Miss.BOUND: "{} bound",
    }[miss].format(count)
    if miss is Miss.SIZE:
        return f"{text} (largest free {format_bytes(found.largest)}, {format_bytes(claim.requested)} asked for)"
    if miss is found.nearest and found.example:
        return f"{text} (nearest: {found.example})"
    return text


def _is_near(miss: Miss, examples: Mapping[Miss, str]) -> bool:
    """What is Released, or kept for others, comes near only where it would fit otherwise."""
    return miss not in {Miss.RELEASED, Miss.RESERVED, Miss.NAMESPACE} or miss in examples


def _free(shelf: Shelf, claim: Claim, failed: Counter[Miss], examples: dict[Miss, str]) -> int:
    """Sort the free volumes by what is wrong with them; returns the largest of those that are too small."""
    largest = 0
    for place, rows in shelf.places().items():
        miss = _misplaced(place, claim)
        for modes, row in rows.items():
            if miss is not None:
                _add(miss, row.entries, failed, examples)
            elif not frozenset(claim.access_modes) <= modes:
                _add(Miss.ACCESS_MODES, row.entries, failed, examples)
            else:
                position = bisect.bisect_left(row.entries, (claim.requested, ""))
                if place.namespace not in {"", claim.namespace}:
                    failed[Miss.NAMESPACE] += len(row.entries)
                    fitting = _first(shelf, row, claim)
                    if fitting is not None:
                        examples[Miss.NAMESPACE] = fitting[1]
                    continue
                if position:
                    failed[Miss.SIZE] += position
                    size, name = row.entries[position - 1]
                    if size >= largest:
                        largest, examples[Miss.SIZE] = size, name
                if position < len(row.entries):
                    failed[Miss.SELECTOR] += len(row.entries) - position
                    examples[Miss.SELECTOR] = row.entries[position][1]
    return largest


def _add(miss: Miss, entries: list[tuple[int, str]], failed: Counter[Miss], examples: dict[Miss, str]) -> None:
    failed[miss] += len(entries)
    examples.setdefault(miss, entries[-1][1])


def _misplaced(place: Place, claim: Claim) -> Miss | None:
    if place.class_name != (claim.class_name or ""):
        return Miss.CLASS
    if place.volume_mode != claim.volume_mode:
        return Miss.VOLUME_MODE
    return Miss.ATTRIBUTES_CLASS if place.attributes_class != claim.attributes_class else None


def _smallest(shelf: Shelf, claim: Claim) -> str:
    """The smallest volume of a shelf that would do if it was free; empty when none would."""
    rows: Mapping[Modes, Row] = shelf.rows(Place.of_claim(claim))
    fitting = [_first(shelf, row, claim) for modes, row in rows.items() if frozenset(claim.access_modes) <= modes]
    return min((entry for entry in fitting if entry is not None), default=(0, ""))[1]


def _first(shelf: Shelf, row: Row, claim: Claim) -> Entry | None:
    """The smallest of a row that is large enough and that the selector takes, among the first few."""
    looked = itertools.islice(row.from_size(claim.requested, claim.selector), MOST_LOOKED)
    return next((entry for entry in looked if hold(claim.selector or (), shelf.labels(entry[1]))), None)
