"""Volumes as layers, as container images are: read-only ones that many have in common, and over them one of their own.

What is written goes to an image with the volume's size, see ``layers``, so that is what can be written over the layers
below; reading is reading of one tree, which the kernel's overlay makes of all. A copy or a snapshot of a volume that nobody uses
takes the same time however much there is: the image becomes a layer of both, and each goes on with an empty one. While it is
used, what was written since the last layer is copied. All that are made of one base read it by way of one
device, and have it in memory once.

Two things differ from a filesystem of one's own, because a file of a layer is copied as a whole when it is first written
to: that write waits for it, and a file with several names becomes several files.

The account of the pool sees a layer as something that is on the disk and never grows, and promises nothing to it. But a
volume whose image becomes a layer can write all of its size once more, so a copy takes as much of the pool, see ``room``.
"""

import asyncio
import contextlib
import functools
import operator
import os
from collections.abc import Callable, Iterator
from typing import Final

from moorage_csi import contract
from moorage_csi.backends import fitting, imagefile, layers
from moorage_csi.backends.backend import Capabilities, Footprint, Publication, Shape, Usage
from moorage_csi.backends.targets import (
    attributes_of,
    figures_of,
    held_by,
    opened_target,
    path_of,
    refuse_other_access,
    take_away,
)
from moorage_csi.errors import InvalidArgumentError, NotFoundError, PreconditionError, UnavailableError
from moorage_csi.host import commands, filesystems, freezing, mounts, paths, syscalls
from moorage_csi.host.mounts import Mount, MountAttributes, MountFlag
from moorage_csi.host.paths import Directory

_PRIVATE: Final = 0o700
_BLOCK_UNIT: Final = 512
_EVERY_FLAG: Final = functools.reduce(operator.or_, MountFlag)


