"""Volumes as subvolumes of a btrfs pool, shown to pods by a bind mount.

A snapshot or a copy takes milliseconds however much there is, of one moment, used or not, and shares all of it until one
side is written to. The size is held by a limit of btrfs' own counting, which is read back; where that is not switched
on, ``quota: required`` is refused, and the other words make volumes that say so. With simple quotas the limit is higher than the size while there
are copies (see ``book``), and the figures of the volume are those of the limit: used is also what copies hold on to.

What a pod makes as a subvolume *within* its volume is not part of a snapshot: there the copy has an empty directory.
"""

import contextlib
import errno
import logging
from collections.abc import Callable, Iterator
from typing import Final

from moorage_csi import contract
from moorage_csi.backends import binds, limits
from moorage_csi.backends.backend import Amount, Capabilities, Footprint, Publication, Shape, Usage
from moorage_csi.backends.targets import figures_of, path_of, take_away
from moorage_csi.errors import InvalidArgumentError, PreconditionError
from moorage_csi.host import btrfs, qgroups
from moorage_csi.host.paths import Directory
from moorage_csi.host.quotas import Limit

_log = logging.getLogger(__name__)

DATA: Final = "data"
FILESYSTEM: Final = "btrfs"

_MINIMUM: Final = 1 << 20
_NO_DIRECTORY: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


