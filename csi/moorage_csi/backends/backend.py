"""What every backend can be asked: the one seam between a volume and the kind of storage behind it.

A backend works in the folder that the pool gives it and knows nothing of records, ids or requests.
Its methods block and belong in the pool's own threads, except ``format``, which waits for a program. Errors
from the kernel leave it as ``OSError``; the driver's own errors leave it where a person has to decide.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from moorage_csi.host.paths import Directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend's volumes can be.

    ``shared`` says whether two nodes may use one volume at a time, which a filesystem inside a file
    never survives. ``books`` says whether ``Backend.book`` ever does anything.
    """

    block: bool
    shared: bool
    filesystems: tuple[str, ...]
    books: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The storage to make or to publish. ``size`` in bytes; no ``filesystem`` for a block device.

    ``uuid`` becomes the filesystem's own. ``quota`` is the word of ``contract.Context.QUOTA`` that
    ``Backend.promise`` gave.
    """

    uuid: str
    size: int
    block: bool
    filesystem: str
    permissions: int
    quota: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """Where and how a volume is to appear on this node.

    ``exclusive`` allows no second target; ``options`` are mount options as ``mount -o`` spells them.
    """

    target: str
    kubelet_dir: str
    readonly: bool
    exclusive: bool
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a volume may take and what it has taken of the pool, in bytes."""

    size: int
    allocated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """A total and its parts, in one unit."""

    total: int
    used: int
    available: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How full a volume is; a block device has a size and nothing else."""

    size: Amount
    inodes: Amount | None


class Backend(Protocol):
    """Storage of one kind in one pool."""

    @property
    def name(self) -> str:
        """The word for it in a class's ``backend`` parameter."""

    @property
    def capabilities(self) -> Capabilities:
        """What its volumes can be."""

    def filesystem(self, asked: str) -> str:
        """The filesystem made in a mounted volume for which ``asked`` was asked (empty: no wish); empty for none.

        Raises:
            InvalidArgumentError: this backend cannot give that one.
        """

    def minimum(self, filesystem: str) -> int:
        """The smallest size in bytes; ``filesystem`` is empty for a block device."""

    def promise(self, asked: str) -> str:
        """The quota word for a volume for which the class asks ``asked``.

        Raises:
            PreconditionError: the class requires a limit that this pool's kernel cannot hold.
        """

    def make(self, folder: Directory, shape: Shape) -> None:
        """Make the storage, without a filesystem inside. The folder holds nothing of this kind yet."""

    async def format(self, folder: Directory, shape: Shape) -> None:
        """Make the filesystem inside, which destroys what was there. On return it is on the disk.

        Nothing for storage that has none. The caller alone knows, from the record, that it may be done.
        Cancelled, it ends when the program has ended.
        """

    def held(self, folder: Directory) -> AbstractContextManager[None]:
        """Keep the storage from changing, so that several can be copied of one moment, for as long as the block lasts.

        Whoever writes to it waits, for 30 seconds at most. Nothing is to be done for storage that nobody uses; the caller
        keeps it from being used meanwhile. After a crash in the block, ``resume`` lets everybody go on.

        Raises:
            PreconditionError: it is in use and cannot be kept still; or, from the end of the block, it was not still
                until then, because that took too long.
        """

    def copy(
        self, source: Directory, folder: Directory, shape: Shape, *, pace: Callable[[], None], held: bool = False
    ) -> None:
        """Make the storage with all that other storage of this backend holds, which may be in use.

        The folder holds nothing of this kind yet, the shape is at least as large as the source, and what is written to
        the copy is never seen in the source, nor the other way round. A filesystem in it keeps the source's size, see
        ``fit``. ``pace`` is called every now and then: it may sleep, or raise to stop. ``held`` says that the caller is in
        the block of ``held`` of the source, or knows that nobody uses it. A crash leaves a torso, which the caller throws
        away.

        Raises:
            PreconditionError: it cannot be of one moment, because the source is in use.
        """

    def book(self, folder: Directory, shape: Shape, *, copied: bool) -> bool:
        """Have the kernel hold the size whether or not copies hold on to what the storage had before; free to repeat.

        Called with ``copied`` before each copy of it is made and after it grows, and without it once the last copy is gone.

        Returns:
            False where it has to be asked for again later, because the kernel still counts what is gone.
        """

    def resume(self, folder: Directory) -> None:
        """Let those who use the storage go on, whom a ``copy`` that died in the middle has stopped."""

    def grow(self, folder: Directory, shape: Shape) -> None:
        """Make the storage as large as the shape says, or find that it is; a filesystem in it keeps its size.

        Used or not. Never makes it smaller. After a crash it has the old size or the new one.
        """

    def shrink(self, folder: Directory, shape: Shape, *, copied: bool) -> None:
        """Hold the storage to the shape's size, which is smaller than before; used or not. ``copied`` as for ``book``.

        A crash leaves the old limit or the new one.

        Raises:
            PreconditionError: more is in use than that, or storage of this kind never becomes smaller; nothing changed.
        """

    async def fit(self, folder: Directory, shape: Shape) -> bool:
        """Make the filesystem in storage that nobody uses as large as the storage.

        Returns:
            False where it only grows while it is mounted (see ``spread``), and nothing was done.
        """

    def spread(self, folder: Directory, shape: Shape) -> bool:
        """The same for storage that this node uses; False where it does not use it for writing.

        Raises:
            PreconditionError: the kernel lets nobody grow it in use: it has to be unpublished, and ``fit``.
        """

    def retire(self, folder: Directory) -> None:
        """Give back what the kernel keeps for the storage outside of its folder, which is about to go."""

    def footprint(self, folder: Directory) -> Footprint | None:
        """The storage's size and what it has taken, in constant time; None where that cannot be told."""

    def fault(self, folder: Directory, shape: Shape) -> str:
        """What is wrong with the storage, for a person; empty where nothing is. Constant time; changes nothing."""

    def users(self, folder: Directory) -> tuple[str, ...]:
        """The mount points and devices through which this node still uses the storage."""

    def publish(self, folder: Directory, shape: Shape, publication: Publication) -> None:
        """Make the volume appear at the target. Done already: nothing happens. Never formats.

        A crash at any step leaves either nothing, or what the next call finds and completes.

        Raises:
            AlreadyExistsError: it is there, but writable where read-only was asked for or the reverse.
            PreconditionError: something else is there, the volume is exclusive and in use, or its
                filesystem is not the one the record names.
        """

    def unpublish(self, folder: Directory | None, target: str, kubelet_dir: str) -> None:
        """Take the volume away from the target and remove the target. Absent: nothing happens.

        ``folder`` is None for a volume that no pool knows any more.

        Raises:
            PreconditionError: the target is in use and stays.
        """

    def usage(self, folder: Directory, shape: Shape, path: str, kubelet_dir: str) -> Usage:
        """How full the volume is that is published at ``path``; constant time, never a tree walk.

        Raises:
            NotFoundError: the volume is not published there.
        """
