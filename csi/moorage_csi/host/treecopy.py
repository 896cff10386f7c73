"""Copying a tree that a stranger filled, sharing the files' data with the source where the filesystem can.

The walk goes by descriptor, as in ``removal``: an entry is opened once, without following anything (RESOLVE_NO_SYMLINKS) and
without leaving the mount (RESOLVE_NO_XDEV), and all that is read of it is read through that descriptor, whatever is renamed
meanwhile. It does not recurse and holds a bounded number of descriptors: what lies deeper than ``_DEPTH`` levels is
remembered by its path, and copied afterwards.

What becomes of each kind:

- files share their data (FICLONE), or are copied with their holes where two files cannot share;
- hard links stay hard links to each other, within the copy;
- symlinks are made anew with the text they have, whatever it says;
- FIFOs, sockets and devices are made anew with the same type and number, and never opened: a socket has nobody who
  listens, and a character device 0:0 is what overlayfs calls a whiteout;
- directories of other subvolumes (btrfs) are directories in the copy;
- a mount ends the copy: what is on it does not belong to the tree, and a copy without it would not be one.

Owner, mode, times (not the time of change), and every extended attribute that the process may read go with
each, ACLs and capabilities among them; of the inode flags only "no copy on write", without which btrfs cannot share. Project
ids do not: the copy belongs to the project of the directory it is made in.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from moorage_csi.host import copying, inodes, reflink, removal, syscalls
from moorage_csi.host.paths import Directory

_DEPTH: Final = 32
_PATH_LIMIT: Final = 3800
"""Bytes of a path in one call; the kernel takes 4095."""

_RESOLVE: Final = (
    syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_XDEV
)
_HANDLE: Final = os.O_PATH | os.O_NOFOLLOW
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy consists of: entries of any kind, files that share their data, and bytes that had to be copied."""

    entries: int
    shared: int
    bytes: int


def copy_tree(source: Directory, target: Directory, *, batch: Callable[[], None] | None = None) -> Copied:
    """Copy what is in ``source``, and what it is itself, into ``target``; on the disk when it returns.

    ``target`` is an empty directory (ENOTEMPTY) that nobody else uses, of the same filesystem if data is to be shared. It
    is an own directory of the caller's, so that a project quota may be on it before.

    ``batch`` is called at least after every entry, and every few MiB of a file that cannot be shared: it may sleep to hold a rate, or
    raise to cancel. There is nothing to resume: after that, an error or a crash the target holds a part of the copy,
    and has to be removed (``Directory.remove_tree``) before the next try. So copy into a name that means "unfinished",
    and rename it afterwards.

    A source that is used meanwhile is copied file by file: each file that is shared is of one moment, all of them
    together are not. What vanishes is left out, what is moved about may be missed or copied twice, and what moves
    deeper for ever is copied until ``batch`` or a quota ends it.

    Raises:
        OSError: with the path from the tree's top: EBUSY at a mount, and whatever else the kernel says.
    """
    copy = _Copy(source.fd, target.fd, batch or _nothing)
    try:
        copied = copy.run()
    finally:
        copy.close()
    syscalls.syncfs(target.fd)
    return copied


def _nothing() -> None:
    """The batch of a caller who does not mind the rate."""


@dataclass(slots=True)
class _Level:
    """A directory of the walk that is open in both trees, and how far it was read."""

    path: tuple[str, ...]
    source_fd: int
    target_fd: int
    entries: "os._ScandirIterator[str]"


