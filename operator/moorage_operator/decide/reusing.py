"""Repairs that people ask for by annotation: Released volumes used again, and free ones kept for somebody.

``moorage.dev/reuse`` on a volume, or on its class for all of them, with policy Retain:

- ``same-claim``: the next claim of the same namespace and name gets it, with its data. It is kept for that name as soon
  as its claim is gone, so that whichever binder sees the new claim finds it reserved.
- ``after-wipe``: our driver empties it, then it is anybody's.

``moorage.dev/reserved-for: <namespace>`` or ``<namespace>/<claim>`` on a volume keeps it for these: by a claimRef, which
the in-tree binder and the scheduler respect too. For a whole namespace it names ``*``, which no claim can be called.
"""

from typing import Final

from moorage_operator.decide import explaining, reclaiming, writing
from moorage_operator.decide.plan import NOTHING, ConfirmGone, Emit, Plan
from moorage_operator.ledger import Ledger
from moorage_operator.model import volume as volumes
from moorage_operator.model.storage_class import REUSE
from moorage_operator.model.volume import ANY_CLAIM, RESERVED_FOR, Volume

BAD_ANNOTATION: Final = "AnnotationNotUnderstood"
KEPT: Final = "VolumeKept"


def reuse(ledger: Ledger, volume: Volume) -> Plan:
    """The next step of using a Released volume again; nothing where nobody asked for it.

    After a crash the same step is done again: each is conditional, and the driver knows a wipe that it has done.
    """
    wanted = volume.reuse or _of_class(ledger, volume)
    if not wanted or not _is_reusable(ledger, volume):
        return NOTHING
    if wanted == volumes.SAME_CLAIM:
        return _keep_for_next(volume)
    if wanted == volumes.AFTER_WIPE and volume.ours and volume.handle:
        return reclaiming.wipe(ledger, volume)
    why = f"{REUSE} is {wanted!r}: expected {volumes.SAME_CLAIM} or {volumes.AFTER_WIPE}"
    if wanted == volumes.AFTER_WIPE:
        why = f"{REUSE} is {wanted}, and the volume is not one of Moorage's driver, which could empty it"
    return explaining.warn(ledger, volume.reference, BAD_ANNOTATION, why)


def keep(ledger: Ledger, volume: Volume) -> Plan:
    """The write that keeps a free volume for whom its annotation says; nothing when it is so, or not free."""
    ref = volume.claim
    if volume.deleting or volume.phase not in {"", volumes.PENDING, volumes.AVAILABLE}:
        return NOTHING
    if ref is not None and ref.name != ANY_CLAIM:
        return NOTHING
    if not volume.reserved_for:
        return NOTHING if ref is None else (writing.give_back(volume),)
    namespace, slash, name = volume.reserved_for.partition("/")
    if not namespace or (slash and not name) or "/" in name:
        why = f"{RESERVED_FOR} is {volume.reserved_for!r}: expected a namespace, or namespace/claim"
        return explaining.warn(ledger, volume.reference, BAD_ANNOTATION, why)
    if ref is not None and (ref.namespace, ref.name) == (namespace, name or ANY_CLAIM):
        return NOTHING
    return (writing.keep_for(volume, namespace, name or ANY_CLAIM),)


def _is_reusable(ledger: Ledger, volume: Volume) -> bool:
    """Released, to be retained, and no claim of that uid lives, not even one that is bound to another volume."""
    return (
        volume.phase == volumes.RELEASED
        and volume.reclaim_policy == volumes.RETAIN
        and not volume.deleting
        and bool(volume.claim_uid)
        and ledger.claim_of(volume.claim_uid) is None
    )


def _keep_for_next(volume: Volume) -> Plan:
    if volume.claim is None:
        return NOTHING
    gone = ConfirmGone(target=writing.claim_named(volume.claim, uid=volume.claim.uid))
    name = f"{volume.claim.namespace}/{volume.claim.name}"
    emit = Emit(
        regarding=volume.reference,
        reason=KEPT,
        message=f"Its claim is gone: the volume is kept, with its data, for the next claim {name}",
        key=f"{KEPT}:{volume.claim.uid}",
    )
    return gone, writing.keep_for_next(volume), emit


def _of_class(ledger: Ledger, volume: Volume) -> str:
    cls = ledger.storage_class(volume.class_name)
    return "" if cls is None else cls.reuse
