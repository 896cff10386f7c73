"""Walking below a directory without ever leaving it.

A path that somebody else can influence (an id in a request, a symlink that a pod left in its volume, a
target path) is never joined to a prefix and handed to the kernel as text. It is walked from an open
directory with ``openat2`` and RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS and RESOLVE_NO_MAGICLINKS, so that the
kernel itself refuses ``..``, absolute paths and symlinks, atomically, whatever is renamed meanwhile.
What cannot be a name is refused before, as ValueError, so that a caller can say what was wrong.

Two kinds of trust meet here: ``Directory.open`` and ``beneath`` take configured, trusted paths, in which an
administrator may use symlinks; everything below is not trusted.
"""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, Self

from moorage_csi.host import removal, syscalls

READ_LIMIT: Final = 1 << 20
"""Bytes; what is read whole is a record, and a record is small."""

_RESOLVE: Final = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FORBIDDEN: Final = ("\0", "\n", "\r")
_TARGET_DIRECTORY_MODE: Final = 0o750
_TARGET_FILE_MODE: Final = 0o600


def checked_name(name: str) -> str:
    """Return ``name`` if it can be one entry of a directory, else raise ValueError."""
    if name in ("", ".", "..") or "/" in name or any(character in name for character in _FORBIDDEN):
        msg = f"{name!r} is not a file name: '', '.', '..', '/', NUL and line breaks are not allowed"
        raise ValueError(msg)
    return name


def checked_relative(path: str) -> str:
    """Return ``path`` if it consists of names joined by single slashes, else raise ValueError."""
    for name in path.split("/"):
        try:
            checked_name(name)
        except ValueError as reason:
            msg = f"{path!r} is not a path below a directory: {reason}"
            raise ValueError(msg) from None
    return path


