"""kopf's memory of what it has handled, switched off for objects of others.

Before every event kopf copies the whole object several times, to compare it with what it stored in an annotation at the
last one. Handlers of plain events never use that, and it is half of what an event costs; so nothing is copied and
nothing is ever stored.
"""

from typing import Any

import kopf


class NoDiffs(kopf.DiffBaseStorage):
    """No object has any state that could differ from an earlier one."""

    def build(self, **_: Any) -> Any:
        """Nothing of an object is compared."""
        return {}

    def fetch(self, **_: Any) -> Any:
        """Nothing was stored."""
        return None

    def store(self, **_: Any) -> None:
        """Nothing is stored."""


class NoProgress(kopf.ProgressStorage):
    """No handler has any progress that would have to survive a restart."""

    def fetch(self, **_: Any) -> Any:
        """Nothing was stored."""
        return None

    def store(self, **_: Any) -> None:
        """Nothing is stored."""

    def purge(self, **_: Any) -> None:
        """There is nothing to be removed."""

    def touch(self, **_: Any) -> None:
        """There is nothing to be touched."""

    def clear(self, *, essence: Any) -> Any:
        """There is nothing in it."""
        return essence
