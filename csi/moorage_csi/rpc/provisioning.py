"""Making and deleting a volume: the steps, their order, and what is left if they stop between two.

Creating: promise the size and write the record (``creating``) · make the storage · make the filesystem ·
write the record (``ready``, and ``formatted`` with it, in one write). A copy is made likewise: the storage with all that
its source holds, and the filesystem in it grown, where it is to be larger. Whatever stops before the last
write leaves a record in state ``creating``, and that is never continued: nobody can know how far the
storage came, so the next attempt, or the next start, throws it away and begins with a new file. A
filesystem is therefore made only in storage that the same attempt has made, never in one that was found.

A volume that is being wiped (see ``wiping``) was given to somebody: it is not made anew, and deleting it is
like deleting one that is ready.

Deleting: look that nobody uses it · write the record (``deleting``) · give back its limit · rename the folder into the trash.
Whatever stops before the rename is done again; after it there is nothing left to do.

Both run with the volume's key held (see ``guard``), so that no two of them meet.
"""

import contextlib
import errno
import functools
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from moorage_csi import contract
from moorage_csi.backends.backend import Backend
from moorage_csi.errors import (
    DriverError,
    ExhaustedError,
    InternalError,
    InvalidArgumentError,
    OutOfRangeError,
    PreconditionError,
    UnavailableError,
)
from moorage_csi.host.commands import CommandError
from moorage_csi.rpc.compatibility import refuse_different, refuse_unready
from moorage_csi.rpc.pools import OpenPool, Station
from moorage_csi.rpc.shapes import shape_of
from moorage_csi.rpc.sources import Source
from moorage_csi.rpc.validation import DEFAULT_PERMISSIONS, Creation, size_within
from moorage_csi.volumes.record import GIVEN, Mode, Record, State

_log = logging.getLogger(__name__)

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_FULL_WORDS: Final = "No space left on device"


def no_step(_: str) -> None:
    """Nobody watches the steps."""


