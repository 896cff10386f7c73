"""VOLUME_MOUNT_GROUP: a pod's fsGroup is given by the driver, once, and by no walk where the volume has it."""

import asyncio
import errno
import os
import stat
import threading
from pathlib import Path

import grpc
import pytest

from moorage_csi.host import ownership
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.rpc.station import Station
from tests.kernel.rpc_driver import DIRECTORY, Driver, capability, refused

pytestmark = pytest.mark.kernel

GROUP = 4711
GIVEN = capability(group=GROUP)

KINDS = pytest.mark.parametrize("parameters", [DIRECTORY, {"backend": "image"}], ids=["directory", "image"])


def owner(path: Path) -> tuple[int, str]:
    seen = path.lstat()
    return seen.st_gid, f"{stat.S_IMODE(seen.st_mode):04o}"


class _Walks:
    """Counts the entries that are walked, and can hold the walk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entries = 0
        self.begun = threading.Event()
        self.on = threading.Event()
        self.on.set()
        real = Station.pace

        def pace(station: Station) -> None:
            self.entries += 1
            self.begun.set()
            while not self.on.wait(0.01):
                real(station)
            real(station)

        monkeypatch.setattr(Station, "pace", pace)


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> _Walks:
    return _Walks(monkeypatch)


async def test_the_kubelet_is_told_that_it_need_not_walk(driver: Driver) -> None:
    answer = await driver.node.NodeGetCapabilities(csi.NodeGetCapabilitiesRequest())
    assert csi.NodeServiceCapability.RPC.VOLUME_MOUNT_GROUP in [each.rpc.type for each in answer.capabilities]


@KINDS
async def test_a_volume_is_given_once_and_then_never_walked(
    driver: Driver, walks: _Walks, parameters: dict[str, str]
) -> None:
    volume = (await driver.create(parameters=parameters)).volume_id
    target = driver.target("one")
    await driver.publish(volume, target, wanted=GIVEN)
    gid, mode = owner(target)
    assert (gid, int(mode, 8) & 0o2070) == (GROUP, 0o2070)
    (target / "folder").mkdir(mode=0o700)
    (target / "folder" / "file").write_text("x")
    os.chown(target / "folder" / "file", 0, 0)
    await driver.unpublish(volume, target)
    walks.entries = 0
    for _ in range(2):
        await driver.publish(volume, target, wanted=GIVEN)
    assert walks.entries == 0
    # A pod with another group has a right to all of it.
    await driver.publish(volume, driver.target("two"), wanted=capability(group=GROUP + 1))
    assert walks.entries >= 2
    assert owner(driver.target("two") / "folder" / "file") == (GROUP + 1, "0664")
    assert owner(target)[0] == GROUP + 1


@KINDS
async def test_a_clone_of_another_groups_volume_is_given_whole(driver: Driver, parameters: dict[str, str]) -> None:
    source = (await driver.create(parameters=parameters)).volume_id
    await driver.publish(source, driver.target("one"), wanted=GIVEN)
    (driver.target("one") / "file").write_text("kept")
    await driver.unpublish(source, driver.target("one"))
    content = csi.VolumeContentSource(volume=csi.VolumeContentSource.VolumeSource(volume_id=source))
    clone = await driver.controller.CreateVolume(
        csi.CreateVolumeRequest(
            name="clone", volume_capabilities=[capability()], parameters=parameters, volume_content_source=content
        )
    )
    target = driver.target("two")
    await driver.publish(clone.volume.volume_id, target, wanted=capability(group=GROUP + 1))
    assert owner(target)[0] == owner(target / "file")[0] == GROUP + 1
    assert (target / "file").read_text() == "kept"


async def test_read_only_means_that_nothing_is_written(driver: Driver, walks: _Walks) -> None:
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    data = driver.volume_folder(volume) / "data"
    (data / "file").write_text("x")
    before = owner(data), owner(data / "file")
    await driver.publish(volume, driver.target("one"), wanted=GIVEN, readonly=True)
    await driver.publish(volume, driver.target("two"), wanted=capability(group=GROUP, flags=["ro"]))
    assert (owner(data), owner(data / "file"), walks.entries) == (*before, 0)


async def test_a_walk_outlives_its_caller_and_keeps_others_off(driver: Driver, walks: _Walks) -> None:
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    other = (await driver.create("pvc-2", parameters=DIRECTORY)).volume_id
    data = driver.volume_folder(volume) / "data"
    (data / "file").write_text("x")
    walks.on.clear()
    request = csi.NodePublishVolumeRequest(
        volume_id=volume, target_path=str(driver.target("one")), volume_capability=GIVEN
    )
    try:
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
            await driver.node.NodePublishVolume(request, timeout=0.5)
        assert await asyncio.to_thread(walks.begun.wait, 10)
        with refused(grpc.StatusCode.ABORTED):
            await driver.node.NodePublishVolume(request)
        with refused(grpc.StatusCode.ABORTED):
            await driver.unpublish(volume, driver.target("one"))
        assert owner(data)[0] == 0
        # What publishes is not what walks.
        for number in range(6):
            await driver.publish(other, driver.target(f"other-{number}"))
    finally:
        walks.on.set()
    assert await driver.guard.drain(20)
    await driver.node.NodePublishVolume(request)
    assert owner(data)[0] == owner(data / "file")[0] == GROUP


async def test_a_driver_that_stops_stops_the_walk_and_the_next_begins_anew(driver: Driver, walks: _Walks) -> None:
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    data = driver.volume_folder(volume) / "data"
    (data / "file").write_text("x")
    walks.on.clear()
    publishing = asyncio.ensure_future(driver.publish(volume, driver.target("one"), wanted=GIVEN))
    assert await asyncio.to_thread(walks.begun.wait, 10)
    station = next(iter(driver.pools))
    station._closed.set()
    with refused(grpc.StatusCode.UNAVAILABLE, "stopping"):
        await publishing
    assert owner(data)[0] == 0
    station._closed.clear()
    walks.on.set()
    await driver.publish(volume, driver.target("one"), wanted=GIVEN)
    assert owner(data)[0] == owner(data / "file")[0] == GROUP


async def test_links_in_a_volume_lead_its_group_nowhere(driver: Driver, area: Path) -> None:
    outside = area / "outside"
    outside.mkdir()
    (outside / "file").write_text("not ours")
    sibling = (await driver.create("pvc-2", parameters=DIRECTORY)).volume_id
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    data = driver.volume_folder(volume) / "data"
    for name, to in (("a", outside), ("b", outside / "file"), ("c", driver.volume_folder(sibling)), ("d", "..")):
        (data / name).symlink_to(to)
    before = [owner(path) for path in (outside, outside / "file", *driver.volume_folder(sibling).rglob("*"))]
    await driver.publish(volume, driver.target("one"), wanted=GIVEN)
    assert [owner(path) for path in (outside, outside / "file", *driver.volume_folder(sibling).rglob("*"))] == before
    assert owner(driver.volume_folder(volume))[0] == 0
    assert owner(driver.volume_folder(volume) / "record.json")[0] == 0


@pytest.mark.parametrize("group", ["4294967295", "-1", "root", "0x1", " 1", "1.0", "007", "+1", "٣"])
async def test_a_group_that_is_none_is_refused(driver: Driver, group: str) -> None:
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "volume_mount_group", "4294967294"):
        await driver.publish(volume, driver.target("one"), wanted=capability(group=group))
    assert not driver.target("one").exists()


async def test_the_largest_group_is_one(driver: Driver) -> None:
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    await driver.publish(volume, driver.target("one"), wanted=capability(group=(1 << 32) - 2))
    assert owner(driver.target("one"))[0] == (1 << 32) - 2


async def test_a_volume_that_cannot_be_given_is_told_and_not_marked(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    for number, code, says in (
        (errno.EROFS, grpc.StatusCode.UNAVAILABLE, "folder/file"),
        (errno.EPERM, grpc.StatusCode.FAILED_PRECONDITION, "no_root_squash"),
    ):

        def refuses(*_: object, number: int = number, **__: object) -> None:
            raise OSError(number, os.strerror(number), "folder/file")

        with monkeypatch.context() as broken:
            broken.setattr(ownership, "give", refuses)
            with refused(code, says):
                await driver.publish(volume, driver.target("one"), wanted=GIVEN)
    await driver.publish(volume, driver.target("one"), wanted=GIVEN)
    assert owner(driver.target("one"))[0] == GROUP
