"""Changing what becomes of a volume when it is deleted, while it lives: one durable write of its record.

That is the one attribute that can change (CSI, ControllerModifyVolume; a VolumeAttributesClass in Kubernetes). The
record keeps beside it the word that the volume was made with: its context, which nobody can change in a
PersistentVolume, goes on to say that one, and the request that made the volume goes on to mean it (see ``compatibility``).

A crash leaves the old record or the new one, whole; the same call again writes what is missing, or nothing.

It runs with the volume's key held (see ``guard``), and in a shared pool with the lock of all its nodes.
"""

import logging
from dataclasses import replace

from moorage_csi.errors import NotFoundError
from moorage_csi.rpc.compatibility import refuse_unmodifiable, refuse_unready
from moorage_csi.rpc.pools import OpenPool, Station
from moorage_csi.volumes.record import Record, VolumeId

_log = logging.getLogger(__name__)


class Modifier:
    """Modifies volumes of this node."""

    async def modify(self, station: Station, volume: VolumeId, *, on_delete: str) -> None:
        """Have the volume deleted in this way from now on, or find that it is so.

        Raises:
            NotFoundError: the pool has no such volume any more.
            InvalidArgumentError: it ends with its pod.
            UnavailableError: it is being made, wiped or deleted: ask again.
        """
        opened = await station.open()
        before = await station.lane.run(lambda: _changed(opened, volume, on_delete))
        if before is not None:
            _log.info(
                "volume modified",
                extra={"volume": volume, "pool": station.name, "onDelete": on_delete, "before": before.on_delete},
            )


def _changed(opened: OpenPool, volume: VolumeId, on_delete: str) -> Record | None:
    """Write the record anew; returns what it was, None where nothing changed. Blocks."""
    with opened.pool.alone():
        record = opened.pool.find(volume)
        if record is None:
            raise NotFoundError(f"volume {volume} is not in pool {opened.pool.name} any more")
        refuse_unready(record)
        refuse_unmodifiable(record)
        if record.on_delete == on_delete:
            return None
        made_with = record.made_on_delete
        changed = replace(record, on_delete=on_delete, first_on_delete=None if made_with == on_delete else made_with)
        try:
            opened.pool.update(changed)
        except FileNotFoundError as error:
            # Another node of a shared pool deleted it meanwhile.
            raise NotFoundError(f"volume {volume} is not in pool {opened.pool.name} any more") from error
        return record
