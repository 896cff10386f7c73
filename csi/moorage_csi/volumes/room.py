"""How much of a pool may still be promised: arithmetic, and nothing is looked up here."""

from dataclasses import dataclass
from typing import Protocol

from moorage_csi.quantity import text


class Footprint(Protocol):
    """What a volume may take and what it has taken of the pool, in bytes."""

    @property
    def size(self) -> int:
        """What it was promised."""

    @property
    def allocated(self) -> int:
        """What of it is on the disk already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The figures of a pool, in bytes.

    Two limits hold, and the tighter one counts. By the filesystem: what is free now, less the reserve,
    less what existing volumes may still claim of it because they are sparse. By the promises: the whole,
    less the reserve, less all sizes; it holds too where others' files, which take room today, may go.
    ``overcommit`` multiplies what there is in both, and never the promises.
    """

    total: int
    available: int
    reserve: int
    promised: int
    unallocated: int
    overcommit: float

    @property
    def free(self) -> int:
        """The size of the largest volume that may still be made; never negative."""
        by_filesystem = int(max(0, self.available - self.reserve) * self.overcommit) - self.unallocated
        by_promises = int(self.total * self.overcommit) - self.reserve - self.promised
        return max(0, min(by_filesystem, by_promises))

    def __str__(self) -> str:
        """The numbers, for the person who wonders why there is no room."""
        return (
            f"{text(self.free)} can be promised: {text(self.total)} in all, {text(self.available)} free on the disk, "
            f"{text(self.reserve)} reserved, {text(self.promised)} promised to volumes, of which "
            f"{text(self.unallocated)} not written yet, overcommit {self.overcommit:g}"
        )
