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
        blame: the object that hears of it when the API server does not accept the write.
    """

    verb: Verb
    target: Target
    path: str
    blame: Reference
    body: Mapping[str, Any] | None = None
    ops: tuple[Mapping[str, Any], ...] = ()


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


Note = Emit | Remember | ForgetAttempt | Settled
"""Steps that talk to nobody: they cannot fail."""
Action = (
    Write | Refresh | Together | CreateVolume | DeleteVolume | Reach | ConfirmReleased | ConfirmUnowned | MeasureRoom
)
"""Steps that talk to the API server or the driver: the plan ends with the first that fails."""
Step = Note | Action | Requeue
Plan = tuple[Step, ...]

NOTHING: Final[Plan] = ()
"""The world is as it should be, or it is somebody else's move: zero writes."""
