"""A plain copy has the same bytes and the same holes, and leaves its source alone."""

import errno
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moorage_csi.host import copying
from tests.kernel.loop_filesystem import MIB, disk_use, filesystem
from tests.kernel.machine import opened, sparse

pytestmark = pytest.mark.kernel


@contextmanager
def both(source: Path, target: Path) -> Iterator[tuple[int, int]]:
    with opened(source, os.O_RDONLY) as one, opened(target, os.O_RDWR | os.O_CREAT) as other:
        yield one, other


def copy(source: Path, target: Path) -> int:
    with both(source, target) as (one, other):
        return copying.copy_data(one, other)


def patchy(path: Path, seed: int) -> int:
    """A file of data and holes of any length, a hole at the end of it as often as not; returns its size."""
    chance = random.Random(seed)  # noqa: S311  (the same file for the same seed)
    size = 0
    with path.open("wb") as file:
        for _ in range(20):
            size += chance.randrange(3 * MIB)
            file.seek(size)
            size += file.write(chance.randbytes(chance.choice([1, 100, 4096, 65537, MIB])))
        size += chance.choice([0, 1, 5 * MIB])
        file.truncate(size)
        file.flush()
        os.fsync(file.fileno())
    return size


@pytest.fixture(params=["kernel", "by hand", "by hand, in pieces", "kernel that does nothing"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the bytes go."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    write = os.pwrite
    if request.param.startswith("by hand"):
        monkeypatch.setattr(os, "copy_file_range", refuse)
        if request.param.endswith("in pieces"):
            monkeypatch.setattr(os, "pwrite", lambda fd, content, offset: write(fd, content[:300_007], offset))
    elif request.param != "kernel":
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    return str(request.param)


@pytest.mark.parametrize("seed", range(5))
def test_bytes_and_holes_are_those_of_the_source(area: Path, way: str, seed: int) -> None:
    size = patchy(area / "source", seed)
    before = (area / "source").read_bytes()
    written = copy(area / "source", area / "copy")
    assert (area / "copy").stat().st_size == size
    assert (area / "copy").read_bytes() == before
    assert (area / "source").read_bytes() == before
    assert written <= (area / "source").stat().st_blocks * 512
    assert (area / "copy").stat().st_blocks <= (area / "source").stat().st_blocks + 8 * 20


@pytest.mark.parametrize("content", [b"", b"x", b"x" * (8 * MIB), b"x" * (8 * MIB + 1)])
def test_the_edges(area: Path, way: str, content: bytes) -> None:
    (area / "source").write_bytes(content)
    assert copy(area / "source", area / "copy") == len(content)
    assert (area / "copy").read_bytes() == content


def test_what_was_never_written_is_not_copied(area: Path) -> None:
    sparse(area / "source", 1 << 40)
    assert copy(area / "source", area / "copy") == 0
    assert (area / "copy").stat().st_size == 1 << 40
    assert (area / "copy").stat().st_blocks == 0


def test_what_the_target_held_is_gone(area: Path, way: str) -> None:
    sparse(area / "source", 3 * MIB)
    (area / "copy").write_bytes(b"old" * 2 * MIB)
    copy(area / "source", area / "copy")
    assert (area / "copy").read_bytes() == bytes(3 * MIB)


def test_progress_is_told_and_stops_it(area: Path, way: str) -> None:
    (area / "source").write_bytes(os.urandom(20 * MIB))
    told: list[int] = []
    with both(area / "source", area / "copy") as (one, other):
        copying.copy_data(one, other, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 20 * MIB
    assert len(told) >= 3

    def stop(offset: int) -> None:
        if offset >= 8 * MIB:
            raise InterruptedError

    with both(area / "source", area / "copy") as (one, other):
        with pytest.raises(InterruptedError):
            copying.copy_data(one, other, progress=stop)
        copying.copy_data(one, other)
    assert (area / "copy").read_bytes() == (area / "source").read_bytes()


def test_a_source_that_shrinks_leaves_zeros_and_one_that_grows_is_cut(area: Path, way: str) -> None:
    for change, expected in ((MIB, bytes(12 * MIB)), (40 * MIB, b"x" * 12 * MIB)):
        (area / "source").write_bytes(b"x" * 20 * MIB)
        once = [change]

        def resize(_: int, once: list[int] = once) -> None:
            if once:
                os.truncate(area / "source", once.pop())

        with both(area / "source", area / "copy") as (one, other):
            copying.copy_data(one, other, progress=resize)
        assert (area / "copy").stat().st_size == 20 * MIB
        assert (area / "copy").read_bytes()[8 * MIB :] == expected


def test_another_filesystem_is_copied_to(area: Path) -> None:
    with filesystem(area, "xfs") as mount:
        patchy(area / "source", 7)
        copy(area / "source", mount / "copy")
        assert (mount / "copy").read_bytes() == (area / "source").read_bytes()
        assert (mount / "copy").stat().st_blocks <= (area / "source").stat().st_blocks + 8 * 20


def test_no_room_is_an_error(area: Path, way: str) -> None:
    with filesystem(area, "xfs") as mount:
        with (area / "source").open("wb") as file:
            for _ in range(400):
                file.write(os.urandom(4096) * 256)
        with pytest.raises(OSError, match="No space"):
            copy(area / "source", mount / "copy")
        (mount / "copy").unlink()
        assert disk_use(mount) < 100 * MIB


def test_other_errors_are_not_taken_for_a_kernel_that_cannot(area: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "copy_file_range", broken)
    (area / "source").write_bytes(b"data")
    with pytest.raises(OSError, match="Input/output"):
        copy(area / "source", area / "copy")
