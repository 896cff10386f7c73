"""A driver that kills itself (SIGKILL) at a chosen change of the disk while it wipes a volume.

Run as a program with a directory and the class parameters (JSON): it forks a child for each crash point, until
one comes through, and prints the directories that they leave. Every volume holds the old claim's data.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Final

from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.rpc import validation
from moorage_csi.rpc.provisioning import Provisioner
from moorage_csi.rpc.station import Station
from moorage_csi.rpc.wiping import Wiper
from moorage_csi.volumes.disk import Disks
from moorage_csi.volumes.pool import PoolSettings
from tests.kernel.crash_points import die_at

NAME: Final = "pvc-1"
SIZE: Final = 64 << 20
OLD: Final = b"what the old claim wrote"
OLD_AT: Final = 32 << 20
"""Where in an image the old bytes lie: past what mkfs writes for a filesystem of this size."""

_MOST: Final = 400


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
