"""What a decision comes to: steps for somebody else to carry out, as data.

A plan is carried out in order and given up at the first step that does not succeed; then the key is
decided anew. Nothing in a plan is ever re-sent as it was.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from moorage_operator.model.attempt import Attempt
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import Key, Uid
from moorage_operator.model.reference import Reference
from moorage_operator.model.volume import Volume
from moorage_operator.model.wait import Wait


class Verb(enum.Enum):
    """How an object is written."""

    CREATE = "create"
    PATCH = "patch"
    """A JSON patch that tests what it was decided upon."""
    DELETE = "delete"
    """With the uid as precondition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The object that is written or read.

    Attributes:
        kind: as what its answer is parsed.
        key: which one; a claim has a namespace in it.
        path: of the object itself, without a subresource.
        uid: empty when the object does not exist yet, or any object of that name is meant.
    """

    kind: type[Claim | Volume]
    key: Key
    path: str
    uid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One conditional write. A conflict makes the target be read and the key be decided anew.

    Attributes:
        path: what the request goes to: a collection, an object or its subresource.
        body: the object to create; empty for the other verbs.
        ops: the operations of a patch.
        holds: the volume that the write reserves or binds: until the answer is there nobody else is given it, and
            nobody else says that it is bound.
        blame: the object that hears of it when the API server does not accept the write.
    """

    verb: Verb
    target: Target
    path: str
    blame: Reference
    body: Mapping[str, Any] | None = None
    ops: tuple[Mapping[str, Any], ...] = ()
    holds: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refresh:
    """Read the target live; the answer, or its absence, goes into the ledger."""

    target: Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Writes that do not depend on each other."""

    writes: tuple[Write, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remember:
    """Note how far the provisioning of a claim is."""

    attempt: Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetAttempt:
    """The provisioning of the claim of that uid is over."""

    uid: Uid


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The claim is bound and that was told: its provisioning is over, and counted.

    Attributes:
        uid: the claim's.
        created: when the claim was created, in seconds since the epoch.
    """

    uid: Uid
    created: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateVolume:
    """Have the driver make the volume at ``attempt.node`` as ``attempt.request`` says.

    Attributes:
        attempt: noted as running before this step.
        again: an earlier call at that node may have made it already.
    """

    attempt: Attempt
    again: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteVolume:
    """Have the driver destroy storage that no claim uses.

    Attributes:
        node: where it is.
        volume_id: the driver's handle.
        regarding: the volume object it belongs to; None when there is none.
        attempt: the attempt that ends with it, if there is one.
        kept: what stays noted of the attempt afterwards; None forgets it.
    """

    node: str
    volume_id: str
    regarding: Reference | None = None
    attempt: Attempt | None = None
    kept: Attempt | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Connect to the node that a deletion goes to.

    Before the objects are read live, so that between that reading and the destruction there is no waiting
    for a connection, during which the policy could become Retain.
    """

    deletion: DeleteVolume


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmReleased:
    """Read volume and claim live, and go on only if the storage may still be destroyed.

    Attributes:
        volume: the target.
        claim: whose absence matters; None when the volume names none.
    """

    volume: Target
    claim: Target | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmUnowned:
    """Read a volume object live, and go on only if there is none, or one whose storage is on another node.

    Attributes:
        target: the object that would own the storage.
        node: where the storage is.
    """

    target: Target
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmGone:
    """Read the target live, and go on only if there is no object of that uid.

    What a lagging watch has not told yet must not count as deleted (binding.md 1.6).

    Attributes:
        target: by name; its uid is the one that has to be gone, and an empty one means any.
    """

    target: Target


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmLives:
    """Read the target live, and go on only if it still is the object of that uid.

    Whoever says that it has gone may have been told before us.
    """

    target: Target


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmReclaimable:
    """Read volume and claim live, and go on only if the volume is still to be reclaimed.

    Attributes:
        volume: as it was decided upon.
    """

    volume: Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class WipeVolume:
    """Have the driver replace the data of a released volume by nothing.

    Attributes:
        node: where the storage is.
        volume: names the claim that is gone, by whose uid the driver knows a wipe that it has done already.
    """

    node: str
    volume: Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureRoom:
    """Ask the nodes how much room they have for a class."""

    class_name: str
    parameters: Mapping[str, str]
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Emit:
    """Tell people something about an object, once.

    Attributes:
        key: what makes two sentences the same although their figures differ.
        warning: the event's type is Warning instead of Normal.
    """

    regarding: Reference
    reason: str
    message: str
    key: str
    warning: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeue:
    """Decide again after so many seconds, unless something happens before."""

    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Provision:
    """Have an in-tree plugin make a volume.

    Attributes:
        plugin: its name, which is the class's provisioner.
        volume: the object that is stored for it.
    """

    plugin: str
    claim: Claim
    volume: Write


@dataclass(frozen=True, slots=True, kw_only=True)
class Destroy:
    """Have an in-tree plugin destroy the storage of a volume.

    Attributes:
        plugin: its name.
        name: the volume's.
        times: how often it is tried when there is no object that could become Failed; 0 tries once, and tells the object.
    """

    plugin: str
    name: str
    times: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrub:
    """Have an in-tree plugin empty the storage of a volume."""

    plugin: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RememberWait:
    """Note why a claim waits, or no more.

    Attributes:
        uid: the claim's.
        wait: None when it waits no more.
    """

    uid: Uid
    wait: Wait | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """It cannot be done and nobody but a person can change that: try again after the queue's back-off."""

    why: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Nothing more now: what was just done changes an object, and that change is what is decided upon next."""


Note = Emit | Remember | ForgetAttempt | Settled | RememberWait
"""Steps that talk to nobody: they cannot fail."""
Action = (
    Write
    | Refresh
    | Together
    | CreateVolume
    | DeleteVolume
    | WipeVolume
    | Reach
    | ConfirmReleased
    | ConfirmUnowned
    | ConfirmGone
    | ConfirmLives
    | ConfirmReclaimable
    | MeasureRoom
    | Provision
    | Destroy
    | Scrub
)
"""Steps that talk to the API server or the driver: the plan ends with the first that fails."""
End = Requeue | Fail | Stop
Step = Note | Action | End
Plan = tuple[Step, ...]

NOTHING: Final[Plan] = ()
"""The world is as it should be, or it is somebody else's move: zero writes."""
