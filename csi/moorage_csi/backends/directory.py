"""Volumes as directories of the pool's own filesystem, shown to pods by a bind mount.

Fast and transparent, and only as large as the kernel says: where it holds project quotas, a volume gets
one and it is read back; where it does not, ``quota: required`` is refused, and the other words make
volumes that say so. A project's number is one whose limit nobody has set, looked for from the
directory's inode number on, and to which nothing belongs that was deleted, so that nothing has to be remembered.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from typing import Final

from moorage_csi import contract
from moorage_csi.backends import binds, limits
from moorage_csi.backends.backend import Capabilities, Footprint, Publication, Shape, Usage
from moorage_csi.backends.targets import (
    figures_of,
    path_of,
    take_away,
)
from moorage_csi.errors import InvalidArgumentError, PreconditionError
from moorage_csi.host import quotas, treecopy
from moorage_csi.host.paths import Directory

DATA: Final = "data"

_MINIMUM: Final = 1 << 20
_PROJECTS: Final = 1 << 31
_PROJECT_ATTEMPTS: Final = 1 << 12
_NO_DIRECTORY: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


class DirectoryBackend:
    """The backend ``directory`` of one pool.

    ``filesystem`` is the pool's own, and ``no_quota`` says why the kernel cannot limit a directory in it;
    None where it can.
    """

    name = contract.BACKEND_DIRECTORY

    def __init__(self, *, filesystem: str, no_quota: str | None) -> None:
        self._filesystem = filesystem
        self._no_quota = no_quota
        self._numbering = threading.Lock()
        self.capabilities = Capabilities(block=False, shared=True, filesystems=(filesystem,))

    def filesystem(self, asked: str) -> str:
        """None is made; the pool's own may be asked for by name."""
        if asked not in ("", self._filesystem):
            raise InvalidArgumentError(
                f"filesystem {asked!r} is not that of the pool, {self._filesystem}, on which directories live; "
                f"leave {contract.Parameter.FSTYPE} out, or choose backend {contract.BACKEND_IMAGE}"
            )
        return ""

    def minimum(self, filesystem: str) -> int:  # noqa: ARG002 - a directory has none of its own
        """A directory needs next to nothing."""
        return _MINIMUM

    def promise(self, asked: str) -> str:
        """``enforced`` wherever that is wished and possible; see ``Backend.promise``."""
        if asked == contract.QUOTA_NONE:
            return contract.QUOTA_NONE
        if self._no_quota is None:
            return contract.QUOTA_ENFORCED
        if asked == contract.QUOTA_REQUIRED:
            raise PreconditionError(
                f"backend {self.name} cannot hold a volume's size in this pool: {self._no_quota}; choose backend "
                f"{contract.BACKEND_IMAGE}, or say {contract.Parameter.QUOTA}: {contract.QUOTA_BEST_EFFORT} to do without"
            )
        return contract.QUOTA_BEST_EFFORT

    def make(self, folder: Directory, shape: Shape) -> None:
        """Make the directory, with its limit where one was promised; the limit is read back."""
        folder.make_directory(DATA, shape.permissions)
        if shape.quota == contract.QUOTA_ENFORCED:
            with folder.child(DATA) as data, self._numbering:
                project = _free_project(data.fd)
                quotas.assign_project(data.fd, project)
                quotas.set_limit(data.fd, project, shape.size)

    async def format(self, folder: Directory, shape: Shape) -> None:
        """Nothing: the filesystem is the pool's."""

    @contextlib.contextmanager
    def held(self, folder: Directory) -> Iterator[None]:
        """Only one that nobody uses is still; see ``Backend.held``."""
        binds.refuse_used(self.users(folder), self.name)
        yield

    def copy(
        self,
        source: Directory,
        folder: Directory,
        shape: Shape,
        *,
        pace: Callable[[], None],
        held: bool = False,  # noqa: ARG002
    ) -> None:
        """Copy the tree, each file sharing its data with the source's where the filesystem can.

        Each file is of one moment; all of them together are so only where nobody writes meanwhile.
        """
        self.make(folder, shape)
        with source.child(DATA) as origin, folder.child(DATA) as data:
            treecopy.copy_tree(origin, data, batch=pace)
            if shape.quota == contract.QUOTA_ENFORCED and quotas.project_of(data.fd) == quotas.project_of(origin.fd):
                raise PreconditionError(
                    f"{path_of(data.fd)} got the project of its source: its size would not be its own"
                )

    def book(self, folder: Directory, shape: Shape, *, copied: bool) -> bool:  # noqa: ARG002 - nothing counts so
        """A project counts what lies in the directory, whatever shares its data."""
        return True

    def resume(self, folder: Directory) -> None:
        """Nothing: a directory is copied while it is used."""

    def grow(self, folder: Directory, shape: Shape) -> None:
        """Raise the limit, where one is held; it is read back."""
        if shape.quota == contract.QUOTA_ENFORCED:
            with folder.child(DATA) as data:
                quotas.set_limit(data.fd, quotas.project_of(data.fd), shape.size)

    def shrink(self, folder: Directory, shape: Shape, *, copied: bool) -> None:  # noqa: ARG002 - nothing counts so
        """Lower the limit, where one is held; it is read back."""
        if shape.quota != contract.QUOTA_ENFORCED:
            return
        with folder.child(DATA) as data:
            project = quotas.project_of(data.fd)
            limits.lower(
                shape.size,
                read=lambda: quotas.read_limit(data.fd, project),
                write=lambda size: quotas.set_limit(data.fd, project, size),
            )

    async def fit(self, folder: Directory, shape: Shape) -> bool:  # noqa: ARG002 - nothing lies in between
        """The limit is the size."""
        return True

    def spread(self, folder: Directory, shape: Shape) -> bool:  # noqa: ARG002 - nothing lies in between
        """The limit is the size."""
        return True

    def retire(self, folder: Directory) -> None:
        """Take the limit off the volume's project, so that its number is free."""
        if self._no_quota is not None:
            return
        try:
            data = folder.child(DATA)
        except OSError as error:
            if error.errno not in _NO_DIRECTORY:
                raise
            return
        with data:
            project = quotas.project_of(data.fd)
            if project:
                quotas.set_limit(data.fd, project, 0)

    def footprint(self, folder: Directory) -> Footprint | None:
        """What the kernel counts for the limit; without one, or a directory, there is nothing to tell in constant time."""
        if self._no_quota is not None:
            return None
        try:
            data = folder.child(DATA)
        except FileNotFoundError:
            return None
        with data:
            project = quotas.project_of(data.fd)
            if not project:
                return None
            held = quotas.read_limit(data.fd, project)
        return Footprint(size=held.limit, allocated=held.used)

    def fault(self, folder: Directory, shape: Shape) -> str:
        """That the directory is not there, or that the kernel holds another size than was promised."""
        if not folder.exists(DATA):
            return f"the directory {path_of(folder.fd)}/{DATA} is missing: restore the volume from a backup"
        if shape.quota != contract.QUOTA_ENFORCED:
            return ""
        held = None if self._no_quota is not None else self.footprint(folder)
        if held is not None and held.size == shape.size:
            return ""
        holds = "no size" if held is None else f"{held.size} bytes"
        why = f": {self._no_quota}" if self._no_quota is not None else ""
        return f"the kernel holds {holds} for the directory, and {shape.size} were promised{why}"

    def users(self, folder: Directory) -> tuple[str, ...]:
        """Where the directory, or one in it, is mounted."""
        return binds.targets(folder, DATA)

    def publish(self, folder: Directory, shape: Shape, publication: Publication) -> None:  # noqa: ARG002
        """Bind the directory onto the target, or find that it is done; see ``Backend.publish``."""
        binds.publish(folder, DATA, publication)

    def unpublish(self, folder: Directory | None, target: str, kubelet_dir: str) -> None:  # noqa: ARG002
        """Unmount and remove the target; see ``Backend.unpublish``."""
        take_away(target, kubelet_dir)

    def usage(self, folder: Directory, shape: Shape, path: str, kubelet_dir: str) -> Usage:  # noqa: ARG002
        """The kernel's figures: those of the limit where it holds one, of the pool's filesystem where not."""
        with binds.published(folder, DATA, path, kubelet_dir) as target:
            return figures_of(target)


def _free_project(fd: int) -> int:
    first = os.fstat(fd).st_ino
    for step in range(_PROJECT_ATTEMPTS):
        project = (first + step) % (_PROJECTS - 1) + 1
        held = quotas.read_limit(fd, project)
        # What lies in the trash or is retained has lost its limit and keeps its number.
        if held.limit == 0 and held.used == 0:
            return project
    raise PreconditionError(f"{_PROJECT_ATTEMPTS} project numbers in a row are in use: remove limits that nobody needs")
