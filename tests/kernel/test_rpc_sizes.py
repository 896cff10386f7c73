"""The size of a volume is what can be written to it: never more, and hardly less, however it came to that size."""

import contextlib
import errno
import os
from pathlib import Path

import pytest

from moorage_csi import contract
from moorage_csi.backends.backend import Shape
from moorage_csi.backends.directory import DirectoryBackend
from moorage_csi.host import quotas
from moorage_csi.host.paths import Directory
from tests.kernel.kinds import (
    BLOCK,
    BTRFS,
    DIRECTORY_EXT4,
    DIRECTORY_XFS,
    EXT4,
    QUOTAS,
    XFS,
    XFS_SHARED,
    Kind,
    each,
)
from tests.kernel.loop_filesystem import MIB, fill
from tests.kernel.machine import held_by_quotas, opened
from tests.kernel.rpc_driver import Driver
from tests.kernel.test_rpc_expanding import expand, expand_node
from tests.kernel.test_rpc_inventory import condition
from tests.kernel.test_rpc_snapshots import copy, snapshot

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

CONTENT = b"what was there before"
GIB = 1 << 30

HELD = each(EXT4, XFS, BTRFS, *QUOTAS)
"""Those with files in them."""


async def room(driver: Driver, volume: str, target: Path) -> tuple[int, int]:
    """Bytes of the volume in all, and those that are free."""
    usage = (await driver.stats(volume, target))["BYTES"]
    return usage.total, usage.available


