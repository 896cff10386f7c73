"""What is the case with a claim: the table of binding.md 1.5, as one answer.

A judgement says what ought to happen and who is to do it follows from it: ``decide.claims`` turns it into steps,
``decide.reasons`` into a sentence. So what we do and what we say about it cannot differ.
"""

import enum
from dataclasses import dataclass
from typing import Final

from moorage_operator.decide import matching
from moorage_operator.decide.matching import Mismatch
from moorage_operator.errors import DecisionError
from moorage_operator.ledger import Ledger
from moorage_operator.model.claim import Claim
from moorage_operator.model.pod import Pod
from moorage_operator.model.storage_class import Class
from moorage_operator.model.volume import Volume


class Case(enum.Enum):
    """The rows of the table, and what the scheduler cannot do for a pod that names its node itself."""

    BIND = "bind"
    """The volume is kept for the claim, or named by it and free (C1 for a kept volume, C7, C9)."""
    CHOOSE = "choose"
    """The volume is free, and the claim is to get it (C1)."""
    DEFAULT = "default"
    """No class is said, and there is a default one (C2)."""
    CONSUMER = "consumer"
    """No pod that uses it has been scheduled (C3)."""
    PROVISION = "provision"
    """A volume is to be made by the provisioner of its class, or the class does not exist (C4)."""
    NONE_FITS = "none fits"
    """No volume fits, and no class says how to make one (C5)."""
    NAMED_MISSING = "named missing"
    """The volume that it names does not exist (C6)."""
    NAMED_UNFIT = "named unfit"
    """The volume that it names is free and will not do (C8)."""
    NAMED_TAKEN = "named taken"
    """The volume that it names belongs to another claim (C10, C11)."""
    NAME_LOST = "name lost"
    """It was bound, and names no volume any more (C12)."""
    VOLUME_LOST = "volume lost"
    """It was bound, and its volume does not exist any more (C13)."""
    REPAIR = "repair"
    """It was bound, and its volume has forgotten that (C14)."""
    KEEP = "keep"
    """It was bound, and whatever is missing of that is to be completed (C15)."""
    MISBOUND = "misbound"
    """It was bound, and its volume belongs to another claim (C16)."""
    UNREADABLE = "unreadable"
    """Nothing can be decided from what somebody wrote."""


LOST: Final = frozenset({Case.NAME_LOST, Case.VOLUME_LOST, Case.MISBOUND})


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What is the case with one claim.

    Attributes:
        volume: the one that is spoken of, where there is one.
        cls: the claim's class, or in case DEFAULT the one to be given to it; None when there is no such class.
        pods: those that use the claim, where that matters.
        node: where the volume has to be, when that is decided: the scheduler's choice, or the node of a pod.
        mismatch: what is wrong with the named volume.
        problem: what could not be read.
    """

    case: Case
    volume: Volume | None = None
    cls: Class | None = None
    pods: tuple[Pod, ...] = ()
    node: str = ""
    mismatch: Mismatch | None = None
    problem: str = ""

    @property
    def choice_is_ours(self) -> bool:
        """Whether nobody but us makes this choice: for the node of a pod, or of what is kept for a namespace."""
        return bool(self.node) or (self.volume is not None and self.volume.claim is not None)


def judge(ledger: Ledger, claim: Claim) -> Judgement:
    """What is the case with the claim, whoever it is that has to act."""
    if claim.bind_completed:
        return _completed(ledger, claim)
    if claim.volume_name:
        return _named(ledger, claim)
    try:
        return _unbound(ledger, claim)
    except DecisionError as error:
        return Judgement(case=Case.UNREADABLE, problem=str(error))


def _completed(ledger: Ledger, claim: Claim) -> Judgement:
    if not claim.volume_name:
        return Judgement(case=Case.NAME_LOST)
    volume = ledger.volume(claim.volume_name)
    if volume is None:
        return Judgement(case=Case.VOLUME_LOST)
    if volume.claim is None:
        return Judgement(case=Case.REPAIR, volume=volume)
    return Judgement(case=Case.KEEP if volume.claim.uid == claim.uid else Case.MISBOUND, volume=volume)


def _named(ledger: Ledger, claim: Claim) -> Judgement:
    volume = ledger.volume(claim.volume_name)
    if volume is None:
        return Judgement(case=Case.NAMED_MISSING)
    if volume.claim is None:
        wrong = matching.mismatch(ledger, volume, claim)
        case = Case.BIND if wrong is None else Case.NAMED_UNFIT
        return Judgement(case=case, volume=volume, mismatch=wrong)
    return Judgement(case=Case.BIND if volume.claim.means(claim) else Case.NAMED_TAKEN, volume=volume)


def _unbound(ledger: Ledger, claim: Claim) -> Judgement:
    cls = ledger.storage_class(claim.class_name or "")
    late = matching.is_late(claim, cls)
    volume = matching.match(ledger, claim, late=late)
    if volume is not None:
        kept = volume.claim is not None and volume.claim.means(claim)
        return Judgement(case=Case.BIND if kept else Case.CHOOSE, volume=volume, cls=cls)
    if claim.class_name is None:
        defaults = ledger.default_classes()
        if defaults:
            return Judgement(case=Case.DEFAULT, cls=defaults[0])
    if late and not claim.selected_node:
        return _late(ledger, claim, cls)
    if claim.class_name:
        return Judgement(case=Case.PROVISION, cls=cls, node=claim.selected_node)
    return Judgement(case=Case.NONE_FITS)


def _late(ledger: Ledger, claim: Claim, cls: Class | None) -> Judgement:
    """Nobody has chosen a node: unless a pod names one itself, which the scheduler then never sees.

    Then we do for our own classes what the scheduler would do: the smallest volume that this node can use, else
    one is made there.
    """
    pods = ledger.users(claim.key)
    placed = next((pod.node for pod in pods if pod.node), "")
    node = ledger.node(placed)
    if cls is None or not cls.ours or node is None:
        return Judgement(case=Case.CONSUMER, cls=cls, pods=pods)
    volume = matching.match(ledger, claim, late=True, node=node)
    if volume is not None:
        return Judgement(case=Case.CHOOSE, volume=volume, cls=cls, pods=pods, node=placed)
    return Judgement(case=Case.PROVISION, cls=cls, pods=pods, node=placed)
