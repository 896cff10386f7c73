"""The directory backend's use of project quotas, against a kernel that is only remembered.

A kernel that has them is not on every machine; what is tested here is which calls are made in which order.
"""

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moorage_csi.backends.backend import Shape
from moorage_csi.backends.directory import DirectoryBackend
from moorage_csi.errors import PreconditionError
from moorage_csi.host import quotas
from moorage_csi.host.paths import Directory
from moorage_csi.host.quotas import Limit

MIB = 1 << 20


class Kernel:
    """Projects by inode, limits by project."""

    def __init__(self) -> None:
        self.projects: dict[int, int] = {}
        self.limits: dict[int, int] = {}
        self.fails = False
        self.lock = threading.Lock()

    def assign_project(self, fd: int, project: int) -> None:
        with self.lock:
            self.projects[os.fstat(fd).st_ino] = project

    def project_of(self, fd: int) -> int:
        return self.projects.get(os.fstat(fd).st_ino, 0)

    def set_limit(self, fd: int, project: int, limit: int) -> None:
        del fd
        if self.fails:
            raise OSError(errno.EINVAL, "the filesystem did not keep the limit")
        self.limits[project] = limit

    def read_limit(self, fd: int, project: int) -> Limit:
        del fd
        return Limit(limit=self.limits.get(project, 0), used=4096 if project in self.projects.values() else 0)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    one = Kernel()
    for name in ("assign_project", "project_of", "set_limit", "read_limit"):
        monkeypatch.setattr(quotas, name, getattr(one, name))
    return one


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Directory]:
    with Directory.open(tmp_path) as root:
        yield root


BACKEND = DirectoryBackend(filesystem="xfs", no_quota=None)
SHAPE = Shape(uuid="", size=64 * MIB, block=False, filesystem="", permissions=0o770, quota="enforced")


def _made(root: Directory, name: str) -> Directory:
    root.make_directory(name)
    folder = root.child(name)
    BACKEND.make(folder, SHAPE)
    return folder


def test_fifty_at_once_get_fifty_projects(kernel: Kernel, root: Directory) -> None:
    # The numbers next to those inodes are taken already.
    kernel.limits = dict.fromkeys(range(1, 1 << 12), MIB)
    with ThreadPoolExecutor(16) as threads:
        folders = list(threads.map(lambda number: _made(root, f"v{number}"), range(50)))
    assert len(set(kernel.projects.values())) == 50
    assert {kernel.limits[project] for project in kernel.projects.values()} == {64 * MIB}
    for folder in folders:
        folder.close()


def test_the_limit_is_the_footprint_and_goes_with_the_volume(kernel: Kernel, root: Directory) -> None:
    with _made(root, "v") as folder:
        found = BACKEND.footprint(folder)
        assert found is not None
        assert (found.size, found.allocated) == (64 * MIB, 4096)
        BACKEND.retire(folder)
        BACKEND.retire(folder)
    assert set(kernel.limits.values()) == {0}


def test_a_limit_that_is_not_kept_is_an_error(kernel: Kernel, root: Directory) -> None:
    kernel.fails = True
    with pytest.raises(OSError, match="did not keep"):
        _made(root, "v")


def test_what_is_promised(kernel: Kernel) -> None:
    assert [BACKEND.promise(word) for word in ("required", "best-effort", "none")] == ["enforced", "enforced", "none"]
    without = DirectoryBackend(filesystem="ext4", no_quota="no quota here")
    assert [without.promise(word) for word in ("best-effort", "none")] == ["best-effort", "none"]
    with pytest.raises(PreconditionError, match="no quota here"):
        without.promise("required")
