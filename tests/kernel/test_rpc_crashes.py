"""The driver is killed (SIGKILL) before and after every change that it makes to the disk, and started again.

A process that has loaded the driver forks a child for each crash point; the child counts the calls that
change something durable and kills itself at its number, until a child comes through. Then a new driver is
started on what each of them left.
"""

import json
from pathlib import Path

import pytest

from moorage_csi.host import filesystems, mounts
from moorage_csi.rpc.validation import volume_id_for
from tests.kernel.crash_points import areas_of
from tests.kernel.rpc_driver import DIRECTORY, Driver, mounted_below, running

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

_VICTIM = """
import asyncio, json, os, sys, time
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.rpc import validation
from moorage_csi.rpc.provisioning import Provisioner
from moorage_csi.rpc.station import Station
from moorage_csi.volumes.disk import Disks
from moorage_csi.volumes.pool import PoolSettings
from tests.kernel.crash_points import die_at

area, what, parameters = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])

async def scenario(path, fatal):
    os.mkdir(path)
    station = Station(PoolSettings(name="default", path=path + "/pool"), node="node-1", disks=Disks())
    provisioner = Provisioner(node_name="node-1", clock=time.time)
    wish = validation.creation(
        csi.CreateVolumeRequest(
            name="pvc-1",
            capacity_range=csi.CapacityRange(required_bytes=64 << 20),
            parameters=parameters,
            volume_capabilities=[csi.VolumeCapability(
                mount=csi.VolumeCapability.MountVolume(),
                access_mode=csi.VolumeCapability.AccessMode(mode=1))],
        ),
        pools=["default"],
    )
    if what == "create":
        die_at(fatal)
        await provisioner.create(station, wish)
    else:
        record = await provisioner.create(station, wish)
        die_at(fatal)
        await provisioner.delete(station, record)

areas = []
for fatal in range(1, 500):
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


def _crashed(area: Path, what: str, parameters: dict[str, str]) -> list[Path]:
    """Areas on which a driver died at one point each; the last one came through."""
    return areas_of("-c", _VICTIM, str(area), what, json.dumps(parameters))


def _inode(driver: Driver, volume: str, parameters: dict[str, str]) -> int | None:
    data = driver.volume_folder(volume) / ("data" if parameters else "image")
    return data.stat().st_ino if data.exists() else None


async def _is_usable(driver: Driver, volume: str) -> None:
    target = driver.target("pod")
    try:
        await driver.publish(volume, target)
        (target / "file").write_bytes(b"written")
        await driver.unpublish(volume, target)
    finally:
        for left in mounted_below(driver.kubelet):
            mounts.unmount(left)


@pytest.mark.parametrize("parameters", [{}, DIRECTORY], ids=["image", "directory"])
async def test_create_killed_at_any_point_leaves_nothing_that_the_next_create_does_not_clear(
    area: Path, parameters: dict[str, str]
) -> None:
    volume = volume_id_for("pvc-1")
    outcomes = set()
    for crashed in _crashed(area, "create", parameters):
        async with running(crashed) as driver:
            await driver.emptied()
            before = _inode(driver, volume, parameters)
            outcomes.add(before is not None)
            if before is None:
                assert driver.left() == [], crashed
            made = await driver.create(parameters=parameters)
            assert made.volume_id == volume
            assert before in (None, _inode(driver, volume, parameters)), "a ready volume was made a second time"
            if not parameters:
                image = driver.volume_folder(volume) / "image"
                assert filesystems.detect(str(image)) == "ext4"
            await _is_usable(driver, volume)
            await driver.delete(volume)
            await driver.emptied()
            assert driver.left() == []
    assert outcomes == {True, False}


async def test_delete_killed_at_any_point_leaves_the_volume_whole_or_gone(area: Path) -> None:
    volume = volume_id_for("pvc-1")
    outcomes = set()
    for crashed in _crashed(area, "delete", {}):
        async with running(crashed) as driver:
            await driver.emptied()
            image = driver.volume_folder(volume) / "image"
            outcomes.add(image.exists())
            if image.exists():
                await _is_usable(driver, volume)
            else:
                assert driver.left() == [], crashed
            await driver.delete(volume)
            await driver.emptied()
            assert driver.left() == []
    assert outcomes == {True, False}
