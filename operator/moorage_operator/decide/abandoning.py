"""What becomes of storage that was begun for a claim that does not want it any more.

The claim was deleted, or the binder gave it another volume. Storage that a PersistentVolume names is
that object's business. Anything else is destroyed here; and where it is not known whether there is
anything, the same call is made once more to find out, since only the driver can tell.

After a crash nobody remembers: then the driver's ownership record, which names the claim, is what is left.
"""

from dataclasses import replace
from typing import Final

from moorage_operator.decide import writing
from moorage_operator.decide.plan import (
    NOTHING,
    ConfirmUnowned,
    CreateVolume,
    DeleteVolume,
    ForgetAttempt,
    Plan,
    Requeue,
)
from moorage_operator.ledger import Ledger
from moorage_operator.model.attempt import Attempt, Progress
from moorage_operator.model.ids import Key, Uid
from moorage_operator.model.volume import DELETE, Volume

BUSY_REST: Final = 1.0
OWNER_REST: Final = 5.0


def decide_orphan(ledger: Ledger, key: Key, now: float) -> Plan:
    """The next steps for what was begun for a claim that is gone; nothing while the claim lives."""
    uid = Uid(key.name)
    attempt = ledger.notes.attempt(uid)
    if attempt is None or ledger.claim_of(uid) is not None:
        return NOTHING
    if ledger.notes.calling(uid):
        return (Requeue(after=BUSY_REST),)
    if now < attempt.rest_until:
        return (Requeue(after=attempt.rest_until - now),)
    made = attempt.progress is Progress.RUNNING or attempt.created is not None
    if made and _is_going(ledger.volume(attempt.name), attempt):
        return (Requeue(after=OWNER_REST),)
    return abandon(ledger, attempt)


def _is_going(volume: Volume | None, attempt: Attempt) -> bool:
    """Whether the object that owns the storage goes, with storage that may have been destroyed before our call came.

    Another operator, or we, may have asked the driver to destroy it while that call was on its way, and it has made
    it again: only once the object is gone can it be told from what belongs to it.
    """
    return volume is not None and volume.node in {"", attempt.node} and volume.reclaim_policy == DELETE


def abandon(ledger: Ledger, attempt: Attempt) -> Plan:
    """Get rid of what an attempt has left, if anything.

    A volume object owns what is on the node it names; of the same name on another node it knows nothing.
    """
    volume = ledger.volume(attempt.name)
    owned = volume is not None and volume.node in {"", attempt.node}
    if attempt.created is not None and not owned:
        return (
            ConfirmUnowned(target=writing.volume_named(attempt.name), node=attempt.node),
            DeleteVolume(node=attempt.node, volume_id=attempt.created.volume_id, attempt=attempt),
        )
    if attempt.progress is Progress.RUNNING and not owned and ledger.node(attempt.node) is not None:
        return (CreateVolume(attempt=replace(attempt, rest_until=0.0), again=True),)
    return (ForgetAttempt(uid=attempt.uid),)
