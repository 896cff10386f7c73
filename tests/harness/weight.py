"""What a process weighs: its memory, as the kernel counts it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

_KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """Bytes of one process: resident now, resident at most so far, and its own alone."""

    resident: int
    peak: int
    anonymous: int

    @classmethod
    def of(cls, pid: int) -> Self:
        """Weigh a process."""
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        figures = dict(line.split(":", 1) for line in lines if ":" in line)
        resident, peak, anonymous = (int(figures[key].split()[0]) * _KIB for key in ("VmRSS", "VmHWM", "RssAnon"))
        return cls(resident=resident, peak=peak, anonymous=anonymous)
