"""A copy of an image is of one moment, also where it takes long: nobody begins to use or change the image meanwhile."""

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from moorage_csi.backends import imagefile
from moorage_csi.backends.backend import Publication, Shape
from moorage_csi.backends.image import Image
from moorage_csi.errors import InFlightError
from moorage_csi.host import loops, mounts
from moorage_csi.host.paths import Directory
from tests.kernel.loop_filesystem import filesystem
from tests.kernel.machine import opened
from tests.kernel.rpc_driver import MIB, capability, detached, mounted_below, refused, running
from tests.kernel.test_rpc_snapshots import copy, snapshot

pytestmark = pytest.mark.kernel

SHAPE = Shape(
    uuid="a3f0c1de-0000-4000-8000-000000000001",
    size=64 * MIB,
    block=False,
    filesystem="ext4",
    permissions=0o770,
    quota="enforced",
)


@pytest.fixture
def plain(area: Path) -> Iterator[Path]:
    """A folder on a filesystem that cannot share data between files, where a copy takes its time."""
    with filesystem(area, "ext4", size=1024 * MIB) as disk:
        yield disk


@pytest.fixture
def folders(plain: Path) -> Iterator[tuple[Directory, Directory]]:
    """A volume's, with a formatted image in it, and an empty one."""
    with ExitStack() as stack:
        for name in ("source", "copy"):
            (plain / name).mkdir()
        source, copy = (stack.enter_context(Directory.open(str(plain / name))) for name in ("source", "copy"))
        image = Image()
        image.make(source, SHAPE)
        asyncio.run(image.format(source, SHAPE))
        yield source, copy


def publication(plain: Path) -> Publication:
    (plain / "kubelet/pod").mkdir(parents=True, exist_ok=True)
    return Publication(
        target=f"{plain}/kubelet/pod/mount",
        kubelet_dir=f"{plain}/kubelet",
        readonly=False,
        exclusive=False,
        options=(),
    )


def copied(folders: tuple[Directory, Directory], meanwhile: Callable[[], None]) -> list[type[Exception] | None]:
    """Copy, and say for each of the moments in between how what was done there ended."""
    ends: list[type[Exception] | None] = []

    def pace() -> None:
        try:
            meanwhile()
        except InFlightError as error:
            ends.append(type(error))
        else:
            ends.append(None)

    Image().copy(*folders, SHAPE, pace=pace)
    assert ends, "the copy took no time"
    return ends


def test_what_is_being_copied_is_not_published_until_that_has_ended(
    plain: Path, folders: tuple[Directory, Directory]
) -> None:
    image, wanted = Image(), publication(plain)
    ends = copied(folders, lambda: image.publish(folders[0], SHAPE, wanted))
    assert set(ends) == {InFlightError}
    assert mounted_below(plain / "kubelet") == []
    image.publish(folders[0], SHAPE, wanted)
    try:
        assert mounted_below(plain / "kubelet") == [wanted.target]
    finally:
        mounts.unmount(wanted.target)
    asyncio.run(detached(plain / "source/image"))


def test_what_is_being_copied_does_not_grow_inside_until_that_has_ended(folders: tuple[Directory, Directory]) -> None:
    image = Image()

    def fit() -> None:
        coroutine = image.fit(folders[0], SHAPE)
        try:
            coroutine.send(None)
        finally:
            coroutine.close()

    assert set(copied(folders, fit)) == {InFlightError}
    assert asyncio.run(image.fit(folders[0], SHAPE))


def test_what_is_published_already_is_found_so_while_it_is_copied(
    plain: Path, folders: tuple[Directory, Directory]
) -> None:
    image, wanted = Image(), publication(plain)
    image.publish(folders[0], SHAPE, wanted)
    try:
        assert set(copied(folders, lambda: image.publish(folders[0], SHAPE, wanted))) == {None}
    finally:
        mounts.unmount(wanted.target)
    asyncio.run(detached(plain / "source/image"))


def test_two_copies_at_a_time_do_not_disturb_each_other(plain: Path, folders: tuple[Directory, Directory]) -> None:
    (plain / "second").mkdir()
    with Directory.open(str(plain / "second")) as second:

        def again() -> None:
            if not second.exists("image"):
                Image().copy(folders[0], second, SHAPE, pace=lambda: None)

        assert set(copied(folders, again)) == {None}
    content = {(plain / name / "image").read_bytes() for name in ("source", "copy", "second")}
    assert len(content) == 1


