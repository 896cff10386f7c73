"""What a tenant makes of his volume, and what somebody makes of a volume's folder, leads no call anywhere else.

Before each operation a directory has become a symlink that leads out of the pool. Whatever the call answers, not a byte,
mode, time or attribute outside has changed, and nothing from there is in a copy.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from moorage_csi.host import mounts
from tests.kernel.kinds import BLOCK, BTRFS, DIRECTORY, EXT4, QUOTAS, TREES, Kind, each
from tests.kernel.rpc_driver import Driver, mounted_below
from tests.kernel.test_rpc_expanding import expand, expand_node
from tests.kernel.test_rpc_inventory import condition
from tests.kernel.test_rpc_snapshots import copy, snapshot

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

SECRET = b"the secret of somebody else"
REFUSALS = {
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
}
"""INTERNAL where all was undone, as a copy is that ran into it."""


@pytest.fixture
def outside(area: Path) -> Iterator[Path]:
    """A tree beside the pool, of which not even a time may change."""
    folder = area / "outside"
    for name in ("data", "deep/deeper"):
        (folder / name).mkdir(parents=True)
    for name in ("file", "data/file", "deep/deeper/file"):
        (folder / name).write_bytes(SECRET)
    (folder / "image").write_bytes(SECRET * 4096)
    (folder / "deep").chmod(0o700)
    before = seen(folder)
    yield folder
    assert seen(folder) == before


def seen(folder: Path) -> list[tuple[object, ...]]:
    """All that a stat tells of a tree but when it was read, and what is in it."""
    found: list[tuple[object, ...]] = []
    for path in (folder, *sorted(folder.rglob("*"))):
        at = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found.append(
            (str(path), at.st_mode, at.st_uid, at.st_nlink, at.st_size, at.st_mtime_ns, at.st_ctime_ns, content)
        )
    return found


def plant(data: Path, outside: Path) -> None:
    """What a tenant can do: directories of his that have become links, with names like the driver's own among them."""
    for name, leads_to in (
        ("folder", outside),
        ("deep", outside / "deep"),
        ("data", outside / "data"),
        ("image", outside / "image"),
        ("record.json", outside / "file"),
        ("up", Path("../../..")),
        ("root", Path("/")),
        ("self", Path("/proc/self/root")),
        ("nowhere", outside / "absent"),
    ):
        (data / name).symlink_to(leads_to)
    (data / "own").mkdir()
    (data / "own" / "file").write_bytes(b"his own")


def planted(tree: Path) -> bool:
    """Whether a copy has the links as they are, and nothing of what they lead to."""
    links = sum(path.is_symlink() for path in tree.iterdir())
    return links == 9 and (tree / "own" / "file").read_bytes() == b"his own" and not (tree / "absent").exists()


@each(*TREES)
@pytest.mark.parametrize("on_delete", ["delete", "retain", "archive"])
async def test_links_in_a_volume_are_copied_counted_and_removed_as_links(
    area: Path, kind: Kind, outside: Path, on_delete: str
) -> None:
    async with kind.driver(area) as driver:
        parameters = {**kind.parameters, "onDelete": on_delete}
        volume = await kind.create(driver, parameters=parameters)
        target, other = driver.target("pod"), driver.target("other")
        await driver.publish(volume, target)
        (target / "folder").mkdir()
        (target / "folder" / "file").write_bytes(b"x")
        await driver.stats(volume, target)
        shutil.rmtree(target / "folder")
        plant(target, outside)
        await driver.publish(volume, other)
        await driver.unpublish(volume, other)
        await driver.stats(volume, target)
        assert not (await condition(driver, volume)).abnormal
        taken = (await snapshot(driver, volume)).snapshot_id
        assert planted(driver.pool / "snapshots" / taken / "data")
        made = []
        for name in ("of-snapshot", "of-volume"):
            one = await copy(
                driver,
                name=name,
                snapshot=taken if name == "of-snapshot" else "",
                volume="" if name == "of-snapshot" else volume,
                size=2 * kind.size,
                parameters=parameters,
            )
            made.append(one.volume_id)
            assert planted(driver.volume_folder(one.volume_id) / "data")
        await expand(driver, volume, 2 * kind.size)
        await expand_node(driver, volume, target)
        await driver.unpublish(volume, target)
        for each_one in (volume, *made):
            await driver.delete(each_one)
        await driver.emptied()
        assert mounted_below(area / "kubelet") == []
        for kept in (driver.pool / "retained", driver.pool / "archived"):
            assert all(planted(one / "data") for one in kept.iterdir())


