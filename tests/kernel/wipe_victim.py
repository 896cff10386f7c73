"""A driver that kills itself (SIGKILL) at a chosen change of the disk while it wipes a volume.

Run as a program with a directory and the class parameters (JSON): it forks a child for each crash point, until
one comes through, and prints the directories that they leave. Every volume holds the old claim's data.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moorage_csi.host import commands, syscalls
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.rpc import validation
from moorage_csi.rpc.provisioning import Provisioner
from moorage_csi.rpc.station import Station
from moorage_csi.rpc.wiping import Wiper
from moorage_csi.volumes.disk import Disks
from moorage_csi.volumes.pool import PoolSettings

if TYPE_CHECKING:
    from collections.abc import Callable

NAME: Final = "pvc-1"
SIZE: Final = 64 << 20
OLD: Final = b"what the old claim wrote"
OLD_AT: Final = 32 << 20
"""Where in an image the old bytes lie: past what mkfs writes for a filesystem of this size."""

_MOST: Final = 400


def die_at(fatal: int) -> None:
    """End this process before or after its ``fatal``-th change of the disk, or while mkfs runs."""
    seen = itertools.count(1)

    def point() -> None:
        if next(seen) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(module: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(module, name)

        def watched(*arguments: Any, **more: Any) -> Any:
            point()
            result = real(*arguments, **more)
            point()
            return result

        setattr(module, name, watched)

    for name in ("fsync", "mkdir", "rename", "ftruncate", "rmdir", "unlink", "fchmod"):
        watch(os, name)
    watch(syscalls, "rename_no_replace")
    real_run = commands.run

    async def run(*arguments: Any, **more: Any) -> commands.Result:
        task = asyncio.ensure_future(real_run(*arguments, **more))
        await asyncio.sleep(0.002)
        point()
        result = await task
        point()
        return result

    setattr(commands, "run", run)  # noqa: B010 - mypy would refuse the plain assignment


async def wipe(area: Path, parameters: dict[str, str], *, block: bool, fatal: int) -> None:
    """Make a volume with the old data in it, and wipe it until the ``fatal``-th change."""
    area.mkdir()  # noqa: ASYNC240 (nothing else runs in this process)
    station = Station(PoolSettings(name="default", path=str(area / "pool")), node="node-1", disks=Disks())
    capability = csi.VolumeCapability(
        access_mode=csi.VolumeCapability.AccessMode(mode=csi.VolumeCapability.AccessMode.SINGLE_NODE_WRITER)
    )
    (capability.block if block else capability.mount).SetInParent()
    wish = validation.creation(
        csi.CreateVolumeRequest(
            name=NAME,
            capacity_range=csi.CapacityRange(required_bytes=SIZE),
            parameters=parameters,
            volume_capabilities=[capability],
        ),
        pools=["default"],
    )
    record = await Provisioner(node_name="node-1", clock=time.time).create(station, wish)
    folder = area / "pool" / "volumes" / record.id
    if (folder / "data").exists():
        (folder / "data" / "old").write_bytes(OLD)
    else:
        with (folder / "image").open("r+b") as image:
            image.seek(OLD_AT)
            image.write(OLD)
    die_at(fatal)
    await Wiper(node_name="node-1").wipe(station, record.id, released_uid="uid-1")


def main(area: Path, parameters: dict[str, str], *, block: bool) -> list[str]:
    """The directories, one a crash point; the last wipe came through."""
    areas = []
    for fatal in range(1, _MOST):
        path = area / str(fatal)
        areas.append(str(path))
        child = os.fork()
        if child == 0:
            asyncio.run(wipe(path, parameters, block=block, fatal=fatal))
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return areas
    raise SystemExit("no wipe came through")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), json.loads(sys.argv[2]), block=sys.argv[3] == "block")))
