"""What has left its place in a pool: a folder of such remains, each with its story in its name.

A volume or snapshot leaves by a rename, which cannot stop half way and writes nothing that a full disk could refuse.
So all that has to be known of it later is in the new name, or in the record that lies in the folder as before:

    <label>.<hex>                        nobody wants it back: it may be removed at once
    <label>-<moment>.<hex>               left at that moment (UTC), and may be wanted back
    <label>[-<moment>].<hex>.shared      what it has on the disk may be another volume's too, see ``room``

The label is the id, or in an archive words that a person can read. The random letters let one of the same label
follow. The moment is when it left and not until when it stays, so that a retention that is made shorter or longer
holds for all that lies there.
"""

import calendar
import math
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from moorage_csi.host.paths import Directory

_LETTERS: Final = 4
"""Random bytes in a name."""

_PRIVATE: Final = 0o700
_ATTEMPTS: Final = 16
_MOMENT: Final = "%Y%m%dT%H%M%SZ"
_NAME: Final = re.compile(
    r"(?P<label>[A-Za-z0-9][A-Za-z0-9._-]*?)(?:-(?P<moment>[0-9]{8}T[0-9]{6}Z))?\.[0-9a-f]{8}(?P<shared>\.shared)?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remnant:
    """One that lies there. ``left`` in seconds since the epoch; None where nobody wants it back."""

    name: str
    label: str
    left: float | None
    shares: bool


class Remains:
    """One folder of a pool that takes what leaves; what others put there is never looked at.

    ``retention``: seconds for which what may be wanted back stays, 0 for not at all, whatever the clock says; None for
    ever, and then nothing here is ever removed.
    """

    def __init__(
        self, folder: Directory, *, labels: re.Pattern[str], retention: float | None, token: Callable[[int], str]
    ) -> None:
        """``token(n)`` gives n random bytes in hexadecimal; a label is ours if it fits ``labels``."""
        self.folder = folder
        self.retention = retention
        self._labels = labels
        self._token = token

    def put(self, source: Directory, name: str, label: str, *, left: float | None = None, shares: bool = False) -> str:
        """Move the entry ``name`` of ``source`` in here; return its name here. On return the move is on the disk.

        Raises:
            FileNotFoundError: there is no such folder (any more).
        """
        new_name = self._name(label, left, shares=shares)
        source.rename(name, self.folder, new_name)
        return new_name

    def gather(self, source: Directory, names: Iterable[str], label: str, *, shares: bool) -> None:
        """Move these entries of ``source`` into a new folder in here, which nobody wants back.

        Such a folder may be removed as soon as it is there, before anything is in it: then there is a next one. A crash
        between two moves leaves some of them in ``source`` and the others here, where they may be removed.
        """
        left = list(names)
        for attempt in range(_ATTEMPTS):
            new_name = self._name(label, None, shares=shares)
            try:
                self.folder.make_directory(new_name, _PRIVATE)
                with self.folder.child(new_name) as inside:
                    while left:
                        source.rename(left[0], inside, left[0])
                        del left[0]
            except FileNotFoundError:
                if attempt == _ATTEMPTS - 1 or not source.exists(left[0]):
                    raise
            else:
                return

    def remnants(self) -> tuple[Remnant, ...]:
        """All that was put here."""
        found = (self.remnant(name) for name in self.folder.names())
        return tuple(one for one in found if one is not None)

    def remnant(self, name: str) -> Remnant | None:
        """What a name in here tells; None for one that this driver does not give."""
        match = _NAME.fullmatch(name)
        if match is None or not self._labels.fullmatch(match["label"]):
            return None
        left = None
        if match["moment"] is not None:
            try:
                left = float(calendar.timegm(time.strptime(match["moment"], _MOMENT)))
            except ValueError:
                return None
        return Remnant(name=name, label=match["label"], left=left, shares=match["shared"] is not None)

    def expired(self, now: float) -> tuple[Remnant, ...]:
        """What may go, now being so many seconds since the epoch."""
        return tuple(one for one in self.remnants() if self._due(one) <= now)

    def next_due(self, now: float) -> float | None:
        """Seconds until the next of what has still to stay may go; None where there is no such."""
        moments = (self._due(one) for one in self.remnants())
        return min((moment - now for moment in moments if now < moment < math.inf), default=None)

    def _due(self, one: Remnant) -> float:
        if self.retention is None:
            return math.inf
        return -math.inf if one.left is None or not self.retention else one.left + self.retention

    def _name(self, label: str, left: float | None, *, shares: bool) -> str:
        moment = "" if left is None else "-" + time.strftime(_MOMENT, time.gmtime(math.ceil(left)))
        return f"{label}{moment}.{self._token(_LETTERS)}{'.shared' if shares else ''}"
