"""Volumes as files: a sparse image, a loop device while it is used, and ext4, xfs or nothing inside.

The size of the file is the size of the volume, so it holds on any filesystem. Nothing outlives its use:
the loop device of a mounted image is attached with autoclear, and the kernel lets it go with the last
mount, whoever died meanwhile. A raw block volume has no mount that would hold its device, so that one is
attached without autoclear and detached when the last target has gone.

Which device is the image's is asked of the kernel by the file's device and inode, at every call: nothing
is remembered, so a restart of the driver changes nothing. Two calls for one volume never run at a time;
the RPC layer sees to that.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from typing import Final

from moorage_csi.backends import fitting, imagefile
from moorage_csi.backends.backend import Amount, Capabilities, Footprint, Publication, Shape, Usage
from moorage_csi.backends.targets import (
    attributes_of,
    figures_of,
    held_by,
    opened_target,
    path_of,
    refuse_other_access,
    take_away,
)
from moorage_csi.contract import BACKEND_IMAGE, FILESYSTEMS, QUOTA_ENFORCED
from moorage_csi.errors import InFlightError, NotFoundError, PreconditionError, UnavailableError
from moorage_csi.host import copying, filesystems, freezing, growing, loops, mounts, paths
from moorage_csi.host.loops import LoopStatus
from moorage_csi.host.paths import Directory

FILE: Final = "image"

_ALWAYS: Final = {filesystems.XFS: ("nouuid",)}
"""A copy has the uuid of its source, and xfs refuses to mount two of one."""
_HELD_PAUSES: Final = (0.01, 0.04)
_MINIMUM_BLOCK: Final = 1 << 20
_BLOCK_UNIT: Final = 512
_STOPPED: Final = frozenset({"ro", "emergency_ro", "shutdown"})
"""How a filesystem is shown to which the kernel writes no more, by the age of the kernel."""


class Image:
    """The backend ``image``."""

    name = BACKEND_IMAGE
    capabilities = Capabilities(block=True, shared=False, filesystems=FILESYSTEMS)

    def __init__(self, *, pause: Callable[[float], None] = time.sleep) -> None:
        """``pause`` takes seconds."""
        self._pause = pause

    def filesystem(self, asked: str) -> str:
        """ext4 unless something else is asked for."""
        return asked or filesystems.EXT4

    def minimum(self, filesystem: str) -> int:
        """What the filesystem's own tools need; a device can be small."""
        return filesystems.minimum(filesystem) if filesystem else _MINIMUM_BLOCK

    def promise(self, asked: str) -> str:  # noqa: ARG002 - every wish is granted
        """The file's size holds whatever is asked."""
        return QUOTA_ENFORCED

    def make(self, folder: Directory, shape: Shape) -> None:
        """Make the file, all of it a hole."""
        imagefile.make(folder, FILE, shape.size)

    async def format(self, folder: Directory, shape: Shape) -> None:
        """Run mkfs on the file itself: no device is needed, and none is left if the driver dies."""
        if not shape.filesystem:
            return
        with _opened(folder) as fd:
            await filesystems.make(path=fd, filesystem=shape.filesystem, uuid=shape.uuid)
            os.fsync(fd)

    @contextlib.contextmanager
    def held(self, folder: Directory) -> Iterator[None]:
        """Freeze the filesystem, where it is mounted; see ``Backend.held``. Nobody can keep a device still in use."""
        with _kept(folder, alone=False), _opened(folder, os.O_RDONLY) as fd:
            fitting.refuse_half_grown(folder)
            self._refuse_device(fd, folder)
            with imagefile.still(fd, seconds=imagefile.FREEZE_SECONDS):
                yield

    def copy(
        self, source: Directory, folder: Directory, shape: Shape, *, pace: Callable[[], None], held: bool = False
    ) -> None:
        """Copy the file, sharing its data where the pool's filesystem can; a mounted filesystem is frozen meanwhile.

        So the copy is of one moment. Of a device it is what was written to it so far, as after a power cut; a device in
        use is only copied where that takes a moment, because nobody can keep it still.
        """
        with _kept(source, alone=False), _opened(source, os.O_RDONLY) as origin:
            fitting.refuse_half_grown(source)
            fd = folder.open_file(FILE, os.O_RDWR | os.O_CREAT | os.O_EXCL, imagefile.MODE)
            try:
                with contextlib.nullcontext() if held else imagefile.still(origin, seconds=imagefile.FREEZE_SECONDS):
                    if not imagefile.shared_out(origin, fd):
                        self._refuse_device(origin, source)
                        copying.copy_data(origin, fd, progress=lambda _: pace())
                if os.fstat(fd).st_size < shape.size:
                    os.ftruncate(fd, shape.size)
                os.fsync(fd)
            finally:
                os.close(fd)
        folder.sync()

    def book(self, folder: Directory, shape: Shape, *, copied: bool) -> bool:  # noqa: ARG002 - nothing counts so
        """The file is the size, whatever shares its data."""
        return True

    def resume(self, folder: Directory) -> None:
        """Thaw the filesystem, wherever it is mounted."""
        with contextlib.suppress(FileNotFoundError), _opened(folder, os.O_RDONLY) as fd:
            for mount in imagefile.mounts_of(fd):
                with imagefile.entered(mount) as inside:
                    freezing.thaw(inside)

    def grow(self, folder: Directory, shape: Shape) -> None:
        """Append a hole to the file, and tell the device that shows it."""
        with _opened(folder) as fd:
            imagefile.enlarge(fd, shape.size)

    def shrink(self, folder: Directory, shape: Shape, *, copied: bool) -> None:  # noqa: ARG002 - never
        """Refused: the filesystem would have to give up blocks that it may be using."""
        raise imagefile.never_smaller(self.name)

    async def fit(self, folder: Directory, shape: Shape) -> bool:
        """Grow ext4 on the file; a device has nothing to grow, and xfs grows only while it is mounted."""
        if not shape.filesystem:
            return True
        if not growing.grows_unmounted(shape.filesystem):
            return False
        with _kept(folder, alone=True) as lock, _opened(folder) as fd:
            await fitting.fit(folder, fd, shape.filesystem, lock=lock)
        return True

    def spread(self, folder: Directory, shape: Shape) -> bool:
        """Grow the mounted filesystem by way of one of its mounts; a device is as large as its file already."""
        with _opened(folder, os.O_RDONLY) as fd:
            if shape.block:
                return bool(imagefile.devices(fd))
            writable = [mount for mount in imagefile.mounts_of(fd) if not mount.read_only]
            if not writable:
                return False
            with imagefile.entered(writable[0]) as inside:
                size = os.fstat(fd).st_size
                if not growing.has_grown(inside, shape.filesystem, size):
                    with _kept(folder, alone=True):
                        imagefile.grow_mounted(inside, shape.filesystem, size)
        return True

    def retire(self, folder: Directory) -> None:
        """Nothing: a file is all there is."""

    def footprint(self, folder: Directory) -> Footprint | None:
        """By the file's own figures; None where there is no file."""
        try:
            with _opened(folder, os.O_RDONLY) as fd:
                found = os.fstat(fd)
        except FileNotFoundError:
            return None
        return Footprint(size=found.st_size, allocated=found.st_blocks * _BLOCK_UNIT)

    def fault(self, folder: Directory, shape: Shape) -> str:
        """That the file is not there or too short, or that the kernel gave up writing to the filesystem in it."""
        try:
            with _opened(folder, os.O_RDONLY) as fd:
                size = os.fstat(fd).st_size
                mounted = imagefile.mounts_of(fd)
                errors = sum(filesystems.ext4_errors(f"loop{device.number}") for device in imagefile.devices(fd))
        except FileNotFoundError:
            return f"the image {path_of(folder.fd)}/{FILE} is missing: restore the volume from a backup"
        if size < shape.size:
            return f"the image has {size} bytes, and {shape.size} were promised: restore the volume from a backup"
        stopped = [mount for mount in mounted if mount.filesystem_options & _STOPPED and "rw" in mount.options]
        if mounted and (errors or stopped):
            return (
                f"the kernel found errors in the {shape.filesystem} at {mounted[0].target} and writes no more: end the "
                f"pods, check it with fsck on the node, and look at the disk below the pool"
            )
        return ""

    def users(self, folder: Directory) -> tuple[str, ...]:
        """Where the image is mounted, and devices that are held without a mount we could see.

        A device that nobody uses any more, as a crash between attaching and publishing a block volume leaves
        it, is detached and not counted. Whoever looks at devices opens each of them for a moment, so one that
        is held is looked at again before it counts.
        """
        try:
            with _opened(folder, os.O_RDONLY) as fd:
                devices = imagefile.devices(fd)
        except FileNotFoundError:
            return ()
        found: list[str] = []
        for device in devices:
            targets = imagefile.targets(device)
            if targets:
                found.extend(targets)
            elif not self._detached(device):
                found.append(device.path)
        return tuple(found)

    def publish(self, folder: Directory, shape: Shape, publication: Publication) -> None:
        """Attach and mount, or find that it is done; see ``Backend.publish``.

        A crash after attaching and before mounting: autoclear frees the device. A block volume's device
        stays, and the next publish, unpublish or delete of the volume finds it by the file. A crash between mounting and
        growing what only grows while it is mounted: the next publish finds it mounted, and grows it.
        """
        with _opened(folder) as fd:
            if not self._published(fd, shape, publication):
                if publication.exclusive:
                    self._refuse_second(fd, publication)
                self._show(folder, fd, shape, publication)
        if shape.filesystem and not growing.grows_unmounted(shape.filesystem) and not publication.readonly:
            # It may be a copy that is larger than its source, or have grown while it was not mounted.
            self.spread(folder, shape)

    def unpublish(self, folder: Directory | None, target: str, kubelet_dir: str) -> None:
        """Unmount, remove the target, and let go of a block volume's device with its last target."""
        with contextlib.ExitStack() as stack:
            fd: int | None = None
            # The file may be missing, or a link by now: the target can be taken away all the same.
            with contextlib.suppress(OSError):
                fd = None if folder is None else stack.enter_context(_opened(folder, os.O_RDONLY))
            if fd is None:
                take_away(target, kubelet_dir)
                return
            with imagefile.thawing(fd, target):
                take_away(target, kubelet_dir)
            imagefile.let_go(fd)

    def usage(self, folder: Directory, shape: Shape, path: str, kubelet_dir: str) -> Usage:
        """The filesystem's figures, or the size of the device; see ``Backend.usage``."""
        with _opened(folder, os.O_RDONLY) as fd:
            devices = imagefile.devices(fd)
            size = os.fstat(fd).st_size
        if shape.block:
            # The kubelet asks at a link of its own to the device, so it is the device that is compared.
            if not any(imagefile.is_device(path, device) for device in devices):
                raise NotFoundError(f"volume_path {path!r}: the volume's device is not there")
            return Usage(size=Amount(total=size, used=0, available=0), inodes=None)
        with opened_target(path, kubelet_dir) as target:
            mount = mounts.mount_of_fd(target)
            if mount is None or not any(imagefile.same(mount, device) for device in devices):
                raise NotFoundError(f"volume_path {path!r}: the volume is not mounted there")
            return figures_of(target)

    def _show(self, folder: Directory, fd: int, shape: Shape, publication: Publication) -> None:
        with _kept(folder, alone=True):
            fitting.refuse_half_grown(folder)
            if not shape.block:
                _publish_filesystem(fd, shape, publication)
                return
            try:
                _publish_device(fd, publication)
            except BaseException:
                imagefile.let_go(fd)
                raise

    def _refuse_device(self, fd: int, folder: Directory) -> None:
        """Refuse to copy what a pod writes to as a device. One of a mount that has gone is free in a moment."""
        if imagefile.mounts_of(fd) or not (users := self.users(folder)):
            return
        if all(device.autoclear for device in imagefile.devices(fd)):
            raise InFlightError(f"{', '.join(users)} of this volume is about to be detached: ask again")
        raise _unsteady(users)

    def _detached(self, device: LoopStatus) -> bool:
        for seconds in _HELD_PAUSES:
            if loops.detach(device.number, device=device.device, inode=device.inode):
                return True
            self._pause(seconds)
        return False

    def _published(self, fd: int, shape: Shape, publication: Publication) -> bool:
        """Whether the target has this volume already, in the way that is asked for."""
        mount = mounts.mount_at(publication.target, beneath=publication.kubelet_dir)
        if mount is None:
            return False
        devices = imagefile.devices(fd)
        here = [
            device
            for device in devices
            if (imagefile.is_device(publication.target, device) if shape.block else imagefile.same(mount, device))
        ]
        if not here:
            raise PreconditionError(
                f"target_path {publication.target}: {mount.source or mount.filesystem} ({mount.major}:{mount.minor}) is "
                "mounted there, which is not this volume; nothing is mounted over it: unmount it first"
            )
        refuse_other_access(publication, read_only=here[0].read_only if shape.block else mount.read_only)
        return True

    def _refuse_second(self, fd: int, publication: Publication) -> None:
        others = [
            target
            for device in imagefile.devices(fd)
            for target in imagefile.targets(device)
            if target != publication.target
        ]
        if others:
            raise held_by(others)


