"""The driver is killed (SIGKILL) at every point of taking and of deleting a group snapshot, and started again.

Beside the points at which the disk changes (see ``crash_points``) there are those of ``Grouper.step``, at some of which
the volumes are frozen: whoever writes to one then waits until the next start has let him go. For volumes in use the disk
is watched from the first freeze until all are let go: before and after it is what it is for others.
"""

import json
import os
from pathlib import Path

import grpc
import pytest

from moorage_csi.host import freezing, mounts
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.rpc.validation import volume_id_for
from moorage_csi.volumes.ids import group_id_for
from moorage_csi.volumes.pool import PoolSettings
from tests.kernel.crash_points import areas_of
from tests.kernel.rpc_driver import Driver, mounted_below, refused, running
from tests.kernel.test_rpc_groups import SIZE, create, deleted, got, ids_of, taken
from tests.kernel.test_rpc_snapshots import copy, listed

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

_VICTIM = """
import asyncio, itertools, json, os, signal, sys, time, uuid
from moorage_csi.backends.backend import Publication
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.rpc import validation
from moorage_csi.rpc.grouping import Grouper
from moorage_csi.rpc.guard import Guard
from moorage_csi.rpc.pools import Pools
from moorage_csi.rpc.provisioning import Provisioner
from moorage_csi.rpc.shapes import shape_of
from moorage_csi.volumes.ids import group_id_for
from moorage_csi.volumes.pool import PoolSettings
from tests.kernel.crash_points import die_at

area, what, used = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])

async def volume(pools, path, name, pool):
    station = pools.station(pool)
    wish = validation.creation(
        csi.CreateVolumeRequest(
            name=name,
            capacity_range=csi.CapacityRange(required_bytes=64 << 20),
            volume_capabilities=[csi.VolumeCapability(
                mount=csi.VolumeCapability.MountVolume(),
                access_mode=csi.VolumeCapability.AccessMode(mode=1))],
        ),
        pools=["default", "other"],
    )
    record = await Provisioner(node_name="node-1", clock=time.time).create(station, wish)
    if used:
        kubelet = path + "/kubelet"
        target = kubelet + "/" + name
        os.makedirs(kubelet, exist_ok=True)
        opened = await station.open()
        with opened.pool.folder(record.id) as folder:
            opened.backend_of(record).publish(folder, shape_of(record), Publication(
                target=target, kubelet_dir=kubelet, readonly=False, exclusive=False, options=()))
        with open(target + "/file", "w") as file:
            file.write("kept")
    return record.id

async def scenario(path, fatal):
    os.mkdir(path)
    seen = itertools.count(1)
    tried = []

    def step(name):
        if what == "steps" and next(seen) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "frozen" and name == "tried" and not tried:
            tried.append(name)
            die_at(fatal)
        if what == "frozen" and name == "let go":
            os._exit(0)

    pools = Pools([PoolSettings(name="default", path=path + "/pool"), PoolSettings(name="other", path=path + "/other")],
                  node_name="node-1")
    # Without what else a start does beside: it would change the disk at moments of its own.
    for station in pools:
        await station.open()
    grouper = Grouper(pools=pools, node_name="node-1", guard=Guard(), clock=time.time, step=step)
    volumes = [await volume(pools, path, name, pool) for name, pool in (("one", "default"), ("two", "other"))]
    if what == "delete":
        await grouper.take("group", volumes)
        die_at(fatal)
        await grouper.delete(group_id_for("group"), [])
        return
    if what == "disk":
        die_at(fatal)
    while not all(each.state.value == "ready" for each in await grouper.take("group", volumes)):
        await asyncio.sleep(0.05)

areas = []
for fatal in range(1, 400):
    path = f"{area}/{what}-{fatal}"
    areas.append(path)
    child = os.fork()
    if child == 0:
        asyncio.run(scenario(path, fatal))
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(json.dumps(areas))
"""

VOLUMES = [volume_id_for(name) for name in ("one", "two")]
GROUP = group_id_for("group")


def _crashed(area: Path, what: str, *, used: bool) -> list[Path]:
    """Areas on which a driver died at one point each; the last one came through."""
    return areas_of("-c", _VICTIM, str(area), what, json.dumps(used))


