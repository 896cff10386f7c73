"""What one claim needs next.

The bind beside the in-tree binder, one decision a line, each skipped when it is stored already:

1. POST the PersistentVolume, with claimRef and uid in it;
2. phase Bound on its status, and beside it volumeName and marks on the claim;
3. phase, modes and capacity on the claim's status;
4. one event.

The order is what keeps it safe: the claim is never marked complete before the reservation is stored, and
its status never says Bound before the claim names its volume. The in-tree binder follows the same
order from the same objects, so either of us may do any step, and whoever dies leaves the rest to the
other: after a crash at 1 it finishes as after any external provisioner, after 2 it adds the status. Where
it has done a step before us we find that out by a conflict, read, and do not do it again.
"""

from dataclasses import replace

from moorage_operator.decide import explaining, provisioning, writing
from moorage_operator.decide.abandoning import abandon
from moorage_operator.decide.plan import (
    NOTHING,
    CreateVolume,
    DeleteVolume,
    Emit,
    ForgetAttempt,
    Plan,
    Remember,
    Settled,
    Together,
)
from moorage_operator.ledger import Ledger
from moorage_operator.model import volume as volumes
from moorage_operator.model.attempt import Attempt, Progress
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import Key
from moorage_operator.model.volume import Volume


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
    if claim.bound:
        return _settle(ledger, claim, attempt, now)
    volume = ledger.volume(claim.volume_name or writing.volume_name(claim.uid))
    if volume is not None and _finishable(volume, claim):
        return _bind(claim, volume, attempt, now)
    return NOTHING if claim.volume_name else provisioning.provision(ledger, claim, now)


def _finishable(volume: Volume, claim: Claim) -> bool:
    """We made it for this very claim, and nobody has begun to take it away."""
    return (
        volume.made_by_us
        and volume.claim_uid == claim.uid
        and volume.phase in {volumes.PENDING, volumes.AVAILABLE, volumes.BOUND}
        and not (volume.deleting and not claim.volume_name)
    )


def _bind(claim: Claim, volume: Volume, attempt: Attempt | None, now: float) -> Plan:
    if attempt is None or attempt.progress is not Progress.STORED:
        return _adopt(claim, volume, attempt, now)
    writes = []
    if volume.phase != volumes.BOUND:
        writes.append(writing.mark_volume_bound(volume))
    if not (claim.volume_name and claim.bind_completed):
        writes.append(writing.bind_claim(claim, volume))
    if writes:
        return (Together(writes=tuple(writes)),)
    return (writing.mark_claim_bound(claim, volume),)


def _adopt(claim: Claim, volume: Volume, attempt: Attempt | None, now: float) -> Plan:
    """The object is stored and owns its storage; anything we made elsewhere for the same claim goes."""
    if attempt is None:
        # Made by an earlier life of this operator: nobody knows any more how long it took.
        begun = replace(provisioning.begun(claim, now), began=float("nan"))
        return (Remember(attempt=replace(begun, progress=Progress.STORED, node=volume.node)),)
    stored = replace(attempt, progress=Progress.STORED, node=volume.node, created=None, request=None)
    created = attempt.created
    elsewhere = volume.node not in {"", attempt.node}
    if elsewhere and attempt.progress is Progress.CREATED and created is not None:
        return (DeleteVolume(node=attempt.node, volume_id=created.volume_id, attempt=attempt, kept=stored),)
    if elsewhere and attempt.progress is Progress.RUNNING:
        return (CreateVolume(attempt=attempt, again=True),)
    return (Remember(attempt=stored),)


def _settle(ledger: Ledger, claim: Claim, attempt: Attempt | None, now: float) -> Plan:
    """All is stored: tell it once, whoever did the last step.

    Another operator may have done everything while a call of ours was on its way to another node: what that
    call made goes first.
    """
    volume = ledger.volume(claim.volume_name)
    if attempt is None or volume is None:
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
