"""Mounting, and knowing what is mounted, by the mount API that works on descriptors (kernel 5.12).

A mount is first made detached, where nobody can reach it; its attributes are set there; only then it is
moved onto its target, which is an open descriptor. So there is no moment at which a read-only volume can be
written, and no symlink that can be swapped under the target. What is mounted where is asked of ``statx``
first, and of ``/proc/self/mountinfo`` only for the details. Devices are compared by major:minor, never by name.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from moorage_csi.host import paths, syscalls
from moorage_csi.host.mountinfo import Mount, parse_mountinfo
from moorage_csi.host.mountoptions import ATIME, MountAttributes, MountFlag, MountOptions, parse_options

__all__ = [
    "Mount",
    "MountAttributes",
    "MountFlag",
    "MountOptions",
    "RefusedOptionError",
    "bind",
    "filesystem_detached",
    "filesystem_mount",
    "mount_at",
    "mount_of_fd",
    "mounts",
    "parse_options",
    "propagates",
    "unmount",
]

_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_STACK_LIMIT: Final = 64
_BUSY_PAUSES: Final = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Seconds between tries at a busy mount: a process that is about to end is waited for, one that stays is told."""

_PROPAGATION_PRIVATE: Final = 1 << 18
_NO_ATTRIBUTES: Final = MountAttributes()
_ATIME_MASK: Final = 0x70
_LOG_SIZE: Final = 8192


class RefusedOptionError(OSError):
    """The filesystem knows no such option, or not with this value: whoever wrote it has to change it."""


def filesystem_mount(
    *,
    device: str,
    filesystem: str,
    options: Sequence[str] = (),
    target_fd: int,
    attributes: MountAttributes = _NO_ATTRIBUTES,
) -> None:
    """Mount the filesystem on ``device`` onto what ``target_fd`` is open on.

    ``attributes`` hold for this mount alone, so that one device can be mounted read-only here and writable
    there. ``options`` are the filesystem's own words, as ``parse_options`` returns them.

    Either the mount is there, whole, or OSError says what the kernel said, its log lines included, and
    nothing is left. It stacks on a mount that is there already: the caller looks first.
    """
    mount = filesystem_detached(source=device, filesystem=filesystem, options=options, attributes=attributes)
    with _closing(mount):
        syscalls.move_mount(mount, target_fd)


def filesystem_detached(
    *, source: str, filesystem: str, options: Sequence[str] = (), attributes: MountAttributes = _NO_ATTRIBUTES
) -> int:
    """Mount a filesystem where nobody can reach it; returns an O_PATH descriptor of its top, which the caller closes.

    Closing it dissolves the mount, unless it was moved somewhere. Errors as in ``filesystem_mount``.
    """
    with _closing(syscalls.fsopen(filesystem)) as context:
        try:
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "source", source)
            for option in options:
                _configure(context, option)
            syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
            return syscalls.fsmount(context, attributes=int(attributes.set))
        except OSError as error:
            raise _explained(error, context, f"{filesystem} on {source}", options) from error


def bind(
    *,
    source_fd: int,
    target_fd: int,
    attributes: MountAttributes = _NO_ATTRIBUTES,
    recursive: bool = False,
) -> None:
    """Show what ``source_fd`` is open on (a directory or a file) at what ``target_fd`` is open on.

    The attributes are on the mount before anybody can reach it. It is made private first, so that what is
    mounted at the source later does not appear in the volume; at a shared target it becomes shared with the
    target's peers. Either it is there, whole, or OSError, and nothing is left.
    """
    atime = _ATIME_MASK if attributes.set & ATIME else 0
    with _closing(syscalls.open_tree(source_fd, recursive=recursive)) as tree:
        syscalls.mount_setattr(
            tree,
            set_flags=int(attributes.set),
            clear_flags=int(attributes.clear & ~ATIME) | atime,
            propagation=_PROPAGATION_PRIVATE,
            recursive=recursive,
        )
        syscalls.move_mount(tree, target_fd)


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _configure(context: int, option: str) -> None:
    key, equals, value = option.partition("=")
    try:
        if equals:
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, key, value)
        else:
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_FLAG, key)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise RefusedOptionError(error.errno, error.strerror) from error


