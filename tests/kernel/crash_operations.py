"""Every operation of the driver that can be killed in the middle, and what has to hold when it was.

A driver that was started on what is left goes on in one of two ways: the caller asks again (``retried``), or has lost
interest and has it undone (``abandoned``). Whatever else was there is unharmed in both.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moorage_csi.errors import NotFoundError, PreconditionError
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.rpc.validation import published_id, volume_id_for
from tests.kernel.crash_bases import COPY, DAY, SNAPSHOT, SOURCE, Step, remembered
from tests.kernel.crash_world import OWN, World, devices_below, gone, nothing, patiently, read, sum_of, write, written

POD: Final = "pod"
GROUP: Final = 4242


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation.

    ``base`` says what is in the pool before, ``prepare`` what is done in the process that is to die. ``kept`` are folders
    of the pool in which something stays for good; ``retention`` is the trash's, in seconds, ``hesitation`` that of who abandons it.
    """

    name: str
    base: str
    act: Step
    retried: Step
    abandoned: Step
    prepare: Step | None = None
    kept: tuple[str, ...] = ()
    retention: float = 0
    hesitation: float = 0
    mounted_only: bool = False


# What has to hold.


async def _source_is_whole(world: World) -> None:
    """The source was used by nobody, and no byte of it is another one."""
    if world.kind.name != "layered":
        assert sum_of(world.folder(SOURCE)) == remembered(world), "the source was changed"
    assert await world.content(SOURCE) == written(world.kind)


async def _snapshot_is_whole(world: World) -> None:
    """A volume can be made of it, which holds what was there."""
    await _holds(world, "restored", of=SNAPSHOT)
    await world.delete(volume_id_for("restored"))


async def _pod_goes_on(world: World) -> None:
    """The pod that uses the source can write to it, and finds what it wrote."""
    assert not world.frozen(SOURCE), "who writes to the source waits for ever"
    assert world.mounted() == [str(world.target(POD))]
    assert read(world.target(POD)) == written(world.kind)


async def _holds(world: World, name: str, *, of: str = "") -> None:
    """The volume is there, as large as was asked for, holds what it has to, and can be written to."""
    before = _inode(world, name)
    made = await world.create(name, of=of)
    assert before in (None, _inode(world, name)), "what was made was made a second time"
    assert (made.volume_id, made.capacity_bytes) == (volume_id_for(name), world.kind.size)
    listed = await world.listed()
    assert listed[made.volume_id] == made
    assert await world.content(made.volume_id) == (written if of else nothing)(world.kind)
    if not of:
        await world.fill(made.volume_id)
        assert await world.content(made.volume_id) == written(world.kind)


def _inode(world: World, name: str) -> int | None:
    folder = world.folder(volume_id_for(name))
    return next((seen.stat().st_ino for seen in (folder / "image", folder / "data") if seen.exists()), None)


async def _is_gone(world: World, volume: str) -> None:
    await world.delete(volume)
    assert volume not in await world.listed()
    await world.settled()
    assert not world.folder(volume).exists()


# Making.


async def _create_retried(world: World) -> None:
    await _holds(world, "copy")


async def _create_abandoned(world: World) -> None:
    await _is_gone(world, COPY)


def _copying(name: str, base: str, of: str, *, used: bool = False) -> Operation:
    async def retried(world: World) -> None:
        if used:
            await _pod_goes_on(world)
        await _holds(world, "copy", of=of)
        await (_pod_goes_on if used else _source_is_whole)(world)
        if of == SNAPSHOT:
            await _snapshot_is_whole(world)

    async def abandoned(world: World) -> None:
        await _is_gone(world, COPY)
        await (_pod_goes_on if used else _source_is_whole)(world)
        if of == SNAPSHOT:
            await _snapshot_is_whole(world)

    return Operation(
        name=name,
        base=base,
        prepare=_published if used else None,
        act=lambda world: world.create("copy", of=of),
        retried=retried,
        abandoned=abandoned,
    )


async def _published(world: World) -> None:
    await world.publish(SOURCE, POD)


def _snapshotting(name: str, *, used: bool = False) -> Operation:
    async def retried(world: World) -> None:
        if used:
            await _pod_goes_on(world)
        assert await world.snapshot("snap", SOURCE) == SNAPSHOT
        assert await world.snapshots() == [SNAPSHOT]
        await _snapshot_is_whole(world)
        await (_pod_goes_on if used else _source_is_whole)(world)

    async def abandoned(world: World) -> None:
        await world.delete_snapshot(SNAPSHOT)
        assert await world.snapshots() == []
        await world.settled()
        assert list((world.pool / "snapshots").iterdir()) == []
        await (_pod_goes_on if used else _source_is_whole)(world)

    return Operation(
        name=name,
        base="volume",
        prepare=_published if used else None,
        act=lambda world: world.snapshot("snap", SOURCE),
        retried=retried,
        abandoned=abandoned,
    )


