"""The files of a layered volume: read-only layers that volumes have in common, and one image that is written to.

    <folder>/layers/00, 01, ...    images of ext4, the oldest first; the directory ``upper`` in each is a layer
    <folder>/image                 an image with the volume's size; ``upper`` in it is what is written over the layers
    <folder>/image.new             of an attempt that died; the next look removes it

A layer is a file with a name in every folder that has it. The kernel counts the names, so there is nothing that a crash
could leave wrong: a folder that goes takes its names with it, and the data goes with the last one. Once a file is a
layer nobody writes to it again.

An image becomes a layer (``seal``) in two steps, of which the first alone can be undone and the second is a rename. Both
need that nothing uses the image, and that nothing begins to: whoever attaches it, and whoever changes what is in the
folder, has the folder ``locked``. Nobody writes in a snapshot's folder, which has no image.

What a pod sees of a volume's own directory (owner, mode, attributes) is that of the topmost ``upper``, so a new one is made like
the one below it. There is always something below: ``base``, which is empty, beside each ``upper``.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import time
import uuid as uuids
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from moorage_csi.backends import imagefile
from moorage_csi.backends.targets import path_of
from moorage_csi.errors import PreconditionError, UnavailableError
from moorage_csi.host import filesystems, inodes, loops, mounts, overlay, syscalls, treecopy
from moorage_csi.host.commands import CommandError
from moorage_csi.host.mounts import MountAttributes
from moorage_csi.host.overlay import Place, Writable
from moorage_csi.host.paths import Directory

FILESYSTEM: Final = filesystems.EXT4
FILE: Final = "image"
LAYERS: Final = "layers"

MOST: Final = 16
"""Layers that a volume has at most. Each is a mounted filesystem while the volume is used; a copy that would get more
gets one, with all that they show."""

_SLACK: Final = 8
"""The part of what is in layers that the tables and the journal of one with all of it may take beside it."""
_ALIGNMENT: Final = 1 << 20

_NEW: Final = "image.new"
_UPPER: Final = "upper"
_WORK: Final = "work"
_BASE: Final = "base"

_NAME: Final = re.compile(r"[0-9]{2}")
_MODE: Final = 0o600
_PRIVATE: Final = 0o700
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PAUSES: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Seconds between looks whether a device is free: it is so a moment after its last mount, or after a look at it by others."""
_FULL_WORDS: Final = "No space left on device"


@contextlib.contextmanager
def locked(chain: Directory) -> Iterator[None]:
    """Keep others from attaching the image and from changing the layers; waits for those who are at it.

    The lock goes with the process. ``chain`` is the directory of the layers, opened for this.
    """
    lock(chain)
    try:
        yield
    finally:
        fcntl.flock(chain.fd, fcntl.LOCK_UN)


def lock(chain: Directory) -> None:
    """Begin what ``locked`` does; it ends when the directory is closed."""
    fcntl.flock(chain.fd, fcntl.LOCK_EX)


def names(chain: Directory) -> list[str]:
    """The layers' names, the oldest first."""
    return [name for name in chain.names() if _NAME.fullmatch(name)]


def settle(folder: Directory, chain: Directory) -> None:
    """Undo a ``seal`` that died before its rename; the folder is locked."""
    folder.unlink(_NEW, missing_ok=True)
    top = next(reversed(names(chain)), None)
    if top is not None and folder.exists(FILE) and _inode(chain, top) == _inode(folder, FILE):
        chain.unlink(top)
        chain.sync()


def missing(chain: Directory) -> str:
    """The name of a layer that has to be there and is not; empty where none is missing."""
    there = names(chain)
    wanted = (_name(number) for number in range(len(there)))
    return next((want for want, found in zip(wanted, there, strict=True) if want != found), "")


def link(source: Directory, wanted: Sequence[str], target: Directory) -> None:
    """Give layers the same names in another folder."""
    for name in wanted:
        os.link(name, name, src_dir_fd=source.fd, dst_dir_fd=target.fd, follow_symlinks=False)
    target.sync()


def opened(folder: Directory, flags: int = os.O_RDWR) -> int:
    """The image of a volume, which the caller closes."""
    return folder.open_file(FILE, flags)


def is_free(fd: int, *, pause: Callable[[float], None] = time.sleep, pauses: Sequence[float] = _PAUSES[:6]) -> bool:
    """Whether no device shows the file; one that nobody uses is on its way, and is waited for."""
    for seconds in (*pauses, None):
        if all(loops.detach(found.number, device=found.device, inode=found.inode) for found in imagefile.devices(fd)):
            return True
        if seconds is not None:
            pause(seconds)
    return False


