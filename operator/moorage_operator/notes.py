"""What this operator remembers of its own doings: nothing here is stored, nothing here is needed after a restart.

Kept apart from the ledger, which holds what the API server says: losing a note costs an event or a
repeated question, never a wrong decision.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from moorage_operator.model.attempt import Attempt
from moorage_operator.model.ids import Uid
from moorage_operator.model.wait import Wait

MOST_TOLD: Final = 32
"""Distinct sentences about one object; a reason that keeps changing is not told for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """How much the nodes said they have room for, for one class.

    Attributes:
        measured: clock seconds of the answer.
        free: bytes by node; a node that did not answer is missing.
    """

    measured: float
    free: Mapping[str, int]


class Notes:
    """Attempts, what was told, what was destroyed, and how much room there is."""

    def __init__(self) -> None:
        self._attempts: dict[Uid, Attempt] = {}
        self._told: dict[Uid, set[str]] = {}
        self._destroyed: set[Uid] = set()
        self._rooms: dict[str, Rooms] = {}
        self._calling: set[Uid] = set()
        self._waits: dict[Uid, Wait] = {}
        self._last: dict[Uid, str] = {}

    def __len__(self) -> int:
        return len(self._attempts)

    def attempt(self, uid: Uid) -> Attempt | None:
        """What was begun for the claim of that uid."""
        return self._attempts.get(uid)

    def remember(self, attempt: Attempt) -> None:
        """Keep the attempt in place of an earlier one for the same claim."""
        self._attempts[attempt.uid] = attempt

    def forget_attempt(self, uid: Uid) -> None:
        """The attempt is over; harmless when there is none."""
        self._attempts.pop(uid, None)

    def settle(self, uid: Uid) -> None:
        """The claim is bound and that was told: nothing that was noted of its way there is needed any more."""
        self._attempts.pop(uid, None)
        self._told.pop(uid, None)
        self._last.pop(uid, None)
        self._waits.pop(uid, None)

    def call(self, uid: Uid) -> None:
        """A call to the driver for that claim goes out."""
        self._calling.add(uid)

    def called(self, uid: Uid) -> None:
        """It came back."""
        self._calling.discard(uid)

    def calling(self, uid: Uid) -> bool:
        """Whether a call to the driver for that claim is under way."""
        return uid in self._calling

    def told(self, uid: Uid, key: str) -> bool:
        """Whether that was said about that object, or so much that nothing more is said."""
        said = self._told.get(uid)
        return said is not None and (key in said or len(said) >= MOST_TOLD)

    def tell(self, uid: Uid, key: str, message: str) -> None:
        """It is said now."""
        self._told.setdefault(uid, set()).add(key)
        self._last[uid] = message

    def last_told(self, uid: Uid) -> str:
        """The sentence that was said last about that object; empty for none."""
        return self._last.get(uid, "")

    def wait(self, uid: Uid) -> Wait | None:
        """How long that claim has waited, and what was said of it."""
        return self._waits.get(uid)

    def waiting_for(self, waits_for: str) -> int:
        """How many claims wait for that."""
        return sum(wait.waits_for == waits_for for wait in self._waits.values())

    def remember_wait(self, uid: Uid, wait: Wait | None) -> None:
        """Keep how long that claim has waited; None: it waits no more."""
        if wait is None:
            self._waits.pop(uid, None)
        else:
            self._waits[uid] = wait

    def destroyed(self, uid: Uid) -> bool:
        """Whether the storage of the volume object of that uid is known to be gone."""
        return uid in self._destroyed

    def destroy(self, uid: Uid) -> None:
        """The driver has answered that the storage of that volume object is gone."""
        self._destroyed.add(uid)

    def rooms(self, class_name: str) -> Rooms | None:
        """The newest measure for a class."""
        return self._rooms.get(class_name)

    def measure(self, class_name: str, rooms: Rooms) -> None:
        """Keep a new measure for a class."""
        self._rooms[class_name] = rooms

    def take_room(self, node: str, size: int) -> None:
        """Something of that size was just made there: do not wait for the next measure to know it.

        Classes may share a pool; each loses the room, since being careful only changes an order.
        """
        for class_name, rooms in self._rooms.items():
            if node in rooms.free:
                free = {**rooms.free, node: rooms.free[node] - size}
                self._rooms[class_name] = Rooms(measured=rooms.measured, free=free)

    def object_gone(self, uid: Uid) -> None:
        """An object of that uid does not exist any more: nothing more is to be said about it."""
        self._told.pop(uid, None)
        self._waits.pop(uid, None)
        self._last.pop(uid, None)
        self._destroyed.discard(uid)
