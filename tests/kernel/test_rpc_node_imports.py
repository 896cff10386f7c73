"""Directories of the host as static volumes: only where they may be, by no link, and never more than shown."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from moorage_csi.host import mounts
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.volumes.pool import PoolSettings
from tests.kernel.rpc_driver import DIRECTORY, Driver, Modes, capability, mounted_below, refused, running

pytestmark = pytest.mark.kernel

HANDLE = "team-a"


@pytest.fixture
def data(area: Path) -> Path:
    """What somebody has."""
    (area / "data" / "team-a" / "deep").mkdir(parents=True)
    (area / "data" / "team-a" / "file").write_text("precious")
    (area / "data" / "team-a").chmod(0o751)
    return area / "data"


@pytest.fixture
async def importing(area: Path, data: Path) -> AsyncIterator[Driver]:
    async with running(area, importable=[str(data)]) as driver:
        try:
            yield driver
        finally:
            for target in reversed(mounted_below(area)):
                mounts.unmount(target)


def picture(path: Path) -> dict[str, tuple[object, ...]]:
    """All of a tree that somebody could change."""
    found: dict[str, tuple[object, ...]] = {}
    for each in (path, *sorted(path.rglob("*"))):
        seen = each.lstat()
        content = each.read_bytes() if stat.S_ISREG(seen.st_mode) else b""
        found[str(each)] = (seen.st_ino, seen.st_mode, seen.st_uid, seen.st_gid, seen.st_mtime_ns, content)
    return found


# What must never happen.


async def test_nothing_of_an_imported_directory_is_ever_deleted_or_changed(importing: Driver, data: Path) -> None:
    before = picture(data)
    target = importing.target("one")
    wanted = capability(group=4711)
    for _ in range(2):
        await importing.publish(HANDLE, target, wanted=wanted, context={"path": str(data / "team-a")})
    await importing.delete(HANDLE)
    larger = csi.CapacityRange(required_bytes=1 << 20)
    controller, node = importing.controller, importing.node
    with refused(grpc.StatusCode.NOT_FOUND):
        await controller.ControllerExpandVolume(
            csi.ControllerExpandVolumeRequest(volume_id=HANDLE, capacity_range=larger)
        )
    with refused(grpc.StatusCode.NOT_FOUND):
        await node.NodeExpandVolume(csi.NodeExpandVolumeRequest(volume_id=HANDLE, volume_path=str(target)))
    with refused(grpc.StatusCode.NOT_FOUND):
        await controller.CreateSnapshot(csi.CreateSnapshotRequest(name="s", source_volume_id=HANDLE))
    with refused(grpc.StatusCode.NOT_FOUND):
        await controller.ControllerGetVolume(csi.ControllerGetVolumeRequest(volume_id=HANDLE))
    for _ in range(2):
        await importing.unpublish(HANDLE, target)
    await importing.delete(HANDLE)
    await importing.emptied()
    assert picture(data) == before
    assert importing.left() == []


@pytest.mark.parametrize(
    "path",
    [
        "{area}/data/../secret",
        "{area}/data/team-a/../../secret",
        "{area}/data/./team-a",
        "{area}/./data/team-a",
        "{area}//data/team-a/../../secret",
        "{area}/data//team-a",
        "{area}/secret",
        "{area}/data-of-others",
        "{area}",
        "/",
        "/etc",
        "",
        "data/team-a",
        "team-a",
        "../data/team-a",
        "{area}/data/team-a\n",
        "{area}/data/team-a\0/x",
        "file://{area}/data/team-a",
        "{area}/data/" + "x/" * 3000 + "x",
    ],
)
async def test_a_path_that_is_not_allowed_is_refused_with_what_is(importing: Driver, area: Path, path: str) -> None:
    for name in ("secret", "data-of-others"):
        (area / name).mkdir()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await importing.publish(HANDLE, importing.target("one"), context={"path": path.format(area=area)})
    assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
    assert mounted_below(importing.kubelet) == []
    assert not importing.target("one").exists()


async def test_what_only_begins_like_a_root_does_not_lie_in_it(importing: Driver, area: Path, data: Path) -> None:
    (area / "data-of-others").mkdir()
    for path in (f"{data}-of-others", area, "/"):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, f"allowed is what lies in {data}"):
            await importing.publish(HANDLE, importing.target("one"), context={"path": str(path)})


async def test_a_link_in_the_way_is_not_followed(importing: Driver, area: Path, data: Path) -> None:
    (area / "secret" / "below").mkdir(parents=True)
    (data / "link").symlink_to(area / "secret")
    (data / "to-team-a").symlink_to("team-a")
    (data / "team-a" / "up").symlink_to("../../secret")
    for name in ("link", "link/below", "to-team-a", "team-a/up", "team-a/up/below"):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, str(data), "without a link"):
            await importing.publish(HANDLE, importing.target("one"), context={"path": str(data / name)})
    assert mounted_below(importing.kubelet) == []


async def test_a_pool_is_nobodys_to_import_whatever_it_is_called(area: Path, data: Path) -> None:
    """The settings refuse roots that overlap with a pool by name; a bind mount or a link gives it another name."""
    (data / "pool").mkdir()
    (data / "below").mkdir()
    (area / "alias").symlink_to(area)
    roots = [str(data), str(area / "alias")]
    async with running(area, importable=roots) as driver:
        volume = (await driver.create(parameters=DIRECTORY)).volume_id
        for source, target in ((driver.pool, data / "pool"), (driver.volume_folder(volume), data / "below")):
            _bind(source, target)
        try:
            for path in (
                data / "pool",
                data / "pool" / "volumes",
                data / "below" / "data",
                area / "alias" / "pool",
                area / "alias" / "pool" / "volumes" / volume / "data",
                area / "alias",
            ):
                with refused(grpc.StatusCode.INVALID_ARGUMENT, "pool default", "this driver's own"):
                    await driver.publish(HANDLE, driver.target("one"), context={"path": str(path)})
        finally:
            for target in (data / "pool", data / "below"):
                mounts.unmount(str(target))
        assert mounted_below(driver.kubelet) == []


def _bind(source: Path, target: Path) -> None:
    one, two = (os.open(path, os.O_PATH | os.O_DIRECTORY) for path in (source, target))
    try:
        mounts.bind(source_fd=one, target_fd=two)
    finally:
        os.close(one)
        os.close(two)


async def test_an_id_of_our_own_is_never_an_import(importing: Driver, data: Path) -> None:
    volume = (await importing.create(parameters=DIRECTORY)).volume_id
    for each in (volume, "vol-" + "0" * 32):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "volumeHandle"):
            await importing.publish(each, importing.target("one"), context={"path": str(data / "team-a")})
    assert mounted_below(importing.kubelet) == []


async def test_without_a_list_nothing_may_be_imported(driver: Driver, data: Path) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "no imports"):
        await driver.publish(HANDLE, driver.target("one"), context={"path": str(data / "team-a")})


# What it does.


async def test_a_directory_is_shown_writable_and_told_how_full_it_is(importing: Driver, data: Path) -> None:
    target = importing.target("one")
    context = {"path": str(data / "team-a"), "backend": "import"}
    await importing.publish(HANDLE, target, context=context)
    assert (target / "file").read_text() == "precious"
    (target / "new").write_text("by the pod")
    assert (data / "team-a" / "new").read_text() == "by the pod"
    answer = await importing.node.NodeGetVolumeStats(
        csi.NodeGetVolumeStatsRequest(volume_id=HANDLE, volume_path=str(target))
    )
    assert not answer.volume_condition.abnormal
    assert answer.usage[0].total == os.statvfs(data).f_blocks * os.statvfs(data).f_frsize
    for path in (importing.target("two"), importing.kubelet, data / "team-a"):
        with refused(grpc.StatusCode.NOT_FOUND):
            await importing.stats(HANDLE, path)
    await importing.unpublish(HANDLE, target)
    assert not target.exists()
    with refused(grpc.StatusCode.NOT_FOUND):
        await importing.stats(HANDLE, target)


async def test_figures_are_told_of_imports_alone(importing: Driver) -> None:
    volume = (await importing.create(parameters=DIRECTORY)).volume_id
    await importing.publish(volume, importing.target("one"))
    with refused(grpc.StatusCode.NOT_FOUND):
        await importing.stats(HANDLE, importing.target("one"))


async def test_the_root_itself_may_be_imported_and_what_is_mounted_in_it(
    importing: Driver, area: Path, data: Path
) -> None:
    await importing.publish("all", importing.target("one"), context={"path": str(data)})
    assert (importing.target("one") / "team-a" / "file").read_text() == "precious"
    (area / "disk").mkdir()
    (area / "disk" / "file").write_text("of another disk")
    (data / "disk").mkdir()
    _bind(area / "disk", data / "disk")
    await importing.publish("disk", importing.target("two"), context={"path": str(data / "disk")})
    assert (importing.target("two") / "file").read_text() == "of another disk"
    await importing.stats("disk", importing.target("two"))


async def test_read_only_and_for_one_pod_alone_hold_for_imports_too(importing: Driver, data: Path) -> None:
    context = {"path": str(data / "team-a")}
    alone = capability(mode=Modes.SINGLE_NODE_SINGLE_WRITER)
    one, two = importing.target("one"), importing.target("two")
    await importing.publish(HANDLE, one, readonly=True, context=context)
    with pytest.raises(OSError, match="Read-only"):
        (one / "new").write_text("x")
    with refused(grpc.StatusCode.ALREADY_EXISTS, "read-only"):
        await importing.publish(HANDLE, one, context=context)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "ReadWriteOncePod", str(one)):
        await importing.publish(HANDLE, two, wanted=alone, context=context)
    await importing.unpublish(HANDLE, one)
    await importing.publish(HANDLE, two, wanted=alone, context=context)
    await importing.publish("every-node", one, wanted=capability(mode=Modes.MULTI_NODE_MULTI_WRITER), context=context)


async def test_what_a_directory_cannot_be_is_refused(importing: Driver, data: Path) -> None:
    context = {"path": str(data / "team-a")}
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "block"):
        await importing.publish(HANDLE, importing.target("one"), wanted=capability(block=True), context=context)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "data=journal"):
        await importing.publish(
            HANDLE, importing.target("one"), wanted=capability(flags=["data=journal"]), context=context
        )
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "backend", "image"):
        await importing.publish(HANDLE, importing.target("one"), context={**context, "backend": "image"})
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "path"):
        await importing.publish(HANDLE, importing.target("one"), context={"backend": "import"})


async def test_what_is_not_there_is_never_made(importing: Driver, area: Path, data: Path) -> None:
    for name in ("absent", "team-a/absent", "team-a/file", "team-a/file/below"):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, str(data), "never made"):
            await importing.publish(HANDLE, importing.target("one"), context={"path": str(data / name)})
    await asyncio.to_thread(data.rename, area / "elsewhere")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, str(data), "is not there"):
        await importing.publish(HANDLE, importing.target("one"), context={"path": str(data / "team-a")})
    assert not await asyncio.to_thread(data.exists)
    assert not importing.target("one").exists()


async def test_nothing_is_mounted_over_something_else(importing: Driver, data: Path) -> None:
    target = importing.target("one")
    await importing.publish(HANDLE, target, context={"path": str(data / "team-a")})
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "not this volume"):
        await importing.publish("other", target, context={"path": str(data / "team-a" / "deep")})


async def test_a_pod_can_end_whose_pool_is_closed_and_whose_directory_is_gone(area: Path, data: Path) -> None:
    pools = [PoolSettings(name="lost", path=str(area / "no" / "parent"))]
    async with running(area, pools, importable=[str(data)]) as driver:
        target = driver.target("one")
        await driver.publish(HANDLE, target, context={"path": str(data / "team-a")})
        await driver.stats(HANDLE, target)
        await asyncio.to_thread(data.rename, area / "elsewhere")
        await driver.unpublish(HANDLE, target)
        assert not target.exists()
