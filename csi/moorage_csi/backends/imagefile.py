"""What the kernel shows of an image file: loop devices, the mounts on them, and keeping them still.

Which device is the image's is asked by the file's device and inode, at every call: nothing is remembered.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from moorage_csi.backends.targets import path_of
from moorage_csi.errors import InFlightError, PreconditionError, UnavailableError
from moorage_csi.host import copying, filesystems, freezing, growing, loops, mounts, reflink, syscalls
from moorage_csi.host.loops import LoopStatus
from moorage_csi.host.mounts import Mount
from moorage_csi.host.paths import Directory

FREEZE_SECONDS: Final = 30.0
"""For which writes to a volume may be held up while it is copied."""

MODE: Final = 0o600
_LABEL_LIMIT: Final = 63
_DEVICE_FILESYSTEMS: Final = ("devtmpfs", "tmpfs")
"""Where device nodes live: the host's /dev, or a container's own."""


def make(folder: Directory, name: str, size: int) -> None:
    """Make an image, all of it a hole, on the disk when it returns. FileExistsError where there is one."""
    fd = folder.open_file(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, MODE)
    try:
        os.ftruncate(fd, size)
        os.fsync(fd)
    finally:
        os.close(fd)
    folder.sync()


def enlarge(fd: int, size: int) -> None:
    """Append a hole to an image, or find it as large, and tell the device that shows it."""
    if os.fstat(fd).st_size < size:
        os.ftruncate(fd, size)
        os.fsync(fd)
    tell_size(fd)


def never_smaller(backend: str) -> PreconditionError:
    """Why an image does not shrink: the filesystem would have to give up blocks that it may be using."""
    return PreconditionError(
        f"a volume of backend {backend} never becomes smaller, because the filesystem in its image cannot: make a smaller "
        "one and copy its files"
    )


def devices(fd: int) -> list[LoopStatus]:
    """The loop devices that show the file which ``fd`` is open on."""
    backing = os.fstat(fd)
    return loops.find(backing.st_dev, backing.st_ino)


def same(mount: Mount, device: LoopStatus) -> bool:
    """Whether what is mounted is on the device."""
    return (mount.major, mount.minor) == (device.major, device.minor)


def is_device(path: str, device: LoopStatus) -> bool:
    """Whether the path is that of a node of the device."""
    try:
        found = Path(path).stat()
    except OSError:
        return False
    return stat.S_ISBLK(found.st_mode) and found.st_rdev == os.makedev(device.major, device.minor)


def targets(device: LoopStatus) -> list[str]:
    """Where the device is mounted, or its node shown."""
    node = f"/loop{device.number}"
    return [
        mount.target
        for mount in mounts.mounts()
        if same(mount, device) or (mount.root == node and mount.filesystem in _DEVICE_FILESYSTEMS)
    ]


def let_go(fd: int) -> None:
    """Detach the devices of an image that have no target and do not go by themselves."""
    for device in devices(fd):
        if not device.autoclear and not targets(device):
            loops.detach(device.number, device=device.device, inode=device.inode)


def tell_size(fd: int) -> None:
    """Tell the devices that show an image how large it is now; one that let go of it meanwhile has not to know."""
    for device in devices(fd):
        try:
            loops.set_capacity(device.number)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise


def mounts_of(fd: int) -> list[Mount]:
    """Where the filesystem in an image is mounted."""
    found = devices(fd)
    return [mount for mount in mounts.mounts() if any(same(mount, device) for device in found)] if found else []


@contextlib.contextmanager
def entered(mount: Mount) -> Iterator[int]:
    """The mount's top, open for reading; never that of another filesystem that has come there meanwhile.

    Raises:
        UnavailableError: it is not there any more.
    """
    fd = os.open(mount.target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        here = mounts.mount_of_fd(fd)
        if here is None or (here.major, here.minor) != (mount.major, mount.minor):
            raise UnavailableError(f"the volume was unmounted from {mount.target} at this moment: ask again")
        yield fd
    finally:
        os.close(fd)


def _clone_of(mount: Mount | None) -> int | None:
    """A clone of a mount that nobody sees; None where there is no such mount to be entered."""
    if mount is None:
        return None
    try:
        with entered(mount) as inside:
            return syscalls.open_tree(inside, recursive=False)
    except (OSError, UnavailableError):
        # Something else lies over it, or its device is dead: it is unmounted all the same.
        return None


@contextlib.contextmanager
def thawing(fd: int, target: str) -> Iterator[None]:
    """Thaw the filesystem in an image, if the block takes its last mount away, which is at ``target``.

    Who froze it, and has nothing open in it any more, ended without thawing. Without a mount it would live on, keep its
    device, and stop the next pod that writes to it.
    """
    tree = _clone_of(next((mount for mount in mounts_of(fd) if mount.target == target), None))
    if tree is None:
        yield
        return
    try:
        yield
        if not mounts_of(fd):
            inside = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
            try:
                freezing.thaw(inside)
            finally:
                os.close(inside)
    finally:
        os.close(tree)


@contextlib.contextmanager
def still(fd: int, *, seconds: float) -> Iterator[None]:
    """Keep the filesystem in an image from changing for the length of a block, and bring to the file what is dirty.

    Raises:
        PreconditionError: the block took longer than that.
        InFlightError: it is frozen already, by another copy or by somebody else.
    """
    with contextlib.ExitStack() as stack:
        for device in devices(fd):
            node = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, node)
            os.fsync(node)
        for mount in mounts_of(fd)[:1]:
            inside = stack.enter_context(entered(mount))
            stack.enter_context(frozen(inside, seconds=seconds))
        yield


@contextlib.contextmanager
def frozen(inside: int, *, seconds: float, by_caller: bool = False) -> Iterator[None]:
    """Freeze the filesystem in an image for the length of a block; ``inside`` is a directory in it, open for reading.

    With ``by_caller`` one that is frozen already is so by the caller.

    Raises:
        PreconditionError: the block took longer than that.
        InFlightError: it is frozen already, by another copy or by somebody else.
    """
    try:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(freezing.frozen(inside, seconds=seconds))
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                if not by_caller:
                    raise InFlightError(
                        "the volume's filesystem is frozen, by another copy of it or by somebody else: ask again, and if that "
                        "does not help, thaw it with fsfreeze -u"
                    ) from error
            yield
    except TimeoutError as error:
        raise PreconditionError(
            f"the volume is in use and its pool's filesystem cannot share data between files, so a copy of one moment "
            f"takes longer than {seconds:.0f} s, for which writes can be held up: end the pods that use it, or keep "
            "it in a pool on xfs or btrfs"
        ) from error


def shared_out(source: int, target: int) -> bool:
    """Make one file hold what the other holds by sharing its data; False where their filesystem cannot."""
    try:
        reflink.clone_file(source, target)
    except OSError as error:
        if error.errno not in reflink.UNABLE:
            raise
        return False
    return True


def copy(source: int, target: int, pace: Callable[[], None]) -> None:
    """Make one file hold what the other holds, sharing its data where the pool's filesystem can."""
    if not shared_out(source, target):
        copying.copy_data(source, target, progress=lambda _: pace())


