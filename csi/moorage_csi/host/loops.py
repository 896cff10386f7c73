"""Loop devices: a file as a block device, by the kernel's own calls.

Which loop device belongs to a file is asked of the kernel by (device, inode) of the file, never by its path: a
path can be renamed, deleted, or mean another file in another container. A loop device that is to be mounted is attached
with *autoclear*: the kernel frees it with its last user, so that after any crash nothing has to be cleaned up.

That makes the descriptor in ``Loop`` matter. From the attaching to the mounting nothing else uses the device, and
the open descriptor alone keeps it; and because a number is reused as soon as it is free, a device that was found has to be
held open *and looked at again* before it is used (``hold`` does both). While a descriptor is open the device cannot
pass to another file: whoever clears it only marks it to be freed at the last close.

The kernel lets a file be attached twice, and two filesystems on one file destroy it. ``ensure`` looks and attaches under a lock
on the file, so that two callers, even in two processes, get the same device.
"""

import contextlib
import errno
import fcntl
import os
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_SYSFS: Final = Path("/sys/block")
_DEV: Final = "/dev"
_CONTROL: Final = "/dev/loop-control"
_NAME: Final = re.compile(r"loop(\d+)")

_LOOP_CLR_FD: Final = 0x4C01
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_SET_CAPACITY: Final = 0x4C07
_LOOP_CONFIGURE: Final = 0x4C0A
_LOOP_CTL_GET_FREE: Final = 0x4C82

_READ_ONLY: Final = 1
_AUTOCLEAR: Final = 4
_DIRECT_IO: Final = 16

_INFO: Final = struct.Struct("=5Q4I64s64s32s2Q")
"""struct loop_info64: device, inode, rdevice, offset, sizelimit, number, encryption (2), flags, name, ..."""
_CONFIG: Final = struct.Struct(f"=II{_INFO.size}s8Q")
"""struct loop_config: descriptor, block size, info, reserved."""

_BLOCK_SIZE: Final = 512
_NAME_LIMIT: Final = 63
_ATTEMPTS: Final = 64
"""How many free devices are tried when others attach at the same time and take them first."""

_GONE: Final = (errno.ENXIO, errno.ENODEV)


@dataclass(frozen=True, slots=True)
class LoopStatus:
    """What the kernel says about an attached loop device."""

    number: int
    device: int
    """st_dev of the backing file."""
    inode: int
    name: str
    """The text given at attaching, for people who look with losetup."""
    read_only: bool
    autoclear: bool
    direct_io: bool
    major: int
    minor: int

    @property
    def path(self) -> str:
        """The device's name in /dev, which may be absent; ``hold`` makes it."""
        return f"{_DEV}/loop{self.number}"


class Loop:
    """An attached loop device held open, which keeps it attached; close it when it is mounted."""

    __slots__ = ("fd", "status")

    def __init__(self, fd: int, status: LoopStatus) -> None:
        """Take over ``fd``, open on the device."""
        self.fd = fd
        self.status = status

    @property
    def number(self) -> int:
        """N of /dev/loopN."""
        return self.status.number

    @property
    def path(self) -> str:
        """/dev/loopN."""
        return self.status.path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the device: an autoclear device that nobody uses is free afterwards."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def attach(
    *, backing_fd: int, name: str, read_only: bool = False, autoclear: bool = True, direct_io: bool = True
) -> Loop:
    """Attach the open file to a free loop device with 512-byte blocks.

    ``direct_io`` spares the second copy in the page cache; where the file's filesystem refuses it, the device goes
    without, and ``status.direct_io`` says so. The descriptor may be closed afterwards. A crash right after leaves nothing if
    ``autoclear``, else a device that ``find`` shows.

    Raises EBUSY when other processes took every device that was tried, ValueError for a name of more than 63
    bytes, and what else the kernel says. It does not look whether the file is attached already: see ``ensure``.
    """
    flags = (_READ_ONLY if read_only else 0) | (_AUTOCLEAR if autoclear else 0) | (_DIRECT_IO if direct_io else 0)
    raw_name = os.fsencode(name)
    if len(raw_name) > _NAME_LIMIT:
        msg = f"{name!r} is too long for a loop device's name: at most {_NAME_LIMIT} bytes"
        raise ValueError(msg)
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_ATTEMPTS):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            loop = _configured(number, backing_fd=backing_fd, flags=flags, name=raw_name, read_only=read_only)
            if loop is not None:
                return loop
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, f"{_ATTEMPTS} free loop devices were taken by others first", _CONTROL)


def _configured(number: int, *, backing_fd: int, flags: int, name: bytes, read_only: bool) -> Loop | None:
    """Attach to this device; None where somebody else was faster."""
    fd = _open_device(number, read_only=read_only)
    if fd is None:
        return None
    try:
        _configure(fd, backing_fd=backing_fd, flags=flags, name=name)
        status = _status(fd, number)
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EBUSY:
            return None
        raise
    except BaseException:
        os.close(fd)
        raise
    if status is None:
        os.close(fd)
        return None
    return Loop(fd, status)


def _configure(fd: int, *, backing_fd: int, flags: int, name: bytes) -> None:
    try:
        fcntl.ioctl(fd, _LOOP_CONFIGURE, _config(backing_fd, flags, name))
    except OSError as error:
        if error.errno != errno.EINVAL or not flags & _DIRECT_IO:
            raise
        fcntl.ioctl(fd, _LOOP_CONFIGURE, _config(backing_fd, flags & ~_DIRECT_IO, name))


