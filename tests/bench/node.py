"""The driver measured from inside a mount namespace of its own; prints its figures as JSON. Started by `driver`.

The pools are loop files on the same disk, each with a filesystem of its own, so that one run compares them. Whatever is
called a ratio was measured against the same thing done by `cp -a` on the same filesystem.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc

from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.proto import csi_pb2_grpc
from tests.bench.figures import MIB, Figure
from tests.harness import processes
from tests.harness.plugin import Plugin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PART: Final = "the driver on a node"
GIB: Final = 1024 * MIB
POOL_BYTES: Final = 32 * GIB
DATA_BYTES: Final = GIB
FILES_OF_DATA: Final = 2_000
ROUNDS: Final = 300
STARTS: Final = 5
CALLS: Final = 10_000
CALL_SECONDS: Final = 120.0
SETTLED_SECONDS: Final = 2.0
CHUNK: Final = os.urandom(MIB)

START_MS: Final = 200
IDLE_MIB: Final = 45
PUBLISH_MS: Final = 3
CLONE_MS: Final = 50
STATS_MS: Final = 10

POOLS: Final = {"disk": None, "xfs": ("mkfs.xfs", "-q", "-f"), "btrfs": ("mkfs.btrfs", "-q", "-f")}
"""Pools by name, and what makes their filesystem; the first lies on the disk as it is."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of volume: a name for the table, class parameters, and whether its copies share their data."""

    name: str
    parameters: dict[str, str]
    shares: bool


KINDS: Final = (
    Kind(name="image ext4 on the disk", parameters={"pool": "disk", "backend": "image"}, shares=False),
    Kind(name="image ext4 on xfs", parameters={"pool": "xfs", "backend": "image"}, shares=True),
    Kind(
        name="directory on xfs",
        parameters={"pool": "xfs", "backend": "directory", "quota": "best-effort"},
        shares=False,
    ),
    Kind(name="btrfs", parameters={"pool": "btrfs", "backend": "btrfs", "quota": "best-effort"}, shares=True),
)


class Bench:
    """A client of one driver, and the figures so far."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        channel = grpc.insecure_channel(f"unix://{plugin.socket}")
        self.identity = csi_pb2_grpc.IdentityStub(channel)
        self.controller = csi_pb2_grpc.ControllerStub(channel)
        self.node = csi_pb2_grpc.NodeStub(channel)

    def create(self, name: str, parameters: dict[str, str], source: csi.VolumeContentSource | None = None) -> str:
        """Make a volume of twice the data; returns its id."""
        request = csi.CreateVolumeRequest(
            name=name,
            capacity_range=csi.CapacityRange(required_bytes=2 * DATA_BYTES),
            volume_capabilities=[_capability()],
            parameters=parameters,
        )
        if source is not None:
            request.volume_content_source.CopyFrom(source)
        volume: str = self.controller.CreateVolume(request, timeout=CALL_SECONDS).volume.volume_id
        return volume

    def publish(self, volume: str) -> Path:
        """Publish a volume; returns where."""
        target = self.plugin.kubelet / volume / "mount"
        target.parent.mkdir(parents=True, exist_ok=True)
        request = csi.NodePublishVolumeRequest(
            volume_id=volume, target_path=str(target), volume_capability=_capability()
        )
        self.node.NodePublishVolume(request, timeout=CALL_SECONDS)
        return target

    def unpublish(self, volume: str, target: Path) -> None:
        """Take it away again."""
        request = csi.NodeUnpublishVolumeRequest(volume_id=volume, target_path=str(target))
        self.node.NodeUnpublishVolume(request, timeout=CALL_SECONDS)

    def delete(self, volume: str) -> None:
        """Delete a volume."""
        self.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id=volume), timeout=CALL_SECONDS)

    def snapshot(self, name: str, volume: str) -> str:
        """Take a snapshot, and wait until it is ready to use; returns its id."""
        request = csi.CreateSnapshotRequest(name=name, source_volume_id=volume)
        while True:
            taken = self.controller.CreateSnapshot(request, timeout=CALL_SECONDS).snapshot
            if taken.ready_to_use:
                return str(taken.snapshot_id)


def main() -> None:
    """Measure everything in the folder that is the first argument; the second is the number of files for `stats`."""
    place, files = Path(sys.argv[1]), int(sys.argv[2])
    with _pools(place) as pools:
        figures = [*_starts(place, pools)]
        with Plugin(place, pools) as plugin:
            bench = Bench(plugin)
            figures += [*_publishing(bench), *_memory(bench), *_copying(bench), *_stats(bench, files)]
    json.dump([dataclasses.asdict(figure) for figure in figures], sys.stdout)


def _starts(place: Path, pools: list[dict[str, object]]) -> Iterator[Figure]:
    """From the process's start until its socket takes connections, bytecode compiled."""
    seconds, weights = [], []
    for _ in range(STARTS + 1):
        plugin = Plugin(place, pools)
        seconds.append(plugin.start())
        weights.append(plugin.weigh().resident)
        plugin.stop()
    yield _figure("start to serving, best", min(seconds[1:]) * 1000, "ms", most=START_MS, detail=_spread(seconds[1:]))


