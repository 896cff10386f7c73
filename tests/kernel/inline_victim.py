"""A driver that kills itself (SIGKILL) at a chosen change of the disk while it makes a pod's own volume, or deletes it.

Run as a program with a directory and the attributes (JSON): it forks a child for each crash point, until one comes
through, and prints the directories that they leave.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Final

from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.rpc.guard import Guard
from moorage_csi.rpc.node import Node
from moorage_csi.rpc.pools import Pools
from moorage_csi.volumes.pool import PoolSettings
from tests.kernel.crash_points import die_at

HANDLE: Final = "csi-" + "a" * 64
CONTEXT: Final = {"csi.storage.k8s.io/ephemeral": "true"}
GROUP: Final = 4711

_MOST: Final = 400


def target_in(area: Path) -> Path:
    """Where the pod has the volume."""
    return area / "kubelet" / "pods" / "one" / "volumes" / "mount"


async def come_and_go(area: Path, attributes: dict[str, str], *, fatal: int) -> None:
    """Publish and unpublish until the ``fatal``-th change."""
    target = target_in(area)
    target.parent.mkdir(parents=True)
    pools = Pools([PoolSettings(name="default", path=str(area / "pool"))], node_name="node-1")
    await pools.start()
    node = Node(pools=pools, node_name="node-1", kubelet_dir=str(area / "kubelet"), guard=Guard())
    mount = csi.VolumeCapability.MountVolume(volume_mount_group=str(GROUP))
    mode = csi.VolumeCapability.AccessMode(mode=csi.VolumeCapability.AccessMode.SINGLE_NODE_WRITER)
    die_at(fatal)
    await node.NodePublishVolume(
        csi.NodePublishVolumeRequest(
            volume_id=HANDLE,
            target_path=str(target),
            volume_capability=csi.VolumeCapability(mount=mount, access_mode=mode),
            volume_context={**attributes, **CONTEXT},
        ),
        None,
    )
    await node.NodeUnpublishVolume(csi.NodeUnpublishVolumeRequest(volume_id=HANDLE, target_path=str(target)), None)


def main(area: Path, attributes: dict[str, str]) -> list[str]:
    """The directories, one a crash point; the last child came through."""
    areas = []
    for fatal in range(1, _MOST):
        path = area / str(fatal)
        areas.append(str(path))
        child = os.fork()
        if child == 0:
            asyncio.run(come_and_go(path, attributes, fatal=fatal))
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return areas
    raise SystemExit("no pod came through")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), json.loads(sys.argv[2]))))
