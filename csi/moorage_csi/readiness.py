"""Why the program is not ready: a set of named conditions, each with a reason while it is unmet.

Ready is what nothing speaks against. A reason is for a person: it is what ``/readyz`` answers and what
``kubectl describe pod`` then shows.
"""

from collections.abc import Mapping


class Readiness:
    """Conditions by name. A name without a reason is met."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    def unmet(self, condition: str, reason: str) -> None:
        """Say that ``condition`` is not met, and why."""
        self._reasons[condition] = reason

    def met(self, condition: str) -> None:
        """Say that ``condition`` is met."""
        self._reasons.pop(condition, None)

    @property
    def ready(self) -> bool:
        """Whether every condition is met."""
        return not self._reasons

    @property
    def reasons(self) -> Mapping[str, str]:
        """A copy of what speaks against being ready."""
        return dict(self._reasons)
