"""Whether a volume has to be made for a claim, where, and how the driver is asked.

Late-binding claims are made where the scheduler said, and given back to it when that node turns out
not to do. Immediate claims ask one node after another. A call whose outcome is unknown pins its node:
until the same call there has been answered, no other node is asked, since two volumes for one claim
would leave one that nobody owns.
"""

from dataclasses import replace
from typing import Final

from moorage_csi.contract import DRIVER_NAME, TOPOLOGY_KEY, Metadata, Parameter
from moorage_operator.decide import explaining, placing, writing
from moorage_operator.decide.plan import NOTHING, CreateVolume, MeasureRoom, Plan, Remember, Requeue
from moorage_operator.ledger import Ledger
from moorage_operator.model.attempt import Attempt, Progress
from moorage_operator.model.claim import Claim
from moorage_operator.model.provisioning import CreateRequest
from moorage_operator.model.storage_class import Class

UNSERVED_GRACE: Final = 20.0
"""Seconds that a selected node may be without our plugin (it restarts) before the scheduler is asked again."""

ROOMS_AGE: Final = 30.0
"""Seconds after which the nodes are asked again how much room they have."""

ROUND_REST: Final = 2.0
MOST_REST: Final = 60.0


def provision(ledger: Ledger, claim: Claim, now: float, *, node: str = "") -> Plan:
    """The next step for a claim without a volume; nothing where it is somebody else's move.

    Args:
        ledger: what is known.
        claim: of one of our classes.
        now: monotonic seconds.
        node: where a late-binding claim needs it, when that is decided.
    """
    cls = ledger.storage_class(claim.class_name or "")
    if cls is None or not cls.ours or claim.deleting:
        return NOTHING
    attempt = ledger.notes.attempt(claim.uid)
    going_on = () if attempt is None else _go_on(ledger, claim, cls, attempt, now)
    return going_on or _begin(
        ledger, claim, cls, begun(claim, now) if attempt is None else attempt.emptied(), now, node=node
    )


def _go_on(ledger: Ledger, claim: Claim, cls: Class, attempt: Attempt, now: float) -> Plan:
    """Finish what exists or may exist, before anything else; a node that is gone took it along."""
    if ledger.volume(attempt.name) is not None:
        return NOTHING
    if attempt.progress is Progress.CREATED and attempt.request and attempt.created:
        return (writing.create_volume(claim, cls, attempt.request, attempt.created),)
    if attempt.progress is Progress.RUNNING and ledger.node(attempt.node) is not None:
        return _rest(attempt, now) or (CreateVolume(attempt=attempt, again=True),)
    return NOTHING


def _begin(ledger: Ledger, claim: Claim, cls: Class, attempt: Attempt, now: float, *, node: str) -> Plan:
    refusal = _cannot(claim)
    if refusal:
        return explaining.warn(ledger, claim.reference, explaining.FAILED, refusal)
    if ledger.volume(writing.volume_name(claim.uid)) is not None:
        return _name_taken(ledger, claim)
    waiting = _barred(attempt, claim, cls, now) or _rest(attempt, now)
    if waiting:
        return waiting
    if cls.late:
        return _late(ledger, claim, cls, attempt, now, node=node)
    return _immediate(ledger, claim, cls, attempt, now)


def begun(claim: Claim, now: float) -> Attempt:
    """A fresh attempt for the claim."""
    return Attempt(claim=claim.key, uid=claim.uid, name=writing.volume_name(claim.uid), began=now)


def question(claim: Claim, cls: Class) -> tuple[str, ...]:
    """What the driver's answer depends on: while it stays the same, so does the answer."""
    return (cls.uid, cls.resource_version, str(claim.requested), *claim.access_modes, claim.volume_mode)


def request(claim: Claim, cls: Class, node: str) -> CreateRequest:
    """The call to the driver; the same claim, class and node always give the same one."""
    name = writing.volume_name(claim.uid)
    parameters = {key: value for key, value in cls.parameters.items() if key != Parameter.FSTYPE}
    parameters |= {
        Metadata.CLAIM_NAMESPACE: claim.namespace,
        Metadata.CLAIM_NAME: claim.name,
        Metadata.VOLUME_NAME: name,
    }
    return CreateRequest(
        name=name,
        required_bytes=claim.requested,
        parameters=parameters,
        access_modes=claim.access_modes,
        volume_mode=claim.volume_mode,
        filesystem=cls.parameters.get(Parameter.FSTYPE, "") if claim.volume_mode == "Filesystem" else "",
        mount_options=cls.mount_options,
        topology={TOPOLOGY_KEY: node},
    )


def _call(claim: Claim, cls: Class, attempt: Attempt, node: str) -> Plan:
    running = replace(
        attempt, progress=Progress.RUNNING, node=node, request=request(claim, cls, node), unserved_since=0.0
    )
    return Remember(attempt=running), CreateVolume(attempt=running, again=False)