async def _snapshot_gone(world: World) -> None:
    await world.delete_snapshot(SNAPSHOT)
    assert await world.snapshots() == []
    await _source_is_whole(world)


async def _snapshot_whole_or_gone(world: World) -> None:
    if await world.snapshots():
        await _snapshot_is_whole(world)
    await _source_is_whole(world)


# Growing.


def _expanding(name: str, *, used: bool = False) -> Operation:
    async def retried(world: World) -> None:
        size = 2 * world.kind.size
        if used:
            await _pod_goes_on(world)
        if await world.expand(SOURCE, size):
            await _expanded_on_the_node(world, size)
        assert (await world.listed())[SOURCE].capacity_bytes == size
        await _holds_as_much(world, size)

    async def abandoned(world: World) -> None:
        if used:
            await _pod_goes_on(world)
            await world.unpublish(SOURCE, POD)
        assert (await world.listed())[SOURCE].capacity_bytes in (world.kind.size, 2 * world.kind.size)
        assert await world.content(SOURCE) == written(world.kind)

    return Operation(
        name=name,
        base="volume",
        prepare=_published if used else None,
        act=lambda world: world.expand(SOURCE, 2 * world.kind.size),
        retried=retried,
        abandoned=abandoned,
    )


async def _expanded_on_the_node(world: World, size: int) -> None:
    """As the kubelet does it; where the kernel lets nobody grow what is mounted, the pod has to begin anew."""
    target = await world.publish(SOURCE, POD)
    request = csi.NodeExpandVolumeRequest(volume_id=SOURCE, volume_path=str(target))
    try:
        answer = await patiently(lambda: world.node.NodeExpandVolume(request, None))
    except PreconditionError:
        await world.unpublish(SOURCE, POD)
        # While another program happens to look at the device it is taken for used.
        await gone(lambda: devices_below(world.area), "loop devices")
        await world.publish(SOURCE, POD)
    else:
        assert answer.capacity_bytes == size


async def _holds_as_much(world: World, size: int) -> None:
    await world.unpublish(SOURCE, POD)
    assert world.mounted() == []
    target = await world.publish(SOURCE, POD)
    assert read(target) == written(world.kind)
    if world.kind.filesystem or world.kind.name == "layered":
        seen = os.statvfs(target)
        assert seen.f_blocks * seen.f_frsize > 0.75 * size, "the filesystem did not grow"
    await world.unpublish(SOURCE, POD)


# Deleting.


def _deleting(name: str, base: str) -> Operation:
    def kept(world: World) -> Path | None:
        if base == "snapshot":
            return None
        folder = {"archive": "archived", "retain": "retained"}[base]
        [one] = (world.pool / folder).iterdir()
        return one

    async def deleted(world: World) -> None:
        assert SOURCE not in await world.listed()
        stays = kept(world)
        if stays is not None and world.kind.name != "layered":
            assert sum_of(stays) == remembered(world), "what is kept was changed"

    async def retried(world: World) -> None:
        await world.delete(SOURCE)
        await deleted(world)
        await _snapshot_is_whole(world)

    async def abandoned(world: World) -> None:
        if SOURCE in await world.listed():
            await _source_is_whole(world)
            await world.delete(SOURCE)
        else:
            await deleted(world)
        await _snapshot_is_whole(world)

    return Operation(
        name=name,
        base=base,
        act=lambda world: world.delete(SOURCE),
        retried=retried,
        abandoned=abandoned,
        kept={"archive": ("archived",), "retain": ("retained",)}.get(base, ()),
    )


async def _trash_gone(world: World) -> None:
    await world.settled()
    for folder in ("trash", "archived", "volumes", "snapshots"):
        assert list((world.pool / folder).iterdir()) == []


async def _had_back_or_gone(world: World) -> None:
    """What is half removed is given back to nobody; what is whole can be had back."""
    for left, whole in ((SOURCE, _source_is_whole), (SNAPSHOT, _snapshot_is_whole)):
        with suppress(NotFoundError):
            await world.restore(left)
            await whole(world)


async def _had_back(world: World) -> None:
    await world.restore(SOURCE)
    await _source_is_whole(world)