class Directory:
    """An open directory and everything that may be done below it.

    Use it in a ``with`` statement, or call ``close``. The methods may be called from several threads. All of
    them raise OSError as the kernel says it, and ValueError for what cannot be a name. A path argument is
    relative, one of names joined by slashes; a name argument is one entry.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        """Take over ``fd``, which must be open on a directory for reading; it is closed with this object."""
        self.fd = fd

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a trusted, configured, absolute path. Symlinks in it are followed."""
        text = os.fspath(path)
        if not text.startswith("/"):
            msg = (
                f"{text!r} is not an absolute path: write it from the root of the filesystem, as in '/var/lib/moorage'"
            )
            raise ValueError(msg)
        return cls(os.open(text, _DIRECTORY))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def child(self, path: str, *, same_mount: bool = False) -> "Directory":
        """Open a directory below this one. With ``same_mount``, EXDEV where a mount would be crossed."""
        resolve = _RESOLVE | (syscalls.RESOLVE_NO_XDEV if same_mount else 0)
        return Directory(syscalls.openat2(self.fd, checked_relative(path), flags=_DIRECTORY, resolve=resolve))

    def open_file(self, path: str, flags: int, mode: int = 0o600) -> int:
        """Open a regular file below this directory and return its descriptor, which the caller closes.

        A FIFO, device or socket is refused (EINVAL) and never waited for. With O_EXCL the new file has exactly
        ``mode``, whatever the umask.
        """
        fd = syscalls.openat2(
            self.fd,
            checked_relative(path),
            flags=flags | os.O_NONBLOCK,
            mode=mode if flags & os.O_CREAT else 0,
            resolve=_RESOLVE,
        )
        try:
            _must_be_regular(fd, path)
            if flags & os.O_CREAT and flags & os.O_EXCL:
                os.fchmod(fd, mode)
            if not flags & os.O_NONBLOCK:
                fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def make_directory(self, name: str, mode: int = 0o750, *, exist_ok: bool = False) -> None:
        """Make a directory that has exactly ``mode``, whatever the umask, and survives a power loss.

        With ``exist_ok`` a directory that is there gets the mode again, so that a crash between making it and
        setting its mode heals at the next call. EEXIST otherwise; ENOTDIR or ELOOP where something else has the name.
        """
        try:
            os.mkdir(checked_name(name), 0o700, dir_fd=self.fd)
        except FileExistsError:
            if not exist_ok:
                raise
        with self.child(name) as made:
            os.fchmod(made.fd, mode)
            made.sync()
        self.sync()

    def names(self) -> list[str]:
        """Every entry, sorted, without '.' and '..'. Reads through a descriptor of its own: two threads may list."""
        fd = os.open(".", _DIRECTORY, dir_fd=self.fd)
        try:
            with os.scandir(fd) as entries:
                return sorted(entry.name for entry in entries)
        finally:
            os.close(fd)

    def exists(self, name: str) -> bool:
        """Whether anything has this name, a dangling symlink too."""
        try:
            syscalls.statx(self.fd, checked_name(name))
        except FileNotFoundError:
            return False
        return True

    def read_bytes(self, name: str, limit: int = READ_LIMIT) -> bytes:
        """The whole of a regular file; EFBIG where it holds more than ``limit`` bytes."""
        fd = self.open_file(checked_name(name), os.O_RDONLY)
        with os.fdopen(fd, "rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise OSError(errno.EFBIG, f"holds more than {limit} bytes", name)
        return content

    def write_atomic(self, name: str, data: bytes, mode: int = 0o600) -> None:
        """Put ``data`` under ``name`` so that a reader, now or after a power loss, sees the old or the new whole.

        Written beside it, fsynced, renamed over it, and the directory fsynced. A crash may leave a file
        ``.<name>.<hex>.tmp``, which nothing reads and which goes with its directory; an error leaves nothing.
        """
        temporary = f".{checked_name(name)}.{os.urandom(6).hex()}.tmp"
        fd = self.open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except BaseException:
            self.unlink(temporary, missing_ok=True)
            raise
        self.sync()

    def rename(self, name: str, other: "Directory", new_name: str) -> None:
        """Move an entry to ``other`` under ``new_name``, durably; EEXIST where that is taken, never replacing.

        A filesystem that cannot promise this in one step (NFS) is asked first and renamed after: there the
        caller's own guard must keep a second renamer out.
        """
        checked_name(name)
        checked_name(new_name)
        try:
            syscalls.rename_no_replace(self.fd, name, other.fd, new_name)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            if other.exists(new_name):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new_name) from error
            os.rename(name, new_name, src_dir_fd=self.fd, dst_dir_fd=other.fd)
        other.sync()
        self.sync()

    def unlink(self, name: str, *, missing_ok: bool = False) -> None:
        """Remove one entry that is not a directory; a symlink itself, never what it points to."""
        with contextlib.suppress(FileNotFoundError) if missing_ok else contextlib.nullcontext():
            os.unlink(checked_name(name), dir_fd=self.fd)

    def remove_tree(self, name: str, *, batch: Callable[[], None] | None = None) -> None:
        """Remove an entry and all below it, never following a symlink, never crossing a mount; see ``removal``."""
        removal.remove_tree(self.fd, checked_name(name), batch=batch)

    def sync(self) -> None:
        """Make the directory's entries durable."""
        os.fsync(self.fd)


def _must_be_regular(fd: int, path: str) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, "is not a regular file", path)


