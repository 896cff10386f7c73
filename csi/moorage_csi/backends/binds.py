"""A directory of the pool, shown to pods by a bind mount: what the backends do alike whose volumes are directories."""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from moorage_csi.backends.backend import Publication
from moorage_csi.backends.targets import attributes_of, held_by, opened_target, path_of, refuse_other_access
from moorage_csi.errors import InvalidArgumentError, NotFoundError, PreconditionError
from moorage_csi.host import mounts, paths, syscalls
from moorage_csi.host.mountinfo import Mount
from moorage_csi.host.paths import Directory


@dataclass(frozen=True, slots=True)
class Location:
    """Where a directory lies, whatever it is called here: the filesystem's number as mountinfo has it, and the path within."""

    major: int
    minor: int
    path: PurePosixPath

    def holds(self, other: "Location") -> bool:
        """Whether the other is this directory or lies in it."""
        return (self.major, self.minor) == (other.major, other.minor) and other.path.is_relative_to(self.path)


def publish(folder: Directory, name: str, publication: Publication) -> None:
    """Bind the directory ``name`` of a volume's folder onto the target, or find that it is done; see ``Backend.publish``."""
    with folder.child(name) as data:
        show(data, publication, users=lambda: targets(folder, name))


def show(data: Directory, publication: Publication, *, users: Callable[[], Sequence[str]]) -> None:
    """Bind a directory onto the target, or find that it is done; ``users`` tells the targets at which it is already."""
    options = attributes_of(publication)
    if options.filesystem:
        raise InvalidArgumentError(
            f"mount options {','.join(options.filesystem)} are for a filesystem of the volume's own, and a "
            "directory has none; allowed are those of a mount, such as noexec, nosuid, noatime"
        )
    if _published(data, publication):
        return
    others = [target for target in users() if target != publication.target] if publication.exclusive else []
    if others:
        raise held_by(others)
    target = paths.open_target_directory(publication.target, publication.kubelet_dir)
    try:
        mounts.bind(source_fd=data.fd, target_fd=target, attributes=options.attributes)
    finally:
        os.close(target)


@contextlib.contextmanager
def published(folder: Directory, name: str, path: str, kubelet_dir: str) -> Iterator[int]:
    """The target where the directory is published, open with O_PATH.

    Raises:
        NotFoundError: it is not published there.
    """
    with opened_target(path, kubelet_dir) as target, folder.child(name) as data:
        if mounts.mount_of_fd(target) is None or not _same(target, data.fd):
            raise NotFoundError(f"volume_path {path!r}: the volume is not mounted there")
        yield target


def targets(folder: Directory, name: str) -> tuple[str, ...]:
    """Mounts whose root is the directory or lies in it, as the kubelet's binds of a subPath do.

    They are told by filesystem and path within it, both as mountinfo has them: on btrfs the device number of
    a file is another one than that of its mount.
    """
    table = mounts.mounts()
    home = location(folder, table)
    data = Location(home.major, home.minor, home.path / name)
    return tuple(mount.target for mount in table if data.holds(place_of(mount)))


def location(directory: Directory, table: Sequence[Mount]) -> Location:
    """Where a directory lies, by this table of mounts.

    Raises:
        PreconditionError: on a mount that this process does not see.
    """
    mount_id = syscalls.statx(directory.fd, "").mount_id
    home = next((mount for mount in table if mount.mount_id == mount_id), None)
    if home is None:
        raise PreconditionError(f"{path_of(directory.fd)} lies on a mount that is not visible: mount it again")
    within = PurePosixPath(path_of(directory.fd)).relative_to(home.target)
    return Location(home.major, home.minor, PurePosixPath(home.root) / within)


def place_of(mount: Mount) -> Location:
    """What a mount shows."""
    return Location(mount.major, mount.minor, PurePosixPath(mount.root))


def refuse_used(users: Sequence[str], backend: str) -> None:
    """Refuse to keep a directory still to which somebody may write.

    Raises:
        PreconditionError: it is in use.
    """
    if users:
        raise PreconditionError(
            f"it is in use ({', '.join(users)}), and a volume of backend {backend} cannot be kept still meanwhile: end the "
            "pods that use it"
        )


def _published(data: Directory, publication: Publication) -> bool:
    """Whether the target has this directory already, in the way that is asked for."""
    mount = mounts.mount_at(publication.target, beneath=publication.kubelet_dir)
    if mount is None:
        return False
    with opened_target(publication.target, publication.kubelet_dir) as target:
        here = _same(target, data.fd)
    if not here:
        raise PreconditionError(
            f"target_path {publication.target}: {mount.root} of {mount.source or mount.filesystem} is mounted there, which "
            "is not this volume; nothing is mounted over it: unmount it first"
        )
    refuse_other_access(publication, read_only=mount.read_only)
    return True


def _same(one: int, other: int) -> bool:
    first, second = os.fstat(one), os.fstat(other)
    return stat.S_ISDIR(first.st_mode) and (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)
