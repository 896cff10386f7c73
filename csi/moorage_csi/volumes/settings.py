"""One pool as the administrator describes it."""

import math
import re
from dataclasses import dataclass
from typing import Final

_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_MOST_PERCENT: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """A pool's name, place and rules.

    ``reserve``: what is never promised, in bytes or in per cent of the filesystem, the larger of the two.
    ``overcommit``: how many times over the rest may be promised. ``shared``: every node sees this folder.
    ``trash_retention``: seconds for which what is deleted can be had back before it is removed; it takes its room for as
    long. ``archive_retention``: the same for what is archived (``onDelete: archive``); None or 0 for ever.
    """

    name: str
    path: str
    reserve_bytes: int = 0
    reserve_percent: float = 0.0
    overcommit: float = 1.0
    shared: bool = False
    trash_retention: float = 0.0
    archive_retention: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, as ValueError."""
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"pool name {self.name!r} is not lower-case letters, digits and dashes, 63 at most")
        if not self.path.startswith("/") or ".." in self.path.split("/") or not self.path.strip("/"):
            raise ValueError(f"pool {self.name}: path {self.path!r} is not an absolute path below /")
        if self.reserve_bytes < 0 or not 0 <= self.reserve_percent < _MOST_PERCENT:
            raise ValueError(
                f"pool {self.name}: a reserve of {self.reserve_bytes} bytes and {self.reserve_percent}% is not "
                "between nothing and all"
            )
        if not (math.isfinite(self.overcommit) and self.overcommit >= 1):
            raise ValueError(
                f"pool {self.name}: overcommit {self.overcommit} is below 1; to promise less than there is, use reserve"
            )
        for what, seconds in (("trash", self.trash_retention), ("archive", self.archive_retention or 0.0)):
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ValueError(f"pool {self.name}: a {what} retention of {seconds} seconds is not a time from 0")

    def reserve_of(self, total: int) -> int:
        """Bytes of a filesystem of ``total`` bytes that are never promised."""
        return max(self.reserve_bytes, int(total * self.reserve_percent / _MOST_PERCENT))