class Subvolumes:
    """The backend ``btrfs`` of one pool; ``no_quota`` says why it cannot limit a subvolume, None where it can."""

    name = contract.BACKEND_BTRFS
    capabilities = Capabilities(block=False, shared=False, filesystems=(FILESYSTEM,), books=True)

    def __init__(self, *, no_quota: str | None) -> None:
        self._no_quota = no_quota

    def filesystem(self, asked: str) -> str:
        """None is made; the pool's own may be asked for by name."""
        if asked not in ("", FILESYSTEM):
            raise InvalidArgumentError(
                f"filesystem {asked!r} is not that of the pool, {FILESYSTEM}, of which subvolumes are a part; leave "
                f"{contract.Parameter.FSTYPE} out, or choose backend {contract.BACKEND_IMAGE}"
            )
        return ""

    def minimum(self, filesystem: str) -> int:  # noqa: ARG002 - a subvolume has none of its own
        """A subvolume needs next to nothing."""
        return _MINIMUM

    def promise(self, asked: str) -> str:
        """``enforced`` wherever that is wished and possible; see ``Backend.promise``."""
        if asked == contract.QUOTA_NONE:
            return contract.QUOTA_NONE
        if self._no_quota is None:
            return contract.QUOTA_ENFORCED
        if asked == contract.QUOTA_REQUIRED:
            raise PreconditionError(
                f"backend {self.name} cannot hold a volume's size in this pool: {self._no_quota}; or choose backend "
                f"{contract.BACKEND_IMAGE}, or say {contract.Parameter.QUOTA}: {contract.QUOTA_BEST_EFFORT} to do without"
            )
        return contract.QUOTA_BEST_EFFORT

    def make(self, folder: Directory, shape: Shape) -> None:
        """Make the subvolume, with its limit where one was promised; the limit is read back."""
        btrfs.make(folder, DATA, shape.permissions)
        self.grow(folder, shape)

    async def format(self, folder: Directory, shape: Shape) -> None:
        """Nothing: the filesystem is the pool's."""

    @contextlib.contextmanager
    def held(self, folder: Directory) -> Iterator[None]:
        """Only one that nobody uses is still: each snapshot is of one moment, two of them are of two."""
        binds.refuse_used(self.users(folder), self.name)
        yield

    def copy(
        self,
        source: Directory,
        folder: Directory,
        shape: Shape,
        *,
        pace: Callable[[], None],  # noqa: ARG002
        held: bool = False,  # noqa: ARG002
    ) -> None:
        """Take a snapshot, which is of one moment."""
        with source.child(DATA) as origin:
            if within := len(btrfs.nested(origin.fd)):
                _log.warning(
                    "subvolumes within a volume are not copied with it",
                    extra={"volume": path_of(source.fd), "subvolumes": within},
                )
            btrfs.snapshot(origin, folder, DATA, read_only=False)
        self.grow(folder, shape)

    def book(self, folder: Directory, shape: Shape, *, copied: bool) -> bool:
        """Raise the limit of simple quotas by all that was written so far, or take that back.

        They count what a volume wrote for as long as anybody refers to it. So all of that may be held by copies alone
        soon, while the volume is written anew from its beginning to its end; what it writes later is held by nobody
        else. Many copies of the same therefore do not add up. Qgroups count what the volume itself refers to.
        """
        if shape.quota != contract.QUOTA_ENFORCED or qgroups.state(folder.fd).quota is not qgroups.Quota.SIMPLE:
            return True
        if not copied and _strange(folder):
            return True
        if not copied and self._limit(folder).limit == shape.size:
            return True
        held = self._counted(folder)
        wanted = shape.size + held.used if copied else max(shape.size, held.used)
        if wanted > held.limit if copied else wanted != held.limit:
            qgroups.set_limit(folder, DATA, wanted)
        return copied or wanted == shape.size

    def resume(self, folder: Directory) -> None:
        """Nothing: nobody is stopped by a snapshot."""

    def grow(self, folder: Directory, shape: Shape) -> None:
        """Set the limit, where one is held; it is read back. One that copies have raised is never lowered here."""
        if shape.quota != contract.QUOTA_ENFORCED:
            return
        if self._limit(folder).limit < shape.size:
            qgroups.set_limit(folder, DATA, shape.size)

    def shrink(self, folder: Directory, shape: Shape, *, copied: bool) -> None:
        """Lower the limit, where one is held; it is read back."""
        if shape.quota != contract.QUOTA_ENFORCED:
            return
        raised = copied and qgroups.state(folder.fd).quota is qgroups.Quota.SIMPLE
        limits.lower(
            shape.size,
            read=lambda: self._counted(folder),
            write=lambda size: qgroups.set_limit(folder, DATA, size),
            beside=self._counted(folder).used if raised else 0,
        )

    async def fit(self, folder: Directory, shape: Shape) -> bool:  # noqa: ARG002 - nothing lies in between
        """The limit is the size."""
        return True

    def spread(self, folder: Directory, shape: Shape) -> bool:  # noqa: ARG002 - nothing lies in between
        """The limit is the size."""
        return True

    def retire(self, folder: Directory) -> None:
        """Give back what the kernel keeps for the limit; nothing for what somebody has put in the subvolume's place."""
        if not _strange(folder):
            qgroups.drop_limit(folder, DATA)

    def footprint(self, folder: Directory) -> Footprint | None:
        """What the kernel counts for the limit; without one it could not be told in constant time."""
        if self._no_quota is not None or _strange(folder):
            return None
        with folder.child(DATA) as data:
            held = qgroups.read_limit(data.fd)
        return Footprint(size=held.limit, allocated=held.used)

    def fault(self, folder: Directory, shape: Shape) -> str:
        """That the subvolume is not there, or that the kernel holds another size than was promised, or not of all."""
        if strange := _strange(folder):
            return strange
        if shape.quota != contract.QUOTA_ENFORCED:
            return ""
        held = self.footprint(folder)
        if held is not None and held.size >= shape.size:
            return _escaped(folder)
        holds = "no size" if held is None else f"{held.size} bytes"
        why = f": {self._no_quota}" if self._no_quota is not None else ""
        return f"the kernel holds {holds} for the subvolume, and {shape.size} were promised{why}"

    def users(self, folder: Directory) -> tuple[str, ...]:
        """Where the subvolume, or a directory in it, is mounted."""
        return binds.targets(folder, DATA)

    def publish(self, folder: Directory, shape: Shape, publication: Publication) -> None:  # noqa: ARG002
        """Bind the subvolume onto the target, or find that it is done; see ``Backend.publish``."""
        binds.publish(folder, DATA, publication)

    def unpublish(self, folder: Directory | None, target: str, kubelet_dir: str) -> None:  # noqa: ARG002
        """Unmount and remove the target; see ``Backend.unpublish``."""
        take_away(target, kubelet_dir)

    def usage(self, folder: Directory, shape: Shape, path: str, kubelet_dir: str) -> Usage:
        """What is counted for the limit; where none is held, the figures of the pool's filesystem, as df has them."""
        with binds.published(folder, DATA, path, kubelet_dir) as target:
            held = self.footprint(folder) if shape.quota == contract.QUOTA_ENFORCED else None
            if held is None:
                return figures_of(target)
            free = figures_of(target).size.available
        left = min(max(0, held.size - held.allocated), free)
        return Usage(size=Amount(total=held.size, used=held.allocated, available=left), inodes=None)

    @staticmethod
    def _counted(folder: Directory) -> Limit:
        """What the kernel holds and has counted, up to this moment."""
        btrfs.commit(folder.fd)
        return Subvolumes._limit(folder)

    @staticmethod
    def _limit(folder: Directory) -> Limit:
        """The same, counted up to the last commit."""
        with folder.child(DATA) as data:
            return qgroups.read_limit(data.fd)


def _strange(folder: Directory) -> str:
    """What lies where the subvolume should, and what to do; empty where the subvolume does."""
    path = f"{path_of(folder.fd)}/{DATA}"
    try:
        with folder.child(DATA) as data:
            if btrfs.subvolume(data.fd) is not None:
                return ""
    except OSError as error:
        if error.errno not in _NO_DIRECTORY:
            raise
        what = "is not a directory" if folder.exists(DATA) else "is missing"
        return f"the subvolume {path} {what}: restore the volume from a backup"
    return (
        f"{path} is a directory and not a subvolume, so that no size is held for it and it cannot be copied: make a subvolume, "
        "copy into it what is in the directory (cp -a --reflink), and put it in the directory's place"
    )


def _escaped(folder: Directory) -> str:
    """What a pod has made that qgroups do not count for its volume; simple quotas do."""
    with folder.child(DATA) as data:
        within = len(btrfs.nested(data.fd))
    if not within or qgroups.state(folder.fd).quota is not qgroups.Quota.QGROUP:
        return ""
    return (
        f"{within} subvolumes were made in {path_of(folder.fd)}/{DATA}, and qgroups do not count them for the volume's size: "
        "delete them, or have the pool's filesystem count by simple quotas (kernel 6.7)"
    )
