"""The whole driver in one process without a socket, on one pool, and what must hold of what it leaves there.

So it can be forked, killed, and started again on the same pool as often as there are crash points.
"""

import asyncio
import hashlib
import os
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from moorage_csi.backends import layers
from moorage_csi.errors import InFlightError, PreconditionError, UnavailableError
from moorage_csi.host import freezing, mounts
from moorage_csi.host.copying import data_ranges
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.proto import moorage_pb2 as moorage
from moorage_csi.rpc.controller import Controller
from moorage_csi.rpc.ephemeral import EPHEMERAL
from moorage_csi.rpc.groups import GroupController
from moorage_csi.rpc.guard import Guard
from moorage_csi.rpc.node import Node
from moorage_csi.rpc.pools import OpenPool, Pools, Station
from moorage_csi.rpc.volumes import Volumes
from moorage_csi.volumes.pool import PoolSettings
from tests.kernel.kinds import counting
from tests.kernel.loop_filesystem import filesystem
from tests.kernel.machine import mounted, names, opened, tool
from tests.kernel.rpc_driver import MIB, NODE, capability

Answer = TypeVar("Answer")

LOCK_SECONDS: Final = 20.0
PATIENCE: Final = 20.0
"""Seconds for which a call that says "ask again" is asked again."""

OWN: Final = f"csi-{'0' * 64}"
"""The kubelet's id of the volume that stands in the pod itself."""

_AT: Final = 3 * MIB
_BLOCK: Final = 64 << 10
_ZEROS: Final = bytes(_BLOCK)
_CONTENT: Final = hashlib.shake_256(b"precious").digest(96 << 10)


