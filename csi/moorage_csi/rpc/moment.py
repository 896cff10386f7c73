"""Copying several volumes of one moment: all that are in use are kept still at one time, and copied while they are.

A moment at which nobody writes to any of them is one moment for all of them, whatever the order in which they are copied.
Whoever has written to one and goes on to write to another does so before it, or after it.

It is as long as the copies take, and bounded: each volume is kept still for 30 seconds at the most, whatever happens, and
the copying ends itself when 30 seconds have passed since the first one was. What nobody uses takes its time afterwards:
the caller keeps it from being used, so that it is the same then as at that moment.

Everything that is kept still is in the end let go of by the thread that keeps it, which waits for nobody; after a
SIGKILL by the next start, see ``station``.
"""

import contextlib
import errno
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from moorage_csi.backends.backend import Backend
from moorage_csi.errors import PreconditionError
from moorage_csi.host.paths import Directory
from moorage_csi.rpc.pools import OpenPool, Station
from moorage_csi.rpc.snapshots import unlimited
from moorage_csi.volumes.record import Record
from moorage_csi.volumes.snapshot import Snapshot

HELD_SECONDS: Final = 30.0
"""For which those who write may have to wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One volume to copy, and the record of the snapshot that is to become of it, which is written."""

    station: Station
    opened: OpenPool
    record: Record
    snapshot: Snapshot

    @property
    def backend(self) -> Backend:
        """The one that made the volume."""
        return self.opened.backend_of(self.record)


class _MovingError(PreconditionError):
    """It is told already which volume it was."""


def in_use(part: Part) -> bool:
    """Whether somebody may write to the volume. Blocks."""
    with part.opened.pool.folder(part.record.id) as folder:
        return bool(part.backend.users(folder))


def copy_used(
    parts: Sequence[Part], *, step: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> None:
    """Copy volumes that are in use, all of one moment. Blocks; ``clock`` in seconds.

    Raises:
        PreconditionError: one of them cannot be kept still, or not for as long as it takes; the message says which.
    """
    for part in parts:
        # Once on its own first: what is dirty is written then, and nobody waits while another one's is. And who cannot be
        # kept still is found before others have to wait.
        with _held(part):
            step("tried")
    with contextlib.ExitStack() as stack:
        until = clock() + HELD_SECONDS
        origins = []
        for part in parts:
            origins.append(stack.enter_context(_held(part)))
            step("held")
        for part, origin in zip(parts, origins, strict=True):
            _copy(part, origin, pace=_bounded(part.station.pace, until, clock))
            step("copied held")
    step("let go")


def copy_unused(part: Part) -> None:
    """Copy a volume that nobody uses, and that the caller keeps from being used. Blocks.

    Raises:
        PreconditionError: it is in use after all, and cannot be kept still.
    """
    with _held(part) as origin:
        _copy(part, origin, pace=part.station.pace)


@contextlib.contextmanager
def _held(part: Part) -> Iterator[Directory]:
    """The volume's folder, with the volume kept still for as long as the block lasts."""
    try:
        with part.opened.pool.folder(part.record.id) as origin, part.backend.held(origin):
            yield origin
    except _MovingError:
        raise
    except PreconditionError as error:
        raise _MovingError(f"volume {part.record.id} cannot be copied of one moment with others: {error}") from error


def _copy(part: Part, origin: Directory, *, pace: Callable[[], None]) -> None:
    with part.opened.pool.snapshots.folder(part.snapshot.id) as folder:
        part.opened.book_copy(part.record, origin)
        part.backend.copy(origin, folder, unlimited(part.record), pace=pace, held=True)


def _bounded(pace: Callable[[], None], until: float, clock: Callable[[], float]) -> Callable[[], None]:
    def bounded() -> None:
        pace()
        if clock() > until:
            raise TimeoutError(errno.ETIMEDOUT, f"the copies were not made within {HELD_SECONDS:.0f} s")

    return bounded
