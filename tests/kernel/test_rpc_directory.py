"""Volumes of the backend ``directory``, on a kernel that cannot limit them, and what is left of their neighbours."""

import os
import stat
from pathlib import Path

import grpc
import pytest

from moorage_csi.backends.directory import DirectoryBackend
from moorage_csi.host import mounts, quotas
from moorage_csi.host.paths import Directory
from moorage_csi.volumes.pool import PoolSettings
from tests.kernel.rpc_driver import DIRECTORY, Driver, Modes, capability, mounted_below, refused, running

pytestmark = pytest.mark.kernel


async def test_a_volume_is_made_written_read_by_a_second_pod_and_gone(driver: Driver) -> None:
    volume = await driver.create(parameters=DIRECTORY)
    assert dict(volume.volume_context) == {
        "backend": "directory",
        "pool": "default",
        "quota": "best-effort" if quotas.project_quota_supported(str(driver.pool)) else "enforced",
        "onDelete": "delete",
    }
    data = driver.volume_folder(volume.volume_id) / "data"
    assert stat.S_IMODE(data.stat().st_mode) == 0o770
    target = driver.target("one")
    for _ in range(2):
        await driver.publish(volume.volume_id, target)
    (target / "file").write_text("kept")
    assert mounted_below(driver.kubelet) == [str(target)]
    for _ in range(5):
        await driver.unpublish(volume.volume_id, target)
    await driver.publish(volume.volume_id, driver.target("two"))
    assert (driver.target("two") / "file").read_text() == "kept"
    usage = await driver.stats(volume.volume_id, driver.target("two"))
    assert usage["BYTES"].total > 0
    with refused(grpc.StatusCode.FAILED_PRECONDITION, str(driver.target("two"))):
        await driver.delete(volume.volume_id)
    await driver.unpublish(volume.volume_id, driver.target("two"))
    await driver.delete(volume.volume_id)
    await driver.emptied()
    assert driver.left() == []


async def test_a_size_that_the_kernel_does_not_hold_is_refused_unless_the_class_says_so(driver: Driver) -> None:
    reason = quotas.project_quota_supported(str(driver.pool))
    if reason is None:
        pytest.skip("needs a filesystem without project quota")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, reason, "quota: best-effort", "image"):
        await driver.create(parameters={"backend": "directory"})
    assert driver.left() == []
    without = await driver.create(parameters={"backend": "directory", "quota": "none"})
    assert without.volume_context["quota"] == "none"


async def test_permissions_are_those_of_the_class(driver: Driver) -> None:
    volume = await driver.create(parameters={**DIRECTORY, "mountPermissions": "0755"})
    data = driver.volume_folder(volume.volume_id) / "data"
    assert stat.S_IMODE(data.stat().st_mode) == 0o755
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "mountPermissions", "image"):
        await driver.create("pvc-2", parameters={"backend": "image", "mountPermissions": "0755"})


async def test_a_read_only_target_cannot_be_written_while_another_can(driver: Driver) -> None:
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    writer, reader = driver.target("writer"), driver.target("reader")
    await driver.publish(volume, writer)
    await driver.publish(volume, reader, readonly=True)
    (writer / "file").write_text("new")
    with pytest.raises(OSError, match="Read-only file system"):
        (reader / "file").write_text("no")
    with refused(grpc.StatusCode.ALREADY_EXISTS, "read-only"):
        await driver.publish(volume, reader)
    for target in (writer, reader):
        await driver.unpublish(volume, target)


async def test_for_one_pod_alone_means_one_target(driver: Driver) -> None:
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    alone = capability(mode=Modes.SINGLE_NODE_SINGLE_WRITER)
    await driver.publish(volume, driver.target("one"), wanted=alone)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "ReadWriteOncePod"):
        await driver.publish(volume, driver.target("two"), wanted=alone)
    await driver.unpublish(volume, driver.target("one"))


async def test_nothing_is_mounted_over_something_else(driver: Driver) -> None:
    one = (await driver.create("pvc-1", parameters=DIRECTORY)).volume_id
    two = (await driver.create("pvc-2", parameters=DIRECTORY)).volume_id
    target = driver.target("pod")
    await driver.publish(one, target)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "not this volume"):
        await driver.publish(two, target)
    with refused(grpc.StatusCode.NOT_FOUND):
        await driver.stats(two, target)
    await driver.unpublish(one, target)


async def test_what_a_directory_cannot_be_is_refused(driver: Driver) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "block", "image"):
        await driver.create(parameters=DIRECTORY, wanted=capability(block=True))
    mount = next(mount for mount in reversed(mounts.mounts()) if driver.pool.is_relative_to(mount.target))
    other = "ext4" if mount.filesystem == "xfs" else "xfs"
    with refused(grpc.StatusCode.INVALID_ARGUMENT, other, "image"):
        await driver.create(parameters=DIRECTORY, wanted=capability(filesystem=other))
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "data=journal"):
        await driver.publish(volume, driver.target("one"), wanted=capability(flags=["data=journal"]))
    assert mounted_below(driver.kubelet) == []