def grow_mounted(inside: int, filesystem: str, size: int) -> None:
    """Grow the mounted filesystem in which ``inside`` is a directory, to the size of its image.

    Raises:
        PreconditionError: the kernel lets nobody do that while it is mounted.
    """
    try:
        growing.grow_mounted(inside, filesystem, size)
    except PermissionError as error:
        raise PreconditionError(
            f"this node's kernel does not let {filesystem} grow while it is mounted ({error}): end the pods "
            "that use the volume, and it grows before it is mounted again"
        ) from error


def refuse_strange(fd: int, filesystem: str) -> None:
    """Refuse an image in which there is not the filesystem that the record names, after a look before every mount."""
    found = filesystems.detect(fd)
    if found == filesystem:
        return
    seen = f"a filesystem of kind {found}" if found else "no filesystem"
    raise PreconditionError(
        f"the image {path_of(fd)} was formatted as {filesystem} and has {seen} now; it is never formatted again. "
        "Check the disk below the pool, repair the image with fsck on the node, or restore the volume from a backup"
    )


def label(fd: int, *, depth: int = 2) -> str:
    """The volume's id and the file's name, for people who look with losetup; ``depth`` names in all."""
    return "/".join(path_of(fd).split("/")[-depth:])[-_LABEL_LIMIT:]
