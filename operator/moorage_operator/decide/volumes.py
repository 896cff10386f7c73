"""What one PersistentVolume needs: reclaiming, and nothing else. Its bind is decided with its claim.

Deleting, one decision a line, each skipped when it is done already:

1. the node is connected to, then volume and claim are read live: Released, policy Delete, no claim of that uid;
2. the driver destroys the storage, at the node that holds it;
3. DELETE of the object, with its uid;
4. our finalizer comes off.

After a crash at 2 or 3 the driver is asked again and answers that it is gone. A node that cannot be
reached is never a reason to let the object go: the object is all that remembers the storage.
"""

from moorage_csi.contract import DRIVER_NAME
from moorage_operator.decide import explaining, placing, writing
from moorage_operator.decide.plan import NOTHING, ConfirmReleased, DeleteVolume, Plan, Reach, Refresh
from moorage_operator.ledger import Ledger
from moorage_operator.model import volume as volumes
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import Key
from moorage_operator.model.volume import Volume


def decide_volume(ledger: Ledger, key: Key) -> Plan:
    """The next steps for the volume of that key; nothing when there is no such volume, or it is not ours."""
    volume = ledger.volume(key.name)
    if volume is None or not volume.ours:
        return NOTHING
    if may_destroy(volume, ledger.claim_of(volume.claim_uid)):
        return _reclaim(ledger, volume)
    if volume.deleting and volume.reclaim_policy != volumes.DELETE and volume.phase != volumes.BOUND:
        return (writing.remove_finalizer(volume),) if volumes.FINALIZER in volume.finalizers else NOTHING
    return NOTHING


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


def _reclaim(ledger: Ledger, volume: Volume) -> Plan:
    if not ledger.notes.destroyed(volume.uid):
        return _destroy(ledger, volume)
    if not volume.deleting:
        return writing.delete_volume(volume), Refresh(target=writing.volume_target(volume))
    return (writing.remove_finalizer(volume),) if volumes.FINALIZER in volume.finalizers else NOTHING


def _destroy(ledger: Ledger, volume: Volume) -> Plan:
    node = volume.node or _any_node(ledger, volume)
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


def _any_node(ledger: Ledger, volume: Volume) -> str:
    """For storage that every node reaches: the node that a hash of the volume picks."""
    nodes = ledger.nodes_with(DRIVER_NAME)
    return placing.order(nodes, uid=volume.uid, size=0, rooms=None)[0] if nodes else ""