def _publishing(bench: Bench) -> Iterator[Figure]:
    """Publish and unpublish, by turns, one volume of each kind."""
    for kind in KINDS:
        volume = bench.create(f"publish {kind.name}", kind.parameters)
        seconds = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            bench.unpublish(volume, bench.publish(volume))
            seconds.append(time.perf_counter() - began)
        bench.delete(volume)
        bound = kind.parameters["backend"] in ("directory", "btrfs")
        yield _figure(
            f"publish and unpublish, {kind.name}: p50",
            statistics.median(seconds) * 1000,
            "ms",
            most=PUBLISH_MS if bound else None,
            detail=_spread(seconds),
        )


def _memory(bench: Bench) -> Iterator[Figure]:
    """Resident memory at rest, and after many calls of all sorts; the first thousand fill what stays."""
    with Plugin(
        _fresh(bench.plugin.place / "idle"), [{"name": "idle", "path": str(bench.plugin.place / "idle/pool")}]
    ) as idle:
        time.sleep(SETTLED_SECONDS)
        yield _figure("resident, idle", idle.weigh().resident / MIB, "MiB", most=IDLE_MIB)
        calls = Bench(idle)
        volume = calls.create("calls", {"backend": "directory", "quota": "best-effort"})
        _call(calls, volume, CALLS // 10)
        before = idle.weigh().resident
        _call(calls, volume, CALLS)
        after = idle.weigh().resident
    yield _figure(f"resident after {CALLS:,} calls", after / MIB, "MiB")
    yield _figure(f"growth by {CALLS:,} calls", (after - before) / MIB, "MiB", most=1)


def _call(bench: Bench, volume: str, count: int) -> None:
    """So many calls: publishing, figures, unpublishing, listing, capacity, probing."""
    for _ in range(count // 6):
        target = bench.publish(volume)
        bench.node.NodeGetVolumeStats(csi.NodeGetVolumeStatsRequest(volume_id=volume, volume_path=str(target)))
        bench.unpublish(volume, target)
        bench.controller.ListVolumes(csi.ListVolumesRequest())
        bench.controller.GetCapacity(csi.GetCapacityRequest())
        bench.identity.Probe(csi.ProbeRequest())


def _copying(bench: Bench) -> Iterator[Figure]:
    """A snapshot, and a clone of the same data, beside `cp -a` of it on the same filesystem."""
    for kind in KINDS:
        volume = bench.create(f"copy {kind.name}", kind.parameters)
        target = bench.publish(volume)
        _fill(target)
        bench.unpublish(volume, target)
        plain = _timed(_copied_plainly, bench, volume)
        snapshots = [_timed(bench.snapshot, f"{volume} {n}", volume) for n in range(3)]
        source = csi.VolumeContentSource(volume=csi.VolumeContentSource.VolumeSource(volume_id=volume))
        free = _free(bench, volume)
        clones = [_timed(bench.create, f"{volume} {n}", kind.parameters, source) for n in range(3)]
        taken = (free - _free(bench, volume)) / 3
        best = min(clones)
        yield _figure(
            f"clone of 1 GiB, {kind.name}",
            best * 1000,
            "ms",
            most=CLONE_MS if kind.shares else None,
            detail=f"{best / plain:.3f} of cp -a ({plain:.2f} s); {taken / MIB:.1f} MiB taken",
        )
        yield _figure(f"snapshot of 1 GiB, {kind.name}", min(snapshots) * 1000, "ms", detail=_spread(snapshots))
        for listed in bench.controller.ListSnapshots(csi.ListSnapshotsRequest(source_volume_id=volume)).entries:
            bench.controller.DeleteSnapshot(csi.DeleteSnapshotRequest(snapshot_id=listed.snapshot.snapshot_id))
        for entry in bench.controller.ListVolumes(csi.ListVolumesRequest()).entries:
            bench.delete(entry.volume.volume_id)
        _wait_for_trash(bench)


def _stats(bench: Bench, files: int) -> Iterator[Figure]:
    """NodeGetVolumeStats of a volume with very many files, and of an empty one; and deleting the former."""
    kind = KINDS[2]
    medians = []
    for count in (0, files):
        volume = bench.create(f"stats {count}", kind.parameters)
        target = bench.publish(volume)
        _touch(target, count)
        request = csi.NodeGetVolumeStatsRequest(volume_id=volume, volume_path=str(target))
        seconds = [_timed(bench.node.NodeGetVolumeStats, request) for _ in range(ROUNDS)]
        medians.append(statistics.median(seconds))
        bench.unpublish(volume, target)
        deleting = _timed(bench.delete, volume)
    yield _figure(
        f"stats beside {files:,} files: p50",
        medians[1] * 1000,
        "ms",
        most=STATS_MS,
        detail=f"{medians[1] / medians[0]:.2f} times of an empty volume",
    )
    yield _figure(f"delete of {files:,} files", deleting * 1000, "ms")


def _fill(target: Path) -> None:
    """Data of 1 GiB in many files, on the disk."""
    each = DATA_BYTES // FILES_OF_DATA
    for number in range(FILES_OF_DATA):
        folder = target / f"{number // 100}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}").write_bytes(CHUNK[: each % MIB] if each < MIB else CHUNK)
    os.sync()


def _touch(target: Path, count: int) -> None:
    for number in range(count):
        if number % 1000 == 0:
            folder = target / f"{number // 1000}"
            folder.mkdir()
        os.close(os.open(f"{folder}/{number}", os.O_CREAT | os.O_WRONLY))


def _copied_plainly(bench: Bench, volume: str) -> None:
    """Copy the storage of a volume as a person would, on the same filesystem, with everything on the disk."""
    found = next(bench.plugin.place.glob(f"*/pool/volumes/{volume}"))
    copy = found.parents[2] / "copy"
    processes.run(["cp", "-a", "--reflink=never", found, copy])
    processes.run(["sync", "-f", copy])
    shutil.rmtree(copy)


def _free(bench: Bench, volume: str) -> int:
    found = next(bench.plugin.place.glob(f"*/pool/volumes/{volume}"))
    os.sync()
    figures = os.statvfs(found)
    return figures.f_bavail * figures.f_frsize


def _wait_for_trash(bench: Bench) -> None:
    deadline = time.monotonic() + CALL_SECONDS
    while any(bench.plugin.place.glob("*/pool/trash/*")) and time.monotonic() < deadline:
        time.sleep(0.1)


@contextlib.contextmanager
def _pools(place: Path) -> Iterator[list[dict[str, object]]]:
    """The pools' settings; their filesystems are mounted for the length of the block."""
    mounted = []
    try:
        for name, make in POOLS.items():
            folder = place / name
            folder.mkdir()
            if make is None:
                continue
            image = place / f"{name}.img"
            with image.open("wb") as file:
                file.truncate(POOL_BYTES)
            processes.run([*make, image])
            processes.run(["mount", "-o", "loop", image, folder])
            mounted.append(folder)
        yield [{"name": name, "path": str(place / name / "pool"), "reserve": "0"} for name in POOLS]
    finally:
        for folder in mounted:
            processes.run(["umount", "--lazy", folder])


def _capability() -> csi.VolumeCapability:
    mode = csi.VolumeCapability.AccessMode(mode=csi.VolumeCapability.AccessMode.SINGLE_NODE_WRITER)
    return csi.VolumeCapability(mount=csi.VolumeCapability.MountVolume(), access_mode=mode)


def _fresh(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _timed(work: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began


def _spread(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    return f"{ordered[0] * 1000:.1f} to {ordered[-1] * 1000:.1f} ms of {len(ordered)}"


def _figure(name: str, value: float, unit: str, *, most: float | None = None, detail: str = "") -> Figure:
    return Figure(part=PART, name=name, value=value, unit=unit, most=most, detail=detail)


if __name__ == "__main__":
    main()
