"""What was measured, each figure beside the budget it has to hold, as a table or as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure.

    Attributes:
        part: of the bench.
        name: what was measured.
        value: in the unit.
        unit: empty for a ratio.
        most: the budget where less is better; None when there is none.
        least: the budget where more is better; None when there is none.
        detail: what it was made of.
    """

    part: str
    name: str
    value: float
    unit: str = ""
    most: float | None = None
    least: float | None = None
    detail: str = ""

    @property
    def holds(self) -> bool:
        """Whether it keeps within its budget; without one it does."""
        return (self.most is None or self.value <= self.most) and (self.least is None or self.value >= self.least)

    @property
    def verdict(self) -> str:
        """The budget, and whether it is held, for a person; empty without one."""
        if self.most is None and self.least is None:
            return ""
        bound, word = (self.most, "at most") if self.most is not None else (self.least, "at least")
        return f"{word} {rounded(bound or 0.0)}: {'ok' if self.holds else 'OVER'}"

    def as_json(self) -> dict[str, Any]:
        """All of it, and the verdict."""
        return asdict(self) | {"holds": self.holds}


def table(figures: Sequence[Figure]) -> str:
    """The figures, a line each, and how many are over their budgets."""
    lines = []
    width = max((len(figure.name) for figure in figures), default=0)
    for part in dict.fromkeys(figure.part for figure in figures):
        lines.append(part)
        lines += [
            f"  {figure.name:{width}} {rounded(figure.value):>9} {figure.unit:8} {figure.verdict:20} {figure.detail}".rstrip()
            for figure in figures
            if figure.part == part
        ]
    held = [figure for figure in figures if figure.verdict]
    over = sum(not figure.holds for figure in held)
    return "\n".join([*lines, f"{len(held) - over} of {len(held)} budgets held"]) + "\n"


def rounded(value: float) -> str:
    """Three digits that matter."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"
