"""What was begun for a claim and is not finished yet.

An attempt lives in the operator's memory only. It is never needed for the safety of what is stored:
asking the driver again under the same name finds what an earlier call made, so a restarted operator
makes a new attempt and arrives at the same volume. What a restart does lose is the storage of a claim
that was deleted meanwhile; there the driver's ownership record, which names the claim, is the owner.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from moorage_operator.model.ids import Key, Uid
from moorage_operator.model.provisioning import Created, CreateRequest, empty


class Progress(enum.Enum):
    """What is believed to exist."""

    NOTHING = "nothing"
    RUNNING = "running"
    """``CreateVolume`` may have made it at ``node``: only the same call at the same node can tell."""
    CREATED = "created"
    """The storage exists at ``node``; no PersistentVolume is known to name it."""
    STORED = "stored"
    """A PersistentVolume names it, so from here on that object owns the storage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """The driver will refuse this until class or claim changes: asking again is put off.

    Attributes:
        because: what was asked for; a bar for another question does not count.
        until: clock seconds after which it may be asked again all the same.
    """

    because: tuple[str, ...]
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The state of provisioning one claim.

    Attributes:
        claim: the claim's key of work.
        uid: the claim's uid.
        name: of the PersistentVolume to be.
        began: clock seconds of the first step.
        node: where the storage is, or may be; empty while there is none.
        request: what was asked there.
        created: what the driver answered.
        refused: nodes without room, or out of reach, in this round, each with its sentence.
        missed: those of them that are out of reach: they may be back at any moment.
        failures: how often in a row it failed.
        rest_until: clock seconds before which nothing new is begun.
        bar: set after an answer that says the request itself is wrong.
        unserved_since: clock seconds since when the selected node has been without our driver; 0 = it is not.
    """

    claim: Key
    uid: Uid
    name: str
    began: float
    progress: Progress = Progress.NOTHING
    node: str = ""
    request: CreateRequest | None = None
    created: Created | None = None
    refused: Mapping[str, str] = field(default_factory=empty)
    missed: frozenset[str] = frozenset()
    failures: int = 0
    rest_until: float = 0.0
    bar: Bar | None = None
    unserved_since: float = 0.0

    def emptied(self) -> "Attempt":
        """The same, with nothing believed to exist anywhere."""
        return replace(self, progress=Progress.NOTHING, node="", request=None, created=None)

    def rested(self, now: float, *, base: float, most: float) -> "Attempt":
        """The same after one more failure: rest ``base`` seconds, doubled with each, ``most`` at the utmost."""
        rest = min(base * 2 ** min(self.failures, 16), most)
        return replace(self, failures=self.failures + 1, rest_until=now + rest)
