"""What there is of a group snapshot, told from its members' records, and bringing to an end what stopped half way.

A group has no record of its own. It is the snapshots that name it, and each of them names all of them (``members``). So
no pool is needed to know of a group what another one has, and none has more to say than the others. What stopped is told
from the members alone:

    a member is ready                   the group was made: those that are copied become ready
    none is, and all are known          it was not: those that are left go
    none is, and a pool is not open     it may be there that one is: nothing is done until that pool opens

Members that are ``creating`` go when their pool opens, because with one of them no group was made. One that is ready has
been given, and never goes but by a request: not with a pool that is lost, nor with a record that is damaged.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from moorage_csi.errors import AlreadyExistsError, DriverError, InvalidArgumentError, UnavailableError
from moorage_csi.rpc import snapshots
from moorage_csi.rpc.guard import Guard
from moorage_csi.rpc.inventory import known_snapshots
from moorage_csi.rpc.pools import Pools, Station
from moorage_csi.volumes.ids import GroupId, SnapshotId, VolumeId, member_id_for
from moorage_csi.volumes.snapshot import Snapshot, SnapshotState

_log = logging.getLogger(__name__)

Known = dict[SnapshotId, tuple[Station, Snapshot]]
"""The members of a group that are there, by id, in the order of the ids."""


class Membership:
    """Finds and ends the groups of this node. ``step`` is called after every step with its name."""

    def __init__(self, *, pools: Pools, guard: Guard, step: Callable[[str], None]) -> None:
        self._pools = pools
        self._guard = guard
        self._step = step

    async def find(self, group: GroupId) -> Known:
        """The members that are there.

        Raises:
            UnavailableError: some are not, and may be in a pool that is not open.
            PreconditionError: the record of one cannot be trusted.
        """
        found: Known = {}
        closed: DriverError | None = None
        for station in self._pools:
            try:
                opened = await station.open()
            except DriverError as error:
                closed = error
                continue
            if not station.settings.shared:
                # In a shared one there are none, see ``grouping``.
                found |= {each.id: (station, each) for each in known_snapshots(opened) if each.group == group}
        missing = {member for _, each in found.values() for member in each.members}.difference(found)
        if closed is not None and (missing or not found):
            raise UnavailableError(f"{group} may be in a pool that is not open: {closed}") from closed
        for member in missing:
            await self._pools.find_snapshot(member)
        return dict(sorted(found.items()))

    async def settle(self, group: GroupId) -> tuple[Snapshot, ...]:
        """Bring to an end what an earlier attempt left; the members of a group that was made, none if it was not.

        The caller holds the group's key. A crash in it leaves what the next call brings to the same end.
        """
        known = await self.find(group)
        if not any(each.state is SnapshotState.READY for _, each in known.values()):
            # In their order: of the first one an error may have hidden that it is ready on the disk.
            for station, each in known.values():
                await self.throw_away(station, each)
            return ()
        return tuple(
            [
                await self.give(station, each) if each.state is SnapshotState.COPIED else each
                for station, each in known.values()
            ]
        )

    async def settle_all(self) -> None:
        """The same for all groups in the open pools that nothing is being done for; what cannot be told yet is left."""
        left = {
            each.group
            for station in self._pools
            if station.ready is not None
            for each in station.ready.pool.snapshots.records.values()
            if each.state is SnapshotState.COPIED
        }
        for group in left:
            if group is None or self._guard.runs(group):
                continue
            try:
                await self._guard.run(group, lambda group=group: self.settle(group))  # type: ignore[misc]
            except (DriverError, OSError) as error:
                _log.warning("a group snapshot is left as it is for now", extra={"group": group, "reason": str(error)})

    async def give(self, station: Station, snapshot: Snapshot) -> Snapshot:
        """Write that a member is ready, and return that record; the first one's makes the group."""
        opened = await station.open()
        ready = replace(snapshot, state=SnapshotState.READY)
        await station.lane.run(lambda: opened.pool.snapshots.update(ready))
        self._step("ready")
        return ready

    async def throw_away(self, station: Station, snapshot: Snapshot) -> None:
        """Take a member out of its pool; absent is taken out."""
        await snapshots.throw_away(station, snapshot)
        self._step("discarded")


def is_whole(members: Sequence[Snapshot]) -> bool:
    """Whether these are all members of their group."""
    return bool(members) and {each.id for each in members} == set(members[0].members)


def is_ready(members: Sequence[Snapshot]) -> bool:
    """Whether these are all members of their group, and ready to use."""
    return is_whole(members) and all(each.state is SnapshotState.READY for each in members)


def refuse_other_sources(members: Sequence[Snapshot], name: str, sources: Iterable[VolumeId]) -> None:
    """Refuse a name that is that of a group of other volumes; CSI, CreateVolumeGroupSnapshot: ALREADY_EXISTS."""
    wanted = {member_id_for(name, source) for source in sources}
    if members and set(members[0].members) != wanted:
        raise AlreadyExistsError(
            f"group snapshot {name} is of other volumes, {', '.join(each.source for each in members)} among them: take "
            "another name"
        )


def refuse_other_members(members: Sequence[Snapshot], listed: Iterable[SnapshotId]) -> None:
    """Refuse a list of snapshots that is not the group's; CSI, DeleteVolumeGroupSnapshot: INVALID_ARGUMENT.

    One that is empty says nothing: whoever has not been told the members yet can still delete the group.
    """
    given = set(listed)
    if members and given and given != set(members[0].members):
        raise InvalidArgumentError(
            f"snapshot_ids are not those of group snapshot {members[0].group}: it has {', '.join(members[0].members)}"
        )
