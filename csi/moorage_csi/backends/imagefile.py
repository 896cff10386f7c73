"""What the kernel shows of an image file: loop devices, the mounts on them, and keeping them still.

Which device is the image's is asked by the file's device and inode, at every call: nothing is remembered.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from moorage_csi.errors import PreconditionError, UnavailableError
from moorage_csi.host import freezing, loops, mounts
from moorage_csi.host.loops import LoopStatus
from moorage_csi.host.mounts import Mount

_DEVICE_FILESYSTEMS: Final = ("devtmpfs", "tmpfs")
"""Where device nodes live: the host's /dev, or a container's own."""


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


@contextlib.contextmanager
def still(fd: int, *, seconds: float) -> Iterator[None]:
    """Keep the filesystem in an image from changing for the length of a block, and bring to the file what is dirty.

    Raises:
        PreconditionError: the block took longer than that, or somebody else has it frozen.
    """
    with contextlib.ExitStack() as stack:
        for device in devices(fd):
            node = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, node)
            os.fsync(node)
        inside = [stack.enter_context(entered(mount)) for mount in mounts_of(fd)[:1]]
        try:
            with contextlib.ExitStack() as frozen:
                for each in inside:
                    frozen.enter_context(freezing.frozen(each, seconds=seconds))
                yield
        except TimeoutError as error:
            raise PreconditionError(
                f"the volume is in use and its pool's filesystem cannot share data between files, so a copy of one moment "
                f"takes longer than {seconds:.0f} s, for which writes can be held up: end the pods that use it, or keep "
                "it in a pool on xfs or btrfs"
            ) from error
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise PreconditionError(
                "the volume's filesystem is frozen by somebody else: thaw it with fsfreeze -u"
            ) from error
