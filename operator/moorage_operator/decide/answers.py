"""What a failed or finished call to the driver means for the next decision.

The driver's many codes were sorted into what may be believed about the storage (``RetryClass``); here
each becomes a note, an event and a time to try again. Back-off is part of the decision, not of the queue,
so that an unrelated change of the claim does not make us ask a failing driver more often.
"""

from dataclasses import replace
from typing import Final, assert_never

from moorage_operator.decide import explaining, provisioning, writing
from moorage_operator.decide.plan import DeleteVolume, ForgetAttempt, Plan, Remember, Requeue
from moorage_operator.errors import DriverCallError, RetryClass
from moorage_operator.ledger import Ledger
from moorage_operator.model.attempt import Attempt, Bar, Progress
from moorage_operator.model.claim import Claim
from moorage_operator.model.provisioning import Created
from moorage_operator.model.quantity import format_bytes

BARRED: Final = 300.0
"""Seconds until a request that the driver called wrong is tried again although nothing changed."""
UNREACHABLE_REST: Final = 2.0
RUNNING_REST: Final = 1.0
FINAL_REST: Final = 1.0
MOST_REST: Final = 300.0
MOST_RUNNING_REST: Final = 30.0


def created(ledger: Ledger, attempt: Attempt, answer: Created, *, now: float) -> Plan:
    """The volume exists: note it, so that the next decision stores the object for it.

    A volume smaller than asked for is not accepted: it is destroyed, and the claim hears of it.
    """
    done = replace(attempt, progress=Progress.CREATED, created=answer, failures=0, rest_until=0.0, bar=None)
    wanted = attempt.request.required_bytes if attempt.request else 0
    if 0 < answer.capacity_bytes < wanted:
        claim = ledger.claim_of(attempt.uid)
        message = (
            f"The driver on node {attempt.node} made {format_bytes(answer.capacity_bytes)} "
            f"where {format_bytes(wanted)} was asked for: it is deleted again"
        )
        told = () if claim is None else explaining.warn(ledger, claim.reference, explaining.FAILED, message)
        rested = _refused(attempt, attempt.node, message).rested(now, base=FINAL_REST, most=MOST_REST)
        return (*told, DeleteVolume(node=attempt.node, volume_id=answer.volume_id, attempt=done, kept=rested))
    return (Remember(attempt=done),)


def create_failed(ledger: Ledger, attempt: Attempt, error: DriverCallError, *, again: bool, now: float) -> Plan:
    """The volume was not made, or that is not known.

    Args:
        ledger: what is known.
        attempt: as it was when the call was made.
        error: how it failed.
        again: an earlier call at that node may have made it.
        now: monotonic seconds.
    """
    claim = ledger.claim_of(attempt.uid)
    unknown = error.retry_class is RetryClass.RUNNING or (again and error.retry_class is RetryClass.UNREACHABLE)
    if claim is None:
        return _keep_asking(attempt, now) if unknown else (ForgetAttempt(uid=attempt.uid),)
    match error.retry_class:
        case RetryClass.RUNNING:
            told = explaining.note(
                ledger, claim.reference, explaining.GOING_ON, f"Still being made: {error}", node=error.node
            )
            return *told, *_keep_asking(attempt, now)
        case RetryClass.UNREACHABLE:
            return _unreachable(ledger, claim, attempt, error, again=again, now=now)
        case RetryClass.FINAL:
            rested = attempt.emptied().rested(now, base=FINAL_REST, most=MOST_REST)
            return *_failed(ledger, claim, error), Remember(attempt=rested), _until(rested, now)
        case RetryClass.INFEASIBLE:
            cls = ledger.storage_class(claim.class_name or "")
            bar = Bar(because=provisioning.question(claim, cls), until=now + BARRED) if cls else None
            told = _failed(ledger, claim, error)
            return *told, Remember(attempt=replace(attempt.emptied(), bar=bar)), Requeue(after=BARRED)
        case RetryClass.EXHAUSTED:
            return _exhausted(ledger, claim, attempt, error, now=now)
    assert_never(error.retry_class)


def deleted(step: DeleteVolume) -> Plan:
    """The storage is gone: end the attempt, or keep what is left of it."""
    if step.attempt is None:
        return ()
    return (Remember(attempt=step.kept),) if step.kept is not None else (ForgetAttempt(uid=step.attempt.uid),)


def delete_failed(ledger: Ledger, step: DeleteVolume, error: DriverCallError) -> Plan:
    """The storage is still there, or that is not known: tell whom it concerns. The queue tries again."""
    if step.regarding is None:
        return ()
    return explaining.warn(ledger, step.regarding, explaining.DELETE_FAILED, str(error), node=error.node)


def _keep_asking(attempt: Attempt, now: float) -> Plan:
    rested = attempt.rested(now, base=RUNNING_REST, most=MOST_RUNNING_REST)
    return Remember(attempt=rested), _until(rested, now)


def _unreachable(
    ledger: Ledger, claim: Claim, attempt: Attempt, error: DriverCallError, *, again: bool, now: float
) -> Plan:
    """Ask again every two seconds; an immediate claim tries the other nodes in the meantime."""
    if not again and not _is_late(ledger, claim):
        refused = _refused(attempt, error.node, str(error))
        return (Remember(attempt=replace(refused, missed=attempt.missed | {error.node})),)
    message = f"{error}; trying again every {UNREACHABLE_REST:.0f} s"
    told = explaining.note(ledger, claim.reference, explaining.WAITING, message, node=error.node)
    kept = replace(attempt if again else attempt.emptied(), rest_until=now + UNREACHABLE_REST)
    return *told, Remember(attempt=kept), Requeue(after=UNREACHABLE_REST)


def _exhausted(ledger: Ledger, claim: Claim, attempt: Attempt, error: DriverCallError, *, now: float) -> Plan:
    """No room there: an immediate claim asks the next node, a late one goes back to the scheduler."""
    if not _is_late(ledger, claim):
        return (Remember(attempt=_refused(attempt, error.node, str(error))),)
    rested = attempt.emptied().rested(now, base=FINAL_REST, most=MOST_REST)
    told = _failed(ledger, claim, error)
    if not claim.selected_node:
        return *told, Remember(attempt=rested), _until(rested, now)
    return *told, Remember(attempt=rested), writing.give_back_to_scheduler(claim)


def _refused(attempt: Attempt, node: str, why: str) -> Attempt:
    return replace(attempt.emptied(), refused={**attempt.refused, node: why})


def _failed(ledger: Ledger, claim: Claim, error: DriverCallError) -> Plan:
    return explaining.warn(ledger, claim.reference, explaining.FAILED, str(error), node=error.node)


def _is_late(ledger: Ledger, claim: Claim) -> bool:
    cls = ledger.storage_class(claim.class_name or "")
    return cls is not None and cls.late


def _until(attempt: Attempt, now: float) -> Requeue:
    return Requeue(after=max(attempt.rest_until - now, 0.0))
