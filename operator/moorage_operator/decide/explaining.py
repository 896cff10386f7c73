"""Sentences for people: what happened to a claim or volume, and what would help.

A sentence is told once about an object. Two sentences that differ in their figures only (free bytes,
seconds) are the same one, so that a reason that stays does not become a stream of events.
"""

import re
from typing import Final

from moorage_operator.decide.plan import Emit, Plan
from moorage_operator.ledger import Ledger
from moorage_operator.model.ids import Uid
from moorage_operator.model.quantity import format_bytes
from moorage_operator.model.reference import Reference
from moorage_operator.model.volume import Volume

SUCCEEDED: Final = "ProvisioningSucceeded"
FAILED: Final = "ProvisioningFailed"
WAITING: Final = "WaitingForNode"
GOING_ON: Final = "Provisioning"
DELETE_FAILED: Final = "VolumeFailedDelete"

_FIGURES: Final = re.compile(r"\b[0-9]+(?:\.[0-9]+)?")


def told_once(
    ledger: Ledger, regarding: Reference, *, reason: str, message: str, node: str = "", warning: bool = False
) -> Plan:
    """The event, unless this was said about the object (and the node, if it is about one) before."""
    key = f"{reason}:{node}:{_FIGURES.sub('#', message)}"
    if ledger.notes.told(Uid(regarding.uid), key):
        return ()
    return (Emit(regarding=regarding, reason=reason, message=message, key=key, warning=warning),)


def warn(ledger: Ledger, regarding: Reference, reason: str, message: str, *, node: str = "") -> Plan:
    """A Warning, once."""
    return told_once(ledger, regarding, reason=reason, message=message, node=node, warning=True)


def note(ledger: Ledger, regarding: Reference, reason: str, message: str, *, node: str = "") -> Plan:
    """A Normal event, once."""
    return told_once(ledger, regarding, reason=reason, message=message, node=node)


def made(volume: Volume, *, seconds: float | None) -> str:
    """The one sentence of success."""
    where = f" on node {volume.node}" if volume.node else ""
    what = f"{volume.backend}, {format_bytes(volume.capacity)}" if volume.backend else format_bytes(volume.capacity)
    when = "" if seconds is None else f" in {seconds:.2f} s"
    return f"Volume {volume.name} ({what}) was made{where} and bound{when}"
