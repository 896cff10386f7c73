"""Wiping a volume for its next claim: the steps, their order, and what is left if they stop between two.

Look that nobody uses it · write the record (``wiping``, with the claim's uid in it) · move the storage into
the trash · write the record (not ``formatted``, and no copy of anything any more) · make new storage and its filesystem as for a new volume ·
write the record (``ready``, and ``formatted`` with it).

From the first write on the volume cannot be published, and the next call brings it to an end: it moves
into the trash whatever lies in the folder, the old data or a half-made new storage, because nobody can know
how far that came, and begins with a new one. A filesystem is therefore made only in storage that the same
attempt has made. Before the first write nothing has changed.

The uid is what makes it happen once. A record keeps every uid that it was wiped for, not the last alone:
the call that comes late may be of any of them, and the data that it would meet is the next claim's.

It runs with the volume's key held (see ``guard``), and in a shared pool with the lock of all its nodes.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

from moorage_csi.errors import NotFoundError, PreconditionError, UnavailableError
from moorage_csi.host.commands import CommandError
from moorage_csi.rpc.compatibility import refuse_unready
from moorage_csi.rpc.pools import OpenPool, Station
from moorage_csi.rpc.provisioning import become_ready, make_filesystem, make_storage, no_step
from moorage_csi.rpc.validation import MOST_WIPES
from moorage_csi.volumes.record import Record, State, VolumeId

_log = logging.getLogger(__name__)


class Wiper:
    """Wipes volumes of this node. ``step`` is called after every step with its name, as the ``Provisioner``'s is."""

    def __init__(self, *, node_name: str, step: Callable[[str], None] = no_step) -> None:
        self._node_name = node_name
        self._step = step

    async def wipe(self, station: Station, volume: VolumeId, *, released_uid: str) -> None:
        """Replace the volume's content by nothing, once for this uid.

        Raises:
            NotFoundError: the pool has no such volume any more.
            PreconditionError: it is in use on this node, or was wiped so often that no uid more can be kept.
            UnavailableError: a step failed, or the volume is being made or deleted: ask again.
        """
        opened = await station.open()
        try:
            made = await station.lane.run(lambda: self._made(opened, volume, released_uid))
            if made is None:
                return
            station.discarded()
            if made.state is State.WIPING:
                await make_filesystem(station, opened, made)
                self._step("formatted")
                await station.lane.run(lambda: become_ready(opened, made))
                self._step("ready")
        except (OSError, CommandError) as error:
            raise UnavailableError(
                f"the wipe of volume {volume} has not ended ({error}): ask again, it goes on where it stopped"
            ) from error
        _log.info("volume wiped", extra={"volume": volume, "pool": station.name, "released_uid": released_uid})

    def _made(self, opened: OpenPool, volume: VolumeId, released_uid: str) -> Record | None:
        """Do all but making a filesystem; returns the record so far, None where it was wiped for this uid before.

        In a shared pool, where no volume has a filesystem of its own, that is all of it. It holds the lock of the nodes
        in one piece: a holder that had to wait for a thread of the pool would wait for those that wait for the lock.
        """
        with opened.pool.alone():
            record = opened.pool.find(volume)
            if record is None:
                raise NotFoundError(f"volume {volume} is not in pool {opened.pool.name} any more")
            if record.state is not State.WIPING:
                refuse_unready(record)
                if released_uid in record.wiped_for:
                    return None
            bare = self._empty(opened, record, released_uid)
            make_storage(opened, bare)
            self._step("made")
            if bare.filesystem:
                return bare
            ready = become_ready(opened, bare)
            self._step("ready")
            return ready

    def _empty(self, opened: OpenPool, record: Record, released_uid: str) -> Record:
        """Take everything out of the volume's folder; returns its record, which says that nothing is in it."""
        backend = opened.backend_of(record)
        with opened.pool.folder(record.id) as folder:
            if users := backend.users(folder):
                raise PreconditionError(
                    f"volume {record.id} is in use on {self._node_name} ({', '.join(users)}) and is not wiped: "
                    "unpublish it first"
                )
            self._step("unused")
            record = self._begun(opened, record, released_uid)
            opened.retire(record, folder)
        opened.pool.strip(record)
        self._step("stripped")
        bare = replace(record, formatted=False, source=None, shares=False)
        if record != bare:
            record = bare
            opened.pool.update(record)
            self._step("bare")
        return record

    def _begun(self, opened: OpenPool, record: Record, released_uid: str) -> Record:
        """The record in which the wipe is known to have begun, for this uid too where another one's stopped."""
        if released_uid in record.wiped_for:
            return record
        if len(record.wiped_for) >= MOST_WIPES:
            raise PreconditionError(
                f"volume {record.id} was wiped {MOST_WIPES} times, which is all that its record can hold: delete it, and "
                "let a new one be made"
            )
        begun = replace(record, state=State.WIPING, wiped_for=(*record.wiped_for, released_uid))
        opened.pool.update(begun)
        self._step("begun")
        return begun