async def fill(fd: int, *, uuid: str, permissions: int) -> None:
    """Make a new volume's filesystem in its image, and what belongs in it."""
    await filesystems.make(path=fd, filesystem=FILESYSTEM, uuid=uuid)
    await asyncio.to_thread(_furnish, fd, permissions)


def make(folder: Directory, name: str, *, size: int, uuid: str, like: int | None) -> int:
    """Make an image with a filesystem and what belongs in it; returns it open for writing. Blocks while mkfs runs.

    ``like`` is the directory that the volume's own is to be like; None where that is still to come.
    """
    fd = folder.open_file(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, _MODE)
    try:
        os.ftruncate(fd, size)
        try:
            asyncio.run(filesystems.make(path=fd, filesystem=FILESYSTEM, uuid=uuid))
        except CommandError as error:
            raise OSError(errno.ENOSPC if _FULL_WORDS in error.stderr else errno.EIO, str(error)) from error
        _furnish(fd, _PRIVATE, like=like)
        os.fsync(fd)
    except BaseException:
        os.close(fd)
        folder.unlink(name, missing_ok=True)
        raise
    return fd


def _furnish(fd: int, permissions: int, *, like: int | None = None) -> None:
    with written(fd) as top:
        for name in (_WORK, _BASE, _UPPER):
            os.mkdir(name, _PRIVATE, dir_fd=top)
        upper = os.open(_UPPER, _DIRECTORY, dir_fd=top)
        try:
            if like is None:
                os.fchmod(upper, permissions)
            else:
                inodes.dress(like, upper, os.fstat(like))
                overlay.forget_marks(upper)
        finally:
            os.close(upper)
        syscalls.syncfs(top)


@contextlib.contextmanager
def written(fd: int) -> Iterator[int]:
    """The top of the filesystem in an image, open for reading, for as long as the block lasts; it may be in use already.

    A journal that a power cut left is replayed by this. The device is free at the end, if nobody else has it.
    """
    alone = not imagefile.devices(fd)
    with _mounted(fd) as mounted:
        top = os.open(".", _DIRECTORY, dir_fd=mounted)
        try:
            yield top
        finally:
            os.close(top)
    if alone:
        is_free(fd)


def upper_of(top: int) -> int:
    """The directory of an image that is the layer, open for reading; the caller closes it."""
    return os.open(_UPPER, _DIRECTORY, dir_fd=top)


def changed(top: int, chain: Directory, below: Sequence[str]) -> bool:
    """Whether the image whose top is given shows anything that the layers below do not."""
    if not below:
        return True
    upper = upper_of(top)
    try:
        with os.scandir(upper) as entries:
            if next(entries, None) is not None:
                return True
        with _like(chain, below[-1]) as other:
            return overlay.likeness(upper) != overlay.likeness(other)
    finally:
        os.close(upper)