def _explained(error: OSError, context: int, what: str, options: Sequence[str]) -> OSError:
    """The error with the kernel's own words, which it keeps in the filesystem context."""
    said = "; ".join(_log(context)) or "the kernel gave no reason here, its log (dmesg) may have one"
    text = f"{error.strerror}: {said} (options: {','.join(options) or 'none'})"
    return type(error)(error.errno, text, what)


def _log(context: int) -> Iterator[str]:
    """Messages of a filesystem context, errors and warnings, oldest first; each read gives one."""
    with contextlib.suppress(OSError):
        for _ in range(_STACK_LIMIT):
            line = os.read(context, _LOG_SIZE).decode(errors="replace").strip()
            if line.startswith(("e ", "w ")):
                yield line[2:]


def unmount(
    path: str, *, beneath: str | None = None, pause: Callable[[float], None] = time.sleep, retries: int = 5
) -> int:
    """Unmount everything that is stacked on ``path`` and return how many mounts that were.

    Nothing mounted, or nothing there, is success (0). A busy mount is tried again for less than a second,
    ``pause`` taking seconds, and then raises EBUSY; it is never detached lazily, because that reports success
    while the data is in use. Returns only after a look that finds no mount. With ``beneath`` the path is walked as
    ``paths.target_parent`` does, which see for its errors; without it the path has to be trusted.

    The caller has no descriptor open on the mount any more: one would keep it busy.
    """
    with contextlib.suppress(FileNotFoundError), _parent(path, beneath) as (parent, name):
        anchored = f"/proc/self/fd/{parent}/{name}"
        for count in range(_STACK_LIMIT):
            if not _unmount_top(anchored, path, pause=pause, pauses=_BUSY_PAUSES[:retries]):
                if syscalls.statx(parent, name).is_mount_root:
                    raise OSError(errno.EINVAL, "is a mount that cannot be unmounted from here", path)
                return count
        raise OSError(errno.EBUSY, f"has more than {_STACK_LIMIT} mounts stacked on it", path)
    return 0


def _unmount_top(anchored: str, path: str, *, pause: Callable[[float], None], pauses: Sequence[float]) -> bool:
    """Take one mount off; False where there is none."""
    for seconds in (*pauses, None):
        try:
            syscalls.umount(anchored)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            if error.errno != errno.EBUSY or seconds is None:
                raise OSError(error.errno, error.strerror, path) from error
            pause(seconds)
        else:
            return True
    return False


@contextlib.contextmanager
def _parent(path: str, beneath: str | None) -> Iterator[tuple[int, str]]:
    if beneath is not None:
        with paths.target_parent(path, beneath) as found:
            yield found
        return
    folder, name = os.path.split(path.rstrip("/"))
    with _closing(os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        yield fd, paths.checked_name(name)


def mounts() -> list[Mount]:
    """Every mount that this process can see."""
    return parse_mountinfo(_MOUNTINFO.read_bytes())


def mount_at(path: str, *, beneath: str | None = None) -> Mount | None:
    """The topmost mount on ``path``; None where nothing is mounted on it or nothing is there.

    A symlink is not followed as the last component. The look does not wake the filesystem's server, so a dead mount is
    found as well as any other.
    """
    with contextlib.suppress(FileNotFoundError), _parent(path, beneath) as (parent, name):
        seen = syscalls.statx(parent, name)
        return _by_id(seen.mount_id) if seen.is_mount_root else None
    return None


def mount_of_fd(fd: int) -> Mount | None:
    """The mount whose root ``fd`` is open on; None where it is open on something within a mount."""
    seen = syscalls.statx(fd, "")
    return _by_id(seen.mount_id) if seen.is_mount_root else None


def _by_id(mount_id: int) -> Mount | None:
    return next((mount for mount in mounts() if mount.mount_id == mount_id), None)


def propagates(path: str) -> bool:
    """Whether a mount made below ``path`` appears in other mount namespaces too, as a volume's must on its way to a pod.

    In a pod this asks for ``mountPropagation: Bidirectional`` on the kubelet's directory.
    """
    with _closing(os.open(path, os.O_PATH | os.O_CLOEXEC)) as fd:
        mount = _by_id(syscalls.statx(fd, "").mount_id)
    return mount is not None and mount.peer_group is not None
