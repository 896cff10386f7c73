"""A pool that is open: its backends, which of them makes a new volume, and the limits that its volumes have.

Limits are looked at and set under one lock, because growing, shrinking and copying all set them.
"""

import logging
import os
import threading
from contextlib import suppress
from dataclasses import replace

from moorage_csi import contract
from moorage_csi.backends.backend import Backend
from moorage_csi.backends.choice import Choice
from moorage_csi.errors import DriverError, InvalidArgumentError, UnavailableError
from moorage_csi.host.paths import Directory
from moorage_csi.rpc.shapes import shape_of
from moorage_csi.volumes.pool import Pool
from moorage_csi.volumes.record import Mode, Record, State
from moorage_csi.volumes.snapshot import Snapshot

_log = logging.getLogger(__name__)


class OpenPool:
    """A pool that is open, with the backends that work in it."""

    def __init__(self, pool: Pool, backends: dict[str, Backend], chosen: Choice, *, no_reflink: str | None) -> None:
        """``no_reflink`` says why files of the pool cannot share their data; None where they can."""
        self.pool = pool
        self.backends = backends
        self.chosen = chosen
        self.no_reflink = no_reflink
        self.disk = os.fstat(pool.root.fd).st_dev
        """The number of the filesystem that the pool lies on."""
        self.limiting = threading.Lock()
        """Held from the look at a volume's record and limit until the limit is set: growing and copying both raise it."""

    def book_copy(self, known: Record, folder: Directory) -> None:
        """Let a volume that is about to be copied hold, beside its size, what the copy will have of it. Blocks.

        ``known`` may have grown since it was looked up.
        """
        with self.limiting:
            record = self.pool.find(known.id) or known
            shape = replace(shape_of(record), size=record.growing_to or record.size)
            self.backend_of(record).book(folder, shape, copied=True)

    def retire(self, what: Record | Snapshot, folder: Directory) -> None:
        """Give back what the kernel keeps for a volume or snapshot that goes, as its record says already. Blocks."""
        with self.limiting:
            retire(self.backends.get(what.backend), folder)

    def limit(self, record: Record, folder: Directory) -> None:
        """Have the kernel hold the size of a volume that lost its limit when it was deleted. Blocks.

        An image is as large as it is, and needs none. Where the kernel holds none any more the volume comes back all the same;
        its condition says so.
        """
        backend = self.backend_of(record)
        if record.filesystem or record.mode is Mode.BLOCK:
            return
        try:
            with self.limiting:
                backend.grow(folder, shape_of(record))
                if self.pool.may_be_held(record.id):
                    backend.book(folder, shape_of(record), copied=True)
        except OSError as error:
            _log.warning("no limit for what is taken back", extra={"volume": record.id, "reason": str(error)})

    def backend_of(self, record: Record) -> Backend:
        """The backend that made the volume."""
        try:
            return self.backends[record.backend]
        except KeyError as error:
            raise UnavailableError(
                f"volume {record.id} was made by backend {record.backend!r}, which this release does not have"
            ) from error

    def backend_for(self, asked: str, *, block: bool, many_nodes: bool) -> Backend:
        """The backend for a new volume.

        Raises:
            InvalidArgumentError: the one that is asked for cannot make such a volume here.
        """
        shared = self.pool.settings.shared
        if many_nodes and not shared:
            raise InvalidArgumentError(
                f"access modes for several nodes need a pool that the nodes share, and pool {self.pool.name} is this "
                "node's own; allowed are the single-node modes (ReadWriteOnce, ReadWriteOncePod)"
            )
        name = asked
        if asked == contract.BACKEND_AUTO:
            name = contract.BACKEND_IMAGE if block and not shared else self.chosen.backend
        backend = self.backends.get(name)
        if backend is None:
            raise InvalidArgumentError(
                f"backend {name} is not possible in pool {self.pool.name}, which lies on another filesystem or is shared by "
                f"several nodes; possible are {', '.join(self.backends)}"
            )
        if block and not backend.capabilities.block:
            raise InvalidArgumentError(
                f"backend {name} makes no block volumes; for volumeMode Block choose backend {contract.BACKEND_IMAGE} "
                "in a pool that is not shared"
            )
        if shared and not backend.capabilities.shared:
            raise InvalidArgumentError(
                f"backend {name} is refused in pool {self.pool.name}, which several nodes share: two of them would "
                f"mount one filesystem; choose backend {contract.BACKEND_DIRECTORY}"
            )
        return backend


def booked(opened: OpenPool) -> bool:
    """Take back the room that volumes had for copies which are gone; False where some of it has to be tried again."""
    done = True
    for known in opened.pool.records.values():
        backend = opened.backends.get(known.backend)
        if backend is None or not backend.capabilities.books or opened.pool.may_be_held(known.id):
            continue
        try:
            done &= _booked_one(opened, known, backend)
        except (OSError, DriverError) as error:
            _log.warning("a limit is not lowered yet", extra={"volume": known.id, "reason": str(error)})
            done = False
    return done


def _booked_one(opened: OpenPool, known: Record, backend: Backend) -> bool:
    with opened.limiting:
        record = opened.pool.find(known.id)
        if record is None or record.state is not State.READY:
            return True
        if record.growing_to is not None:
            return False
        # Looked at again, since copies raise the limit under the same lock.
        if opened.pool.may_be_held(record.id):
            return True
        with suppress(FileNotFoundError), opened.pool.folder(record.id) as folder:
            return backend.book(folder, shape_of(record), copied=False)
    return True


def retire(backend: Backend | None, folder: Directory) -> None:
    """Give back what the kernel keeps for storage that goes; nothing for a backend that this release does not have."""
    if backend is not None:
        backend.retire(folder)