class Provisioner:
    """Makes and deletes volumes of this node.

    ``step`` is called after every step with its name: the seam at which tests stop the process.
    """

    def __init__(
        self,
        *,
        node_name: str,
        clock: Callable[[], float],
        new_uuid: Callable[[], uuid.UUID] = uuid.uuid4,
        step: Callable[[str], None] = no_step,
    ) -> None:
        self._node_name = node_name
        self._clock = clock
        self._new_uuid = new_uuid
        self._step = step

    async def create(
        self, station: Station, wish: Creation, *, find_source: Callable[[], Awaitable[Source]] | None = None
    ) -> Record:
        """Make the volume in this pool, or find it made. A failure leaves nothing behind.

        ``find_source`` is for a copy: it is asked only where nothing is made yet, since a source may be gone by then. The
        caller keeps it from being taken away.

        Raises:
            AlreadyExistsError: there is one of that name that is not what is asked for.
            ExhaustedError: there is no room, by the account or on the disk.
            InternalError: a step failed, and all of it was undone.
            UnavailableError: a step failed, and so did undoing it: the next attempt begins with that. Or the volume
                is being wiped.
        """
        opened = await station.open()
        existing = await station.lane.run(lambda: opened.pool.find(wish.id))
        if existing is not None and existing.state in GIVEN:
            refuse_different(existing, wish)
            refuse_unready(existing)
            return existing
        if existing is not None:
            await self._throw_away(station, opened, existing)
        if find_source is None:
            made = await self._make_empty(station, opened, wish)
        else:
            made = await self._copy(station, opened, wish, await find_source())
        _log.info(
            "volume made",
            extra={
                "volume": made.id,
                "pool": station.name,
                "request_name": made.name,
                "backend": made.backend,
                "bytes": made.size,
            },
        )
        return made

    async def delete(self, station: Station, record: Record) -> None:
        """Take the volume out of its pool; the data goes later, or stays if its class says so.

        Raises:
            PreconditionError: it is still in use on this node.
        """
        opened = await station.open()
        await station.lane.run(lambda: self._take_out(opened, record))
        station.discarded()
        _log.info(
            "volume deleted",
            extra={
                "volume": record.id,
                "pool": station.name,
                "request_name": record.name,
                "onDelete": record.on_delete,
            },
        )

    def _plan(self, opened: OpenPool, wish: Creation) -> Record:
        """The record of the volume to be, or the reason why there can be none."""
        access, parameters = wish.access, wish.parameters
        backend = opened.backend_for(parameters.backend, block=access.block, many_nodes=access.many_nodes)
        filesystem = "" if access.block else backend.filesystem(access.filesystem)
        if parameters.permissions is not None and backend.name != contract.BACKEND_DIRECTORY:
            raise InvalidArgumentError(
                f"parameter {contract.Parameter.MOUNT_PERMISSIONS} is for backend {contract.BACKEND_DIRECTORY} alone, and "
                f"this volume is made by backend {backend.name}; pods set the owner of their filesystem by fsGroup"
            )
        size = size_within(wish.range, minimum=backend.minimum(filesystem), what=_kind(backend, filesystem))
        return Record(
            id=wish.id,
            name=wish.name,
            uuid=str(self._new_uuid()),
            node=self._node_name,
            claim=parameters.claim,
            volume_name=parameters.volume_name,
            pool=opened.pool.name,
            size=size,
            backend=backend.name,
            filesystem=filesystem,
            mode=Mode.BLOCK if access.block else Mode.FILESYSTEM,
            permissions=DEFAULT_PERMISSIONS if parameters.permissions is None else parameters.permissions,
            formatted=False,
            state=State.CREATING,
            quota=backend.promise(parameters.quota),
            on_delete=parameters.on_delete,
            created=self._clock(),
            ephemeral_at=wish.ephemeral_at,
        )

    async def _make_empty(self, station: Station, opened: OpenPool, wish: Creation) -> Record:
        record = self._plan(opened, wish)
        await station.lane.run(lambda: opened.pool.begin(record))
        self._step("begun")
        return await self._undoing(station, opened, record, lambda: self._fill(station, opened, record))

    async def _copy(self, station: Station, opened: OpenPool, wish: Creation, source: Source) -> Record:
        record = copied(self._plan(opened, as_source(wish, source)), source, opened=opened)
        await station.lane.run(lambda: opened.pool.begin(record))
        self._step("begun")
        return await self._undoing(station, opened, record, lambda: self._fill_from(source, station, opened, record))

    async def _fill_from(self, source: Source, station: Station, opened: OpenPool, record: Record) -> Record:
        """Copy the source; returns the record of the volume that is ready."""
        backend = opened.backend_of(record)

        def copy() -> None:
            with source.folder() as origin, opened.pool.folder(record.id) as folder:
                if isinstance(source.what, Record):
                    source.pool.book_copy(source.what, origin)
                backend.copy(origin, folder, shape_of(record), pace=station.pace)

        async def fit() -> None:
            with opened.pool.folder(record.id) as folder:
                await backend.fit(folder, shape_of(record))

        await station.copying.run(copy)
        self._step("copied")
        if record.filesystem:
            # What lies in it may be smaller than its source was to be, which was growing when it was copied.
            try:
                await station.run_program(fit)
            except CommandError as error:
                # One that is damaged is copied as it is, and publishing says what is wrong; it can only not become larger.
                if record.size > source.what.size or _FULL_WORDS in error.stderr:
                    raise
            self._step("fitted")
        ready = await station.lane.run(lambda: become_ready(opened, record))
        self._step("ready")
        return ready

    async def _fill(self, station: Station, opened: OpenPool, record: Record) -> Record:
        """Make what the record promises; returns the record of the volume that is ready."""
        await station.lane.run(lambda: make_storage(opened, record))
        self._step("made")
        if record.filesystem:
            await make_filesystem(station, opened, record)
            self._step("formatted")
        ready = await station.lane.run(lambda: become_ready(opened, record))
        self._step("ready")
        return ready

    async def _undoing(
        self, station: Station, opened: OpenPool, record: Record, work: Callable[[], Awaitable[Record]]
    ) -> Record:
        """Do the work, or leave nothing of it and say why in the words that callers decide by."""
        try:
            return await work()
        except BaseException as error:
            try:
                await self._throw_away(station, opened, record)
            except (OSError, DriverError) as second:
                raise UnavailableError(
                    f"volume {record.name} failed ({error}), and what was begun could not be removed ({second}): ask again"
                ) from error
            if isinstance(error, OSError | CommandError):
                raise _told(error, record, station) from error
            raise

    async def _throw_away(self, station: Station, opened: OpenPool, record: Record) -> None:
        """Remove what nobody was ever given, and end a deletion that was begun."""

        def throw_away() -> None:
            opened.pool.discard(record, retire=functools.partial(opened.retire, record))

        await station.lane.run(throw_away)
        station.discarded()

    def _take_out(self, opened: OpenPool, known: Record) -> None:
        # Another node of a shared pool may have changed the record since, or have been faster.
        with opened.pool.alone():
            record = opened.pool.find(known.id)
            if record is None:
                return
            backend = opened.backend_of(record)
            with contextlib.suppress(FileNotFoundError), opened.pool.folder(record.id) as folder:
                if record.state in GIVEN and (users := backend.users(folder)):
                    raise PreconditionError(
                        f"volume {record.id} is in use on {self._node_name} ({', '.join(users)}) and is not deleted: "
                        "unpublish it first"
                    )
                self._step("unused")
            opened.pool.discard(record, retire=functools.partial(opened.retire, record))
        self._step("discarded")


