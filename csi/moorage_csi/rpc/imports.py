"""Directories of the host that somebody had before, as static volumes: shown to pods, and never more than that.

A PersistentVolume names one by ``volumeAttributes: {path: ...}``. It has to lie in one of the directories that whoever runs
the node has listed, and is walked to from there without a link. There is no record, because nothing of it is ours: it
is never made, formatted, given to a group, counted, copied or deleted, and its PersistentVolume may go without it. What is
mounted below it does not appear in the volume.

A pool and what is in it is nobody's to import: two owners of a volume's data are one too many.
"""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final

from moorage_csi.backends import binds
from moorage_csi.backends.backend import Publication, Usage
from moorage_csi.backends.binds import Location
from moorage_csi.backends.targets import figures_of, opened_target
from moorage_csi.errors import InvalidArgumentError, NotFoundError, PreconditionError
from moorage_csi.host import mounts
from moorage_csi.host.paths import Directory, checked_relative
from moorage_csi.rpc.compatibility import refuse_options
from moorage_csi.rpc.pools import Pools
from moorage_csi.rpc.validation import Access, is_inline
from moorage_csi.volumes.ids import VOLUME_ID, VolumeId

PATH: Final = "path"
"""The key of the volume context that names the directory."""

BACKEND: Final = "import"
"""What the context's ``backend`` may say beside it, for people."""

_BACKEND_KEY: Final = "backend"


def path_in(volume: str, context: Mapping[str, str]) -> str | None:
    """The directory that this context names; None where it is that of a volume of ours.

    Raises:
        InvalidArgumentError: it names one in a way that could mean two things.
    """
    path = context.get(PATH)
    if path is None:
        if context.get(_BACKEND_KEY) == BACKEND:
            raise InvalidArgumentError(
                f"volumeAttributes have backend {BACKEND} and no {PATH}: name the directory there"
            )
        return None
    if VOLUME_ID.fullmatch(volume) or is_inline(volume):
        raise InvalidArgumentError(
            f"volumeAttributes have {PATH}, and {volume!r} is an id of a volume of this driver's own, which lies in a pool: "
            "give the PersistentVolume of an imported directory another volumeHandle"
        )
    if context.get(_BACKEND_KEY, BACKEND) != BACKEND:
        raise InvalidArgumentError(
            f"volumeAttributes have {PATH}, and backend {context[_BACKEND_KEY]!r}; allowed beside it is {BACKEND}"
        )
    return path


class Imports:
    """The directories of this node that may be imported. Its methods but ``may_have`` block.

    Args:
        roots: absolute paths; in them and below them is all that may be.
        pools: of this node, which may not.
    """

    def __init__(self, *, roots: Sequence[str], pools: Pools) -> None:
        self._roots = tuple(roots)
        self._pools = pools

    def may_have(self, volume: VolumeId) -> bool:
        """Whether this may be the handle of an imported directory."""
        return bool(self._roots) and not VOLUME_ID.fullmatch(volume)

    def publish(self, volume: VolumeId, path: str, access: Access, publication: Publication) -> None:
        """Show the directory at the target, or find that it is done. A crash leaves either.

        Raises:
            InvalidArgumentError: no directory with that path may ever be imported, or not in that way.
            PreconditionError: it may, and is not there; or the target has something else.
            AlreadyExistsError: it is there, but writable where read-only was asked for or the reverse.
        """
        if access.block:
            raise InvalidArgumentError(f"volume {volume} is the directory {path} and cannot be used as block")
        refuse_options(access, own_filesystem=False, what=f"the directory {path}")
        with self._opened(path) as directory:
            table = mounts.mounts()
            place = binds.location(directory, table)
            self._refuse_pool(path, place)
            below = f"{publication.kubelet_dir}/"
            users = [
                mount.target for mount in table if mount.target.startswith(below) and place.holds(binds.place_of(mount))
            ]
            binds.show(directory, publication, users=lambda: users)

    def usage(self, volume: VolumeId, path: str, kubelet_dir: str) -> Usage:
        """How full the filesystem is on which the directory lies that is published at ``path``.

        Raises:
            NotFoundError: nothing that may be imported is published there.
        """
        with opened_target(path, kubelet_dir) as target:
            mount = mounts.mount_of_fd(target)
            if mount is None or not any(root.holds(binds.place_of(mount)) for root in self._places()):
                raise NotFoundError(f"volume {volume} is not published at {path!r}")
            return figures_of(target)

    def _places(self) -> list[Location]:
        """What the roots are, and what is mounted in them."""
        table = mounts.mounts()
        found = [binds.place_of(mount) for mount in table if any(_within(mount.target, root) for root in self._roots)]
        for root in self._roots:
            try:
                with Directory.open(root) as directory:
                    found.append(binds.location(directory, table))
            except (FileNotFoundError, NotADirectoryError):
                continue
        return found

    def _opened(self, path: str) -> Directory:
        """The directory, opened by way of the innermost root that it lies in."""
        roots = sorted((root for root in self._roots if _within(path, root)), key=len, reverse=True)
        if not roots:
            allowed = ", ".join(self._roots) or "nothing: the pools file has no imports"
            raise InvalidArgumentError(
                f"volumeAttributes {PATH} {path!r} may not be imported on this node; allowed is what lies in {allowed}"
            )
        below = path.rstrip("/").removeprefix(roots[0]).removeprefix("/")
        try:
            if below:
                checked_relative(below)
        except ValueError as error:
            raise InvalidArgumentError(f"volumeAttributes {PATH} {path!r} may not be imported: {error}") from error
        try:
            root = Directory.open(roots[0])
        except OSError as error:
            raise PreconditionError(
                f"{roots[0]}, in which {path} would lie, is not there ({error}): mount it on this node, or run the pod on "
                "a node that has it"
            ) from error
        if not below:
            return root
        with root:
            try:
                return root.child(below)
            except OSError as error:
                raise PreconditionError(
                    f"{path} cannot be imported ({error}): it has to be a directory of this node, reached from {roots[0]} "
                    "without a link; it is never made"
                ) from error

    def _refuse_pool(self, path: str, place: Location) -> None:
        """Whatever names lead there: neither a pool, nor what is in one, nor a directory that has one in it."""
        table = mounts.mounts()
        for station in self._pools:
            opened = station.ready
            if opened is None:
                continue
            pool = binds.location(opened.pool.root, table)
            if pool.holds(place) or place.holds(pool):
                raise InvalidArgumentError(
                    f"{path} cannot be imported: pool {station.name} lies there ({station.settings.path}), and what is in a "
                    "pool is this driver's own"
                )


def _within(path: str, root: str) -> bool:
    """Whether a path is the root or lies in it, by its text; ``..`` is refused when it is walked."""
    return PurePosixPath(path).is_relative_to(root)
