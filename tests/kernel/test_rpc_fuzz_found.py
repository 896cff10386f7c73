"""What fuzzing and storms have found, each as one request that is always the same."""

import contextlib
import os
import socket

import grpc
import pytest

from moorage_csi.host import freezing
from moorage_csi.proto import csi_pb2 as csi
from tests.kernel.rpc_driver import DIRECTORY, Driver, capability, mounted_below, refused

pytestmark = pytest.mark.kernel

Code = grpc.StatusCode


@pytest.mark.parametrize("option", ["nonsense", "data=nonsense", "/a/path", "=x"])
async def test_a_mount_option_that_the_filesystem_does_not_know_is_invalid(driver: Driver, option: str) -> None:
    volume = (await driver.create()).volume_id
    with refused(Code.INVALID_ARGUMENT, "mount options"):
        await driver.publish(volume, driver.target("pod"), wanted=capability(flags=[option]))


async def test_what_the_kernel_refuses_at_mounting_for_good_is_no_reason_to_ask_again(driver: Driver) -> None:
    volume = (await driver.create()).volume_id
    with refused(Code.FAILED_PRECONDITION, "the kernel refuses"):
        await driver.publish(volume, driver.target("pod"), wanted=capability(flags=["sb=2"]))


@pytest.mark.parametrize("parameters", [{}, DIRECTORY], ids=["image", "directory"])
async def test_a_path_that_no_file_can_have_is_invalid_or_not_there(driver: Driver, parameters: dict[str, str]) -> None:
    volume = (await driver.create(parameters=parameters)).volume_id
    path = f"{driver.kubelet}/{'n' * 300}"
    with refused(Code.INVALID_ARGUMENT, "longer than"):
        await driver.publish(volume, path)
    with refused(Code.INVALID_ARGUMENT, "longer than"):
        await driver.unpublish(volume, path)
    with refused(Code.NOT_FOUND):
        await driver.stats(volume, path)


@pytest.mark.parametrize("known", [True, False])
async def test_unpublishing_removes_no_file_of_the_kubelets(driver: Driver, known: bool) -> None:
    volume = (await driver.create(parameters=DIRECTORY)).volume_id if known else "somebody-elses"
    config, listener = driver.kubelet / "config.yaml", driver.kubelet / "csi.sock"
    config.write_text("kind: KubeletConfiguration")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as bound:
        bound.bind(str(listener))
    for path in (config, listener):
        with refused(Code.FAILED_PRECONDITION, str(path)):
            await driver.unpublish(volume, path)
        assert path.exists()
    assert config.read_text() == "kind: KubeletConfiguration"


@pytest.mark.parametrize("parameters", [{}, DIRECTORY], ids=["image", "directory"])
async def test_a_volume_hides_nothing_that_lies_at_its_target(driver: Driver, parameters: dict[str, str]) -> None:
    volume = (await driver.create(parameters=parameters)).volume_id
    driver.target("other")
    with refused(Code.FAILED_PRECONDITION, "would hide"):
        await driver.publish(volume, driver.kubelet / "pods")
    assert mounted_below(driver.kubelet) == []
    empty = driver.kubelet / "empty"
    empty.mkdir()
    await driver.publish(volume, empty)
    await driver.publish(volume, empty)
    await driver.unpublish(volume, empty)


async def test_a_device_hides_no_file_that_holds_something(driver: Driver) -> None:
    block = capability(block=True)
    volume = (await driver.create(wanted=block)).volume_id
    config = driver.kubelet / "config.yaml"
    config.write_text("kind: KubeletConfiguration")
    with refused(Code.FAILED_PRECONDITION, "would hide"):
        await driver.publish(volume, config, wanted=block)
    assert config.read_text() == "kind: KubeletConfiguration"


async def test_a_volume_that_another_copy_keeps_still_is_copied_a_moment_later(driver: Driver) -> None:
    volume, target = (await driver.create()).volume_id, driver.target("pod")
    await driver.publish(volume, target)
    request = csi.CreateSnapshotRequest(name="snap", source_volume_id=volume)
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with freezing.frozen(fd, seconds=20), refused(Code.ABORTED, "frozen"):
            await driver.controller.CreateSnapshot(request)
    finally:
        os.close(fd)
    assert (await driver.controller.CreateSnapshot(request)).snapshot.ready_to_use
