"""Finalizers and the migration mark: what in-tree plugins and the CSI drivers that took them over tell each other.

Only the cluster's own binder keeps these in order, so only in mode ``instead`` do we.
"""

from moorage_operator.decide import writing
from moorage_operator.decide.plan import NOTHING, Plan
from moorage_operator.model import volume as volumes
from moorage_operator.model.claim import Claim
from moorage_operator.model.rules import IN_TREE, Rules
from moorage_operator.model.volume import Volume


def migrated_to(rules: Rules, provisioner: str, mark: str) -> str:
    """The migration mark that belongs on an object.

    Args:
        rules: which plugins are migrated.
        provisioner: who made the volume, or is asked to; empty for nobody, and then the mark stays as it is.
        mark: the present one; empty for none.
    """
    return rules.migrated.get(provisioner, "") if provisioner else mark


def finalizers(rules: Rules, volume: Volume) -> tuple[str, ...]:
    """The finalizers that belong on a volume.

    A volume of an in-tree plugin with policy Delete is kept by the binder until its storage is gone; one that a CSI
    driver has taken over is kept by that driver's provisioner instead. Those of others stay.
    """
    present = volume.finalizers
    if not volume.provisioned_by:
        return present
    if volume.provisioned_by in rules.migrated:
        return _without(present, volumes.IN_TREE_FINALIZER)
    if not volume.provisioned_by.startswith(IN_TREE):
        return present
    present = _without(present, volumes.FINALIZER)
    if volume.reclaim_policy != volumes.DELETE:
        return _without(present, volumes.IN_TREE_FINALIZER)
    if volumes.IN_TREE_FINALIZER in present or volume.deleting:
        return present
    return *present, volumes.IN_TREE_FINALIZER


def mend_volume(rules: Rules, volume: Volume) -> Plan:
    """The write that puts a volume's marks in order; nothing when they are."""
    wanted = finalizers(rules, volume)
    mark = migrated_to(rules, volume.provisioned_by, volume.migrated_to)
    if (wanted, mark) == (volume.finalizers, volume.migrated_to):
        return NOTHING
    return (writing.set_volume_marks(volume, finalizers=wanted, migrated_to=mark),)


def mend_claim(rules: Rules, claim: Claim) -> Plan:
    """The write that puts a claim's migration mark in order; nothing when it is."""
    asked = claim.storage_provisioner if claim.storage_provisioner is not None else claim.beta_provisioner
    mark = migrated_to(rules, asked or "", claim.migrated_to)
    return NOTHING if mark == claim.migrated_to else (writing.set_claim_migrated(claim, mark),)


def _without(present: tuple[str, ...], finalizer: str) -> tuple[str, ...]:
    return tuple(each for each in present if each != finalizer)
