"""Growing a volume: the promise first, then the storage, then the size.

The record says what the volume is ``growing_to`` before anything of it grows, and that counts as promised. So a crash at
any step leaves either the old size, or a volume of which all is promised that it may have become.
"""

from dataclasses import replace

from moorage_csi.errors import NotFoundError, UnavailableError
from moorage_csi.volumes.account import Account
from moorage_csi.volumes.holding import Holding
from moorage_csi.volumes.ids import VolumeId
from moorage_csi.volumes.record import Record, State
from moorage_csi.volumes.room import Stake


class Growth:
    """Promises, ends and gives up the growing of one pool's volumes. All of it may be repeated."""

    def __init__(self, volumes: Holding[VolumeId, Record], account: Account) -> None:
        self._volumes = volumes
        self._account = account

    def promise(self, record: Record, size: int) -> Record:
        """Promise what the volume lacks of ``size`` bytes, before anything grows; returns its record from now on.

        The record says what the volume is ``growing_to``: at least ``size``, and more where an earlier grow to more has
        not ended, because nobody can know how far that came. Where it is that large already nothing changes. A crash
        leaves the record as it was, or growing.

        Raises:
            NotFoundError: the pool has the volume no more.
            UnavailableError: it is being made, wiped or deleted.
            ExhaustedError: the pool has not that much room; nothing changed.
        """
        with self._account.promising():
            known = self._known(record)
            if known.state is not State.READY:
                raise UnavailableError(f"volume {known.id} is {known.state}: ask again when that has ended")
            before = known.growing_to or known.size
            if size <= before:
                return known
            self._account.afford(Stake(promised=size - before, unwritten=size - before))
            growing = replace(known, growing_to=size)
            self._volumes.update(growing)
            return growing

    def done(self, record: Record) -> Record:
        """Write that the volume has the size that it was growing to, durably; returns that record.

        Raises:
            NotFoundError: the pool has the volume no more.
        """
        with self._account.alone():
            known = self._known(record)
            if known.growing_to is None:
                return known
            grown = replace(known, size=known.growing_to, growing_to=None)
            self._volumes.update(grown)
            return grown

    def shrunk(self, record: Record, size: int) -> Record:
        """Write that the volume is held to ``size`` bytes, fewer than before, durably; returns that record.

        Raises:
            NotFoundError: the pool has the volume no more.
        """
        with self._account.alone():
            smaller = replace(self._known(record), size=size)
            self._volumes.update(smaller)
            return smaller

    def give_up(self, record: Record) -> Record:
        """Write that the volume keeps its size, and promise the rest no more; returns that record.

        What of its storage has grown already still counts, because that is looked at.

        Raises:
            NotFoundError: the pool has the volume no more.
        """
        with self._account.alone():
            known = self._known(record)
            if known.growing_to is None:
                return known
            kept = replace(known, growing_to=None)
            self._volumes.update(kept)
            return kept

    def _known(self, record: Record) -> Record:
        known = self._volumes.find(record.id)
        if known is None:
            raise NotFoundError(f"volume {record.id} is not in its pool any more")
        return known