@contextlib.contextmanager
def target_parent(path: str, beneath: str) -> Iterator[tuple[int, str]]:
    """The directory that holds a target path, opened with O_PATH and no symlink below ``beneath``, and the last name.

    Raises ValueError for what is not an absolute path strictly below ``beneath``, or has '..', '.', NUL or a
    line break; ELOOP or ENOTDIR where a component is a symlink or not a directory, ENOENT where it is absent.
    """
    *folders, name = _below(path, beneath)
    root = os.open(beneath, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        parent = root
        if folders:
            parent = syscalls.openat2(root, "/".join(folders), flags=os.O_PATH | os.O_DIRECTORY, resolve=_RESOLVE)
        try:
            yield parent, name
        finally:
            if parent != root:
                os.close(parent)
    finally:
        os.close(root)


def _below(path: str, beneath: str) -> list[str]:
    root = [name for name in beneath.split("/") if name]
    names = [name for name in path.split("/") if name]
    if not path.startswith("/") or not beneath.startswith("/"):
        msg = f"target path {path!r} is not absolute: it has to lie beneath {beneath!r}"
        raise ValueError(msg)
    for name in names:
        try:
            checked_name(name)
        except ValueError as reason:
            msg = f"target path {path!r} is not acceptable: {reason}"
            raise ValueError(msg) from None
    if names[: len(root)] != root or len(names) == len(root):
        msg = f"target path {path!r} does not lie beneath {beneath!r}, the kubelet's directory: check --kubelet-dir"
        raise ValueError(msg)
    return names[len(root) :]


def open_target_directory(path: str, beneath: str) -> int:
    """Open a target path as a place to mount on, making its last component (a directory, 0750) where it is absent.

    Returns an O_PATH descriptor, which the caller closes before it unmounts; what is mounted there already is
    what the descriptor is open on. Repeating it is free. Errors as in ``target_parent``; ENOTDIR for a file, ENOTEMPTY for
    a directory that has something in it, which a mount would hide from its owner.
    """
    with target_parent(path, beneath) as (parent, name):
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY
        try:
            _must_be_empty(parent, name, path)
            return syscalls.openat2(parent, name, flags=flags, resolve=_RESOLVE)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
        made = syscalls.openat2(parent, name, flags=_DIRECTORY | os.O_NOFOLLOW, resolve=_RESOLVE)
        try:
            os.fchmod(made, _TARGET_DIRECTORY_MODE)
        finally:
            os.close(made)
        return syscalls.openat2(parent, name, flags=flags, resolve=_RESOLVE)


def _must_be_empty(parent: int, name: str, path: str) -> None:
    with Directory(syscalls.openat2(parent, name, flags=_DIRECTORY | os.O_NOFOLLOW, resolve=_RESOLVE)) as target:
        if not syscalls.statx(target.fd, "").is_mount_root and target.names():
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)


def open_target_file(path: str, beneath: str) -> int:
    """Like ``open_target_directory`` for a block volume: the last component is a regular file, 0600.

    A block device that is mounted there already is returned as such; anything else is refused with EINVAL, and a file
    that has something in it with ENOTEMPTY.
    """
    with target_parent(path, beneath) as (parent, name):
        creating = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with contextlib.suppress(FileExistsError):
            made = syscalls.openat2(parent, name, flags=creating, mode=_TARGET_FILE_MODE, resolve=_RESOLVE)
            try:
                os.fchmod(made, _TARGET_FILE_MODE)
            finally:
                os.close(made)
        fd = syscalls.openat2(parent, name, flags=os.O_PATH, resolve=_RESOLVE)
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            os.close(fd)
            raise OSError(errno.EINVAL, "is neither a regular file nor a mounted block device", path)
        if os.fstat(fd).st_size and not stat.S_ISBLK(mode):
            os.close(fd)
            raise OSError(errno.ENOTEMPTY, "holds data", path)
        return fd


def remove_target(path: str, beneath: str) -> None:
    """Remove the last component of a target path: an empty directory, an empty file, or a symlink itself.

    Never recursive: ENOTEMPTY where something is left in it, as in a file with content or a socket, which are nobody's
    target; EBUSY where something is still mounted on it. Absent, or below an absent directory, is success.
    """
    with contextlib.suppress(FileNotFoundError), target_parent(path, beneath) as (parent, name):
        seen = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not (stat.S_ISDIR(seen.st_mode) or stat.S_ISLNK(seen.st_mode) or _is_blank(seen)):
            raise OSError(errno.ENOTEMPTY, "is not what a volume is published at", path)
        try:
            os.unlink(name, dir_fd=parent)
        except IsADirectoryError:
            os.rmdir(name, dir_fd=parent)


def _is_blank(seen: os.stat_result) -> bool:
    return stat.S_ISREG(seen.st_mode) and not seen.st_size