async def _had_back_or_left(world: World) -> None:
    there = list((world.pool / "trash").iterdir())
    assert bool(there) is not (SOURCE in await world.listed()), "it is in two places, or in none"


# Showing.


async def _publish(world: World) -> Path:
    return await world.publish(SOURCE, POD, group=None if world.kind.block else GROUP)


async def _publish_retried(world: World) -> None:
    target = await _publish(world)
    assert world.mounted() == [str(target)]
    assert read(target) == written(world.kind)
    if not world.kind.block:
        assert {path.stat().st_gid for path in (target, target / "file", target / "sub")} == {GROUP}
    await _unpublish_retried(world)


async def _unpublish_retried(world: World) -> None:
    await world.unpublish(SOURCE, POD)
    assert world.mounted() == []
    assert not world.target(POD).exists()
    assert await world.content(SOURCE) == written(world.kind)


async def _unpublish_abandoned(world: World) -> None:
    target = await world.publish(SOURCE, POD)
    assert world.mounted() == [str(target)]
    assert read(target) == written(world.kind)
    await _unpublish_retried(world)


async def _own_retried(world: World) -> None:
    target = await world.publish_own()
    if read(target) == nothing(world.kind):
        write(target)
    assert read(target) == written(world.kind)
    await _own_gone(world)


async def _own_gone(world: World) -> None:
    await world.unpublish(OWN, POD)
    assert not world.target(POD).exists()
    assert not world.folder(published_id(OWN)).exists()


async def _own_filled(world: World) -> None:
    write(await world.publish_own())


# Wiping.


async def _wipe_retried(world: World) -> None:
    await world.wipe(SOURCE)
    assert (await world.listed())[SOURCE].capacity_bytes == world.kind.size
    assert await world.content(SOURCE) == nothing(world.kind)
    await world.fill(SOURCE)
    await world.wipe(SOURCE)
    assert await world.content(SOURCE) == written(world.kind), "a late duplicate of the wipe took the next claim's data"
    await _snapshot_is_whole(world)


async def _wipe_abandoned(world: World) -> None:
    await _is_gone(world, SOURCE)
    await _snapshot_is_whole(world)


OPERATIONS: Final = (
    Operation(
        name="create",
        base="empty",
        act=lambda world: world.create("copy"),
        retried=_create_retried,
        abandoned=_create_abandoned,
    ),
    _copying("create from a snapshot", "snapshot", SNAPSHOT),
    _copying("create from a volume", "volume", SOURCE),
    _copying("create from a volume in use", "volume", SOURCE, used=True),
    _snapshotting("snapshot"),
    _snapshotting("snapshot in use", used=True),
    Operation(
        name="delete a snapshot",
        base="snapshot",
        act=lambda world: world.delete_snapshot(SNAPSHOT),
        retried=_snapshot_gone,
        abandoned=_snapshot_whole_or_gone,
    ),
    _expanding("expand"),
    _expanding("expand in use", used=True),
    _deleting("delete", "snapshot"),
    _deleting("delete into the archive", "archive"),
    _deleting("delete and retain", "retain"),
    Operation(
        name="publish",
        base="volume",
        act=_publish,
        retried=_publish_retried,
        abandoned=_unpublish_retried,
    ),
    Operation(
        name="unpublish",
        base="volume",
        prepare=_published,
        act=lambda world: world.unpublish(SOURCE, POD),
        retried=_unpublish_retried,
        abandoned=_unpublish_abandoned,
    ),
    Operation(
        name="publish a pod's own",
        base="empty",
        act=lambda world: world.publish_own(),
        retried=_own_retried,
        abandoned=_own_gone,
        mounted_only=True,
    ),
    Operation(
        name="unpublish a pod's own",
        base="empty",
        prepare=_own_filled,
        act=lambda world: world.unpublish(OWN, POD),
        retried=_own_gone,
        abandoned=_own_retried,
        mounted_only=True,
    ),
    Operation(
        name="wipe",
        base="snapshot",
        act=lambda world: world.wipe(SOURCE),
        retried=_wipe_retried,
        abandoned=_wipe_abandoned,
    ),
    Operation(
        name="remove the trash",
        base="left",
        act=lambda world: world.remove_trash(),
        retried=_trash_gone,
        abandoned=_had_back_or_gone,
        hesitation=DAY,
    ),
    Operation(
        name="restore what was deleted",
        base="deleted",
        act=lambda world: world.restore(SOURCE),
        retried=_had_back,
        abandoned=_had_back_or_left,
        retention=DAY,
    ),
)
