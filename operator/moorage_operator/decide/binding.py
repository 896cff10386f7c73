"""The writes that bind a claim to a volume, in the order that keeps them safe (binding.md 1.7).

1. claimRef on the volume, with the claim's uid;
2. phase Bound on the volume's status, and beside it volumeName and marks on the claim;
3. phase, modes and capacity on the claim's status.

Each is left out when it is stored already, so whoever dies after any of them, ours or the in-tree binder, leaves a
state from which the other goes on. The claim is never marked complete before the reservation is stored, and its
status never says Bound before it names its volume.
"""

from typing import Final

from moorage_operator.decide import writing
from moorage_operator.decide.plan import NOTHING, ConfirmLives, Fail, Plan, Together
from moorage_operator.model import claim as claims
from moorage_operator.model import volume as volumes
from moorage_operator.model.claim import Claim
from moorage_operator.model.volume import Volume

_LEFT: Final = frozenset({volumes.RELEASED, volumes.FAILED})


def bind(claim: Claim, volume: Volume) -> Plan:
    """The next writes of the bind; nothing when all is stored.

    After a crash at any of them the same call gives the rest of the writes.
    """
    if not reserved(volume, claim):
        return (writing.reserve(volume, claim),)
    writes = []
    if volume.phase != volumes.BOUND:
        writes.append(writing.mark_volume_bound(volume))
    if claim.volume_name != volume.name or not claim.bind_completed:
        writes.append(writing.bind_claim(claim, volume))
    if writes:
        step = Together(writes=tuple(writes)) if len(writes) > 1 else writes[0]
        # Who called it Released may know that the claim is gone.
        return (ConfirmLives(target=writing.claim_target(claim)), step) if volume.phase in _LEFT else (step,)
    if not _status_differs(claim, volume):
        return NOTHING
    if not volume.capacity_text:
        return (Fail(why=f"volume {volume.name} has no capacity.storage to be copied to its claim"),)
    return (writing.mark_claim_bound(claim, volume),)


def reserved(volume: Volume, claim: Claim) -> bool:
    """Whether claimRef names exactly this claim."""
    ref = volume.claim
    return ref is not None and (ref.namespace, ref.name, ref.uid) == (claim.namespace, claim.name, claim.uid)


def _status_differs(claim: Claim, volume: Volume) -> bool:
    return claim.phase != claims.BOUND or claim.status_modes != volume.access_modes
