"""Making a volume smaller whose size is held by a quota: the steps, and what is left if they stop between two.

Lower the limit · write the record (the new size). In that order, since a size that is written is promised to others. A crash
between the two leaves a volume that is held to less than its record says, which its condition tells; the same call
finishes it. It runs with the volume's key held, see ``guard``.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

from moorage_csi.errors import OutOfRangeError, PreconditionError, UnavailableError
from moorage_csi.rpc.compatibility import refuse_unready
from moorage_csi.rpc.pools import OpenPool, Station
from moorage_csi.rpc.provisioning import no_step
from moorage_csi.rpc.shapes import shape_of
from moorage_csi.rpc.validation import SIZE_STEP
from moorage_csi.volumes.record import Record

_log = logging.getLogger(__name__)


class Shrinker:
    """Makes volumes of this node smaller. ``step`` is called after every step with its name: a seam for tests."""

    def __init__(self, *, step: Callable[[str], None] = no_step) -> None:
        self._step = step

    async def shrink(self, station: Station, record: Record, size: int) -> Record:
        """Hold the volume to ``size`` bytes, rounded up to whole blocks, or find that it is as small; returns its record.

        Raises:
            OutOfRangeError: its backend makes none so small.
            PreconditionError: more is in use, it is growing, or its size is that of an image; nothing changed.
            UnavailableError: a step failed; the same call goes on.
        """
        refuse_unready(record)
        opened = await station.open()
        wanted = -(-size // SIZE_STEP) * SIZE_STEP
        if record.growing_to is not None:
            raise PreconditionError(f"volume {record.id} is growing to {record.growing_to} bytes: let that end first")
        if wanted >= record.size:
            return record
        least = opened.backend_of(record).minimum(record.filesystem)
        if wanted < least:
            raise OutOfRangeError(
                f"a volume of backend {record.backend} has {least} bytes at least, and {size} are asked for"
            )
        smaller = replace(record, size=wanted)
        try:
            await station.lane.run(lambda: _lower(opened, smaller))
            self._step("lowered")
            written = await station.lane.run(lambda: opened.pool.shrunk(record, wanted))
        except OSError as error:
            raise UnavailableError(f"volume {record.id} cannot be made smaller: {error}; ask again") from error
        self._step("written")
        _log.info("volume is smaller", extra={"volume": record.id, "pool": station.name, "bytes": wanted})
        return written


def _lower(opened: OpenPool, smaller: Record) -> None:
    with opened.limiting, opened.pool.folder(smaller.id) as folder:
        copied = opened.pool.may_be_held(smaller.id)
        opened.backend_of(smaller).shrink(folder, shape_of(smaller), copied=copied)