async def write_to_the_end(driver: Driver, kind: Kind, volume: str, target: Path, *, size: int) -> None:
    """Write until the kernel says no; what was promised is there, and no more."""
    os.sync()
    total, free = await room(driver, volume, target)
    # What is missing is the journal of the filesystem inside, 64 MiB of it the log of an xfs.
    assert size - 80 * MIB <= total <= size if kind.filesystem else total == size
    with held_by_quotas():
        written = fill(target / "large", end=kind.full)
    assert free - max(free // 50, 2 * MIB) <= written <= size
    os.sync()
    _, left = await room(driver, volume, target)
    assert left <= max(size // 50, 2 * MIB)


@HELD
async def test_writing_ends_at_the_size_and_what_is_removed_can_be_written_again(area: Path, kind: Kind) -> None:
    async with kind.driver(area) as driver:
        volume = await kind.create(driver)
        target = driver.target("pod")
        await driver.publish(volume, target, wanted=kind.wanted)
        await write_to_the_end(driver, kind, volume, target, size=kind.size)
        with held_by_quotas():
            assert fill(target / "more", end=kind.full) <= 2 * MIB
        (target / "large").unlink()
        (target / "more").unlink(missing_ok=True)
        await write_to_the_end(driver, kind, volume, target, size=kind.size)
        await driver.unpublish(volume, target)


@each(DIRECTORY_XFS, DIRECTORY_EXT4)
async def test_df_shows_the_size_of_a_directory_and_not_that_of_its_disk(area: Path, kind: Kind) -> None:
    async with kind.driver(area) as driver:
        volume = await kind.create(driver)
        target = driver.target("pod")
        await driver.publish(volume, target)
        seen = os.statvfs(target)
        assert seen.f_blocks * seen.f_frsize == kind.size
        assert seen.f_bfree * seen.f_frsize >= kind.size - MIB
        await driver.unpublish(volume, target)


async def test_a_device_has_its_size_to_the_byte(area: Path) -> None:
    async with BLOCK.driver(area) as driver:
        size = 64 * MIB + 4096
        volume = await BLOCK.create(driver, size=size)
        target = driver.target("pod")
        await driver.publish(volume, target, wanted=BLOCK.wanted)
        assert _written_to_device(target) == size
        await driver.unpublish(volume, target)
        assert (driver.volume_folder(volume) / "image").stat().st_size == size


def _written_to_device(device: Path) -> int:
    """Write to a device until it has no room; returns how many bytes it took."""
    taken = 0
    with opened(device, os.O_WRONLY) as fd:
        with contextlib.suppress(NoRoomError):
            while True:
                taken += _written(fd, b"x" * 65536)
        os.fsync(fd)
    return taken


class NoRoomError(Exception):
    """ENOSPC and nothing else."""


def _written(fd: int, content: bytes) -> int:
    try:
        return os.write(fd, content)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise NoRoomError from error


@each(EXT4, XFS, XFS_SHARED, BTRFS, *QUOTAS)
@pytest.mark.parametrize("of", ["snapshot", "volume"])
async def test_what_is_made_larger_than_its_source_can_be_written_to_its_own_size(
    area: Path, kind: Kind, of: str
) -> None:
    async with kind.driver(area) as driver:
        volume = await kind.create(driver)
        target, other = driver.target("pod"), driver.target("other")
        await driver.publish(volume, target, wanted=kind.wanted)
        (target / "kept").write_bytes(CONTENT)
        size = 2 * kind.size
        taken = (await snapshot(driver, volume)).snapshot_id if of == "snapshot" else ""
        made = await copy(
            driver,
            snapshot=taken,
            volume="" if taken else volume,
            size=size,
            parameters=dict(kind.parameters),
            wanted=kind.wanted,
        )
        assert made.capacity_bytes == size
        # Both at the same time: a copy's filesystem has the uuid of its source.
        await driver.publish(made.volume_id, other, wanted=kind.wanted)
        assert (other / "kept").read_bytes() == CONTENT
        await write_to_the_end(driver, kind, made.volume_id, other, size=size)
        assert (target / "kept").read_bytes() == CONTENT
        total, _ = await room(driver, volume, target)
        # The limit of a subvolume is raised by what its copies keep of it.
        assert total <= kind.size + (MIB if kind is BTRFS else 0)
        await driver.unpublish(volume, target)
        await driver.unpublish(made.volume_id, other)


@pytest.mark.parametrize("of", ["snapshot", "volume"])
async def test_a_device_is_copied_into_a_larger_one(area: Path, of: str) -> None:
    async with BLOCK.driver(area) as driver:
        volume = await BLOCK.create(driver)
        target = driver.target("pod")
        await driver.publish(volume, target, wanted=BLOCK.wanted)
        assert _written_to_device(target) == BLOCK.size
        await driver.unpublish(volume, target)
        taken = (await snapshot(driver, volume)).snapshot_id if of == "snapshot" else ""
        size = 2 * BLOCK.size
        copied = await copy(
            driver,
            snapshot=taken,
            volume="" if taken else volume,
            size=size,
            parameters=dict(BLOCK.parameters),
            wanted=BLOCK.wanted,
        )
        made = copied.volume_id
        await driver.publish(made, target, wanted=BLOCK.wanted)
        with target.open("rb") as device:
            assert device.read(BLOCK.size) == b"x" * BLOCK.size
            assert device.read() == bytes(BLOCK.size), "what is added holds nothing of anybody else's"
        assert _written_to_device(target) == size
        await driver.unpublish(made, target)


@each(EXT4, XFS, BTRFS, *QUOTAS)
async def test_what_grew_can_be_written_to_its_new_size(area: Path, kind: Kind) -> None:
    async with kind.driver(area) as driver:
        volume = await kind.create(driver)
        target = driver.target("pod")
        await driver.publish(volume, target, wanted=kind.wanted)
        (target / "kept").write_bytes(CONTENT)
        grown = await expand(driver, volume, 2 * kind.size)
        assert grown.capacity_bytes == 2 * kind.size
        if grown.node_expansion_required:
            # Of a kernel that does not grow ext4 in use: it grows at the next publishing.
            await driver.unpublish(volume, target)
            await driver.publish(volume, target, wanted=kind.wanted)
        assert await expand_node(driver, volume, target) == 2 * kind.size
        await write_to_the_end(driver, kind, volume, target, size=2 * kind.size)
        assert (target / "kept").read_bytes() == CONTENT
        await driver.unpublish(volume, target)


def project(driver: Driver, volume: str) -> int:
    """The number of the volume's project."""
    with opened(driver.volume_folder(volume) / "data", os.O_RDONLY) as fd:
        return quotas.project_of(fd)


def limit(driver: Driver, number: int) -> quotas.Limit:
    """What the kernel holds for a project."""
    with opened(driver.pool, os.O_RDONLY) as fd:
        return quotas.read_limit(fd, number)


@each(*QUOTAS)
async def test_a_directory_of_one_gibibyte_becomes_two_and_takes_one_and_a_half(area: Path, kind: Kind) -> None:
    async with kind.driver(area) as driver:
        volume = await kind.create(driver, size=GIB)
        target = driver.target("pod")
        await driver.publish(volume, target)
        with held_by_quotas():
            _refused_to_reserve(target / "file", 3 * GIB // 2, kind.full)
            await expand(driver, volume, 2 * GIB)
            _reserved(target / "file", 3 * GIB // 2)
            _refused_to_reserve(target / "more", GIB, kind.full)
        assert limit(driver, project(driver, volume)).limit == 2 * GIB
        await driver.unpublish(volume, target)


def _reserved(path: Path, size: int) -> None:
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def _refused_to_reserve(path: Path, size: int, full: int) -> None:
    with pytest.raises(OSError, match=r"No space left|quota exceeded") as refusal:
        _reserved(path, size)
    assert refusal.value.errno == full
    path.unlink()


@each(*QUOTAS)
async def test_each_directory_has_a_project_of_its_own_also_when_it_is_a_copy(area: Path, kind: Kind) -> None:
    async with kind.driver(area) as driver:
        volume = await kind.create(driver)
        taken = (await snapshot(driver, volume)).snapshot_id
        parameters = dict(kind.parameters)
        made = [volume, await kind.create(driver, "pvc-2")]
        made += [(await copy(driver, volume=volume, name="copy", size=kind.size, parameters=parameters)).volume_id]
        made += [(await copy(driver, snapshot=taken, name="again", size=kind.size, parameters=parameters)).volume_id]
        numbers = {project(driver, one) for one in made}
        assert len(numbers) == len(made)
        assert 0 not in numbers
        assert {limit(driver, number).limit for number in numbers} == {kind.size}
        with opened(driver.pool / "snapshots" / taken / "data", os.O_RDONLY) as fd:
            assert quotas.project_of(fd) == 0, "a snapshot never grows"


@each(*QUOTAS)
@pytest.mark.parametrize("on_delete", ["delete", "retain", "archive"])
async def test_the_project_of_a_deleted_directory_has_no_limit_and_no_heir_while_its_data_is_there(
    area: Path, kind: Kind, on_delete: str
) -> None:
    async with kind.driver(area) as driver:
        volume = await kind.create(driver, parameters={"onDelete": on_delete})
        (driver.volume_folder(volume) / "data" / "file").write_bytes(b"x" * MIB)
        os.sync()
        number = project(driver, volume)
        await driver.delete(volume)
        assert limit(driver, number).limit == 0
        if on_delete != "delete":
            [kept] = (driver.pool / ("retained" if on_delete == "retain" else "archived")).iterdir()
            assert (kept / "data" / "file").stat().st_size == MIB
            assert limit(driver, number).used >= MIB
        else:
            await driver.emptied()
            os.sync()
            assert limit(driver, number).used == 0
        for other in range(3):
            made = await kind.create(driver, f"other-{other}")
            assert limit(driver, project(driver, made)).used < MIB


class Prepared(Directory):
    """A volume's folder into which a ready directory is moved instead of making one, so that its inode is known before."""

    __slots__ = ("ready",)

    ready: Path

    def make_directory(self, name: str, mode: int = 0o750, *, exist_ok: bool = False) -> None:
        del mode, exist_ok
        os.rename(self.ready, name, dst_dir_fd=self.fd)


@each(*QUOTAS)
def test_a_project_that_holds_what_was_deleted_is_not_given_to_a_volume(area: Path, kind: Kind) -> None:
    with kind.pool(area) as pool, contextlib.ExitStack() as stack:
        for name in ("deleted", "folder", "ready"):
            (pool.parent / name).mkdir()
        folder = stack.enter_context(Prepared(os.open(pool.parent / "folder", os.O_RDONLY | os.O_DIRECTORY)))
        folder.ready = pool.parent / "ready"
        number = folder.ready.stat().st_ino % ((1 << 31) - 1) + 1
        deleted = stack.enter_context(opened(pool.parent / "deleted", os.O_RDONLY))
        quotas.assign_project(deleted, number)
        (pool.parent / "deleted" / "file").write_bytes(b"x" * MIB)
        os.sync()
        shape = Shape(
            uuid="", size=kind.size, block=False, filesystem="", permissions=0o770, quota=contract.QUOTA_ENFORCED
        )
        DirectoryBackend(filesystem="", no_quota=None).make(folder, shape)
        made = stack.enter_context(opened(pool.parent / "folder" / "data", os.O_RDONLY))
        assert quotas.project_of(made) == number + 1
        assert quotas.read_limit(made, number + 1).limit == kind.size
        assert quotas.read_limit(made, number).limit == 0


@each(*QUOTAS)
async def test_a_limit_that_somebody_took_away_is_told(area: Path, kind: Kind) -> None:
    async with kind.driver(area) as driver:
        volume = await kind.create(driver)
        with opened(driver.pool, os.O_RDONLY) as fd:
            quotas.set_limit(fd, project(driver, volume), 0)
        told = await condition(driver, volume)
        assert told.abnormal
        assert f"{kind.size} were promised" in told.message