def _config(backing_fd: int, flags: int, name: bytes) -> bytes:
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
    return _CONFIG.pack(backing_fd, _BLOCK_SIZE, info, *(0,) * 8)


def ensure(
    *, backing_fd: int, name: str, read_only: bool = False, autoclear: bool = True, direct_io: bool = True
) -> Loop:
    """The loop device on this file: the one that is there, else a new one. At no time are there two.

    A device that is there is returned as it is: whether its ``status`` suits is for the caller to say. The
    lock is taken on a descriptor of its own, because the loop device keeps ``backing_fd``'s open file, and a lock with it.
    """
    with _locked(backing_fd):
        backing = os.fstat(backing_fd)
        for found in find(backing.st_dev, backing.st_ino):
            held = hold(found)
            if held is not None:
                return held
        return attach(backing_fd=backing_fd, name=name, read_only=read_only, autoclear=autoclear, direct_io=direct_io)


@contextlib.contextmanager
def _locked(backing_fd: int) -> Iterator[None]:
    fd = os.open(f"/proc/self/fd/{backing_fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def find(device: int, inode: int) -> list[LoopStatus]:
    """Every loop device attached to the file with this st_dev and st_ino, by number.

    A snapshot: before one is used it has to be held, and looked at again (``hold``).
    """
    found = (status(number) for number in _bound())
    return [one for one in found if one is not None and (one.device, one.inode) == (device, inode)]


def _bound() -> list[int]:
    """The numbers of the devices that have a file. A node keeps hundreds that have none, and this is asked at every call."""
    folder = os.open(_SYSFS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with os.scandir(folder) as entries:
            names = [name for entry in entries if (name := _NAME.fullmatch(entry.name))]
        return sorted(int(name[1]) for name in names if os.access(f"{name[0]}/loop", os.F_OK, dir_fd=folder))
    finally:
        os.close(folder)


def status(number: int) -> LoopStatus | None:
    """What is attached to this loop device; None where nothing is, or there is no such device."""
    fd = _open_device(number, read_only=True)
    if fd is None:
        return None
    try:
        return _status(fd, number)
    finally:
        os.close(fd)


def hold(found: LoopStatus) -> Loop | None:
    """Open a device that was found, and keep it; None where it has let go of its file, or has another by now."""
    fd = _open_device(found.number, read_only=True)
    if fd is None:
        return None
    try:
        now = _status(fd, found.number)
    except BaseException:
        os.close(fd)
        raise
    if now is None or (now.device, now.inode) != (found.device, found.inode):
        os.close(fd)
        return None
    return Loop(fd, now)


def detach(number: int, *, device: int | None = None, inode: int | None = None) -> bool:
    """Free a loop device; nothing attached is success. Returns whether it is free now.

    A device that is still mounted or open is freed by the kernel at its last close: that is no error, and
    False. With ``device`` and ``inode`` only if it is attached to that file, which is looked at on the same descriptor, so
    that a number that was reused is left alone.
    """
    fd = _open_device(number, read_only=True)
    if fd is None:
        return True
    try:
        before = _status(fd, number)
        if before is None or (device, inode) not in ((None, None), (before.device, before.inode)):
            return True
        _clear(fd)
    finally:
        os.close(fd)
    after = status(number)
    return after is None or (after.device, after.inode) != (before.device, before.inode)


def _clear(fd: int) -> None:
    try:
        fcntl.ioctl(fd, _LOOP_CLR_FD)
    except OSError as error:
        if error.errno not in _GONE:
            raise


def set_capacity(number: int) -> None:
    """Make the device as large as its file is now. ENXIO where nothing is attached."""
    fd = _open_device(number, read_only=True)
    if fd is None:
        raise OSError(errno.ENXIO, "is not an attached loop device", f"{_DEV}/loop{number}")
    try:
        fcntl.ioctl(fd, _LOOP_SET_CAPACITY)
    finally:
        os.close(fd)


def _status(fd: int, number: int) -> LoopStatus | None:
    buffer = bytearray(_INFO.size)
    try:
        fcntl.ioctl(fd, _LOOP_GET_STATUS64, buffer)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    device, inode, _, _, _, _, _, _, flags, name, *_ = _INFO.unpack(buffer)
    rdev = os.fstat(fd).st_rdev
    return LoopStatus(
        number=number,
        device=device,
        inode=inode,
        name=os.fsdecode(name.rstrip(b"\0")),
        read_only=bool(flags & _READ_ONLY),
        autoclear=bool(flags & _AUTOCLEAR),
        direct_io=bool(flags & _DIRECT_IO),
        major=os.major(rdev),
        minor=os.minor(rdev),
    )


def _open_device(number: int, *, read_only: bool) -> int | None:
    """Open /dev/loopN, making the node where the container's /dev has none; None where the kernel has no such device."""
    path = f"{_DEV}/loop{number}"
    try:
        rdev = _rdev(number)
    except FileNotFoundError:
        return None
    with contextlib.suppress(FileExistsError):
        os.mknod(path, stat.S_IFBLK | 0o660, rdev)
    try:
        fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    seen = os.fstat(fd)
    if not stat.S_ISBLK(seen.st_mode) or seen.st_rdev != rdev:
        os.close(fd)
        raise OSError(errno.ENODEV, f"is not the block device {os.major(rdev)}:{os.minor(rdev)}: remove it", path)
    return fd


def _rdev(number: int) -> int:
    major, _, minor = (_SYSFS / f"loop{number}" / "dev").read_text(encoding="ascii").strip().partition(":")
    return os.makedev(int(major), int(minor))
