"""Access modes: for each of them what is made, confirmed and published, in a pool of one node and in a shared one."""

from pathlib import Path
from typing import TypeAlias

import grpc
import pytest

from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.volumes.pool import PoolSettings
from tests.kernel.rpc_driver import DIRECTORY, Driver, Modes, capability, refused, running

pytestmark = pytest.mark.kernel

OK = None
INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNMET = grpc.StatusCode.FAILED_PRECONDITION

Row: TypeAlias = tuple[str, bool, grpc.StatusCode | None, grpc.StatusCode | None, grpc.StatusCode | None, bool]

TABLE: list[Row] = [
    # mode, shared pool, created, published, a second target, writable
    ("SINGLE_NODE_WRITER", False, OK, OK, OK, True),
    ("SINGLE_NODE_SINGLE_WRITER", False, OK, OK, UNMET, True),
    ("SINGLE_NODE_MULTI_WRITER", False, OK, OK, OK, True),
    ("SINGLE_NODE_READER_ONLY", False, OK, OK, OK, False),
    ("MULTI_NODE_READER_ONLY", False, INVALID, UNMET, UNMET, False),
    ("MULTI_NODE_SINGLE_WRITER", False, INVALID, INVALID, INVALID, False),
    ("MULTI_NODE_MULTI_WRITER", False, INVALID, UNMET, UNMET, False),
    ("UNKNOWN", False, INVALID, INVALID, INVALID, False),
    ("SINGLE_NODE_WRITER", True, OK, OK, OK, True),
    ("SINGLE_NODE_SINGLE_WRITER", True, OK, OK, UNMET, True),
    ("SINGLE_NODE_MULTI_WRITER", True, OK, OK, OK, True),
    ("SINGLE_NODE_READER_ONLY", True, OK, OK, OK, False),
    ("MULTI_NODE_READER_ONLY", True, OK, OK, OK, False),
    # No node can know that it is the only one that writes.
    ("MULTI_NODE_SINGLE_WRITER", True, INVALID, INVALID, INVALID, False),
    ("MULTI_NODE_MULTI_WRITER", True, OK, OK, OK, True),
    ("UNKNOWN", True, INVALID, INVALID, INVALID, False),
]


async def confirmed(driver: Driver, volume: str, wanted: csi.VolumeCapability) -> bool:
    answer = await driver.controller.ValidateVolumeCapabilities(
        csi.ValidateVolumeCapabilitiesRequest(volume_id=volume, volume_capabilities=[wanted])
    )
    assert answer.HasField("confirmed") is not bool(answer.message)
    return answer.HasField("confirmed")


async def published(driver: Driver, volume: str, pod: str, wanted: csi.VolumeCapability) -> grpc.StatusCode | None:
    try:
        await driver.publish(volume, driver.target(pod), wanted=wanted)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return None


def assert_writable(target: Path, *, writable: bool) -> None:
    if writable:
        (target / "file").write_text("x")
        return
    with pytest.raises(OSError, match="Read-only file system"):
        (target / "file").write_text("x")


@pytest.mark.parametrize("row", TABLE, ids=[f"{row[0]}-{'shared' if row[1] else 'own'}" for row in TABLE])
async def test_a_mode_is_what_the_table_says(area: Path, row: Row) -> None:
    mode, shared, made, shown, second, writable = row
    wanted = capability(mode=Modes.Mode.Value(mode))
    settings = [PoolSettings(name="one", path=str(area / "pool"), shared=shared)]
    async with running(area, settings) as driver:
        try:
            if made is not None:
                with refused(made):
                    await driver.create("asked", parameters=DIRECTORY, wanted=wanted)
            volume = (await driver.create(parameters=DIRECTORY, wanted=None if made else wanted)).volume_id
            assert await confirmed(driver, volume, wanted) is (shown is None)
            for _ in range(2):
                assert await published(driver, volume, "one", wanted) is shown
            assert await published(driver, volume, "two", wanted) is second
            if shown is None:
                assert_writable(driver.target("one"), writable=writable)
        finally:
            for pod in ("one", "two"):
                await driver.unpublish(volume, driver.target(pod))


@pytest.mark.parametrize("mode", ["SINGLE_NODE_READER_ONLY", "SINGLE_NODE_WRITER", "SINGLE_NODE_SINGLE_WRITER"])
async def test_a_block_volume_is_read_only_where_the_mode_or_the_call_says_so(driver: Driver, mode: str) -> None:
    wanted = capability(block=True, mode=Modes.Mode.Value(mode))
    volume = (await driver.create(wanted=wanted)).volume_id
    target = driver.target("one")
    readonly = mode == "SINGLE_NODE_WRITER"
    await driver.publish(volume, target, wanted=wanted, readonly=readonly)
    if mode == "SINGLE_NODE_SINGLE_WRITER":
        with target.open("r+b", buffering=0) as device:
            device.write(b"x" * 4096)
        assert await published(driver, volume, "two", wanted) is UNMET
    else:
        # A device that is read-only to the kernel, so it is to root.
        with (
            pytest.raises(OSError, match=r"Operation not permitted|Permission denied|Read-only"),
            target.open("r+b", 0) as device,
        ):
            device.write(b"x" * 4096)
    await driver.unpublish(volume, target)


@pytest.mark.parametrize("flag", ["data=journal", "bind", "remount"])
async def test_options_that_publishing_refuses_are_not_confirmed(driver: Driver, flag: str) -> None:
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    wanted = capability(flags=[flag])
    assert not await confirmed(driver, volume, wanted)
    assert await published(driver, volume, "one", wanted) is INVALID
    wanted = capability(flags=["noexec"])
    assert await confirmed(driver, volume, wanted)
    assert await published(driver, volume, "one", wanted) is None


async def test_the_other_kind_and_another_filesystem_are_neither_confirmed_nor_published(driver: Driver) -> None:
    volume = (await driver.create(parameters={"backend": "image"})).volume_id
    for wanted in (capability(block=True), capability(filesystem="xfs")):
        assert not await confirmed(driver, volume, wanted)
        assert await published(driver, volume, "one", wanted) is INVALID


@pytest.mark.parametrize("most", [0, 17])
async def test_the_scheduler_is_told_how_many_volumes_a_node_takes(area: Path, most: int) -> None:
    async with running(area, max_volumes=most) as driver:
        assert (await driver.node.NodeGetInfo(csi.NodeGetInfoRequest())).max_volumes_per_node == most
