"""What one claim needs next.

What is the case is decided by ``decide.judging``; here it becomes steps. Instead of the in-tree binder we do all of
them. Beside it we do what involves no choice among free volumes, or a choice that is ours: volumes of our own
classes, pairs that name each other, and the rest of a bind that somebody has begun. Both follow the same order from
the same objects, so either of us may do any step, and whoever dies leaves the rest to the other; where it has
done a step before us we find that out by a conflict, read, and do not do it again.
"""

from dataclasses import replace
from typing import Final

from moorage_operator.decide import binding, delegating, explaining, judging, marks, provisioning, reasons, writing
from moorage_operator.decide.abandoning import abandon
from moorage_operator.decide.judging import LOST, Case, Judgement
from moorage_operator.decide.plan import (
    NOTHING,
    ConfirmGone,
    CreateVolume,
    DeleteVolume,
    Emit,
    Fail,
    ForgetAttempt,
    Plan,
    Remember,
    RememberWait,
    Requeue,
    Settled,
    Stop,
)
from moorage_operator.ledger import Ledger
from moorage_operator.model import claim as claims
from moorage_operator.model.attempt import Attempt, Progress
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import Key
from moorage_operator.model.volume import Volume
from moorage_operator.model.wait import Wait

GRACE: Final = 0.1
"""Seconds for the in-tree binder to bind what it knows: it is done by then unless it has a queue."""

SHORT_REST: Final = 0.01
LAG_REST: Final = 0.1
"""Seconds between two looks whether it knows the volume: at first, and once it has taken that long."""
MOST_LAG: Final = 60.0
"""Seconds that a bind waits for the in-tree binder to come to its volume; one that takes longer does not run."""

CAUTION: Final = 2.0
"""The same where it was behind, and nothing shows how far it has come."""

CONFIRMING: Final = "confirming"
LAGGING: Final = "lagging"
RECOVERING: Final = "recovering"
FINISHING: Final = "finishing"


def decide_claim(ledger: Ledger, key: Key, now: float) -> Plan:
    """The next steps for the claim of that key; nothing when there is no such claim.

    Args:
        ledger: what is known.
        key: of the claim.
        now: monotonic seconds.
    """
    claim = ledger.claim(key)
    if claim is None:
        return NOTHING
    attempt = ledger.notes.attempt(claim.uid)
    if claim.volume_name and attempt is not None and claim.volume_name != attempt.name:
        return abandon(ledger, attempt)
    if attempt is not None and _under_way(ledger, claim, attempt):
        return provisioning.provision(ledger, claim, now)
    if ledger.rules.instead and (mended := marks.mend_claim(ledger.rules, claim)):
        return mended
    return _carry_out(ledger, claim, judging.judge(ledger, claim), now)


def _under_way(ledger: Ledger, claim: Claim, attempt: Attempt) -> bool:
    """Storage is being made, or was made and has no object yet: that is finished before anything else is chosen."""
    begun = attempt.progress in {Progress.RUNNING, Progress.CREATED}
    return begun and not claim.volume_name and ledger.volume(attempt.name) is None


def _carry_out(ledger: Ledger, claim: Claim, judgement: Judgement, now: float) -> Plan:
    instead, volume = ledger.rules.instead, judgement.volume
    match judgement.case:
        case Case.BIND | Case.KEEP if volume is not None and (instead or binding.reserved(volume, claim)):
            return _bind(ledger, claim, volume, now)
        case Case.CHOOSE if volume is not None and (instead or judgement.choice_is_ours):
            return _bind(ledger, claim, volume, now)
        case Case.REPAIR if volume is not None and instead:
            return _bind(ledger, claim, volume, now)
        case Case.DEFAULT if judgement.cls is not None and instead:
            return writing.set_class(claim, judgement.cls), Stop()
        case Case.PROVISION if judgement.cls is not None and judgement.cls.ours:
            return provisioning.provision(ledger, claim, now, node=judgement.node)
        case Case.PROVISION if instead:
            return delegating.delegate(ledger, claim, judgement, now)
        case case if case in LOST and instead:
            return _lose(ledger, claim, judgement)
    return _wait(ledger, claim, judgement, now)


def _wait(ledger: Ledger, claim: Claim, judgement: Judgement, now: float) -> Plan:
    """Say why, and where the cluster's binder has to, put the phase back to Pending."""
    why = reasons.answer(ledger, claim, judgement)
    told = NOTHING if why is None else explaining.waits(ledger, claim, why, now)
    case = judgement.case
    if case is Case.UNREADABLE or (case is Case.NAMED_TAKEN and claim.bound_by_controller):
        # A choice of a controller that went to somebody else is an error, not a wait (binding.md C11).
        failed = Fail(why=why.message if why else "")
        return (*told, failed) if ledger.rules.instead else told
    if ledger.rules.instead and (claim.phase != claims.PENDING or claim.outcome):
        return writing.set_claim_phase(claim, claims.PENDING), *told
    return told


