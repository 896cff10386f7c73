"""The driver is killed (SIGKILL) before and after every change that a wipe makes to the disk, and started again."""

import json
from pathlib import Path

import grpc
import pytest

from moorage_csi.host import filesystems, mounts
from moorage_csi.rpc.validation import volume_id_for
from tests.kernel.crash_points import areas_of
from tests.kernel.rpc_driver import DIRECTORY, Driver, capability, mounted_below, refused, running
from tests.kernel.wipe_client import record_of, wiping
from tests.kernel.wipe_victim import NAME, OLD, OLD_AT, SIZE

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

VOLUME = volume_id_for(NAME)

kinds = pytest.mark.parametrize(
    ("parameters", "block"), [({}, False), ({}, True), (DIRECTORY, False)], ids=["ext4", "block", "directory"]
)


def _crashed(area: Path, parameters: dict[str, str], *, block: bool) -> list[Path]:
    """Areas on which a driver died at one point each; the last one came through."""
    return areas_of("-m", "tests.kernel.wipe_victim", str(area), json.dumps(parameters), "block" if block else "mount")


def _holds_old_data(driver: Driver) -> bool:
    folder = driver.volume_folder(VOLUME)
    if (folder / "data").exists():
        return (folder / "data" / "old").exists()
    if not (folder / "image").exists():
        return False
    with (folder / "image").open("rb") as image:
        image.seek(OLD_AT)
        return image.read(len(OLD)) == OLD


async def _is_usable(driver: Driver, *, block: bool) -> None:
    """It takes data, and a late duplicate of the wipe leaves it alone."""
    wanted = capability(block=block)
    target = driver.target("pod")
    try:
        await driver.publish(VOLUME, target, wanted=wanted)
        file = target if block else target / "new"
        with file.open("r+b" if block else "wb") as opened:
            opened.write(b"written")
        await driver.unpublish(VOLUME, target)
        async with wiping(driver) as wipe:
            await wipe(VOLUME)
        await driver.publish(VOLUME, target, wanted=wanted)
        with file.open("rb") as opened:
            assert opened.read(7) == b"written"
        await driver.unpublish(VOLUME, target)
    finally:
        for left in mounted_below(driver.kubelet):
            mounts.unmount(left)


@kinds
async def test_a_wipe_killed_at_any_point_ends_when_it_is_asked_for_again(
    area: Path, parameters: dict[str, str], *, block: bool
) -> None:
    states = set()
    for crashed in _crashed(area, parameters, block=block):
        async with running(crashed) as driver, wiping(driver) as wipe:
            before = record_of(driver, VOLUME)
            states.add(before["state"])
            if before["state"] == "wiping":
                for _ in range(2):
                    with refused(grpc.StatusCode.UNAVAILABLE, "wiping"):
                        await driver.publish(VOLUME, driver.target("pod"), wanted=capability(block=block))
                    with refused(grpc.StatusCode.UNAVAILABLE, "wiping"):
                        await driver.create(NAME, parameters=parameters, wanted=capability(block=block))
                assert record_of(driver, VOLUME) == before, crashed
            elif "wipedFor" not in before:
                assert _holds_old_data(driver), f"lost without a record of it: {crashed}"
            await wipe(VOLUME)
            assert not _holds_old_data(driver), crashed
            after = record_of(driver, VOLUME)
            changed = {"state", "wipedFor", "version"}
            assert {key: after[key] for key in after.keys() - changed} == {
                **{key: before[key] for key in before.keys() - changed},
                "formatted": not parameters and not block,
            }
            assert (after["state"], after["wipedFor"]) == ("ready", ["uid-1"])
            if not parameters:
                image = driver.volume_folder(VOLUME) / "image"
                assert image.stat().st_size == SIZE
                assert filesystems.detect(str(image)) == (None if block else "ext4")
            await _is_usable(driver, block=block)
            await driver.emptied()
            await driver.delete(VOLUME)
            await driver.emptied()
            assert driver.left() == []
    assert states == {"ready", "wiping"}


@kinds
async def test_a_volume_whose_wipe_was_killed_at_any_point_can_be_deleted(
    area: Path, parameters: dict[str, str], *, block: bool
) -> None:
    for crashed in _crashed(area, parameters, block=block):
        async with running(crashed) as driver:
            await driver.delete(VOLUME)
            await driver.emptied()
            assert driver.left() == [], crashed
