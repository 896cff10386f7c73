"""Group snapshots: of several volumes of this node, in whatever pools, at one moment. All of it, or nothing.

Taking: write every member's record (``creating``) · copy all, of one moment, see ``moment`` · when all are copied, and
nobody is kept still any more, write each record (``copied``, with what it holds) · when all are, write each record
(``ready``). The first of these last writes is what makes the group: before it no member is ready, and whatever stops
leaves a group that nobody was given, which the next attempt or the next start throws away, all of it. After it the group
is whole on the disk, and the next attempt or the next start writes what was not written any more. How it is told
whether a group was made: see ``membership``.

A directory that several nodes share is never part of a group: nobody here can tell whether another node writes to it.

Deleting takes every member out, as a snapshot is. Stopped in the middle it leaves members that the next request for it
takes out; until then the group is not ready to use, and never taken anew.

All of it runs with the group's key held, and taking holds the volumes and the members too, see ``guard``: none of the
volumes is published, grown or deleted meanwhile.
"""

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from moorage_csi.errors import DriverError, NotFoundError, PreconditionError, UnavailableError
from moorage_csi.rpc import snapshots
from moorage_csi.rpc.compatibility import refuse_unready
from moorage_csi.rpc.guard import Guard
from moorage_csi.rpc.membership import Known, Membership, is_ready, is_whole, refuse_other_members, refuse_other_sources
from moorage_csi.rpc.moment import Part, copy_unused, copy_used, in_use
from moorage_csi.rpc.pools import Pools, Station
from moorage_csi.rpc.provisioning import no_step
from moorage_csi.rpc.snapshots import PATIENCE
from moorage_csi.volumes.ids import GroupId, SnapshotId, VolumeId, group_id_for, member_id_for
from moorage_csi.volumes.lane import Lane
from moorage_csi.volumes.record import Record
from moorage_csi.volumes.snapshot import Snapshot, SnapshotState

_log = logging.getLogger(__name__)

MOMENTS: Final = 2
"""Groups that are copied at a time; with threads of their own, because nobody may wait for one while he is kept still."""


