"""Which volume a claim gets (binding.md 1.3), and whether the one it names will do (1.4).

Without a node this is the binder's search: volumes in groups by their exact set of access modes, the group with the
fewest modes first, and the first group that yields anything ends it. In a group, a volume that is kept for the claim
wins over every free one, whatever its class or phase; else the smallest that fits. With a node it is the
scheduler's: no groups, the claim's own volume first, and node affinity counts.

Nothing here looks at every volume: free ones stand on a shelf by what a claim asks for, by size and by the nodes that
can use them, kept ones are found by the name of the claim.
"""

import enum
from collections.abc import Collection, Iterator, Mapping

from moorage_operator.errors import DecisionError
from moorage_operator.ledger import Ledger
from moorage_operator.model.affinity import fits
from moorage_operator.model.claim import Claim
from moorage_operator.model.node import Node
from moorage_operator.model.storage_class import Class
from moorage_operator.model.volume import Volume
from moorage_operator.shelf import Modes, Place, Row


class Mismatch(enum.StrEnum):
    """What keeps a named volume from being bound, in the order in which it is looked at."""

    DELETING = "it is being deleted"
    SIZE = "it is too small"
    CLASS = "it has another storage class"
    ATTRIBUTES_CLASS = "it has another volume attributes class"
    NO_ATTRIBUTES_CLASSES = "volume attributes classes are switched off in this cluster"
    VOLUME_MODE = "it has another volume mode"
    ACCESS_MODES = "it lacks an access mode that the claim asks for"


def is_late(claim: Claim, cls: Class | None) -> bool:
    """Whether the claim's volume is chosen or made only once a pod has been scheduled.

    Raises:
        DecisionError: the class does not say; the API server lets no such class in.
    """
    if not claim.class_name or cls is None:
        return False
    if not cls.binding_mode:
        raise DecisionError(
            f"class {cls.name!r} has no volumeBindingMode: Immediate or WaitForFirstConsumer is expected"
        )
    return cls.late


def satisfies(volume: Volume, claim: Claim) -> bool:
    """Whether the access modes of the volume hold all that the claim asks for."""
    return set(claim.access_modes) <= set(volume.access_modes)


def mismatch(ledger: Ledger, volume: Volume, claim: Claim) -> Mismatch | None:
    """Why a claim cannot have the volume that it names; None when it can. Selector and node do not matter."""
    if volume.deleting:
        return Mismatch.DELETING
    if volume.capacity < claim.requested:
        return Mismatch.SIZE
    if volume.class_name != (claim.class_name or ""):
        return Mismatch.CLASS
    if not ledger.rules.attributes_classes and (volume.attributes_class or claim.attributes_class):
        return Mismatch.NO_ATTRIBUTES_CLASSES
    if volume.attributes_class != claim.attributes_class:
        return Mismatch.ATTRIBUTES_CLASS
    if volume.volume_mode != claim.volume_mode:
        return Mismatch.VOLUME_MODE
    return None if satisfies(volume, claim) else Mismatch.ACCESS_MODES


def match(
    ledger: Ledger,
    claim: Claim,
    *,
    late: bool = False,
    node: Node | None = None,
    excluded: Collection[str] = (),
) -> Volume | None:
    """The volume for a claim that names none; None when there is none.

    Args:
        ledger: what is known.
        claim: which asks.
        late: the claim binds late: without a node, free volumes are not ours to give.
        node: where the volume must be usable; None does not ask.
        excluded: names of volumes that somebody else is being given.

    Raises:
        DecisionError: the claim's selector cannot be read, or it has an attributes class and those are switched off.
    """
    if claim.attributes_class and not ledger.rules.attributes_classes:
        raise DecisionError(
            f"the claim asks for VolumeAttributesClass {claim.attributes_class!r}, which this cluster has switched off"
        )
    problem = next((one.problem for one in claim.selector or () if one.problem), "")
    if problem:
        raise DecisionError(f"the claim's selector cannot be read: {problem}")
    kept = sorted(
        (
            volume
            for volume in ledger.volumes_for(claim.key)
            if volume.name not in excluded and _kept(ledger, volume, claim)
        ),
        key=lambda volume: (volume.capacity, volume.name),
    )
    if node is not None:
        # The scheduler lists the volumes of the claim's class only, so here a kept one of another class does not count.
        own = next((volume for volume in kept if volume.class_name == (claim.class_name or "")), None)
        if own is not None:
            return own if fits(own.affinity, node) else None
        return _smallest(ledger, claim, node, excluded)
    return _by_groups(ledger, claim, kept, excluded, late=late)


def _kept(ledger: Ledger, volume: Volume, claim: Claim) -> bool:
    """A volume that is kept for the claim and that it can have: class, selector and phase do not matter."""
    return (
        volume.claim is not None
        and volume.claim.means(claim)
        and volume.capacity >= claim.requested
        and volume.volume_mode == claim.volume_mode
        and volume.attributes_class == claim.attributes_class
        and (ledger.rules.attributes_classes or not volume.attributes_class)
        and not volume.deleting
    )


def _by_groups(
    ledger: Ledger, claim: Claim, kept: list[Volume], excluded: Collection[str], *, late: bool
) -> Volume | None:
    """The smallest group of modes that has anything; what is kept for a whole namespace comes after what is free."""
    own = {frozenset(volume.access_modes): volume for volume in reversed(kept)}
    if late:
        return _first_of(ledger, claim, own, {}, excluded)
    free, theirs = (ledger.stock.free.rows(Place.of_claim(claim, namespace)) for namespace in ("", claim.namespace))
    return _first_of(ledger, claim, own, free, excluded) or _first_of(ledger, claim, {}, theirs, excluded)


def _first_of(
    ledger: Ledger,
    claim: Claim,
    own: Mapping[Modes, Volume],
    free: Mapping[Modes, Row],
    excluded: Collection[str],
) -> Volume | None:
    """What the first group yields that yields anything: the claim's own volume, else the smallest free one."""
    asked = frozenset(claim.access_modes)
    for modes in sorted({*own, *free}, key=group_order):
        if asked <= modes:
            found = own.get(modes) or next(_fitting(ledger, claim, free[modes], excluded), None)
            if found is not None:
                return found
    return None


def _smallest(ledger: Ledger, claim: Claim, node: Node, excluded: Collection[str]) -> Volume | None:
    """The smallest free volume that the node can use, whatever its set of modes."""
    asked = frozenset(claim.access_modes)
    for namespace in ("", claim.namespace):
        rows = ledger.stock.free.rows(Place.of_claim(claim, namespace))
        found = [
            next(_fitting(ledger, claim, row, excluded, node=node), None)
            for modes, row in rows.items()
            if asked <= modes
        ]
        best = min(
            (each for each in found if each is not None), key=lambda each: (each.capacity, each.name), default=None
        )
        if best is not None:
            return best
    return None


def _fitting(
    ledger: Ledger, claim: Claim, row: Row, excluded: Collection[str], *, node: Node | None = None
) -> Iterator[Volume]:
    """The volumes of a row that are large enough, that the selector takes and the node can use, smallest first."""
    for _, name in row.fitting(claim.requested, claim.selector, node):
        volume = ledger.volume(name)
        if volume is not None and name not in excluded:
            yield volume


def group_order(modes: Modes) -> tuple[int, list[str]]:
    """Sorts sets of modes into the order in which they are searched."""
    return len(modes), sorted(modes)
