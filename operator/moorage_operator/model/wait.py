"""How long a claim has waited for the same reason, and what people were told of it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """A wait under way.

    Attributes:
        reason: what makes two waits the same, although their figures differ.
        waits_for: whose move it is, in one word; empty for ourselves.
        since: clock seconds when it began.
        told: the reason that people were told last; empty for nothing yet.
        told_at: clock seconds when they were.
    """

    reason: str
    since: float
    waits_for: str = ""
    told: str = ""
    told_at: float = float("-inf")
