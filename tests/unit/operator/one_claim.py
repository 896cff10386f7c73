"""One claim that waits, and what is decided for it at one moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moorage_operator.decide import provisioning
from moorage_operator.decide.claims import GRACE, decide_claim
from moorage_operator.decide.plan import Plan, RememberWait, Together, Write
from moorage_operator.decide.volumes import decide_volume
from moorage_operator.model.attempt import Attempt, Progress
from moorage_operator.model.ids import Key, Uid, claim_key
from moorage_operator.model.storage_class import Class
from tests.unit.operator.objects import claim, class_body

if TYPE_CHECKING:
    from moorage_operator.ledger import Ledger

DATA = claim_key("ns", "data")
NOW = 1000.0
MARKS = {"pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes"}
SELECTED = {"volume.kubernetes.io/selected-node": "n1"}


def attempt(progress: Progress = Progress.RUNNING, **fields: Any) -> Attempt:
    cls = Class.from_api(class_body())
    request = provisioning.request(claim(), cls, "n1")
    return Attempt(
        claim=DATA,
        uid=Uid("u1"),
        name="pvc-u1",
        began=NOW - 1,
        **{"node": "n1", "request": request, "progress": progress, **fields},
    )


def writes_of(plan: Plan) -> list[Write]:
    """Every write of a plan, also those that are made together."""
    together = [write for step in plan if isinstance(step, Together) for write in step.writes]
    return together + [step for step in plan if isinstance(step, Write)]


def waited(ledger: Ledger) -> Ledger:
    """The same, after the claim has waited long enough for people to be told."""
    plan_at(ledger, NOW - 100)
    return ledger


def stored(ledger: Ledger) -> Ledger:
    ledger.notes.remember(attempt(Progress.STORED))
    return ledger


def plan_at(ledger: Ledger, now: float, key: Key = DATA) -> Plan:
    """What is done for a claim or a volume at that moment; what is to be remembered of waiting is."""
    plan = decide_claim(ledger, key, now) if key.kind == "claim" else decide_volume(ledger, key)
    for step in plan:
        if isinstance(step, RememberWait):
            ledger.notes.remember_wait(step.uid, step.wait)
    return plan


def once_left_to_others(ledger: Ledger) -> Plan:
    """What is done for the claim when the in-tree binder has had its moment."""
    plan_at(ledger, NOW)
    return plan_at(ledger, NOW + GRACE)
