"""Whether a directory can have a size is told truthfully."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moorage_csi.host import quotas, syscalls
from tests.kernel.machine import mounted, opened, sparse, tool

pytestmark = pytest.mark.kernel

LIMIT = 16 << 20


def test_a_filesystem_without_project_ids_says_so(area: Path) -> None:
    (area / "ram").mkdir()
    with mounted(area / "ram", "-t", "ramfs", "none"):
        reason = quotas.project_quota_supported(str(area / "ram"))
        assert reason is not None
        assert "project ids" in reason


@contextmanager
def image(area: Path, *make: str, options: str = "loop") -> Iterator[Path]:
    """A directory in a filesystem of its own; skipped where the kernel does not mount it."""
    file = sparse(area / "image", 320 << 20)
    tool(*make, file)
    (area / "mount").mkdir()
    if tool("mount", "-o", options, file, area / "mount", check=False).returncode:
        pytest.skip(f"the kernel does not mount {make[0]} with {options}: it lacks CONFIG_QUOTA or CONFIG_XFS_QUOTA")
    try:
        (area / "mount" / "volume").mkdir()
        yield area / "mount" / "volume"
    finally:
        tool("umount", area / "mount")


def test_a_filesystem_without_quota_says_what_to_do(area: Path) -> None:
    with image(area, "mkfs.ext4", "-q", "-F", "-O", "^quota") as volume:
        reason = quotas.project_quota_supported(str(volume))
    assert reason is not None
    assert "prjquota" in reason or "kernel has no quotas for this filesystem" in reason


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSYS, "kernel has no quotas"), (errno.ESRCH, "prjquota"), (errno.EPERM, "CAP_SYS_ADMIN")],
)
def test_each_refusal_of_the_kernel_has_its_reason(
    area: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(syscalls, "quotactl_fd", refuse)
    reason = quotas.project_quota_supported(str(area))
    assert reason is not None
    assert words in reason


def test_an_absent_path_is_an_error_and_not_a_reason(area: Path) -> None:
    with pytest.raises(FileNotFoundError):
        quotas.project_quota_supported(str(area / "absent"))


@pytest.mark.parametrize(
    "make", [("mkfs.ext4", "-q", "-F", "-O", "project"), ("mkfs.xfs", "-q", "-f")], ids=["ext4", "xfs"]
)
def test_a_project_id_is_kept_and_inherited(area: Path, make: tuple[str, ...]) -> None:
    """xfs keeps project ids without quotas, so this half can be seen on any kernel."""
    with image(area, *make) as volume:
        with opened(volume, os.O_RDONLY) as fd:
            assert quotas.project_of(fd) == 0
            for _ in range(2):
                quotas.assign_project(fd, 4711)
            assert quotas.project_of(fd) == 4711
        (volume / "sub").mkdir()
        (volume / "sub" / "file").touch()
        for below in (volume / "sub", volume / "sub" / "file"):
            with opened(below, os.O_RDONLY) as fd:
                assert quotas.project_of(fd) == 4711


def test_where_there_are_no_project_ids_there_is_none(area: Path) -> None:
    (area / "ram").mkdir()
    with mounted(area / "ram", "-t", "ramfs", "none"), opened(area / "ram", os.O_RDONLY) as fd:
        assert quotas.project_of(fd) == 0


def overrun(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(2):
            file.write(b"x" * LIMIT)


def test_a_limit_is_enforced_and_read_back(area: Path) -> None:
    with image(area, "mkfs.xfs", "-q", "-f", options="loop,prjquota") as volume:
        reason = quotas.project_quota_supported(str(volume))
        if reason is not None:
            pytest.skip(f"project quota for xfs: {reason}")
        with opened(volume, os.O_RDONLY) as fd:
            quotas.assign_project(fd, 4711)
            quotas.set_limit(fd, 4711, LIMIT)
            assert quotas.read_limit(fd, 4711).limit == LIMIT
            with pytest.raises(OSError, match=r"No space left|quota exceeded"):
                overrun(volume / "file")
            assert quotas.read_limit(fd, 4711).used <= LIMIT
