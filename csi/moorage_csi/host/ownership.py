"""Giving a tree that a stranger filled to a group, as a pod's fsGroup asks for.

What the kubelet does to a volume with fsGroup, by descriptor: everything gets the group; files are readable and writable
by it, directories usable too, and set-group-id, so that what is made in them later belongs to it. The walk opens an
entry once, without following anything (RESOLVE_NO_SYMLINKS) and without leaving the mount (RESOLVE_NO_XDEV); it does not
recurse and holds a bounded number of descriptors: what lies deeper than ``_DEPTH`` levels is remembered by its path.

The top comes last, and is the mark: where it has the group, and hands it on, all beneath it was given before. So the walk
is made once, one that stops in the middle is made again, and a volume whose group does not change is never walked.

Symlinks get the group, and what they point to does not. A file with several names is one file: no name of it can lie in
another volume, since nobody links across a mount. Devices are let be: their group decides about a machine's hardware and not
about the volume. What is mounted below is not the volume's.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moorage_csi.host import inodes, syscalls

_DEPTH: Final = 32
_PATH_LIMIT: Final = 3800
"""Bytes of a path in one call; the kernel takes 4095."""

_FILE: Final = 0o660
_DIRECTORY: Final = stat.S_ISGID | 0o770
_TOP: Final = stat.S_ISGID | 0o070
"""What the top gets beside what it has: its owner's rights are its owner's business."""

_CAPABILITY: Final = "security.capability"
_NO_CAPABILITY: Final = (errno.ENODATA, errno.EOPNOTSUPP)

_RESOLVE: Final = (
    syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_XDEV
)
_HANDLE: Final = os.O_PATH | os.O_NOFOLLOW
_READ: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_OURS: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV)
"""Gone by now, another thing by now, or something that is mounted there."""


@dataclass(frozen=True, slots=True)
class Given:
    """What was done: entries that were changed, and those that are immutable and stay as they are."""

    changed: int
    immutable: int


def is_given(top: int, group: int) -> bool:
    """Whether the tree whose top ``top`` is open on has the group, so that ``give`` would do nothing. Constant time."""
    seen = os.fstat(top)
    return _is_marked(seen, group) and stat.S_IMODE(seen.st_mode) & _TOP == _TOP


def give(top: int, group: int, *, batch: Callable[[], None]) -> Given:
    """Give the tree whose top ``top`` is open on, with O_PATH or for reading, to the group; see the module.

    Where the top has the group already nothing else is looked at. ``batch`` is called after every entry: it may sleep to
    hold a rate, or raise to cancel. After that, an error or a crash the next call begins anew; a file that was being
    changed at that moment may have lost set-user-id, set-group-id or its capabilities.

    What vanishes meanwhile is left out, and what is moved about may be missed, as by the kubelet.

    Raises:
        OSError: with the path from the tree's top; whatever the kernel says, except that it is immutable.
    """
    seen = os.fstat(top)
    walk = _Walk(top, group, batch)
    if not _is_marked(seen, group):
        try:
            walk.run()
        finally:
            walk.close()
    mode = stat.S_IMODE(seen.st_mode)
    if mode & _TOP != _TOP:
        Path(inodes.path(top)).chmod(mode | _TOP)
    if seen.st_gid != group:
        # After the mode, and it keeps a directory's: the group is the mark.
        os.chown(inodes.path(top), -1, group)
    return Given(walk.changed, walk.immutable)


def _is_marked(seen: os.stat_result, group: int) -> bool:
    return seen.st_gid == group and bool(seen.st_mode & stat.S_ISGID)


@dataclass(slots=True)
class _Level:
    """An open directory of the walk, and how far it was read."""

    path: tuple[str, ...]
    fd: int
    entries: "os._ScandirIterator[str]"


class _Walk:
    def __init__(self, top: int, group: int, batch: Callable[[], None]) -> None:
        self._top = top
        self._group = group
        self._batch = batch
        self._levels: list[_Level] = []
        self._deep: list[tuple[str, ...]] = []
        self.changed = self.immutable = 0

    def close(self) -> None:
        while self._levels:
            self._leave()

    def run(self) -> None:
        self._enter((), self._top)
        self._read()
        while self._deep:
            path = self._deep.pop()
            with self._located(path):
                fd = _opened(self._top, path)
                try:
                    self._enter(path, fd)
                finally:
                    os.close(fd)
            self._read()

    def _read(self) -> None:
        while self._levels:
            level = self._levels[-1]
            entry = next(level.entries, None)
            if entry is None:
                self._leave()
                continue
            path = (*level.path, entry.name)
            with self._located(path):
                self._visit(level.fd, path)
            self._batch()

    def _visit(self, parent: int, path: tuple[str, ...]) -> None:
        fd = syscalls.openat2(parent, path[-1], flags=_HANDLE, resolve=_RESOLVE)
        try:
            seen = os.fstat(fd)
            self._change(fd, seen)
            if not stat.S_ISDIR(seen.st_mode):
                return
            if len(self._levels) < _DEPTH:
                self._enter(path, fd)
            else:
                self._deep.append(path)
        finally:
            os.close(fd)

    def _enter(self, path: tuple[str, ...], handle: int) -> None:
        fd = os.open(".", _READ | os.O_NOATIME, dir_fd=handle)
        try:
            self._levels.append(_Level(path, fd, os.scandir(fd)))
        except BaseException:
            os.close(fd)
            raise

    def _leave(self) -> None:
        level = self._levels.pop()
        level.entries.close()
        os.close(level.fd)

    def _change(self, fd: int, seen: os.stat_result) -> None:
        """Give one entry to the group; of what is right already nothing is written."""
        kind = stat.S_IFMT(seen.st_mode)
        if kind in (stat.S_IFBLK, stat.S_IFCHR):
            return
        mode = stat.S_IMODE(seen.st_mode)
        # A symlink has a mode that means nothing and cannot be changed.
        wanted = mode if kind == stat.S_IFLNK else mode | (_DIRECTORY if kind == stat.S_IFDIR else _FILE)
        if seen.st_gid == self._group and mode == wanted:
            return
        try:
            self._write(fd, seen, wanted)
        except PermissionError:
            # root is refused by chattr +i and +a alone, and who set that means it.
            self.immutable += 1
        else:
            self.changed += 1

    def _write(self, fd: int, seen: os.stat_result, wanted: int) -> None:
        """Set the group and the mode.

        A change of owner takes set-user-id, set-group-id and capabilities off a file; it is the same file, so they are
        put back.
        """
        name, mode = inodes.path(fd), stat.S_IMODE(seen.st_mode)
        executable = stat.S_ISREG(seen.st_mode) and bool(mode & 0o111)
        lost = executable and seen.st_gid != self._group
        if seen.st_gid != self._group:
            capability = _capability(name) if executable else None
            os.chown(name, -1, self._group)
            if capability is not None:
                os.setxattr(name, _CAPABILITY, capability)
        if mode != wanted or (lost and mode & (stat.S_ISUID | stat.S_ISGID)):
            Path(name).chmod(wanted)

    @contextmanager
    def _located(self, path: tuple[str, ...]) -> Iterator[None]:
        """Put the path from the tree's top into an error, and let go of what is none of the tree's."""
        try:
            yield
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise OSError(error.errno, error.strerror, "/".join(path)) from error


def _capability(name: str) -> bytes | None:
    try:
        return os.getxattr(name, _CAPABILITY)
    except OSError as error:
        if error.errno in _NO_CAPABILITY:
            return None
        raise


def _opened(top: int, path: tuple[str, ...]) -> int:
    """Open a directory far below, in steps, because a path that is handed to the kernel has a longest length."""
    fd = os.open(".", _READ, dir_fd=top)
    names = list(path)
    while names:
        step = names.pop(0)
        while names and len(os.fsencode(step)) + len(os.fsencode(names[0])) < _PATH_LIMIT:
            step = f"{step}/{names.pop(0)}"
        try:
            below = syscalls.openat2(fd, step, flags=_HANDLE | os.O_DIRECTORY, resolve=_RESOLVE)
        finally:
            os.close(fd)
        fd = below
    return fd
