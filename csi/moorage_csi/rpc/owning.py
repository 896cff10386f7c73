"""Giving a published volume to the group that its pod's fsGroup asks for (VOLUME_MOUNT_GROUP).

The driver does it, so the kubelet does not walk the tree each time; and the driver walks it only where the group is
another than before (see ``host.ownership``): after a restore, a clone, or for a pod with another fsGroup. A volume that has the
group costs one look. The walk is long work, so it runs where copies do and leaves the threads that publish alone; the
caller holds the volume's key until it has ended, and a retry meanwhile is told ABORTED. It stops when the driver
stops; the next call begins anew.
"""

import logging

from moorage_csi.backends.backend import Publication
from moorage_csi.backends.targets import attributes_of, opened_target
from moorage_csi.errors import PreconditionError, UnavailableError
from moorage_csi.host import mounts, ownership
from moorage_csi.host.ownership import Given
from moorage_csi.rpc.pools import Station
from moorage_csi.volumes.ids import VolumeId

_log = logging.getLogger(__name__)


async def give_to_group(station: Station, volume: VolumeId, publication: Publication, group: int) -> None:
    """Give the volume that is published there to the group, or find that it has it; nothing for a read-only one.

    Raises:
        PreconditionError: the filesystem lets not even root give files away, as an NFS export with root_squash does not.
        OSError: the kernel refuses it, or the driver stops; the volume stays published, and the call may be repeated.
        UnavailableError: the volume is not mounted there any more.
    """
    if attributes_of(publication).attributes.read_only:
        return

    def is_given() -> bool:
        with opened_target(publication.target, publication.kubelet_dir) as top:
            return ownership.is_given(top, group)

    def give() -> Given:
        with opened_target(publication.target, publication.kubelet_dir) as top:
            if mounts.mount_of_fd(top) is None:
                raise UnavailableError(f"volume {volume} is not mounted at {publication.target} any more: ask again")
            return ownership.give(top, group, batch=station.pace)

    if await station.lane.run(is_given):
        return
    try:
        given = await station.copying.run(give)
    except PermissionError as error:
        raise PreconditionError(
            f"volume {volume} cannot be given to group {group}, which the pod's fsGroup asks for: the filesystem of pool "
            f"{station.name} does not let root do it ({error}); on NFS export it with no_root_squash, or do without fsGroup"
        ) from error
    _log.info("volume given to a group", extra={"volume": volume, "group": group, "changed": given.changed})
    if given.immutable:
        _log.warning(
            "immutable files of a volume keep their group",
            extra={"volume": volume, "group": group, "immutable": given.immutable},
        )