class Grouper:
    """Takes and deletes the group snapshots of this node's volumes.

    ``step`` is called after every step with its name: the seam at which tests stop the process.
    """

    def __init__(
        self,
        *,
        pools: Pools,
        node_name: str,
        guard: Guard,
        clock: Callable[[], float],
        new_uuid: Callable[[], uuid.UUID] = uuid.uuid4,
        step: Callable[[str], None] = no_step,
    ) -> None:
        self._pools = pools
        self._node_name = node_name
        self._guard = guard
        self._clock = clock
        self._new_uuid = new_uuid
        self._step = step
        self._membership = Membership(pools=pools, guard=guard, step=step)
        self._moments = Lane("moments", threads=MOMENTS)

    def close(self) -> None:
        """Begin nothing more."""
        self._moments.close()

    async def take(self, name: str, sources: Sequence[VolumeId]) -> tuple[Snapshot, ...]:
        """Take a group snapshot of volumes, or find it taken, or being taken; its members.

        Raises:
            AlreadyExistsError: the name is that of a group snapshot of other volumes.
            NotFoundError: one of the volumes is not on this node.
            ExhaustedError: a pool has no room; nothing is left.
            PreconditionError: it would not be of one moment; nothing is left. Or members of it are gone.
        """
        await self.settle()
        group = group_id_for(name)
        if not self._guard.runs(group):
            taking = asyncio.ensure_future(self._guard.run(group, lambda: self._take(name, sources)))
            # Where this caller has gone by then, whoever asks next is told how it ended.
            taking.add_done_callback(lambda ended: None if ended.cancelled() else ended.exception())
            done, _ = await asyncio.wait([taking], timeout=PATIENCE)
            if done:
                return taking.result()
        members = _snapshots(await self._membership.find(group))
        refuse_other_sources(members, name, sources)
        if not is_whole(members) or any(member.state is SnapshotState.DELETING for member in members):
            raise UnavailableError(f"group snapshot {name} is being taken, or deleted: ask again")
        return members

    async def look(self, group: GroupId, listed: Iterable[SnapshotId]) -> tuple[Snapshot, ...]:
        """The members of a group snapshot; ``listed`` are those that the caller knows, none: he does not say.

        Raises:
            NotFoundError: there is none, or none was made.
            InvalidArgumentError: it has other members.
        """
        if not self._guard.runs(group):
            await self._guard.run(group, lambda: self._membership.settle(group))
        members = _snapshots(await self._membership.find(group))
        if not members:
            raise NotFoundError(f"group snapshot {group} is not on {self._node_name}")
        refuse_other_members(members, listed)
        return members

    async def delete(self, group: GroupId, listed: Iterable[SnapshotId]) -> None:
        """Delete a group snapshot with all its members; absent is deleted. ``listed`` as in ``look``.

        Raises:
            InvalidArgumentError: it has other members.
        """
        await self._guard.run(group, lambda: self._delete(group, listed))

    async def settle(self) -> None:
        """Bring to an end what an earlier attempt at any group left in the middle, as far as that can be told now."""
        await self._membership.settle_all()

    async def _take(self, name: str, sources: Sequence[VolumeId]) -> tuple[Snapshot, ...]:
        members = await self._membership.settle(group_id_for(name))
        if not members:
            return await self._make(name, sources)
        refuse_other_sources(members, name, sources)
        if not is_ready(members):
            raise PreconditionError(
                f"of group snapshot {name} only {', '.join(each.id for each in members)} are left, and it is never taken "
                "anew: delete it, or take another name"
            )
        return members

    async def _make(self, name: str, sources: Sequence[VolumeId]) -> tuple[Snapshot, ...]:
        ids = {source: member_id_for(name, source) for source in sources}
        with self._guard.holding([*ids, *ids.values()]):
            for member in ids.values():
                # One whose record cannot be trusted names no group; it is refused, and stays.
                await self._pools.find_snapshot(member)
            found = [await self._source(source) for source in sources]
            parts = await self._copied(name, found, ids)
            # What the first of these writes has made is never undone.
            try:
                members = tuple([await self._membership.give(part.station, part.snapshot) for part in parts])
            except OSError as error:
                raise UnavailableError(
                    f"group snapshot {name} is taken, and that could not be written: ask again ({error})"
                ) from error
        _log.info(
            "group snapshot taken",
            extra={"group": group_id_for(name), "volumes": len(members), "bytes": sum(each.holds for each in members)},
        )
        return members

    async def _source(self, source: VolumeId) -> tuple[Station, Record]:
        """The volume to copy.

        Raises:
            PreconditionError: other nodes may use it.
        """
        found = await self._pools.find(source)
        if found is None:
            raise NotFoundError(f"volume {source} is not on {self._node_name}")
        station, record = found
        refuse_unready(record)
        if station.settings.shared:
            raise PreconditionError(
                f"volume {source} is in pool {station.name}, which other nodes share and may write to: it cannot be part "
                "of a group snapshot; take snapshots of its volumes one by one"
            )
        return found

    async def _copied(
        self, name: str, found: Sequence[tuple[Station, Record]], ids: dict[VolumeId, SnapshotId]
    ) -> list[Part]:
        """All members, copied, in their order. A failure leaves nothing behind."""
        begun: list[Part] = []
        created = self._clock()
        ordered = sorted(found, key=lambda each: ids[each[1].id])
        parts = [await self._planned(name, station, record, ids, created) for station, record in ordered]
        try:
            for part in parts:
                await part.station.lane.run(lambda part=part: part.opened.pool.begin_snapshot(part.snapshot))  # type: ignore[misc]
                begun.append(part)
                self._step("begun")
            await self._copy(begun)
            return [await self._complete(part) for part in begun]
        except BaseException as error:
            try:
                for part in begun:
                    await self._membership.throw_away(part.station, part.snapshot)
            except (OSError, DriverError) as second:
                raise UnavailableError(
                    f"group snapshot {name} failed ({error}), and what was begun could not be removed ({second}): ask again"
                ) from error
            if isinstance(error, OSError):
                raise snapshots.told(error, f"group snapshot {name}") from error
            raise

    async def _planned(
        self, name: str, station: Station, record: Record, ids: dict[VolumeId, SnapshotId], created: float
    ) -> Part:
        opened = await station.open()
        holds = await station.lane.run(lambda: snapshots.allocated(opened, record))
        alone = snapshots.planned(
            opened,
            record,
            id=ids[record.id],
            name=name,
            uuid=self._new_uuid(),
            node=self._node_name,
            holds=holds,
            created=created,
        )
        snapshot = replace(alone, group=group_id_for(name), members=tuple(sorted(ids.values())))
        return Part(station=station, opened=opened, record=record, snapshot=snapshot)

    async def _copy(self, parts: Sequence[Part]) -> None:
        used: list[Part] = []
        unused: list[Part] = []
        for part in parts:
            (used if await part.station.lane.run(lambda part=part: in_use(part)) else unused).append(part)  # type: ignore[misc]
        if used:
            await self._moments.run(lambda: copy_used(used, step=self._step))
        for part in unused:
            await part.station.copying.run(lambda part=part: copy_unused(part))  # type: ignore[misc]
            self._step("copied")

    async def _complete(self, part: Part) -> Part:
        copied = await part.station.lane.run(
            lambda: snapshots.complete(part.opened, part.record, part.snapshot, state=SnapshotState.COPIED)
        )
        self._step("complete")
        return replace(part, snapshot=copied)

    async def _delete(self, group: GroupId, listed: Iterable[SnapshotId]) -> None:
        known = await self._membership.find(group)
        members = _snapshots(known)
        refuse_other_members(members, listed)
        with self._guard.holding(list(known)):
            for station, member in known.values():
                await self._membership.throw_away(station, member)
        if known:
            _log.info("group snapshot deleted", extra={"group": group, "volumes": len(members)})


def _snapshots(known: Known) -> tuple[Snapshot, ...]:
    return tuple(snapshot for _, snapshot in known.values())