async def _opened(station: Station) -> OpenPool:
    """Open the pool. A process that was killed in the middle of a system call has its lock until that call ends."""
    async with asyncio.timeout(LOCK_SECONDS):
        while True:
            try:
                return await station.open()
            except UnavailableError as error:
                if "in use by another process" not in str(error):
                    raise
            await asyncio.sleep(0.05)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of volume and the filesystem on which its pool lies."""

    name: str
    disk: str
    parameters: Mapping[str, str]
    size: int = 64 * MIB
    filesystem: str = ""
    block: bool = False

    @property
    def wanted(self) -> csi.VolumeCapability:
        """The capability to ask for it."""
        return capability(block=self.block, filesystem=self.filesystem)


def _kind(name: str, disk: str, backend: str, **more: Any) -> Kind:
    quota = {"quota": "best-effort"} if backend == "directory" else {}
    return Kind(name=name, disk=disk, parameters={"backend": backend, **quota}, **more)


KINDS: Final = (
    _kind("image ext4", "tmpfs", "image", filesystem="ext4"),
    _kind("image xfs", "xfs", "image", filesystem="xfs", size=300 * MIB),
    _kind("image block", "xfs", "image", block=True),
    _kind("directory", "tmpfs", "directory"),
    _kind("btrfs", "btrfs", "btrfs"),
    _kind("layered", "tmpfs", "layered"),
)


async def patiently(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Ask as callers do: again, as long as the answer is that something may still be running."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return await call()
        except (UnavailableError, InFlightError, PreconditionError) as error:
            # A device that another program happens to look at is in use for that moment.
            held = isinstance(error, PreconditionError) and "(/dev/loop" in str(error)
            if time.monotonic() > deadline or (isinstance(error, PreconditionError) and not held):
                raise
            await asyncio.sleep(0.02)


@dataclass(slots=True, kw_only=True)
class World:
    """A driver at work on ``area/pool``, and its callers' view of it."""

    area: Path
    kind: Kind
    pools: Pools
    controller: Controller
    node: Node
    volumes: Volumes

    @classmethod
    @asynccontextmanager
    async def started(
        cls, area: Path, kind: Kind, *, whole: bool = True, retention: float = 0
    ) -> AsyncIterator["World"]:
        """Start the driver; unless it is to be ``whole``, without all that it does of itself at moments of its own."""
        kubelet = area / "kubelet"
        kubelet.mkdir(parents=True, exist_ok=True)
        settings = PoolSettings(
            name="default", path=str(area / "pool"), trash_retention=retention, archive_retention=86400
        )
        pools, guard = Pools([settings], node_name=NODE), Guard()
        node = Node(pools=pools, node_name=NODE, kubelet_dir=str(kubelet), guard=guard)
        groups = GroupController(pools=pools, node_name=NODE, guard=guard)
        for station in pools:
            await _opened(station)
        if whole:
            await pools.start()
            await groups.settle()
            node.start()
        try:
            yield cls(
                area=area,
                kind=kind,
                pools=pools,
                controller=Controller(pools=pools, node_name=NODE, guard=guard),
                node=node,
                volumes=Volumes(pools=pools, node_name=NODE, guard=guard),
            )
        finally:
            assert await guard.drain(PATIENCE)
            await node.close()
            groups.close()
            await pools.close()
            for station in pools:
                station.release()

    @property
    def pool(self) -> Path:
        """The pool's folder."""
        return self.area / "pool"

    # What callers ask for.

    async def create(self, name: str, *, of: str = "", size: int = 0, on_delete: str = "") -> csi.Volume:
        """Make a volume, empty or of a source."""
        request = csi.CreateVolumeRequest(
            name=name,
            capacity_range=csi.CapacityRange(required_bytes=size or self.kind.size),
            volume_capabilities=[self.kind.wanted],
            parameters={**self.kind.parameters, **({"onDelete": on_delete} if on_delete else {})},
        )
        if of.startswith("snap-"):
            request.volume_content_source.snapshot.snapshot_id = of
        elif of:
            request.volume_content_source.volume.volume_id = of
        return (await patiently(lambda: self.controller.CreateVolume(request, None))).volume

    async def delete(self, volume: str) -> None:
        """Delete a volume."""
        await patiently(lambda: self.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id=volume), None))

    async def snapshot(self, name: str, volume: str) -> str:
        """Take a snapshot, until it is ready."""
        request = csi.CreateSnapshotRequest(name=name, source_volume_id=volume)
        async with asyncio.timeout(PATIENCE):
            while True:
                taken = (await patiently(lambda: self.controller.CreateSnapshot(request, None))).snapshot
                if taken.ready_to_use:
                    return taken.snapshot_id
                await asyncio.sleep(0.02)

    async def delete_snapshot(self, snapshot: str) -> None:
        """Delete a snapshot."""
        request = csi.DeleteSnapshotRequest(snapshot_id=snapshot)
        await patiently(lambda: self.controller.DeleteSnapshot(request, None))

    async def expand(self, volume: str, size: int) -> bool:
        """Make a volume larger; whether the node has something to do still."""
        request = csi.ControllerExpandVolumeRequest(
            volume_id=volume, capacity_range=csi.CapacityRange(required_bytes=size)
        )
        answer = await patiently(lambda: self.controller.ControllerExpandVolume(request, None))
        assert answer.capacity_bytes == size
        return answer.node_expansion_required

    async def publish(self, volume: str, pod: str = "pod", *, group: int | None = None) -> Path:
        """Publish a volume; returns the target."""
        target = self.target(pod)
        target.parent.mkdir(parents=True, exist_ok=True)
        request = csi.NodePublishVolumeRequest(
            volume_id=volume,
            target_path=str(target),
            volume_capability=capability(block=self.kind.block, filesystem=self.kind.filesystem, group=group),
        )
        await patiently(lambda: self.node.NodePublishVolume(request, None))
        return target

    async def unpublish(self, volume: str, pod: str = "pod") -> None:
        """Unpublish a volume."""
        request = csi.NodeUnpublishVolumeRequest(volume_id=volume, target_path=str(self.target(pod)))
        await patiently(lambda: self.node.NodeUnpublishVolume(request, None))

    async def publish_own(self) -> Path:
        """Publish the volume that stands in the pod itself."""
        target = self.target("pod")
        target.parent.mkdir(parents=True, exist_ok=True)
        request = csi.NodePublishVolumeRequest(
            volume_id=OWN,
            target_path=str(target),
            volume_capability=self.kind.wanted,
            volume_context={EPHEMERAL: "true", "size": str(self.kind.size), **self.kind.parameters},
        )
        await patiently(lambda: self.node.NodePublishVolume(request, None))
        return target

    async def wipe(self, volume: str) -> None:
        """Wipe a volume for its next claim."""
        request = moorage.WipeVolumeRequest(volume_id=volume, released_uid="uid-1")
        await patiently(lambda: self.volumes.WipeVolume(request, None))

    async def restore(self, wanted: str) -> None:
        """Have back what was deleted."""
        await patiently(lambda: self.volumes.RestoreDeleted(moorage.RestoreDeletedRequest(id=wanted), None))

    async def remove_trash(self) -> None:
        """What the driver does of itself, now."""
        for station in self.pools:
            opened = await station.open()
            opened.pool.exits.sweep()
            for name in opened.pool.trash.names():
                opened.pool.trash.remove(name)

    # What is there.

    def target(self, pod: str) -> Path:
        """Where a pod has its volume."""
        return self.area / "kubelet" / "pods" / pod / "mount"

    async def listed(self) -> dict[str, csi.Volume]:
        """The volumes by id, each of which is well."""
        entries = await self._entries()
        for entry in entries:
            condition = entry.status.volume_condition
            assert not condition.abnormal, condition.message
        return {entry.volume.volume_id: entry.volume for entry in entries}

    async def _entries(self) -> list[csi.ListVolumesResponse.Entry]:
        return list((await self.controller.ListVolumes(csi.ListVolumesRequest(), None)).entries)

    async def snapshots(self) -> list[str]:
        """The ids of the snapshots."""
        entries = (await self.controller.ListSnapshots(csi.ListSnapshotsRequest(), None)).entries
        return [entry.snapshot.snapshot_id for entry in entries]

    def mounted(self) -> list[str]:
        """The targets at which volumes are."""
        return [mount.target for mount in mounts.mounts() if mount.target.startswith(f"{self.area}/kubelet/")]

    def folder(self, volume: str) -> Path:
        """The folder of a volume."""
        return self.pool / "volumes" / volume

    def frozen(self, volume: str) -> bool:
        """Whether those who write to a volume that is in use have to wait for ever."""
        if self.kind.block or self.kind.parameters["backend"] not in ("image", "layered"):
            return False
        with opened(self.folder(volume) / "image", os.O_RDWR) as image:
            if self.kind.parameters["backend"] == "layered":
                with layers.written(image) as top:
                    return freezing.thaw(top)
            with opened(self.target("pod"), os.O_RDONLY) as top:
                return freezing.thaw(top)

    async def is_sound(self) -> None:
        """Nothing half-made is left by the start itself; what is in its place is somebody's."""
        assert all(opened.pool.problems == () for opened in [await station.open() for station in self.pools])
        assert names(self.pool / "making") == []
        assert names(self.pool / "volumes") == sorted(entry.volume.volume_id for entry in await self._entries())
        assert names(self.pool / "snapshots") == sorted(await self.snapshots())

    async def content(self, volume: str) -> str:
        """What is in a volume, in one word; it is published for that, and not written to."""
        target = await self.publish(volume, "reader")
        try:
            return read(target)
        finally:
            await self.unpublish(volume, "reader")

    async def fill(self, volume: str) -> None:
        """Write into a volume what is looked for later."""
        write(await self.publish(volume, "writer"))
        await self.unpublish(volume, "writer")

    async def settled(self) -> None:
        """Wait until the trash is empty."""
        deadline = time.monotonic() + PATIENCE
        trash = self.pool / "trash"
        # A look at a folder in which something is being renamed may miss it.
        while left := [*trash.iterdir()] or [*trash.iterdir()]:
            assert time.monotonic() < deadline, f"left in the trash: {left}"
            for station in self.pools:
                station.discarded()
            await asyncio.sleep(0.005)

    async def clear(self, *kept: str) -> None:
        """Delete all that is there; nothing of it may be left, but the folders in ``kept``."""
        for target in self.mounted():
            tool("umount", target)
        for volume in await self.listed():
            await self.delete(volume)
        for snapshot in await self.snapshots():
            await self.delete_snapshot(snapshot)
        await self.settled()
        left = [
            str(path.relative_to(self.pool))
            for path in self.pool.glob("*/*")
            if str(path.relative_to(self.pool)).partition("/")[0] not in kept
        ]
        assert left == [], f"left: {left}"
        await gone(lambda: devices_below(self.area), "loop devices")
        assert not self.mounted()
        for station in self.pools:
            opened = await station.open()
            assert opened.pool.problems == ()
            assert opened.pool.claims() == (0, 0), "something is still promised"