def _publish_filesystem(fd: int, shape: Shape, publication: Publication) -> None:
    """Mount the image's filesystem onto the target, after a look that it is the one the record names."""
    options = attributes_of(publication)
    imagefile.refuse_strange(fd, shape.filesystem)
    with loops.ensure(backing_fd=fd, name=imagefile.label(fd), autoclear=True) as loop:
        target = paths.open_target_directory(publication.target, publication.kubelet_dir)
        try:
            mounts.filesystem_mount(
                device=loop.path,
                filesystem=shape.filesystem,
                options=(*options.filesystem, *_ALWAYS.get(shape.filesystem, ())),
                target_fd=target,
                attributes=options.attributes,
            )
        finally:
            os.close(target)


def _publish_device(fd: int, publication: Publication) -> None:
    """Show the loop device at the target file."""
    options = attributes_of(publication)
    read_only = options.attributes.read_only
    with loops.ensure(backing_fd=fd, name=imagefile.label(fd), read_only=read_only, autoclear=False) as loop:
        if loop.status.autoclear:
            # Somebody held it open when its last target went, so the kernel frees it at their last close,
            # also under a new target.
            raise UnavailableError(f"{loop.path} of this volume is about to be detached: ask again")
        if loop.status.read_only != read_only:
            raise PreconditionError(
                f"{loop.path} has the volume {'read-only' if loop.status.read_only else 'writable'} for another target "
                "of this node, and a device is one or the other: unpublish that one first"
            )
        device = os.open(loop.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            target = paths.open_target_file(publication.target, publication.kubelet_dir)
            try:
                mounts.bind(source_fd=device, target_fd=target, attributes=options.attributes)
            finally:
                os.close(target)
        finally:
            os.close(device)


@contextlib.contextmanager
def _kept(folder: Directory, *, alone: bool) -> Iterator[int]:
    """Keep the image from being mounted and grown while it is copied or, ``alone``, from being copied meanwhile.

    Waits for nobody. The lock is on the folder and goes with the process, and with every program that gets the descriptor;
    ``loops`` has one of its own on the file.

    Raises:
        InFlightError: somebody does what would disturb.
    """
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder.fd)
    try:
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            doing = "copied" if alone else "mounted or grown"
            raise InFlightError(f"the image in {path_of(fd)} is being {doing} at this moment: ask again") from error
        yield fd
    finally:
        os.close(fd)


def _unsteady(users: tuple[str, ...]) -> PreconditionError:
    return PreconditionError(
        f"it is used as a device ({', '.join(users)}), which cannot be kept still while it is copied: end the pods that "
        "use it, or keep it in a pool on xfs or btrfs, where a copy takes a moment"
    )


@contextlib.contextmanager
def _opened(folder: Directory, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = folder.open_file(FILE, flags)
    try:
        yield fd
    finally:
        os.close(fd)
