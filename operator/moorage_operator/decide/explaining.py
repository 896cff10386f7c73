"""Sentences for people: what happened to a claim or volume, and what would help.

A sentence is told once about an object. Two sentences that differ in their figures only (free bytes,
seconds) are the same one, so that a reason that stays does not become a stream of events.
"""

import re
from dataclasses import replace
from typing import Final

from moorage_operator.decide.plan import NOTHING, Emit, Plan, RememberWait, Requeue
from moorage_operator.decide.reasons import Answer
from moorage_operator.ledger import Ledger
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import Uid
from moorage_operator.model.quantity import format_bytes
from moorage_operator.model.reference import Reference
from moorage_operator.model.volume import Volume
from moorage_operator.model.wait import Wait

SUCCEEDED: Final = "ProvisioningSucceeded"
FAILED: Final = "ProvisioningFailed"
WAITING: Final = "WaitingForNode"
GOING_ON: Final = "Provisioning"
DELETE_FAILED: Final = "VolumeFailedDelete"

RETELL: Final = 30.0
"""Seconds between two events about one claim's wait, however fast the reasons change."""
REFRESH: Final = 2700.0
"""Seconds after which a wait that goes on is told again; the API server keeps events for 3600."""

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


def waits(ledger: Ledger, claim: Claim, why: Answer, now: float) -> Plan:
    """Tell why a claim waits: once it has waited for a moment, and again when the reason has become another.

    Events expire after an hour, so a wait that goes on is told again before that. It is remembered in memory only;
    after a restart it is told once more, as an event of the same name, which is then counted on.
    """
    if not (why.binder or ledger.rules.explains):
        return NOTHING
    wait = ledger.notes.wait(claim.uid)
    if wait is None or wait.reason != why.key:
        told, told_at = ("", float("-inf")) if wait is None else (wait.told, wait.told_at)
        wait = Wait(reason=why.key, waits_for=why.waits_for, since=now, told=told, told_at=told_at)
    if wait.told == why.key:
        due = wait.told_at + REFRESH
    else:
        due = max(wait.since + ledger.rules.patience, wait.told_at + (RETELL if wait.told else 0.0))
    if now < due:
        return RememberWait(uid=claim.uid, wait=wait), Requeue(after=due - now)
    emit = Emit(
        regarding=claim.reference, reason=why.reason, message=why.message, key=f"waits:{why.key}", warning=why.warning
    )
    return RememberWait(uid=claim.uid, wait=replace(wait, told=why.key, told_at=now)), emit


def made(volume: Volume, *, seconds: float | None) -> str:
    """The one sentence of success."""
    where = f" on node {volume.node}" if volume.node else ""
    what = f"{volume.backend}, {format_bytes(volume.capacity)}" if volume.backend else format_bytes(volume.capacity)
    when = "" if seconds is None else f" in {seconds:.2f} s"
    return f"Volume {volume.name} ({what}) was made{where} and bound{when}"
