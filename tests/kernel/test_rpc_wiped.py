"""A filesystem whose first blocks are gone is data that has to be repaired: no call makes a new one over it."""

from pathlib import Path

import grpc
import grpc.aio
import pytest

from tests.kernel.kinds import EXT4, XFS, XFS_SHARED, Kind, each
from tests.kernel.loop_filesystem import MIB
from tests.kernel.rpc_driver import Driver, detached, refused
from tests.kernel.test_rpc_expanding import expand, expand_node
from tests.kernel.test_rpc_snapshots import copy, snapshot

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

CONTENT = b"precious" * 512
WIPED = 4096
EVERY = each(EXT4, XFS, XFS_SHARED)


async def wiped(driver: Driver, kind: Kind) -> tuple[str, Path]:
    """A volume with a file in it, whose superblock was then lost; its id and its image."""
    volume = await kind.create(driver)
    target = driver.target("pod")
    await driver.publish(volume, target, wanted=kind.wanted)
    (target / "file").write_bytes(CONTENT)
    await driver.unpublish(volume, target)
    image = driver.volume_folder(volume) / "image"
    await detached(image)
    with image.open("r+b") as file:
        file.write(bytes(WIPED))
    return volume, image


def holds(image: Path, kind: Kind) -> bool:
    """Whether an image begins with what the wipe left, and has the file still."""
    content = image.read_bytes()
    return content[:WIPED] == bytes(WIPED) and CONTENT in content and len(content) >= kind.size


async def refuse_to_publish(driver: Driver, kind: Kind, volume: str) -> None:
    for readonly in (False, True):
        with refused(grpc.StatusCode.FAILED_PRECONDITION, kind.filesystem, "no filesystem", "never formatted again"):
            await driver.publish(volume, driver.target("other"), readonly=readonly, wanted=kind.wanted)


@EVERY
async def test_publishing_and_asking_for_it_again_leave_every_byte(area: Path, kind: Kind) -> None:
    async with kind.driver(area) as driver:
        volume, image = await wiped(driver, kind)
        before = image.read_bytes()
        await refuse_to_publish(driver, kind, volume)
        assert await kind.create(driver) == volume
        await refuse_to_publish(driver, kind, volume)
        assert image.read_bytes() == before
        await detached(image)


@EVERY
async def test_growing_leaves_what_is_there(area: Path, kind: Kind) -> None:
    async with kind.driver(area) as driver:
        volume, image = await wiped(driver, kind)
        before = image.read_bytes()
        for _ in range(2):
            try:
                grown = await expand(driver, volume, 2 * kind.size)
            except grpc.aio.AioRpcError as error:
                assert kind.filesystem == "ext4"
                assert error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAVAILABLE)  # noqa: PT017
            else:
                assert grown.node_expansion_required, "xfs grows where it is mounted"
            with refused(grpc.StatusCode.FAILED_PRECONDITION):
                await expand_node(driver, volume, driver.target("other"))
            await refuse_to_publish(driver, kind, volume)
        assert image.read_bytes()[: kind.size] == before
        assert not any(image.read_bytes()[kind.size :]), "nothing was made in what was added"


@EVERY
async def test_a_snapshot_and_what_is_made_of_it_hold_the_same(area: Path, kind: Kind) -> None:
    async with kind.driver(area) as driver:
        volume, image = await wiped(driver, kind)
        before = image.read_bytes()
        taken = (await snapshot(driver, volume)).snapshot_id
        assert holds(driver.pool / "snapshots" / taken / "image", kind)
        for name, source in (("of-snapshot", {"snapshot": taken}), ("of-volume", {"volume": volume})):
            made = await copy(
                driver,
                name=name,
                snapshot=source.get("snapshot", ""),
                volume=source.get("volume", ""),
                size=kind.size,
                parameters=dict(kind.parameters),
                wanted=kind.wanted,
            )
            assert holds(driver.volume_folder(made.volume_id) / "image", kind)
            await refuse_to_publish(driver, kind, made.volume_id)
            assert holds(driver.volume_folder(made.volume_id) / "image", kind)
        assert image.read_bytes() == before


@EVERY
async def test_a_larger_copy_of_it_is_refused_or_holds_the_same(area: Path, kind: Kind) -> None:
    async with kind.driver(area) as driver:
        volume, image = await wiped(driver, kind)
        before = image.read_bytes()
        asked = copy(
            driver,
            volume=volume,
            size=kind.size + 64 * MIB,
            parameters=dict(kind.parameters),
            wanted=kind.wanted,
        )
        if kind.filesystem == "ext4":
            # Its filesystem would have to grow, which is where it is seen.
            with refused(grpc.StatusCode.INTERNAL, "nothing of it is left"):
                await asked
            await driver.emptied()
            assert sorted(path.name for path in (driver.pool / "volumes").iterdir()) == [volume]
        else:
            made = (await asked).volume_id
            await refuse_to_publish(driver, kind, made)
            assert holds(driver.volume_folder(made) / "image", kind)
        assert image.read_bytes() == before
