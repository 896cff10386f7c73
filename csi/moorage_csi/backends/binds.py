"""A directory of the pool, shown to pods by a bind mount: what the backends do alike whose volumes are directories."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import PurePosixPath

from moorage_csi.backends.backend import Publication
from moorage_csi.backends.targets import attributes_of, held_by, opened_target, path_of, refuse_other_access
from moorage_csi.errors import InvalidArgumentError, NotFoundError, PreconditionError
from moorage_csi.host import mounts, paths, syscalls
from moorage_csi.host.paths import Directory


def publish(folder: Directory, name: str, publication: Publication) -> None:
    """Bind the directory ``name`` of a volume's folder onto the target, or find that it is done; see ``Backend.publish``."""
    options = attributes_of(publication)
    if options.filesystem:
        raise InvalidArgumentError(
            f"mount options {','.join(options.filesystem)} are for a filesystem of the volume's own, and a "
            "directory has none; allowed are those of a mount, such as noexec, nosuid, noatime"
        )
    with folder.child(name) as data:
        if _published(data, publication):
            return
        others = [target for target in targets(folder, name) if target != publication.target]
        if publication.exclusive and others:
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
    mount_id = syscalls.statx(folder.fd, "").mount_id
    home = next((mount for mount in table if mount.mount_id == mount_id), None)
    if home is None:
        raise PreconditionError(f"{path_of(folder.fd)} lies on a mount that is not visible: mount the pool again")
    within = PurePosixPath(path_of(folder.fd)).relative_to(home.target)
    data = PurePosixPath(home.root) / within / name
    return tuple(
        mount.target
        for mount in table
        if (mount.major, mount.minor) == (home.major, home.minor) and PurePosixPath(mount.root).is_relative_to(data)
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