def _lose(ledger: Ledger, claim: Claim, judgement: Judgement) -> Plan:
    """Phase Lost, told once, when it changes; before that the volume's absence is confirmed."""
    why = reasons.answer(ledger, claim, judgement)
    if claim.phase == claims.LOST or why is None:
        return NOTHING
    emit = Emit(regarding=claim.reference, reason=why.reason, message=why.message, key=f"lost:{why.key}", warning=True)
    lost = writing.set_claim_phase(claim, claims.LOST)
    if judgement.case is Case.VOLUME_LOST:
        return ConfirmGone(target=writing.volume_named(claim.volume_name)), lost, emit
    return lost, emit


def _bind(ledger: Ledger, claim: Claim, volume: Volume, now: float) -> Plan:
    attempt = ledger.notes.attempt(claim.uid)
    if claim.bound and volume.claim_uid == claim.uid:
        settled = _settle(claim, volume, attempt, now)
        if settled:
            return settled
    elif volume.made_by_us and volume.claim_uid == claim.uid and not _is_stored(attempt):
        return _adopt(claim, volume, attempt, now)
    steps = binding.bind(claim, volume)
    wait = ledger.notes.wait(claim.uid)
    if not steps:
        return NOTHING if wait is None else (RememberWait(uid=claim.uid, wait=None),)
    if ledger.rules.instead or not binding.reserved(volume, claim):
        return steps
    if claim.phase == claims.LOST:
        # The in-tree binder says so until it knows the volume, and takes it back itself: never against it.
        return NOTHING
    return _beside(ledger, claim, volume, now) or steps


def _beside(ledger: Ledger, claim: Claim, volume: Volume, now: float) -> Plan:
    """Beside the in-tree binder: what the bind has to wait for; nothing when it may be completed.

    Nothing is completed before the in-tree binder knows the volume: to it, the claim would be Lost (see ``debts``). Once it
    must have come to it, it is left a moment to bind the two itself, which it does where it is not held up; and a longer
    one where it was behind, unless it is seen to have come further.
    """
    wait = ledger.notes.wait(claim.uid)
    before = "" if wait is None else wait.reason
    unknown = ledger.debts.awaits(volume.name) and not ledger.is_confirmed(volume)
    behind = before in {LAGGING, RECOVERING}
    if not claim.bind_completed and ledger.debts.before(volume.name):
        reason = LAGGING
    elif not claim.bind_completed and unknown:
        reason = before if behind else CONFIRMING
    else:
        reason = RECOVERING if behind else FINISHING
    waited = now - wait.since if wait is not None and before == reason else 0.0
    if claim.bind_completed or reason == FINISHING:
        rest = GRACE - waited
    elif reason == RECOVERING and not unknown:
        rest = (GRACE if ledger.debts.reached(volume.name) else CAUTION) - waited
    else:
        rest = _lag(waited)
    if rest <= 0:
        return NOTHING
    again = Requeue(after=min(rest, LAG_REST))
    if before == reason:
        return (again,)
    told = Wait(reason="", since=now) if wait is None else wait
    return RememberWait(uid=claim.uid, wait=replace(told, reason=reason, since=now, waits_for="")), again


def _lag(waited: float) -> float:
    """Seconds until the next look whether the in-tree binder has come to the volume; 0: it does not run."""
    if waited >= MOST_LAG:
        return 0.0
    return SHORT_REST if waited < LAG_REST else LAG_REST


def _is_stored(attempt: Attempt | None) -> bool:
    return attempt is not None and attempt.progress is Progress.STORED


def _adopt(claim: Claim, volume: Volume, attempt: Attempt | None, now: float) -> Plan:
    """The object is stored and owns its storage; anything we made elsewhere for the same claim goes."""
    if attempt is None:
        # Made by an earlier life of this operator: nobody knows any more how long it took.
        begun = replace(provisioning.begun(claim, now), began=float("nan"))
        return (Remember(attempt=replace(begun, progress=Progress.STORED, node=volume.node)),)
    created = attempt.created
    elsewhere = volume.node not in {"", attempt.node}
    # What we have made there ourselves is remembered, in case that the object goes before the claim is bound.
    own = None if elsewhere else created
    stored = replace(attempt, progress=Progress.STORED, node=volume.node, created=own, request=None)
    if elsewhere and attempt.progress is Progress.CREATED and created is not None:
        return (DeleteVolume(node=attempt.node, volume_id=created.volume_id, attempt=attempt, kept=stored),)
    if elsewhere and attempt.progress is Progress.RUNNING:
        return (CreateVolume(attempt=attempt, again=True),)
    return (Remember(attempt=stored),)


def _settle(claim: Claim, volume: Volume, attempt: Attempt | None, now: float) -> Plan:
    """All is stored: tell it once, whoever did the last step.

    Another operator may have done everything while a call of ours was on its way to another node: what that
    call made goes first.
    """
    if attempt is None:
        return NOTHING
    if attempt.progress is Progress.NOTHING:
        return (ForgetAttempt(uid=claim.uid),)
    if attempt.progress is not Progress.STORED:
        return _adopt(claim, volume, attempt, now)
    seconds = now - attempt.began
    message = explaining.made(volume, seconds=seconds if seconds == seconds else None)  # noqa: PLR0124 (not a number)
    return (
        Emit(regarding=claim.reference, reason=explaining.SUCCEEDED, message=message, key=explaining.SUCCEEDED),
        Settled(uid=claim.uid, created=claim.created),
    )
