"""Making a volume larger: the steps, their order, and what is left if they stop between two.

Promise the size and write it into the record (``growing_to``) · make the storage larger · make the filesystem in it
larger · write the record (the new size). The volume can be used at every moment.

Whatever stops before the last write leaves a record that says what the volume is growing to, and each of the steps
finds what is done already; so the same call, the kubelet's call on the node or the next publishing goes on. A
filesystem grows where it is mounted, if the kernel allows that; one that is not mounted grows at once or, xfs, as soon
as it is mounted.

It runs with the volume's key held, see ``guard``.
"""

import errno
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from moorage_csi.backends.backend import Shape
from moorage_csi.errors import ExhaustedError, OutOfRangeError, PreconditionError, UnavailableError
from moorage_csi.host.commands import CommandError
from moorage_csi.rpc.compatibility import refuse_unready
from moorage_csi.rpc.pools import OpenPool, Station
from moorage_csi.rpc.provisioning import no_step
from moorage_csi.rpc.shapes import shape_of
from moorage_csi.rpc.validation import Range, size_within
from moorage_csi.volumes.record import Record

_log = logging.getLogger(__name__)

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Expander:
    """Makes volumes of this node larger. ``step`` is called after every step with its name: a seam for tests."""

    def __init__(self, *, step: Callable[[str], None] = no_step) -> None:
        self._step = step

    async def expand(self, station: Station, record: Record, wish: Range) -> Record:
        """Make the volume as large as is asked for, or find that it is.

        Returns:
            Its record; where ``growing_to`` is set, the filesystem has still to grow on the node.

        Raises:
            OutOfRangeError: it is larger than it may be: nothing is made smaller.
            ExhaustedError: the pool has no room; nothing changed.
            UnavailableError: a step failed; the same call goes on.
        """
        refuse_unready(record)
        opened = await station.open()
        now = record.growing_to or record.size
        if wish.limit is not None and wish.limit < now:
            raise OutOfRangeError(
                f"volume {record.id} has {now} bytes, more than the {wish.limit} allowed; it cannot shrink"
            )
        size = max(now, size_within(wish, minimum=1, what="a volume") if wish.required else now)
        if record.growing_to is not None and size > now:
            # It may have died half grown, and is to be whole before there is anything that can be given up.
            record = await self.finish(station, record)
        growing = await station.lane.run(lambda: opened.pool.promise_growth(record, size))
        if growing.growing_to is None:
            return growing
        self._step("promised")
        return await self.finish(station, growing)

    async def finish(self, station: Station, record: Record) -> Record:
        """Go on with a volume that is growing, used or not, as far as it goes now.

        Returns:
            Its record; where ``growing_to`` is set, the filesystem can only grow once it is mounted, or once it is not.

        Raises:
            ExhaustedError: the disk has no room; the volume keeps its size.
            UnavailableError: a step failed; the same call goes on.
        """
        if record.growing_to is None:
            return record
        await self._enlarge(station, record)
        try:
            fits = await self._fit(station, record)
        except PreconditionError as error:
            _log.warning("the filesystem has to grow later", extra={"volume": record.id, "reason": str(error)})
            return record
        return await self._done(station, record) if fits else record

    async def spread(self, station: Station, record: Record) -> Record:
        """The same for a volume that this node uses, where somebody waits for it.

        Raises:
            PreconditionError: the kernel lets it grow only while nobody uses it; publishing it again does that.
        """
        if record.growing_to is None:
            return record
        await self._enlarge(station, record)
        opened = await station.open()
        if not await station.lane.run(lambda: _spread(opened, record)):
            return record
        return await self._done(station, record)

    async def _enlarge(self, station: Station, record: Record) -> None:
        """Make the storage larger; where the disk has no room for that, the volume keeps its size."""
        opened = await station.open()
        try:
            await station.lane.run(lambda: _make_larger(opened, record))
        except OSError as error:
            if error.errno not in _FULL:
                raise UnavailableError(f"volume {record.id} cannot be made larger: {error}; ask again") from error
            await station.lane.run(lambda: opened.pool.give_up_growth(record))
            raise ExhaustedError(
                f"volume {record.id} keeps its size, its disk has no room for more: {error}"
            ) from error
        self._step("enlarged")

    async def _fit(self, station: Station, record: Record) -> bool:
        opened = await station.open()
        if await station.lane.run(lambda: _used(opened, record)):
            return await station.lane.run(lambda: _spread(opened, record))
        backend = opened.backend_of(record)

        async def fit() -> bool:
            with opened.pool.folder(record.id) as folder:
                return await backend.fit(folder, larger(record))

        try:
            return await station.run_program(fit)
        except (OSError, CommandError) as error:
            raise UnavailableError(f"the filesystem of volume {record.id} cannot grow: {error}") from error

    async def _done(self, station: Station, record: Record) -> Record:
        opened = await station.open()
        self._step("grown")
        done = await station.lane.run(lambda: opened.pool.grown(record))
        self._step("written")
        _log.info("volume is larger", extra={"volume": done.id, "pool": station.name, "bytes": done.size})
        return done


def larger(record: Record) -> Shape:
    """What a volume is to be once it has grown."""
    return replace(shape_of(record), size=record.growing_to or record.size)


def _make_larger(opened: OpenPool, record: Record) -> None:
    with opened.limiting, opened.pool.folder(record.id) as folder:
        backend = opened.backend_of(record)
        backend.grow(folder, larger(record))
        if opened.pool.may_be_held(record.id):
            backend.book(folder, larger(record), copied=True)


def _used(opened: OpenPool, record: Record) -> bool:
    with opened.pool.folder(record.id) as folder:
        return bool(opened.backend_of(record).users(folder))


def _spread(opened: OpenPool, record: Record) -> bool:
    try:
        with opened.pool.folder(record.id) as folder:
            return opened.backend_of(record).spread(folder, larger(record))
    except OSError as error:
        raise UnavailableError(f"the filesystem of volume {record.id} cannot grow: {error}") from error
