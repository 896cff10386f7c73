"""Ids, paths, names and parameters that try to reach something outside the pool and the kubelet's folder."""

import random
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moorage_csi.proto import csi_pb2 as csi
from tests.kernel.rpc_driver import DIRECTORY, Driver, capability, mounted_below, refused, running

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

HARMLESS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
}

PATHS = (
    "../victim",
    "..",
    "../../victim",
    "/victim",
    "volumes/../../victim",
    "vol-" + "0" * 31 + "/",
    "vol-\0",
    "vol-\n",
    "..\\victim",
    "a/b",
)


@pytest.fixture
async def driver(area: Path) -> AsyncIterator[Driver]:
    (area / "victim" / "deep").mkdir(parents=True)
    (area / "victim" / "deep" / "file").write_text("untouched")
    (area / "victim" / "record.json").write_text("{}")
    async with running(area) as one:
        await one.create("pvc-1", parameters=DIRECTORY)
        yield one


def everything(area: Path) -> dict[str, bytes | None]:
    """Every path below the area but those of the trash, with its content."""
    return {
        str(path.relative_to(area)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in area.rglob("*")
        if "trash" not in path.parts and not path.is_socket()
    }


def _names(area: Path) -> set[str]:
    return {path.name for path in area.iterdir()}


@pytest.mark.parametrize("hostile", PATHS)
async def test_an_id_with_the_look_of_a_path_is_invalid_in_every_call(driver: Driver, area: Path, hostile: str) -> None:
    target = driver.target("pod")
    before = everything(area)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "volume_id"):
        await driver.delete(hostile)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "volume_id"):
        await driver.publish(hostile, target)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "volume_id"):
        await driver.unpublish(hostile, target)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "volume_id"):
        await driver.stats(hostile, target)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "volume_id"):
        await driver.controller.ValidateVolumeCapabilities(
            csi.ValidateVolumeCapabilitiesRequest(volume_id=hostile, volume_capabilities=[capability()])
        )
    assert everything(area) == before


@pytest.mark.parametrize(
    "hostile",
    ["{kubelet}/../victim", "{area}/victim", "/etc", "{kubelet}", "victim", "{kubelet}/a\0b", "{kubelet}/a\nb"],
)
async def test_a_target_outside_the_kubelets_folder_is_invalid(driver: Driver, area: Path, hostile: str) -> None:
    target = hostile.format(kubelet=driver.kubelet, area=area)
    [station] = driver.pools
    assert station.ready is not None
    [volume] = station.ready.pool.records
    before = everything(area)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "target_path"):
        await driver.publish(volume, target)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "target_path"):
        await driver.unpublish(volume, target)
    assert everything(area) == before
    assert mounted_below(area) == []


async def test_whatever_is_sent_nothing_outside_changes(driver: Driver, area: Path) -> None:
    """Hypothesis draws the requests beforehand: it cannot drive coroutines itself."""
    pieces = st.sampled_from(["..", "/", "\0", "\n", "vol-", "victim", str(area), "%2e", ".", "0" * 32, "\u2025"])
    text = st.lists(pieces, max_size=6).map("".join)
    requests: list[tuple[str, str, str]] = []

    @settings(max_examples=150, suppress_health_check=list(HealthCheck), database=None)
    @given(text, text, text)
    def draw(first: str, second: str, third: str) -> None:
        requests.append((first, second, third))

    draw()
    victim = everything(area / "victim")
    outside = _names(area)
    for first, second, third in requests:
        for call in (
            driver.delete(first),
            driver.publish(first, second),
            driver.publish(first, f"{driver.kubelet}/{second}"),
            driver.unpublish(first, second),
            driver.unpublish(first, f"{driver.kubelet}/{second}"),
            driver.stats(first, second),
            driver.create(first, parameters={second or "backend": third}),
            driver.create("pvc-2", parameters={"pool": first, "backend": second, "onDelete": third}),
        ):
            try:
                await call
            except grpc.aio.AioRpcError as error:
                if error.code() not in HARMLESS:
                    pytest.fail(f"{first!r} {second!r} {third!r}: {error.details()}")
    assert everything(area / "victim") == victim
    assert _names(area) == outside
    assert mounted_below(area) == []


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_is_deleted_in_whatever_order_the_siblings_keep_every_byte(area: Path, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    async with running(area) as driver:
        alive: dict[str, dict[str, bytes | None]] = {}
        names: dict[str, str] = {}
        for step in range(24):
            if alive and chance.random() < 0.45:
                volume = chance.choice(sorted(alive))
                await driver.delete(volume)
                del alive[volume]
            else:
                name = f"pvc-{step}"
                volume = (await driver.create(name, size=1 << 20, parameters=DIRECTORY)).volume_id
                names[volume] = name
                data = driver.volume_folder(volume) / "data"
                _plant(data, chance, [driver.volume_folder(other) / "data" for other in alive])
                alive[volume] = everything(data)
            for other, content in alive.items():
                assert everything(driver.volume_folder(other) / "data") == content
        await driver.emptied()
        for other, content in alive.items():
            assert everything(driver.volume_folder(other) / "data") == content


def _plant(data: Path, chance: random.Random, siblings: list[Path]) -> None:
    """A random tree, with names like the pool's own and links to the siblings."""
    folders = [data]
    for number in range(chance.randrange(1, 12)):
        folder = chance.choice(folders)
        name = chance.choice(["volumes", "trash", "record.json", "data", "image", "pool.json", f"n{number}"])
        if (folder / name).exists() or (folder / name).is_symlink():
            continue
        kind = chance.random()
        if kind < 0.4:
            (folder / name).mkdir()
            folders.append(folder / name)
        elif kind < 0.6 and siblings:
            (folder / name).symlink_to(chance.choice(siblings))
        else:
            (folder / name).write_bytes(chance.randbytes(chance.randrange(200)))