def as_source(wish: Creation, source: Source) -> Creation:
    """The wish with what follows from its source: backend, filesystem, and a size that holds it.

    Raises:
        InvalidArgumentError: it asks for something else than the source is.
        OutOfRangeError: it may not be as large as the source.
    """
    what, access, parameters = source.what, wish.access, wish.parameters
    if access.block is not source.block:
        raise InvalidArgumentError(
            f"{what.id} is of mode {what.mode}, and a copy of it is one too: ask for volumeMode "
            f"{'Block' if source.block else 'Filesystem'}"
        )
    if access.filesystem not in ("", what.filesystem or access.filesystem):
        raise InvalidArgumentError(f"{what.id} has {what.filesystem}, and a copy of it cannot have {access.filesystem}")
    if parameters.backend not in (contract.BACKEND_AUTO, what.backend):
        raise InvalidArgumentError(
            f"{what.id} is of backend {what.backend}, and a copy of it cannot be of backend {parameters.backend}"
        )
    if wish.range.limit is not None and wish.range.limit < source.size:
        raise OutOfRangeError(f"{what.id} has {source.size} bytes, and a copy of it may have {wish.range.limit} only")
    return replace(
        wish,
        access=replace(access, filesystem=what.filesystem or access.filesystem),
        parameters=replace(parameters, backend=what.backend),
        range=replace(wish.range, required=max(wish.range.required or 0, source.size)),
    )


def copied(record: Record, source: Source, *, opened: OpenPool) -> Record:
    """The record of a copy: of what, and whether the two may have data in common, of which two pools of one disk may."""
    return replace(record, source=source.what.id, shares=opened.no_reflink is None and source.pool.disk == opened.disk)


def make_storage(opened: OpenPool, record: Record) -> None:
    """Make what the record promises but the filesystem, in a folder that holds none of it. Blocks."""
    with opened.pool.folder(record.id) as folder:
        opened.backend_of(record).make(folder, shape_of(record))


async def make_filesystem(station: Station, opened: OpenPool, record: Record) -> None:
    """Make the filesystem in storage that the same attempt has just made; the record says that there is none."""

    async def make() -> None:
        with opened.pool.folder(record.id) as folder:
            await opened.backend_of(record).format(folder, shape_of(record))

    await station.run_program(make)


def become_ready(opened: OpenPool, record: Record) -> Record:
    """Write that all of it is made; returns that record. Blocks."""
    ready = replace(record, formatted=bool(record.filesystem), state=State.READY)
    opened.pool.update(ready)
    return ready


def _kind(backend: Backend, filesystem: str) -> str:
    return f"a volume of backend {backend.name}" + (f" with {filesystem}" if filesystem else "")


def _told(error: OSError | CommandError, record: Record, station: Station) -> DriverError:
    """The error as callers have to hear it, now that all was undone."""
    full = error.errno in _FULL if isinstance(error, OSError) else _FULL_WORDS in error.stderr
    if full:
        return ExhaustedError(
            f"the disk of pool {station.name} ran full while {record.size} bytes were being made, though its account had "
            f"room: something else fills it; free space there, or raise the pool's reserve ({error})"
        )
    return InternalError(f"volume {record.name} could not be made, and nothing of it is left: {error}")