class _Copy:
    def __init__(self, source_fd: int, target_fd: int, batch: Callable[[], None]) -> None:
        self._source_fd = source_fd
        self._target_fd = target_fd
        self._batch = batch
        self._stop: OSError | None = None
        self._levels: list[_Level] = []
        self._deep: list[tuple[str, ...]] = []
        self._links = f".links-{os.urandom(8).hex()}"
        """A directory at the copy's top with a name of every file that has several: there may be more than memory holds."""
        self._links_fd = -1
        self._entries = self._shared = self._bytes = 0

    def close(self) -> None:
        while self._levels:
            self._close(self._levels.pop())
        if self._links_fd >= 0:
            os.close(self._links_fd)

    def run(self) -> Copied:
        self._prepare()
        self._resume(())
        self._walk()
        while self._deep:
            self._resume(self._deep.pop())
            self._walk()
        removal.remove_tree(self._target_fd, self._links, batch=self._call)
        with self._located(()):
            inodes.dress(self._source_fd, self._target_fd, os.fstat(self._source_fd))
        self._tick()
        return Copied(entries=self._entries, shared=self._shared, bytes=self._bytes)

    def _prepare(self) -> None:
        """Make sure that nothing is in the target, and that nothing made in it inherits anything of its own."""
        with os.scandir(self._target_fd) as present:
            if next(present, None) is not None:
                raise OSError(errno.ENOTEMPTY, "is not empty: a copy is made into an empty directory")
        inodes.strip_acls(self._target_fd)
        os.mkdir(self._links, 0o700, dir_fd=self._target_fd)
        self._links_fd = os.open(self._links, _DIRECTORY, dir_fd=self._target_fd)

    def _walk(self) -> None:
        while self._levels:
            level = self._levels[-1]
            entry = next(level.entries, None)
            if entry is None:
                self._leave(level)
                continue
            with self._located((*level.path, entry.name)):
                copied = self._entry(level, entry.name)
            if copied:
                self._tick()

    def _resume(self, path: tuple[str, ...]) -> None:
        """Step into a directory by its path; what is gone by now, or is a symlink, stays as empty as it is."""
        with self._located(path):
            try:
                source_fd = _opened(self._source_fd, path)
            except OSError as error:
                if error.errno in _GONE:
                    return
                raise
            try:
                self._enter(path, source_fd, _opened(self._target_fd, path))
            finally:
                os.close(source_fd)

    def _enter(self, path: tuple[str, ...], handle: int, target_fd: int) -> None:
        """Make two directories the innermost level; takes over the second descriptor, and leaves the first to the caller."""
        try:
            source_fd = os.open(".", _DIRECTORY | os.O_NOATIME, dir_fd=handle)
            try:
                inodes.keep_cow(source_fd, target_fd)
                self._levels.append(_Level(path, source_fd, target_fd, os.scandir(source_fd)))
            except BaseException:
                os.close(source_fd)
                raise
        except BaseException:
            os.close(target_fd)
            raise

    def _leave(self, level: _Level) -> None:
        """Give a directory that is complete what the source's has; that of the tree's top comes last of all."""
        if level.path:
            with self._located(level.path):
                inodes.dress(level.source_fd, level.target_fd, os.fstat(level.source_fd))
        self._close(self._levels.pop())
        if level.path:
            self._tick()

    def _entry(self, level: _Level, name: str) -> bool:
        """Copy one entry; False for what is gone, is there already, or is a directory, which counts when it is left."""
        try:
            handle = syscalls.openat2(level.source_fd, name, flags=_HANDLE, resolve=_RESOLVE)
        except FileNotFoundError:
            return False
        try:
            seen = os.fstat(handle)
            if stat.S_ISDIR(seen.st_mode):
                self._directory(level, name, handle)
                return False
            if not stat.S_ISREG(seen.st_mode):
                return self._node(level, name, handle, seen)
            flags = os.O_RDONLY | os.O_NOATIME | os.O_NONBLOCK | os.O_CLOEXEC
            source_fd = os.open(inodes.path(handle), flags)
            try:
                return self._node(level, name, source_fd, seen)
            finally:
                os.close(source_fd)
        finally:
            os.close(handle)

    def _directory(self, level: _Level, name: str, handle: int) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=level.target_fd)
        except FileExistsError:
            return
        path = (*level.path, name)
        if len(self._levels) >= _DEPTH:
            self._deep.append(path)
            return
        self._enter(path, handle, os.open(name, _DIRECTORY, dir_fd=level.target_fd))

    def _node(self, level: _Level, name: str, source_fd: int, seen: os.stat_result) -> bool:
        """Copy what is not a directory, or link it where it was copied under another name."""
        known = inodes.identity(source_fd, seen) if seen.st_nlink > 1 else None
        if known is not None and self._linked(known, level, name):
            return True
        try:
            made = _made(level.target_fd, name, source_fd, seen)
        except FileExistsError:
            return False
        try:
            if stat.S_ISREG(seen.st_mode):
                self._fill(source_fd, made)
            inodes.dress(source_fd, made, seen)
        finally:
            os.close(made)
        if known is not None:
            os.link(name, known, src_dir_fd=level.target_fd, dst_dir_fd=self._links_fd, follow_symlinks=False)
        return True

    def _linked(self, known: str, level: _Level, name: str) -> bool:
        try:
            os.link(known, name, src_dir_fd=self._links_fd, dst_dir_fd=level.target_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except FileExistsError:
            return True
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
            # It has as many names as there can be, and ours is one too many.
            os.rename(known, name, src_dir_fd=self._links_fd, dst_dir_fd=level.target_fd)
        return True

    def _fill(self, source_fd: int, target_fd: int) -> None:
        inodes.keep_cow(source_fd, target_fd)
        try:
            reflink.clone_file(source_fd, target_fd)
        except OSError as error:
            if error.errno not in reflink.UNABLE:
                raise
            self._bytes += copying.copy_data(source_fd, target_fd, progress=lambda _: self._call())
        else:
            self._shared += 1

    def _tick(self) -> None:
        self._entries += 1
        self._call()

    def _call(self) -> None:
        try:
            self._batch()
        except OSError as error:
            self._stop = error
            raise

    @contextmanager
    def _located(self, path: tuple[str, ...]) -> Iterator[None]:
        """Put the path from the tree's top into an error, unless it is the caller's own."""
        try:
            yield
        except OSError as error:
            if error is self._stop:
                raise
            where = "/".join(path) or "."
            if error.errno == errno.EXDEV:
                message = "is a mount point, and a copy does not leave its mount: unmount it first"
                raise OSError(errno.EBUSY, message, where) from error
            raise OSError(error.errno, error.strerror, where) from error

    @staticmethod
    def _close(level: _Level) -> None:
        level.entries.close()
        os.close(level.source_fd)
        os.close(level.target_fd)


def _made(target_fd: int, name: str, source_fd: int, seen: os.stat_result) -> int:
    """Make an empty entry of the same kind, which nobody else may use yet, and return it open."""
    if stat.S_ISREG(seen.st_mode):
        creating = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, creating, 0o600, dir_fd=target_fd)
    if stat.S_ISLNK(seen.st_mode):
        os.symlink(os.readlink("", dir_fd=source_fd), name, dir_fd=target_fd)
    else:
        os.mknod(name, stat.S_IFMT(seen.st_mode) | 0o600, seen.st_rdev, dir_fd=target_fd)
    return syscalls.openat2(target_fd, name, flags=_HANDLE, resolve=_RESOLVE)


def _opened(base_fd: int, path: tuple[str, ...]) -> int:
    """Open a directory far below another one, in steps, because a path that is handed to the kernel has a longest length."""
    fd = os.open(".", _DIRECTORY, dir_fd=base_fd)
    names = list(path)
    while names:
        step = names.pop(0)
        while names and len(os.fsencode(step)) + len(os.fsencode(names[0])) < _PATH_LIMIT:
            step = f"{step}/{names.pop(0)}"
        try:
            below = syscalls.openat2(fd, step, flags=_DIRECTORY, resolve=_RESOLVE)
        finally:
            os.close(fd)
        fd = below
    return fd
