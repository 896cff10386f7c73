"""Acting on a client at one of its writes: before the API server hears of it, or before the client hears of that."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import re
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiohttp import web

PATH = re.compile(
    r"/api/v1/(namespaces/[^/]+/)?(?P<plural>persistentvolumes|persistentvolumeclaims)(/[^/]+(?P<sub>/status)?)?"
)


class Moment(enum.StrEnum):
    """When something is done at a write."""

    BEFORE = "before"
    """The API server has not heard of it."""
    AFTER = "after"
    """The API server has carried it out or refused it; the client has not heard of that."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trap:
    """What is done to the client at a write, once.

    Attributes:
        at: tells by the writes so far whether their last one is the one.
        moment: when.
        act: called in a thread of its own.
    """

    at: Callable[[Sequence[str]], bool]
    moment: Moment
    act: Callable[[], object]


class Traps:
    """Counts the writes of claims and volumes, and acts at one of them."""

    def __init__(self) -> None:
        self.writes: list[str] = []
        self.caught = ""
        self.sprung = threading.Event()
        self._trap: Trap | None = None

    def set(self, trap: Trap | None) -> None:
        """Count from here on, and act as said."""
        self.sprung.clear()
        self.writes = []
        self.caught = ""
        self._trap = trap

    def at(self, write: str) -> Trap | None:
        """Count a write; returns what is to be done at it."""
        self.writes.append(write)
        trap = self._trap
        if trap is None or not trap.at(self.writes):
            return None
        self._trap = None
        self.caught = write
        return trap

    async def spring(self, trap: Trap) -> None:
        """Act. That the client goes meanwhile, because of what is done to it, stops nothing."""
        acting = asyncio.get_running_loop().run_in_executor(None, trap.act)
        acting.add_done_callback(lambda _: self.sprung.set())
        await asyncio.shield(acting)


def written(request: web.BaseRequest) -> str:
    """Return a request as `VERB resource` when it is a write of a claim or volume, else nothing."""
    found = PATH.fullmatch(request.path)
    if request.method == "GET" or found is None:
        return ""
    return f"{request.method} {found['plural']}{found['sub'] or ''}"