class Layered:
    """The backend ``layered``; ``no_overlay`` says why this node cannot mount such volumes, None where it can."""

    name = contract.BACKEND_LAYERED
    capabilities = Capabilities(block=False, shared=False, filesystems=(layers.FILESYSTEM,))

    def __init__(self, *, no_overlay: str | None) -> None:
        self._no_overlay = no_overlay

    def filesystem(self, asked: str) -> str:
        """ext4, which overlays can be written on everywhere."""
        if asked not in ("", layers.FILESYSTEM):
            raise InvalidArgumentError(
                f"backend {self.name} makes {layers.FILESYSTEM}, and {asked} is asked for: leave "
                f"{contract.Parameter.FSTYPE} out, or choose backend {contract.BACKEND_IMAGE}"
            )
        return layers.FILESYSTEM

    def minimum(self, filesystem: str) -> int:
        """What the filesystem's own tools need."""
        return filesystems.minimum(filesystem or layers.FILESYSTEM)

    def promise(self, asked: str) -> str:  # noqa: ARG002 - every wish is granted
        """The image's size holds whatever is asked."""
        if self._no_overlay is not None:
            raise PreconditionError(
                f"backend {self.name} is not possible on this node: {self._no_overlay}; choose backend "
                f"{contract.BACKEND_IMAGE}"
            )
        return contract.QUOTA_ENFORCED

    def make(self, folder: Directory, shape: Shape) -> None:
        """Make the image, all of it a hole, and no layers."""
        folder.make_directory(layers.LAYERS, _PRIVATE)
        imagefile.make(folder, layers.FILE, shape.size)

    async def format(self, folder: Directory, shape: Shape) -> None:
        """Make the filesystem in the image, with the directories of an overlay in it."""
        with _opened(folder) as fd:
            await commands.finish(layers.fill(fd, uuid=shape.uuid, permissions=shape.permissions))
            os.fsync(fd)

    @contextlib.contextmanager
    def held(self, folder: Directory) -> Iterator[None]:
        """Freeze the filesystem that is written to, where it is in use; see ``Backend.held``."""
        with contextlib.ExitStack() as stack:
            with _settled(folder):
                fitting.refuse_half_grown(folder)
                fd = stack.enter_context(_opened(folder))
                used = _is_used(fd)
                if used:
                    top = stack.enter_context(layers.written(fd))
            if used:
                stack.enter_context(imagefile.frozen(top, seconds=imagefile.FREEZE_SECONDS))
            yield

    def copy(
        self, source: Directory, folder: Directory, shape: Shape, *, pace: Callable[[], None], held: bool = False
    ) -> None:
        """Give the copy all layers of the source, and what was written over them as one more; see the module's text.

        Only what has a size to hold (see ``promise``), which a snapshot has not, gets an image to be written to.
        """
        folder.make_directory(layers.LAYERS, _PRIVATE)
        with folder.child(layers.LAYERS) as chain:
            _take_over(source, chain, pace, held=held)
            if len(layers.names(chain)) > layers.MOST:
                layers.flatten(folder, chain, pace=pace)
            if shape.quota == contract.QUOTA_ENFORCED:
                layers.complete(folder, chain, size=shape.size, uuid=shape.uuid)
        folder.sync()

    def book(self, folder: Directory, shape: Shape, *, copied: bool) -> bool:  # noqa: ARG002 - nothing counts so
        """The image of what is written is the size, whatever shares its data."""
        return True

    def resume(self, folder: Directory) -> None:
        """Thaw the filesystem that is written to, if it is there at all."""
        with contextlib.suppress(FileNotFoundError), _opened(folder) as fd:
            if imagefile.devices(fd):
                with layers.written(fd) as top:
                    freezing.thaw(top)

    def grow(self, folder: Directory, shape: Shape) -> None:
        """Append a hole to the image, and tell the device that shows it."""
        with _settled(folder), _opened(folder) as fd:
            imagefile.enlarge(fd, shape.size)

    def shrink(self, folder: Directory, shape: Shape, *, copied: bool) -> None:  # noqa: ARG002 - never
        """Refused: the filesystem would have to give up blocks that it may be using."""
        raise imagefile.never_smaller(self.name)

    async def fit(self, folder: Directory, shape: Shape) -> bool:
        """Grow the filesystem on the image, while no copy is being made of it."""
        await commands.finish(_fit(folder, shape))
        return True

    def spread(self, folder: Directory, shape: Shape) -> bool:
        """Grow the filesystem that is written to, by way of a mount of its own."""
        with _settled(folder), _opened(folder) as fd:
            if layers.is_free(fd):
                return False
            with layers.written(fd) as top:
                imagefile.grow_mounted(top, shape.filesystem, os.fstat(fd).st_size)
        return True

    def retire(self, folder: Directory) -> None:
        """Nothing: files are all there is."""

    def footprint(self, folder: Directory) -> Footprint | None:
        """The image's figures; those of the newest layer where there is no image; None for what is not of this backend.

        Layers count with none of the volumes that have them, except where a copy of the volume would have to write them
        anew, see ``layers.flatten``: that comes to their size at the most.
        """
        try:
            with folder.child(layers.LAYERS) as chain:
                present = layers.names(chain)
                sizes = [_allocated(chain, name) for name in present]
        except FileNotFoundError:
            return None
        anew = sum(sizes) if len(present) >= layers.MOST else 0
        try:
            with _opened(folder, os.O_RDONLY) as fd:
                found = os.fstat(fd)
        except FileNotFoundError:
            newest = sizes[-1] if sizes else 0
            return Footprint(size=newest, allocated=newest)
        return Footprint(size=found.st_size + anew, allocated=found.st_blocks * _BLOCK_UNIT + anew)

    def fault(self, folder: Directory, shape: Shape) -> str:
        """That a file is not there or too short, or that the kernel found errors in the filesystem that is written to."""
        where = path_of(folder.fd)
        try:
            with folder.child(layers.LAYERS) as chain:
                missing = layers.missing(chain)
            with _opened(folder, os.O_RDONLY) as fd:
                size = os.fstat(fd).st_size
                errors = sum(filesystems.ext4_errors(f"loop{device.number}") for device in imagefile.devices(fd))
        except FileNotFoundError as error:
            return f"{error.filename} is missing in {where}: restore the volume from a backup"
        if missing:
            return f"the layer {where}/{layers.LAYERS}/{missing} is missing: restore the volume from a backup"
        if size < shape.size:
            return f"the image has {size} bytes, and {shape.size} were promised: restore the volume from a backup"
        if errors:
            return (
                f"the kernel found errors in the {shape.filesystem} of {where}/{layers.FILE} and writes no more: end the "
                "pods, check it with fsck on the node, and look at the disk below the pool"
            )
        return ""

    def users(self, folder: Directory) -> tuple[str, ...]:
        """Where the volume is mounted, and the image's device where it is held without a mount that we could see."""
        try:
            with _opened(folder, os.O_RDONLY) as fd:
                found = tuple(mount.target for mount in _mounts_of(fd))
                if found or layers.is_free(fd):
                    return found
                return tuple(device.path for device in imagefile.devices(fd))
        except FileNotFoundError:
            return ()

    def publish(self, folder: Directory, shape: Shape, publication: Publication) -> None:
        """Mount the overlay, or show the one that is mounted, or find that it is done; see ``Backend.publish``.

        A crash at any step frees all devices: what is not moved onto the target yet goes with the process.
        """
        with _settled(folder) as chain, _opened(folder) as fd:
            found = _mounts_of(fd)
            if _published(fd, publication):
                return
            fitting.refuse_half_grown(folder)
            others = [mount.target for mount in found if mount.target != publication.target]
            if publication.exclusive and others:
                raise held_by(others)
            whole = next((mount for mount in found if mount.root == "/"), None)
            if whole is not None:
                _show(whole, publication)
                return
            if not layers.is_free(fd):
                raise UnavailableError(
                    f"the volume is still in use ({', '.join(others) or 'by a copy that is being made, or in a pod that ends'}), and is "
                    "never mounted twice: ask again when that has ended"
                )
            _mount(fd, chain, shape, publication)

    def unpublish(self, folder: Directory | None, target: str, kubelet_dir: str) -> None:  # noqa: ARG002
        """Unmount and remove the target; the kernel frees the devices with the last one."""
        take_away(target, kubelet_dir)

    def usage(self, folder: Directory, shape: Shape, path: str, kubelet_dir: str) -> Usage:  # noqa: ARG002
        """The figures of the filesystem that is written to: what layers hold takes none of the volume's size."""
        with _opened(folder, os.O_RDONLY) as fd, opened_target(path, kubelet_dir) as target:
            if not _is_of(mounts.mount_of_fd(target), fd):
                raise NotFoundError(f"volume_path {path!r}: the volume is not mounted there")
            return figures_of(target)