async def gone(left: Callable[[], object], what: str) -> None:
    """Wait until there is nothing of it; what another program happens to look at goes a moment later."""
    deadline = time.monotonic() + PATIENCE
    while found := left():
        assert time.monotonic() < deadline, f"{what} left: {found}"
        await asyncio.sleep(0.01)


def devices_below(area: Path) -> list[str]:
    """The loop devices of files that lie, or lay, in a directory."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if backing.read_text(encoding="utf-8").startswith(f"{area}/"):
                found.append(backing.parts[3])
    return found


def write(target: Path) -> None:
    """Write what ``read`` finds."""
    if target.is_block_device():
        with opened(target, os.O_RDWR) as device:
            os.pwrite(device, _CONTENT, 0)
            os.pwrite(device, _CONTENT, _AT)
            os.fsync(device)
        return
    (target / "sub").mkdir()
    (target / "file").write_bytes(_CONTENT)
    (target / "sub" / "second").hardlink_to(target / "file")
    (target / "link").symlink_to("file")


def read(target: Path) -> str:
    """What is in a published volume, in one word."""
    if target.is_block_device():
        with opened(target, os.O_RDONLY) as device:
            return _word([_word_of(os.pread(device, len(_CONTENT), at)) for at in (0, _AT)])
    return _word(
        sorted(
            f"{path.relative_to(target)} {_thing(path)}"
            for path in target.rglob("*")
            if path.relative_to(target).parts[0] != "lost+found"
        )
    )


def _thing(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return str(path.readlink())
    return "directory" if stat.S_ISDIR(mode) else _word_of(path.read_bytes())


def _word_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _word(lines: list[str]) -> str:
    return _word_of("\n".join(lines).encode())


def written(kind: Kind) -> str:
    """The word for what ``write`` writes."""
    one = _word_of(_CONTENT)
    return _word([one, one] if kind.block else [f"file {one}", "link file", "sub directory", f"sub/second {one}"])


def nothing(kind: Kind) -> str:
    """The word for a new volume."""
    zeros = _word_of(bytes(len(_CONTENT)))
    return _word([zeros, zeros] if kind.block else [])


def sum_of(folder: Path) -> str:
    """A sum over all bytes of a volume's image, wherever it has holes; of one that is a directory, over what is in it."""
    image = folder / "image"
    if not image.exists():
        return read(folder / "data")
    total = hashlib.blake2b()
    with opened(image, os.O_RDONLY) as fd:
        ranges = data_ranges(fd, os.fstat(fd).st_size)
        places = {at for start, end in ranges for at in range(start - start % _BLOCK, end, _BLOCK)}
        for at in sorted(places):
            part = os.pread(fd, _BLOCK, at)
            if part != _ZEROS:
                total.update(at.to_bytes(8, "big") + part)
    return total.hexdigest()


@contextmanager
def disk_of(kind: Kind, area: Path) -> Iterator[Path]:
    """A filesystem for the pools of a kind; in memory, since what a SIGKILL leaves does not depend on the disk below."""
    memory = area / "memory"
    memory.mkdir()
    with mounted(memory, "-t", "tmpfs", "-o", "size=8g", "tmpfs"):
        if kind.disk == "tmpfs":
            yield memory
            return
        with filesystem(memory, kind.disk, size=4096 * MIB) as disk:
            if kind.disk == "btrfs":
                counting(disk, simple=True)
            yield disk
