"""Removing a tree that a stranger filled.

A volume's content is hostile by assumption: symlinks that point out of it, directories nobody may enter,
thousands of levels, a mount that was forgotten inside. So the walk goes by descriptor only, opens every
directory with RESOLVE_NO_SYMLINKS and RESOLVE_NO_XDEV, and stops loudly at a mount before anything behind
it is touched. It does not recurse and holds a bounded number of descriptors: a directory that lies deeper
than ``_DEPTH`` levels is moved up to the top of the tree, and removed from there.

Interrupting it at any point is safe, and calling it again goes on where it stopped.
"""

import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moorage_csi.host import syscalls

_DEPTH: Final = 32
_PASSES: Final = 16
"""How often a directory is read again because somebody still writes into it."""

_RESOLVE: Final = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_XDEV
_NOT_A_DIRECTORY: Final = (errno.ENOTDIR, errno.ELOOP)
_NOT_EMPTY: Final = (errno.ENOTEMPTY, errno.EEXIST)
_NAME_TAKEN: Final = (*_NOT_EMPTY, errno.ENOTDIR)


def remove_tree(parent_fd: int, name: str, *, batch: Callable[[], None] | None = None) -> None:
    """Remove the entry ``name`` of the directory ``parent_fd`` and all below it; absent is success.

    ``batch`` is called after every entry that went: it may sleep to hold a rate, or raise to cancel, which
    leaves a tree that a later call finishes. Entries that vanish meanwhile are no error.

    Raises EBUSY, naming the path, at a mount point: nothing on that mount is touched. EPERM for an immutable
    file, and whatever else the kernel says, ends the removal as well. ENOTEMPTY after several passes means
    that somebody keeps writing.
    """
    removal = _Removal(parent_fd, batch or _nothing)
    try:
        removal.run(name)
    finally:
        removal.close()


def _nothing() -> None:
    """The batch of a caller who does not mind the rate."""


@dataclass(slots=True)
class _Level:
    """One open directory of the walk, and the pass over its entries that is under way."""

    fd: int
    name: str
    entries: "os._ScandirIterator[str]"
    passes: int = 1


class _Removal:
    def __init__(self, parent_fd: int, batch: Callable[[], None]) -> None:
        self._parent_fd = parent_fd
        self._batch = batch
        self._levels: list[_Level] = []
        self._numbers: Iterator[int] = itertools.count(1)
        self._hoists = 0

    def close(self) -> None:
        while self._levels:
            self._close(self._levels.pop())

    def run(self, name: str) -> None:
        self._remove(self._parent_fd, name, is_directory=True)
        while self._levels:
            level = self._levels[-1]
            entry = next(level.entries, None)
            if entry is None:
                self._leave(level)
            else:
                self._remove(level.fd, entry.name, is_directory=entry.is_dir(follow_symlinks=False))

    def _remove(self, dir_fd: int, name: str, *, is_directory: bool) -> None:
        """Unlink an entry, or step into it; the kind is a hint, for it may have been replaced since it was read."""
        if is_directory and self._enter(dir_fd, name):
            return
        try:
            os.unlink(name, dir_fd=dir_fd)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            self._enter(dir_fd, name)
            return
        except OSError as error:
            raise self._located(error, name) from error
        self._batch()

    def _enter(self, dir_fd: int, name: str) -> bool:
        """Step into a directory; False where it is something else by now."""
        try:
            if len(self._levels) >= _DEPTH:
                self._hoist(dir_fd, name)
                return True
            fd = self._open(dir_fd, name)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno in _NOT_A_DIRECTORY:
                return False
            raise self._located(error, name) from error
        try:
            if os.fstat(fd).st_mode & stat.S_IRWXU != stat.S_IRWXU:
                os.fchmod(fd, stat.S_IRWXU)
            self._levels.append(_Level(fd, name, os.scandir(fd)))
        except BaseException:
            os.close(fd)
            raise
        return True

    def _open(self, dir_fd: int, name: str) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        try:
            return syscalls.openat2(dir_fd, name, flags=flags, resolve=_RESOLVE)
        except PermissionError:
            handle = syscalls.openat2(dir_fd, name, flags=os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, resolve=_RESOLVE)
            try:
                Path(f"/proc/self/fd/{handle}").chmod(stat.S_IRWXU)
            finally:
                os.close(handle)
            return syscalls.openat2(dir_fd, name, flags=flags, resolve=_RESOLVE)

    def _hoist(self, dir_fd: int, name: str) -> None:
        """Move a directory that lies too deep to the top of the tree, where a later pass finds it.

        It may replace an empty directory of that name, which is no loss: all of this goes.
        """
        for number in self._numbers:
            try:
                os.rename(name, f".deep-{number}", src_dir_fd=dir_fd, dst_dir_fd=self._levels[0].fd)
            except OSError as error:
                if error.errno not in _NAME_TAKEN:
                    raise
            else:
                self._hoists += 1
                return

    def _leave(self, level: _Level) -> None:
        """Remove a directory that was read to its end; read it again where something is left."""
        level.entries.close()
        parent_fd = self._levels[-2].fd if len(self._levels) > 1 else self._parent_fd
        try:
            os.rmdir(level.name, dir_fd=parent_fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            allowed = _PASSES + (self._hoists if len(self._levels) == 1 else 0)
            if error.errno not in _NOT_EMPTY or level.passes >= allowed:
                raise self._located(error) from error
            level.passes += 1
            level.entries = os.scandir(level.fd)
            return
        self._close(self._levels.pop())
        self._batch()

    def _located(self, error: OSError, name: str = "") -> OSError:
        """The same error, with the path from the tree's top in it; a crossed mount is told as EBUSY."""
        path = "/".join([*(level.name for level in self._levels), *([name] if name else [])])
        if error.errno in (errno.EXDEV, errno.EBUSY):
            return OSError(errno.EBUSY, "is a mount point, nothing on it was removed: unmount it first", path)
        return OSError(error.errno, error.strerror, path)

    @staticmethod
    def _close(level: _Level) -> None:
        level.entries.close()
        with suppress(OSError):
            os.close(level.fd)
