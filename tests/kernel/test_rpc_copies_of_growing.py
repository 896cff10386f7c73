"""A copy of a volume that is growing: as large as that is to be, inside too, and never larger than it was promised."""

from pathlib import Path

import grpc
import pytest

from moorage_csi.proto import csi_pb2 as csi
from tests.kernel.rpc_driver import MIB, Driver, capability, refused, running
from tests.kernel.test_rpc_snapshots import copy, snapshot

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

SMALL, LARGE = 320 * MIB, 704 * MIB


async def grown(driver: Driver, volume: str) -> None:
    wanted = csi.CapacityRange(required_bytes=LARGE)
    await driver.controller.ControllerExpandVolume(
        csi.ControllerExpandVolumeRequest(volume_id=volume, capacity_range=wanted)
    )


@pytest.mark.parametrize("by", ["snapshot", "volume"])
@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
async def test_it_is_as_large_inside_as_it_says(area: Path, filesystem: str, by: str) -> None:
    wanted = capability(filesystem=filesystem)
    async with running(area) as driver:
        volume = (await driver.create(size=SMALL, wanted=wanted)).volume_id
        target, other = driver.target("pod"), driver.target("other")
        await driver.publish(volume, target, wanted=wanted)
        await grown(driver, volume)
        source = {"snapshot": (await snapshot(driver, volume)).snapshot_id} if by == "snapshot" else {"volume": volume}
        made = await copy(driver, **source, size=0, wanted=wanted)  # type: ignore[arg-type]
        assert made.capacity_bytes == LARGE
        await driver.publish(made.volume_id, other, wanted=wanted)
        total = (await driver.stats(made.volume_id, other))["BYTES"].total
        assert 0.8 * LARGE <= total <= LARGE
        await driver.unpublish(made.volume_id, other)
        await driver.unpublish(volume, target)


async def test_it_is_refused_where_it_may_not_be_as_large(area: Path) -> None:
    wanted = capability(filesystem="xfs")
    async with running(area) as driver:
        volume = (await driver.create(size=SMALL, wanted=wanted)).volume_id
        await grown(driver, volume)
        with refused(grpc.StatusCode.OUT_OF_RANGE, str(LARGE)):
            await copy(driver, volume=volume, size=SMALL, limit=SMALL, wanted=wanted)