def _take_over(source: Directory, chain: Directory, pace: Callable[[], None], *, held: bool) -> None:
    """Give the copy's chain all that the source shows, as layers.

    What is copied comes before what has only to be linked, since the account counts what it finds of the former. From the look
    at the source on its image is attached or does not change any more, so nothing can come between.
    """
    with contextlib.ExitStack() as stack:
        with _settled(source) as origin:
            fitting.refuse_half_grown(source)
            below = layers.names(origin)
            if not source.exists(layers.FILE):
                layers.link(origin, below, chain)
                return
            fd = stack.enter_context(_opened(source))
            if not _is_used(fd) and len(below) < layers.MOST:
                layers.seal(source, origin)
                layers.link(origin, layers.names(origin), chain)
                return
            top = stack.enter_context(layers.written(fd))
        with source.child(layers.LAYERS) as origin:
            if layers.changed(top, origin, below):
                with imagefile.frozen(top, seconds=imagefile.FREEZE_SECONDS, by_caller=held):
                    layers.add(chain, len(below), lambda made: imagefile.copy(fd, made, pace))
            layers.link(origin, below, chain)


async def _fit(folder: Directory, shape: Shape) -> None:
    with folder.child(layers.LAYERS) as chain:
        await asyncio.to_thread(layers.lock, chain)
        layers.settle(folder, chain)
        with _opened(folder) as fd:
            if not await asyncio.to_thread(layers.is_free, fd):
                raise UnavailableError("the volume is being copied or came into use: ask again")
            await fitting.fit(folder, fd, shape.filesystem, lock=chain.fd)


def _mount(fd: int, chain: Directory, shape: Shape, publication: Publication) -> None:
    """Mount the overlay onto the target."""
    options = attributes_of(publication)
    missing = layers.missing(chain)
    if missing:
        raise PreconditionError(
            f"the layer {path_of(chain.fd)}/{missing} is missing: restore the volume from a backup, {shape.size} bytes"
        )
    top = layers.mount(fd, chain, source=_tag(fd), options=options.filesystem, attributes=options.attributes)
    try:
        target = paths.open_target_directory(publication.target, publication.kubelet_dir)
        try:
            syscalls.move_mount(top, target)
        finally:
            os.close(target)
    finally:
        os.close(top)


def _show(mount: Mount, publication: Publication) -> None:
    """Show at the target what is mounted elsewhere, with the attributes that are asked for here."""
    wanted = attributes_of(publication).attributes.set
    with imagefile.entered(mount) as inside:
        target = paths.open_target_directory(publication.target, publication.kubelet_dir)
        try:
            mounts.bind(
                source_fd=inside,
                target_fd=target,
                attributes=MountAttributes(set=wanted, clear=_EVERY_FLAG & ~wanted),
            )
        finally:
            os.close(target)


def _published(fd: int, publication: Publication) -> bool:
    """Whether the target has this volume already, in the way that is asked for."""
    mount = mounts.mount_at(publication.target, beneath=publication.kubelet_dir)
    if mount is None:
        return False
    if not _is_of(mount, fd):
        raise PreconditionError(
            f"target_path {publication.target}: {mount.source or mount.filesystem} ({mount.major}:{mount.minor}) is "
            "mounted there, which is not this volume; nothing is mounted over it: unmount it first"
        )
    refuse_other_access(publication, read_only=mount.read_only)
    return True


def _mounts_of(fd: int) -> list[Mount]:
    """Where the volume is mounted."""
    return [mount for mount in mounts.mounts() if _is_of(mount, fd)]


def _is_used(fd: int) -> bool:
    return bool(_mounts_of(fd)) or not layers.is_free(fd)


def _is_of(mount: Mount | None, fd: int) -> bool:
    return mount is not None and (mount.filesystem, mount.source) == ("overlay", _tag(fd))


def _tag(fd: int) -> str:
    """A word for the image, which no other file's overlay has: the file lives as long as its own does."""
    seen = os.fstat(fd)
    return f"{contract.BACKEND_LAYERED}-{seen.st_dev:x}-{seen.st_ino:x}"


def _allocated(chain: Directory, name: str) -> int:
    return os.stat(name, dir_fd=chain.fd, follow_symlinks=False).st_blocks * _BLOCK_UNIT


@contextlib.contextmanager
def _settled(folder: Directory) -> Iterator[Directory]:
    """The layers of a volume or snapshot, locked, with nothing left of an attempt that died; see ``layers.locked``."""
    with folder.child(layers.LAYERS) as chain, layers.locked(chain):
        layers.settle(folder, chain)
        yield chain


@contextlib.contextmanager
def _opened(folder: Directory, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = layers.opened(folder, flags)
    try:
        yield fd
    finally:
        os.close(fd)
