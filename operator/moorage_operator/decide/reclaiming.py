"""What becomes of a volume whose claim is gone, by its reclaim policy (binding.md 1.10).

Retain leaves it Released with its data. Delete is done by whoever made it: a driver's own provisioner (ours:
``decide.volumes``), or a plugin of this process. Recycle empties it for the next claim: our driver does so for its
own volumes, plugins for theirs.
"""

from moorage_operator.decide import explaining, placing, plugins, writing
from moorage_operator.decide.plan import NOTHING, ConfirmReclaimable, Plan, WipeVolume
from moorage_operator.ledger import Ledger
from moorage_operator.model import volume as volumes
from moorage_operator.model.volume import Volume


def reclaim(ledger: Ledger, volume: Volume) -> Plan:
    """The next step for a volume that is Released or Failed, where we are the cluster's binder.

    Before anything is destroyed volume and claim are read live. After a crash the plugin or the driver is asked
    again, and both answer for what is gone already as for what they have just done.
    """
    if volume.migrated_to:
        return NOTHING
    match volume.reclaim_policy:
        case volumes.RETAIN:
            return NOTHING
        case volumes.DELETE:
            return _confirmed(volume, plugins.destroy(ledger, volume))
        case volumes.RECYCLE:
            return _recycle(ledger, volume)
        case _:
            return _confirmed(volume, plugins.unknown_policy(ledger, volume))


def wipe(ledger: Ledger, volume: Volume) -> Plan:
    """Have our driver empty one of its volumes, where its storage is."""
    node = volume.node or placing.any_node(ledger, volume)
    if not node:
        message = "No node has Moorage's node plugin registered: the volume is emptied when one has"
        return explaining.warn(ledger, volume.reference, plugins.RECYCLE_FAILED, message)
    return ConfirmReclaimable(volume=volume), WipeVolume(node=node, volume=volume)


def not_wiped(ledger: Ledger, volume: Volume, error: str) -> Plan:
    """It is as it was; the queue tries again."""
    return explaining.warn(ledger, volume.reference, plugins.RECYCLE_FAILED, error)


def wiped(volume: Volume) -> Plan:
    """It is empty: it may be anybody's again."""
    message = "The data of the last claim was removed by the driver: the volume can be used again"
    return plugins.recycled(volume, message), writing.give_back(volume)


def _recycle(ledger: Ledger, volume: Volume) -> Plan:
    claim = None if volume.claim is None else ledger.claim(volume.claim.key)
    if claim is None and volume.claim is not None and (pods := ledger.users(volume.claim.key)):
        message = f"The volume is still used by pod {pods[0].name}: it is emptied when that has finished"
        return explaining.note(ledger, volume.reference, plugins.RECYCLE_FAILED, message)
    if volume.ours and volume.handle:
        return wipe(ledger, volume)
    return _confirmed(volume, plugins.scrub(ledger, volume))


def _confirmed(volume: Volume, steps: Plan) -> Plan:
    return (ConfirmReclaimable(volume=volume), *steps) if steps else NOTHING
