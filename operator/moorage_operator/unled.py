"""Leadership without an election: this replica acts, and so does every other one.

It stands where the Lease stands, for one replica that has no need of an election, or for people who
want to see several act at once. That is slower, and never wrong: replicas get in each other's way and
repeat each other's work, but every write tests what it was decided upon, so the API server lets one
of them win, and a volume's name follows from its claim, so two calls make one volume.

Crash safety: there is no state. A replica that starts again acts again.
"""

import asyncio
import logging
from typing import Final

from moorage_operator.metrics import Metrics

logger = logging.getLogger(__name__)


class Unled:
    """Leads from the beginning to the end, and touches no Lease.

    Args:
        metrics: where ``moorage_leader`` is set.
    """

    problem: Final[str | None] = None
    """Why this replica can be neither leader nor standby: there is nothing that could fail."""

    def __init__(self, *, metrics: Metrics) -> None:
        self._metrics = metrics

    @property
    def is_leader(self) -> bool:
        """Whether this replica may act: always."""
        return True

    async def wait(self) -> None:
        """Return at once: this replica leads."""

    async def wait_lost(self) -> None:
        """Never return: leadership is not lost."""
        await asyncio.Event().wait()

    async def run(self) -> None:
        """Say once that nobody is elected, and last until cancelled."""
        logger.warning("Leading without an election, as every replica does: --leader-election is false")
        self._metrics.leader.set(1)
        try:
            await asyncio.Event().wait()
        finally:
            self._metrics.leader.set(0)
