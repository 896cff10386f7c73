"""A file that shares its data is still a file of its own."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from moorage_csi.host import reflink
from moorage_csi.host.paths import Directory
from tests.kernel.loop_filesystem import MIB, disk_use, filesystem
from tests.kernel.machine import descriptors, opened, sparse

pytestmark = pytest.mark.kernel

SHARING = pytest.mark.parametrize("kind", ["xfs", "btrfs"])


@pytest.fixture
def place(area: Path, kind: str) -> Iterator[Path]:
    with filesystem(area, kind) as mount:
        (mount / "pool").mkdir()
        yield mount / "pool"


def clone(source: Path, target: Path) -> None:
    with opened(source, os.O_RDONLY) as one, opened(target, os.O_RDWR | os.O_CREAT) as other:
        reflink.clone_file(one, other)
        os.fsync(other)


@SHARING
def test_neither_sees_what_is_written_to_the_other(place: Path, kind: str) -> None:
    old = os.urandom(4 * MIB)
    (place / "source").write_bytes(old)
    clone(place / "source", place / "copy")
    for path, offset in ((place / "copy", MIB + 7), (place / "source", 2 * MIB)):
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(b"new")
    assert (place / "source").read_bytes() == old[: 2 * MIB] + b"new" + old[2 * MIB + 3 :]
    assert (place / "copy").read_bytes() == old[: MIB + 7] + b"new" + old[MIB + 10 :]
    (place / "source").unlink()
    assert (place / "copy").read_bytes() == old[: MIB + 7] + b"new" + old[MIB + 10 :]


@SHARING
def test_a_copy_takes_no_space_and_what_it_replaces_is_gone(place: Path, kind: str) -> None:
    (place / "source").write_bytes(os.urandom(32 * MIB))
    (place / "copy").write_bytes(os.urandom(48 * MIB))
    full = disk_use(place)
    clone(place / "source", place / "copy")
    assert disk_use(place) <= full - 40 * MIB
    assert (place / "copy").read_bytes() == (place / "source").read_bytes()


@SHARING
def test_what_is_not_on_the_disk_yet_is_copied_too(place: Path, kind: str) -> None:
    with (place / "source").open("wb", buffering=0) as writer:
        writer.write(b"not synced")
        clone(place / "source", place / "copy")
    assert (place / "copy").read_bytes() == b"not synced"


@SHARING
def test_a_sparse_file_stays_sparse(place: Path, kind: str) -> None:
    sparse(place / "source", 1 << 40)
    clone(place / "source", place / "copy")
    seen = (place / "copy").stat()
    assert (seen.st_size, seen.st_blocks) == (1 << 40, 0)


@pytest.mark.parametrize("kind", ["xfs", "btrfs", "ext4", "xfs-plain"])
def test_whether_a_filesystem_can_is_found_out_and_nothing_is_left(place: Path, kind: str) -> None:
    before = descriptors()
    with Directory.open(place) as folder:
        reason = reflink.reflink_supported(folder)
        assert folder.names() == []
    assert descriptors() == before
    if kind in ("xfs", "btrfs"):
        assert reason is None
    else:
        assert reason is not None
        assert "reflink=1" in reason
        (place / "source").write_bytes(b"data")
        with pytest.raises(OSError) as caught:  # noqa: PT011  (the number is looked at)
            clone(place / "source", place / "copy")
        assert caught.value.errno in reflink.UNABLE


@pytest.mark.parametrize("kind", ["xfs"])
def test_a_probe_that_cannot_be_made_is_an_error_and_not_an_answer(
    place: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(reflink, "clone_file", full)
    with Directory.open(place) as folder:
        with pytest.raises(OSError, match="No space"):
            reflink.reflink_supported(folder)
        assert folder.names() == []


@pytest.mark.parametrize("kind", ["xfs"])
def test_a_copy_that_differs_is_not_called_one(place: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflink, "clone_file", lambda _, target: os.write(target, b"other"))
    with Directory.open(place) as folder:
        reason = reflink.reflink_supported(folder)
    assert reason is not None
    assert "differs" in reason


@SHARING
def test_two_filesystems_cannot_share(place: Path, area: Path, kind: str) -> None:
    (area / "source").write_bytes(b"data")
    with pytest.raises(OSError) as caught:  # noqa: PT011
        clone(area / "source", place / "copy")
    assert caught.value.errno == errno.EXDEV
    assert errno.EXDEV in reflink.UNABLE
    assert (place / "copy").read_bytes() == b""