def _late(ledger: Ledger, claim: Claim, cls: Class, attempt: Attempt, now: float, *, node: str) -> Plan:
    if not node:
        return NOTHING
    if ledger.serves(node, DRIVER_NAME):
        return _call(claim, cls, attempt, node)
    exists = ledger.node(node) is not None
    if not claim.selected_node:
        message = f"Node {node}, which the pod names itself, has no Moorage node plugin registered: waiting for it"
        return explaining.note(ledger, claim.reference, explaining.WAITING, message, node=node)
    if exists and not attempt.unserved_since:
        message = (
            f"Node {node}, where the pod was to run, has no Moorage node plugin registered: "
            f"waiting {UNSERVED_GRACE:.0f} s for it, then the scheduler is asked for another node"
        )
        return (
            Remember(attempt=replace(attempt, unserved_since=now)),
            *explaining.note(ledger, claim.reference, explaining.WAITING, message, node=node),
            Requeue(after=UNSERVED_GRACE),
        )
    remaining = attempt.unserved_since + UNSERVED_GRACE - now
    if exists and remaining > 0:
        return (Requeue(after=remaining),)
    why = "still has no Moorage node plugin" if exists else "does not exist"
    message = f"Node {node} {why}: the scheduler is asked for another node"
    return (
        *explaining.note(ledger, claim.reference, explaining.WAITING, message, node=node),
        Remember(attempt=replace(attempt, unserved_since=0.0)),
        writing.give_back_to_scheduler(claim),
    )


def _immediate(ledger: Ledger, claim: Claim, cls: Class, attempt: Attempt, now: float) -> Plan:
    nodes = placing.candidates(ledger, cls)
    if not nodes:
        return explaining.note(ledger, claim.reference, explaining.WAITING, placing.why_none(ledger, cls))
    untried = tuple(node for node in nodes if node.name not in attempt.refused)
    if not untried:
        return _nobody(ledger, claim, attempt, now)
    rooms = ledger.notes.rooms(cls.name)
    if len(nodes) > 1 and (rooms is None or now - rooms.measured > ROOMS_AGE):
        names = tuple(sorted(node.name for node in nodes))
        return (MeasureRoom(class_name=cls.name, parameters=cls.parameters, nodes=names),)
    first = placing.order(untried, uid=claim.uid, size=claim.requested, rooms=rooms)[0]
    return _call(claim, cls, attempt, first)


def _nobody(ledger: Ledger, claim: Claim, attempt: Attempt, now: float) -> Plan:
    """Every candidate has refused: say so, rest, and begin a new round.

    With nodes out of reach the rest stays short, since they may be back at any moment.
    """
    message = "No node can make the volume now: " + "; ".join(f"{why}" for _, why in sorted(attempt.refused.items()))
    next_round = replace(attempt, refused={}, missed=frozenset())
    if attempt.missed:
        next_round = replace(next_round, rest_until=now + ROUND_REST)
        told = explaining.note(ledger, claim.reference, explaining.WAITING, message)
    else:
        next_round = next_round.rested(now, base=ROUND_REST, most=MOST_REST)
        told = explaining.warn(ledger, claim.reference, explaining.FAILED, message)
    return *told, Remember(attempt=next_round), Requeue(after=next_round.rest_until - now)


def _cannot(claim: Claim) -> str:
    """Why no volume can be made for a claim like this; empty when one can."""
    if claim.selector is not None:
        return (
            "The claim has a selector, which picks among volumes that exist: none is made for it. "
            "Remove the selector to have one made, or make a volume whose labels match"
        )
    if claim.source:
        return f"The claim asks for a copy of {claim.source}: snapshots and clones are not supported by this version"
    if claim.attributes_class:
        return (
            f"The claim asks for VolumeAttributesClass {claim.attributes_class!r}: "
            "Moorage's volumes have no attributes that could be modified"
        )
    return ""


def _name_taken(ledger: Ledger, claim: Claim) -> Plan:
    """The very name of the volume to be belongs to an object that the claim cannot have."""
    volume = ledger.volume(writing.volume_name(claim.uid))
    if volume is None:
        return NOTHING
    if volume.deleting:
        message = f"PersistentVolume {volume.name} is being deleted: another one is made once it is gone"
        return explaining.note(ledger, claim.reference, explaining.WAITING, message)
    holder = f"claim {volume.claim.namespace}/{volume.claim.name}" if volume.claim else "nobody"
    message = (
        f"PersistentVolume {volume.name} exists, belongs to {holder}, and the claim cannot have it: delete it, or "
        "make this claim anew"
    )
    return explaining.warn(ledger, claim.reference, explaining.FAILED, message)


def _barred(attempt: Attempt, claim: Claim, cls: Class, now: float) -> Plan:
    bar = attempt.bar
    if bar is None or bar.because != question(claim, cls) or now >= bar.until:
        return NOTHING
    return (Requeue(after=bar.until - now),)


def _rest(attempt: Attempt, now: float) -> Plan:
    return (Requeue(after=attempt.rest_until - now),) if now < attempt.rest_until else NOTHING
