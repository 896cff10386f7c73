"""What one PersistentVolume needs. Its bind is decided with its claim.

For our own volumes that is reclaiming; for those that an annotation asks it for, being used again or kept; and where
we are the cluster's only binder, for everybody's the table of binding.md 1.6.

Deleting one of ours, one decision a line, each skipped when it is done already:

1. the node is connected to, then volume and claim are read live: Released, policy Delete, no claim of that uid;
2. the driver destroys the storage, at the node that holds it;
3. DELETE of the object, with its uid;
4. our finalizer comes off.

After a crash at 2 or 3 the driver is asked again and answers that it is gone. A node that cannot be
reached is never a reason to let the object go: the object is all that remembers the storage.
"""

from typing import Final

from moorage_operator.decide import explaining, marks, placing, plugins, reclaiming, reusing, writing
from moorage_operator.decide.plan import NOTHING, ConfirmGone, ConfirmReleased, DeleteVolume, Plan, Reach, Refresh
from moorage_operator.ledger import Ledger
from moorage_operator.model import volume as volumes
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import Key
from moorage_operator.model.volume import Volume

NOT_NEEDED: Final = "VolumeNotNeeded"


def decide_volume(ledger: Ledger, key: Key) -> Plan:
    """The next steps for the volume of that key; nothing when there is no such volume, or it is somebody else's move."""
    volume = ledger.volume(key.name)
    if volume is None:
        return NOTHING
    instead = ledger.rules.instead
    if instead and (mended := marks.mend_volume(ledger.rules, volume)):
        return mended
    asked = reusing.keep(ledger, volume) or reusing.reuse(ledger, volume)
    if asked:
        return asked
    claim = ledger.claim_of(volume.claim_uid)
    if may_destroy(volume, claim):
        return _reclaim(ledger, volume)
    if claim is not None and (told := _too_late(ledger, volume, claim)):
        return told
    if instead and (synced := _sync(ledger, volume)):
        return synced
    if volume.ours and volume.deleting and volume.reclaim_policy != volumes.DELETE and volume.phase != volumes.BOUND:
        return (writing.remove_finalizer(volume),) if volumes.FINALIZER in volume.finalizers else NOTHING
    return NOTHING


def _sync(ledger: Ledger, volume: Volume) -> Plan:
    """What the cluster's binder does with any volume: its phase, its losers, and reclaiming (binding.md 1.6)."""
    ref = volume.claim
    if ref is None or not ref.uid:
        return _phase(volume, volumes.AVAILABLE)
    claim = ledger.claim(ref.key)
    if claim is None or claim.uid != ref.uid:
        if volume.phase in {volumes.RELEASED, volumes.FAILED}:
            return reclaiming.reclaim(ledger, volume)
        gone = () if ledger.is_gone(Claim, ref.uid) else (ConfirmGone(target=writing.claim_named(ref, uid=ref.uid)),)
        return *gone, writing.set_volume_phase(volume, volumes.RELEASED)
    if not claim.volume_name:
        return _other_mode(ledger, volume, claim) if volume.volume_mode != claim.volume_mode else NOTHING
    if claim.volume_name == volume.name:
        # The claim's own bind may be about to say it.
        return NOTHING if ledger.stock.held(volume.name) else _phase(volume, volumes.BOUND)
    if volume.provisioned_by and volume.reclaim_policy == volumes.DELETE:
        if volume.phase in {volumes.RELEASED, volumes.FAILED}:
            return reclaiming.reclaim(ledger, volume)
        return (writing.set_volume_phase(volume, volumes.RELEASED),)
    return (plugins.unbind(volume),)


def _phase(volume: Volume, phase: str) -> Plan:
    return NOTHING if volume.phase == phase else (writing.set_volume_phase(volume, phase),)


def _other_mode(ledger: Ledger, volume: Volume, claim: Claim) -> Plan:
    """The volume is kept for a claim that it can never be bound to: both are told (binding.md V3)."""
    message = (
        f"Volume {volume.name} (volumeMode {volume.volume_mode}) is reserved for claim {claim.namespace}/{claim.name} "
        f"(volumeMode {claim.volume_mode}): they can never be bound. Remove the volume's spec.claimRef"
    )
    return (
        *explaining.warn(ledger, volume.reference, "VolumeMismatch", message),
        *explaining.warn(ledger, claim.reference, "VolumeMismatch", message),
    )


def may_destroy(volume: Volume, claim: Claim | None) -> bool:
    """Whether the storage may be destroyed: the policy says so, and no claim of that uid lives.

    Also when the claim is bound to another volume: a claim that lives keeps everything that names it.
    A volume that nobody claimed goes only when a person deletes its object.

    Args:
        volume: the newest that is known of it.
        claim: the living claim that has the uid in claimRef; None when there is none.
    """
    if volume.reclaim_policy != volumes.DELETE or not volume.ours or not volume.handle or claim is not None:
        return False
    finalized = volumes.FINALIZER in volume.finalizers
    if volume.phase == volumes.RELEASED and volume.claim_uid:
        return finalized or not volume.deleting
    return volume.phase == volumes.AVAILABLE and volume.claim is None and volume.deleting and finalized


def _too_late(ledger: Ledger, volume: Volume, claim: Claim) -> Plan:
    """The claim got another volume while this one was made for it: kept as long as it lives, and said so."""
    if claim.volume_name in {"", volume.name} or not may_destroy(volume, None):
        return NOTHING
    message = (
        f"Claim {claim.namespace}/{claim.name} was bound to volume {claim.volume_name} while this one was made for it: "
        "this one is destroyed when the claim is deleted"
    )
    return explaining.note(ledger, volume.reference, NOT_NEEDED, message)


def _reclaim(ledger: Ledger, volume: Volume) -> Plan:
    if not ledger.notes.destroyed(volume.uid):
        return _destroy(ledger, volume)
    if not volume.deleting:
        return writing.delete_volume(volume), Refresh(target=writing.volume_target(volume))
    return (writing.remove_finalizer(volume),) if volumes.FINALIZER in volume.finalizers else NOTHING


def _destroy(ledger: Ledger, volume: Volume) -> Plan:
    node = volume.node or placing.any_node(ledger, volume)
    if not node:
        return explaining.warn(
            ledger,
            volume.reference,
            explaining.DELETE_FAILED,
            "No node has Moorage's node plugin registered: the storage is deleted when one has",
        )
    told: Plan = ()
    if ledger.node(node) is None:
        told = explaining.warn(
            ledger,
            volume.reference,
            explaining.DELETE_FAILED,
            f"Node {node}, which holds the storage, does not exist: waiting for it. If it never returns, remove the "
            f"finalizer {volumes.FINALIZER} from the volume and its files under the pool by hand",
            node=node,
        )
    deletion = DeleteVolume(node=node, volume_id=volume.handle, regarding=volume.reference)
    claim = None if volume.claim is None else writing.claim_named(volume.claim)
    return (
        *told,
        Reach(deletion=deletion),
        ConfirmReleased(volume=writing.volume_target(volume), claim=claim),
        deletion,
    )
