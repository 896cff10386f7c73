"""Volumes that others make: telling the provisioner of a class that it shall act (binding.md 1.9).

Provisioners are programs of their own, which wait for two annotations on the claim; or, for names that begin with
``kubernetes.io/``, plugins inside the binder's process. Of those hardly any are left: Moorage runs none unless it is
handed one, and says so.
"""

from moorage_operator.decide import explaining, plugins, reasons, writing
from moorage_operator.decide.judging import Judgement
from moorage_operator.decide.plan import NOTHING, Plan
from moorage_operator.ledger import Ledger
from moorage_operator.model.claim import Claim
from moorage_operator.model.rules import IN_TREE


def delegate(ledger: Ledger, claim: Claim, judgement: Judgement, now: float) -> Plan:
    """The steps for a claim whose volume is somebody else's to make.

    After a crash the annotations are stored or not; a plugin is asked again under the same name.
    """
    cls, rules = judgement.cls, ledger.rules
    if cls is None:
        return _tell(ledger, claim, judgement, now)
    migrated = rules.migrated.get(cls.provisioner, "")
    if migrated or not cls.provisioner.startswith(IN_TREE):
        return *ask(ledger, claim, migrated or cls.provisioner), *_tell(ledger, claim, judgement, now)
    plugin = rules.plugins.get(cls.provisioner)
    if plugin is None or not plugin.provisions:
        return _tell(ledger, claim, judgement, now)
    if claim.source:
        return plugins.refuse_source(claim, cls)
    return *ask(ledger, claim, cls.provisioner), *plugins.provision(claim, cls, plugin)


def _tell(ledger: Ledger, claim: Claim, judgement: Judgement, now: float) -> Plan:
    why = reasons.answer(ledger, claim, judgement)
    return NOTHING if why is None else explaining.waits(ledger, claim, why, now)


def ask(ledger: Ledger, claim: Claim, provisioner: str) -> Plan:
    """The write that asks a provisioner to act, unless it was asked before."""
    if claim.storage_provisioner == provisioner:
        return NOTHING
    return (writing.ask_provisioner(claim, provisioner, ledger.rules.migrated.get(provisioner, "")),)