def swap_piece(driver: Driver, volume: str, kind: Kind, outside: Path) -> Path:
    """The storage itself becomes a link; returns what has to be put back."""
    piece = driver.volume_folder(volume) / kind.piece
    piece.rename(piece.with_name("aside"))
    piece.symlink_to(outside / kind.piece)
    return piece


def swap_folder(driver: Driver, volume: str, kind: Kind, outside: Path) -> Path:
    """The volume's whole folder becomes a link to one with a record and storage of the same names."""
    del kind
    folder = driver.volume_folder(volume)
    folder.rename(folder.with_name("aside"))
    folder.symlink_to(outside)
    return folder


OPERATIONS = ("publish", "stats", "condition", "snapshot", "copy", "expand", "expand_node", "delete", "unpublish")


async def call(driver: Driver, kind: Kind, volume: str, operation: str) -> None:
    target = driver.target("pod")
    match operation:
        case "publish":
            await driver.publish(volume, driver.target("other"), wanted=kind.wanted)
        case "stats":
            await driver.stats(volume, target)
        case "condition":
            await condition(driver, volume)
        case "snapshot":
            await snapshot(driver, volume)
        case "copy":
            await copy(driver, volume=volume, size=kind.size, parameters=dict(kind.parameters), wanted=kind.wanted)
        case "expand":
            await expand(driver, volume, 2 * kind.size)
        case "expand_node":
            await expand_node(driver, volume, target)
        case "delete":
            await driver.delete(volume)
            await driver.emptied()
        case "unpublish":
            await driver.unpublish(volume, target)


@each(EXT4, BLOCK, DIRECTORY, BTRFS, *QUOTAS)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("swap", [swap_piece, swap_folder], ids=["piece", "folder"])
async def test_storage_that_became_a_link_is_not_followed(
    area: Path,
    kind: Kind,
    outside: Path,
    operation: str,
    swap: Callable[[Driver, str, Kind, Path], Path],
) -> None:
    async with kind.driver(area) as driver:
        volume = await kind.create(driver)
        target = driver.target("pod")
        if operation != "delete":
            await driver.publish(volume, target, wanted=kind.wanted)
        mounted = mounted_below(area / "kubelet")
        swapped = swap(driver, volume, kind, outside)
        try:
            await call(driver, kind, volume, operation)
            assert operation in ("condition", "delete", "expand", "expand_node", "unpublish"), (
                "it was followed, or used"
            )
        except grpc.aio.AioRpcError as error:
            if error.code() not in REFUSALS or operation == "unpublish":
                pytest.fail(f"{operation}: {error.code()} {error.details()}")
        if operation == "unpublish":
            assert mounted_below(area / "kubelet") == [], "a pod must be able to end"
        else:
            assert mounted_below(area / "kubelet") == mounted
        for path in (driver.pool / "snapshots").iterdir():
            pytest.fail(f"{path} was made of what the link leads to")
        if swapped.is_symlink():
            swapped.unlink()
            swapped.with_name("aside").rename(swapped)
        for mounted_at in reversed(mounted_below(area / "kubelet")):
            mounts.unmount(mounted_at)
        if driver.volume_folder(volume).exists():
            await driver.delete(volume)
        await driver.emptied()