async def test_links_in_a_volume_lead_deletion_nowhere(driver: Driver, area: Path) -> None:
    outside = area / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "file").write_text("not ours")
    sibling = (await driver.create("pvc-2", parameters=DIRECTORY)).volume_id
    (driver.volume_folder(sibling) / "data" / "file").write_text("another tenant's")
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    data = driver.volume_folder(volume) / "data"
    (data / "to-a-folder").symlink_to(outside)
    (data / "to-a-file").symlink_to(outside / "deep" / "file")
    (data / "to-a-sibling").symlink_to(driver.volume_folder(sibling) / "data")
    (data / "to-the-root").symlink_to("/")
    if quotas.project_quota_supported(str(driver.pool)) is not None:
        # Where projects are counted, the kernel lets no hard link lead from one to another.
        os.link(outside / "deep" / "file", data / "hard")
    await driver.delete(volume)
    await driver.emptied()
    assert (outside / "deep" / "file").read_text() == "not ours"
    assert (driver.volume_folder(sibling) / "data" / "file").read_text() == "another tenant's"


async def test_a_volume_replaced_by_a_link_is_not_followed(driver: Driver, area: Path) -> None:
    outside = area / "outside"
    outside.mkdir()
    (outside / "file").write_text("not ours")
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    data = driver.volume_folder(volume) / "data"
    data.rmdir()
    data.symlink_to(outside)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "link"):
        await driver.publish(volume, driver.target("one"))
    assert mounted_below(driver.kubelet) == []
    await driver.delete(volume)
    await driver.emptied()
    assert (outside / "file").read_text() == "not ours"


async def test_a_mount_below_a_deleted_volume_is_not_emptied(driver: Driver, area: Path) -> None:
    outside = area / "outside"
    outside.mkdir()
    (outside / "file").write_text("not ours")
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    below = driver.volume_folder(volume) / "data" / "below"
    below.mkdir()
    source, target = (os.open(path, os.O_PATH | os.O_DIRECTORY) for path in (outside, below))
    try:
        mounts.bind(source_fd=source, target_fd=target)
    finally:
        os.close(source)
        os.close(target)
    await driver.delete(volume)
    with pytest.raises(AssertionError, match="left in the trash"):
        await driver.emptied(within=1)
    assert (outside / "file").read_text() == "not ours"
    for mounted in mounted_below(area):
        mounts.unmount(mounted)
    await driver.emptied()
    assert (outside / "file").read_text() == "not ours"


async def test_a_pool_that_nodes_share_gives_directories_that_any_of_them_may_use_and_delete(area: Path) -> None:
    settings = [PoolSettings(name="nfs", path=str(area / "pool"), shared=True)]
    many = capability(mode=Modes.MULTI_NODE_MULTI_WRITER)
    (area / "a").mkdir()
    (area / "b").mkdir()
    async with running(area / "a", settings, node="a") as one, running(area / "b", settings, node="b") as two:
        volume = await one.create(parameters={"quota": "none"}, wanted=many)
        assert volume.volume_context["backend"] == "directory"
        assert list(volume.accessible_topology) == []
        assert await two.create(parameters={"quota": "none"}, wanted=many) == volume
        await one.publish(volume.volume_id, one.target("pod"), wanted=many)
        await two.publish(volume.volume_id, two.target("pod"), wanted=many)
        (one.target("pod") / "file").write_text("seen")
        assert (two.target("pod") / "file").read_text() == "seen"
        await one.unpublish(volume.volume_id, one.target("pod"))
        await two.unpublish(volume.volume_id, two.target("pod"))
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "image", "share"):
            await one.create("pvc-2", parameters={"backend": "image"})
        await two.delete(volume.volume_id)
        with refused(grpc.StatusCode.NOT_FOUND):
            await one.publish(volume.volume_id, one.target("pod"), wanted=many)
        await one.delete(volume.volume_id)
        await two.emptied()
        assert two.left() == []


async def test_a_volume_of_the_same_name_in_another_pool_is_another_volume(driver: Driver, area: Path) -> None:
    (area / "other").mkdir()
    async with running(area / "other") as other:
        mine = (await driver.create(parameters=DIRECTORY)).volume_id
        assert (await other.create(parameters=DIRECTORY)).volume_id == mine
        await other.publish(mine, other.target("pod"))
        alone = capability(mode=Modes.SINGLE_NODE_SINGLE_WRITER)
        await driver.publish(mine, driver.target("pod"), wanted=alone)
        await driver.unpublish(mine, driver.target("pod"))
        await driver.delete(mine)
        await other.unpublish(mine, other.target("pod"))


async def test_a_folder_of_the_volume_that_is_mounted_elsewhere_keeps_it(driver: Driver) -> None:
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    target, sub = driver.target("pod"), driver.target("sub")
    await driver.publish(volume, target)
    (target / "folder").mkdir()
    sub.mkdir()
    source, onto = (os.open(path, os.O_PATH | os.O_DIRECTORY) for path in (target / "folder", sub))
    try:
        mounts.bind(source_fd=source, target_fd=onto)
    finally:
        os.close(source)
        os.close(onto)
    await driver.unpublish(volume, target)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, str(sub)):
        await driver.delete(volume)
    mounts.unmount(str(sub))
    await driver.delete(volume)


@pytest.mark.parametrize("no_quota", [None, "the kernel holds none"])
def test_what_has_no_directory_takes_no_room_that_could_be_told(area: Path, no_quota: str | None) -> None:
    with Directory.open(str(area)) as folder:
        assert DirectoryBackend(filesystem="xfs", no_quota=no_quota).footprint(folder) is None