def seal(folder: Directory, chain: Directory) -> None:
    """Make the image a layer and put an empty one in its place; where nothing was written, nothing happens.

    The folder is locked and settled, the image free, and there is room for one more layer. After a crash the image is
    what it was, or a layer under an empty image; a name too many is taken back by the next ``settle``.
    """
    below = names(chain)
    fd = opened(folder)
    try:
        with written(fd) as top:
            if not changed(top, chain, below):
                return
            upper = upper_of(top)
            try:
                size = os.fstat(fd).st_size
                os.close(make(folder, _NEW, size=size, uuid=str(uuids.uuid4()), like=upper))
            finally:
                os.close(upper)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.link(FILE, _name(len(below)), src_dir_fd=folder.fd, dst_dir_fd=chain.fd, follow_symlinks=False)
    chain.sync()
    os.rename(_NEW, FILE, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
    folder.sync()


def add(chain: Directory, number: int, fill_in: Callable[[int], None]) -> None:
    """Make a layer out of a copy of an image, which ``fill_in`` writes to the descriptor that it gets."""
    fd = chain.open_file(_name(number), os.O_RDWR | os.O_CREAT | os.O_EXCL, _MODE)
    try:
        fill_in(fd)
        os.fsync(fd)
    finally:
        os.close(fd)
    chain.sync()


def complete(folder: Directory, chain: Directory, *, size: int, uuid: str) -> None:
    """Give the layers of a new volume the image that is written to."""
    with _like(chain, names(chain)[-1]) as below:
        os.close(make(folder, FILE, size=size, uuid=uuid, like=below))
    folder.sync()


def flatten(folder: Directory, chain: Directory, *, pace: Callable[[], None]) -> None:
    """Put one layer in the place of all, with what they show, which is copied file by file.

    The folder is that of a copy that is not ready: a crash leaves a torso.
    """
    present = names(chain)
    fd = make(folder, _NEW, size=_room(chain, present), uuid=str(uuids.uuid4()), like=None)
    try:
        with contextlib.ExitStack() as stack:
            top = stack.enter_context(written(fd))
            merged = stack.enter_context(_shown(chain, present))
            upper = stack.enter_context(Directory(upper_of(top)))
            treecopy.copy_tree(merged, upper, batch=pace)
        os.fsync(fd)
    finally:
        os.close(fd)
    for name in present:
        chain.unlink(name)
    folder.rename(_NEW, chain, _name(0))


def _room(chain: Directory, wanted: Sequence[str]) -> int:
    """Bytes of an image that holds for certain what several layers show together.

    It goes by what is in them and not by how large they are, which added up would soon be more than a file can have. As
    ext4 makes inodes by the size, each that is used asks for some of it; none of it is taken before it is written to.
    """
    size = filesystems.minimum(FILESYSTEM)
    for name in wanted:
        with _layer(chain, name) as layer:
            used = filesystems.usage(layer)
        size += used.used + used.used // _SLACK + used.inodes_used * filesystems.EXT4_BYTES_PER_INODE
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def mount(fd: int, chain: Directory, *, source: str, options: Sequence[str], attributes: MountAttributes) -> int:
    """Mount a volume where nobody can reach it: the image over the layers; see ``overlay.detached``.

    ``options`` are those of the image's filesystem. The folder is locked and settled, and the image is in no other overlay.
    """
    with contextlib.ExitStack() as stack:
        image = stack.enter_context(_mounted(fd, options))
        lower = [stack.enter_context(_layer(chain, name)) for name in reversed(names(chain))]
        return overlay.detached(
            source=source,
            lower=[*(Place(layer, _UPPER) for layer in lower), Place(image, _BASE)],
            writable=Writable(upper=Place(image, _UPPER), work=Place(image, _WORK)),
            attributes=attributes,
        )


@contextlib.contextmanager
def _shown(chain: Directory, wanted: Sequence[str]) -> Iterator[Directory]:
    """What several layers show together, for reading."""
    with contextlib.ExitStack() as stack:
        lower = [Place(stack.enter_context(_layer(chain, name)), _UPPER) for name in reversed(wanted)]
        merged = overlay.detached(source=FILE, lower=lower)
        stack.callback(os.close, merged)
        yield stack.enter_context(Directory(os.open(".", _DIRECTORY, dir_fd=merged)))


@contextlib.contextmanager
def _like(chain: Directory, name: str) -> Iterator[int]:
    """The topmost directory of a layer, open for reading."""
    with _layer(chain, name) as layer:
        upper = os.open(_UPPER, _DIRECTORY, dir_fd=layer)
        try:
            yield upper
        finally:
            os.close(upper)


@contextlib.contextmanager
def _mounted(fd: int, options: Sequence[str] = ()) -> Iterator[int]:
    """The image's filesystem, mounted for writing where nobody can reach it; joins the one that is mounted."""
    imagefile.refuse_strange(fd, FILESYSTEM)
    with loops.ensure(backing_fd=fd, name=imagefile.label(fd)) as loop:
        top = mounts.filesystem_detached(source=loop.path, filesystem=FILESYSTEM, options=options)
    try:
        yield top
    finally:
        os.close(top)


@contextlib.contextmanager
def _layer(chain: Directory, name: str) -> Iterator[int]:
    """A layer's filesystem, mounted read-only where nobody can reach it; the same one for all who have the layer.

    Raises:
        PreconditionError: it is not there, or no filesystem.
        UnavailableError: it was an image a moment ago, and its device has not been freed yet.
    """
    try:
        fd = chain.open_file(name, os.O_RDONLY)
    except FileNotFoundError as error:
        raise PreconditionError(
            f"the layer {path_of(chain.fd)}/{name} is missing: restore the volume from a backup"
        ) from error
    try:
        imagefile.refuse_strange(fd, FILESYSTEM)
        top = _readable(fd)
        try:
            yield top
        finally:
            os.close(top)
    finally:
        os.close(fd)


def _readable(fd: int, *, pause: Callable[[float], None] = time.sleep) -> int:
    for seconds in (*_PAUSES, None):
        with loops.ensure(backing_fd=fd, name=imagefile.label(fd, depth=3), read_only=True) as loop:
            if loop.status.read_only:
                return mounts.filesystem_detached(source=loop.path, filesystem=FILESYSTEM, options=["ro"])
        if seconds is not None:
            pause(seconds)
    raise UnavailableError(f"the layer {path_of(fd)} is still attached for writing: ask again")


def _name(number: int) -> str:
    return f"{number:02d}"


def _inode(folder: Directory, name: str) -> tuple[int, int]:
    seen = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
    return seen.st_dev, seen.st_ino
