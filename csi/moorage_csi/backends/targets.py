"""What all backends do alike at a target: read the mount options, refuse a second target, take it away."""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from moorage_csi.backends.backend import Amount, Publication, Usage
from moorage_csi.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, PreconditionError
from moorage_csi.host import filesystems, mounts, paths
from moorage_csi.host.mounts import MountFlag, MountOptions


def attributes_of(publication: Publication) -> MountOptions:
    """The publication's mount options, with read-only among them where it is asked for or a flag says so."""
    try:
        options = mounts.parse_options(publication.options)
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from error
    if not publication.readonly:
        return options
    return MountOptions(attributes=options.attributes.adding(MountFlag.READ_ONLY), filesystem=options.filesystem)


def refuse_other_access(publication: Publication, *, read_only: bool) -> None:
    """Refuse a target that has the volume writable where it is asked for read-only, or the reverse.

    The CSI specification wants ALREADY_EXISTS for it (NodePublishVolume, errors).
    """
    if read_only != attributes_of(publication).attributes.read_only:
        raise AlreadyExistsError(
            f"target_path {publication.target} has the volume {'read-only' if read_only else 'writable'} already: "
            "unpublish it first"
        )


def held_by(targets: Sequence[str]) -> PreconditionError:
    """The refusal of a second target for a volume that is for one pod alone."""
    return PreconditionError(
        f"the volume is for one pod alone (ReadWriteOncePod) and is published at {', '.join(targets)}: "
        "that pod has to end first"
    )


def take_away(target: str, kubelet_dir: str) -> None:
    """Unmount whatever is at the target, until nothing is, and remove the target. Absent: nothing happens.

    Raises:
        PreconditionError: it is in use, or holds something of its own; it stays, and the call may be repeated.
    """
    try:
        mounts.unmount(target, beneath=kubelet_dir)
        paths.remove_target(target, kubelet_dir)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise PreconditionError(
                f"target_path {target} holds something that is not the volume's, and stays: move that away ({error})"
            ) from error
        if error.errno != errno.EBUSY:
            raise
        raise PreconditionError(
            f"target_path {target} is in use and stays mounted: end the processes that have files open below it"
        ) from error


@contextlib.contextmanager
def opened_target(path: str, kubelet_dir: str) -> Iterator[int]:
    """The target, open with O_PATH and without following any link, to look at and not to use.

    Raises:
        NotFoundError: nothing is there, or not below the kubelet's folder.
    """
    try:
        with paths.target_parent(path, kubelet_dir) as (parent, name):
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"volume_path {path!r}: nothing is published there") from error
    try:
        yield fd
    finally:
        os.close(fd)


def figures_of(fd: int) -> Usage:
    """The figures of the filesystem that ``fd`` is open on."""
    found = filesystems.usage(fd)
    return Usage(
        size=Amount(total=found.total, used=found.used, available=found.available),
        inodes=Amount(total=found.inodes_total, used=found.inodes_used, available=found.inodes_free),
    )


def path_of(fd: int) -> str:
    """Where an open file lies, for messages and labels only."""
    return str(Path(f"/proc/self/fd/{fd}").readlink())