async def test_a_device_in_use_that_would_be_copied_slowly_is_refused_with_what_to_do(area: Path, plain: Path) -> None:
    wanted = capability(block=True)
    async with running(plain) as driver:
        volume = (await driver.create(parameters={"backend": "image"}, wanted=wanted)).volume_id
        target = driver.target("pod")
        await driver.publish(volume, target, wanted=wanted)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "used as a device", "end the pods"):
            await snapshot(driver, volume)
        await driver.unpublish(volume, target)
        assert (await snapshot(driver, volume)).ready_to_use


async def test_a_device_in_use_is_copied_as_it_was_written_where_that_takes_a_moment(area: Path) -> None:
    wanted = capability(block=True)
    with filesystem(area, "xfs", size=1024 * MIB) as disk:
        async with running(disk) as driver:
            volume = (await driver.create(parameters={"backend": "image"}, wanted=wanted)).volume_id
            target, other = driver.target("pod"), driver.target("other")
            await driver.publish(volume, target, wanted=wanted)
            with target.open("r+b") as device:
                device.write(b"before")
            taken = await snapshot(driver, volume)
            with target.open("r+b") as device:
                device.write(b"after!")
            made = (await copy(driver, snapshot=taken.snapshot_id, wanted=wanted)).volume_id
            await driver.publish(made, other, wanted=wanted)
            assert other.read_bytes()[:6] == b"before"
            assert target.read_bytes()[:6] == b"after!"
            await driver.unpublish(volume, target)
            await driver.unpublish(made, other)


# Growing where it is mounted, because xfs grows nowhere else.

XFS = replace(SHAPE, size=320 * MIB, filesystem="xfs")
LARGER = replace(XFS, size=640 * MIB)


@contextmanager
def copied_larger(area: Path) -> Iterator[Directory]:
    """The folder of an image in which the filesystem is as large as that of a smaller source."""
    (area / "source").mkdir()
    with Directory.open(str(area / "source")) as folder:
        image = Image()
        image.make(folder, XFS)
        asyncio.run(image.format(folder, XFS))
        image.grow(folder, LARGER)
        try:
            yield folder
        finally:
            for target in mounted_below(area / "kubelet"):
                mounts.unmount(target)
    asyncio.run(detached(area / "source/image"))


def room(target: str) -> int:
    seen = os.statvfs(target)
    return seen.f_blocks * seen.f_frsize


def test_what_died_before_it_had_grown_grows_when_it_is_published_again(
    area: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    image, wanted = Image(), publication(area)
    with copied_larger(area) as folder:
        with monkeypatch.context() as patched:
            patched.setattr(imagefile, "grow_mounted", die)
            with pytest.raises(KeyboardInterrupt):
                image.publish(folder, LARGER, wanted)
        assert room(wanted.target) <= XFS.size
        image.publish(folder, LARGER, wanted)
        assert room(wanted.target) > 0.85 * LARGER.size
        # What has grown is found so at a glance: it waits for no copy, and is not asked to grow again.
        monkeypatch.setattr(imagefile, "grow_mounted", die)
        (area / "copy").mkdir()
        with Directory.open(str(area / "copy")) as copy, image.held(folder):
            image.copy(folder, copy, LARGER, pace=lambda: image.publish(folder, LARGER, wanted), held=True)


def test_it_grows_by_the_target_that_is_written_to_whichever_was_first(area: Path) -> None:
    image, wanted = Image(), publication(area)
    reader = replace(wanted, target=f"{area}/kubelet/pod/reader", readonly=True)
    with copied_larger(area) as folder:
        image.publish(folder, LARGER, reader)
        assert room(reader.target) <= XFS.size
        image.publish(folder, LARGER, wanted)
        assert room(wanted.target) == room(reader.target) > 0.85 * LARGER.size


def test_a_device_that_has_gone_meanwhile_needs_not_to_be_told(
    folders: tuple[Directory, Directory], plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(plain / "source/image", os.O_RDWR) as fd, loops.attach(backing_fd=fd, name="x") as loop:
        gone = loop.status
    monkeypatch.setattr(imagefile, "devices", lambda _: [gone])
    Image().grow(folders[0], replace(SHAPE, size=2 * SHAPE.size))
    assert (plain / "source/image").stat().st_size == 2 * SHAPE.size


def test_what_is_busy_while_it_is_still_is_not_taken_for_a_freeze(
    plain: Path, folders: tuple[Directory, Directory]
) -> None:
    image, wanted = Image(), publication(plain)
    image.publish(folders[0], SHAPE, wanted)
    try:
        with pytest.raises(OSError, match="the caller's"), image.held(folders[0]):
            raise OSError(errno.EBUSY, "the caller's")
        with image.held(folders[0]), pytest.raises(InFlightError, match="is frozen"), image.held(folders[0]):
            pass
    finally:
        mounts.unmount(wanted.target)
    asyncio.run(detached(plain / "source/image"))