def _pools(area: Path) -> list[PoolSettings]:
    return [
        PoolSettings(name="default", path=str(area / "pool")),
        PoolSettings(name="other", path=str(area / "other")),
    ]


def _thawed(area: Path) -> bool:
    """Whether one of the filesystems of the area was frozen; it is not any more."""
    found = False
    for target in mounted_below(area):
        fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            found = freezing.thaw(fd) or found
        finally:
            os.close(fd)
    return found


def _snapshots(area: Path) -> list[str]:
    return [path.name for pool in _pools(area) for path in (Path(pool.path) / "snapshots").iterdir()]


async def _ends(driver: Driver, area: Path) -> bool:
    """Look at what the start has made of it, take the group anew, use it and delete it; whether it was made before."""
    before = await listed(driver)
    if before:
        assert len(before) == 2, "a part of a group is told"
        group = await got(driver, GROUP)
        assert group.ready_to_use
        assert sorted(before) == sorted(ids_of(group))
    else:
        assert _snapshots(area) == [], area
        with refused(grpc.StatusCode.NOT_FOUND):
            await got(driver, GROUP)
    members = ids_of(await taken(driver, VOLUMES))
    assert sorted(before) in ([], sorted(members))
    for member in members:
        made = await copy(driver, snapshot=member, name=f"{member}-copy", size=SIZE)
        await driver.delete(made.volume_id)
    await deleted(driver, GROUP, members)
    assert _snapshots(area) == []
    return bool(before)


@pytest.mark.parametrize(("what", "used"), [("disk", False), ("frozen", True), ("steps", True)])
async def test_a_group_killed_at_any_point_is_whole_or_nothing_and_keeps_nobody_waiting(
    area: Path, what: str, used: bool
) -> None:
    outcomes = set()
    were_frozen = 0
    try:
        for crashed in _crashed(area, what, used=used):
            async with running(crashed, _pools(crashed)) as driver:
                assert not _thawed(crashed), f"{crashed}: the start has left it frozen"
                outcomes.add(await _ends(driver, crashed))
                for volume, target in zip(
                    VOLUMES, (crashed / "kubelet" / name for name in ("one", "two")), strict=True
                ):
                    if used:
                        assert (target / "file").read_text() == "kept"
                        (target / "file").write_text("written")
                        await driver.unpublish(volume, target)
                    await driver.delete(volume)
                await driver.emptied()
    finally:
        were_frozen += _thawed(area)
        for left in mounted_below(area):
            mounts.unmount(left)
    assert not were_frozen
    assert outcomes == ({False} if what == "frozen" else {True, False})


async def test_a_group_whose_deleting_is_killed_at_any_point_can_be_deleted(area: Path) -> None:
    outcomes = set()
    for crashed in _crashed(area, "delete", used=False):
        async with running(crashed, _pools(crashed)) as driver:
            left = await listed(driver)
            outcomes.add(len(left))
            if len(left) == 1:
                assert not (await got(driver, GROUP)).ready_to_use
                with refused(grpc.StatusCode.FAILED_PRECONDITION, "delete it"):
                    await create(driver, VOLUMES)
            elif left:
                assert (await got(driver, GROUP)).ready_to_use
            await deleted(driver, GROUP)
            assert await listed(driver) == []
            assert _snapshots(crashed) == []
            await taken(driver, VOLUMES)
            request = csi.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=GROUP)
            await driver.groups.DeleteVolumeGroupSnapshot(request)
    assert outcomes == {0, 1, 2}


async def test_killed_while_they_are_frozen_they_are_so_until_the_next_start(area: Path) -> None:
    """What the others rely on: that some of the crashes have left filesystems frozen."""
    frozen = 0
    try:
        for crashed in _crashed(area, "steps", used=True):
            if _thawed(crashed):
                frozen += 1
            for target in mounted_below(crashed):
                mounts.unmount(target)
    finally:
        _thawed(area)
        for target in mounted_below(area):
            mounts.unmount(target)
    assert frozen >= 4, "once alone and once together, each of the two"
