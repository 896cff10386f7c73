"""A cgroup of its own for each virtual node: two kubelets under one would end each other's pods as orphans."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness import processes

if TYPE_CHECKING:
    from collections.abc import Iterator

MOUNT = Path("/sys/fs/cgroup")
CONTROLLERS = "+cpuset +cpu +io +memory +hugetlb +pids"


def _hierarchies() -> Iterator[Path]:
    """Yield the root of each hierarchy: one on a machine with cgroup v2, one for each controller with v1."""
    if (MOUNT / "cgroup.controllers").exists():
        yield MOUNT
    else:
        yield from (entry for entry in MOUNT.iterdir() if entry.is_dir() and not entry.is_symlink())


def make(name: str) -> None:
    """Make the cgroup in every hierarchy. Idempotent."""
    for root in _hierarchies():
        available = root / "cgroup.subtree_control"
        if root == MOUNT and available.exists():
            for controller in CONTROLLERS.split():
                with contextlib.suppress(OSError):
                    available.write_text(controller)
        with contextlib.suppress(FileExistsError):
            (root / name).mkdir()


def remove(name: str) -> None:
    """Remove the cgroup and all below it from every hierarchy; its processes must have ended. Idempotent.

    Raises:
        StartError: one stays busy; the kernel lets go of an ended process a moment later.
    """
    for root in _hierarchies():
        for folder, _, _ in os.walk(root / name, topdown=False):
            processes.wait_until(functools.partial(_removed, Path(folder)), what=f"the end of {folder}", seconds=10)


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True
