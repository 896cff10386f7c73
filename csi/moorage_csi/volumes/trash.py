"""Deleting is renaming: a folder goes into the pool's trash in one step and is removed there later.

The rename is what a deletion is; it cannot stop half way. Removing what lies in the trash can take long,
may fail (an immutable file, a mount below) and may be tried again any number of times, without anybody
having to remember it: what lies there is what is left to do.

What was deleted may be wanted back for as long as the pool's ``trash_retention`` says. Before the first file of it is
removed, its name loses the moment, in one rename. So what still has one is whole, however a removal and somebody who
wants it back race: only one of them finds it under its name.
"""

import errno
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from moorage_csi.host import btrfs, qgroups
from moorage_csi.host.paths import Directory
from moorage_csi.volumes.ids import SNAPSHOT_ID, VOLUME_ID
from moorage_csi.volumes.remains import Remains

_NO_DIRECTORY: Final = frozenset({errno.ENOTDIR, errno.ELOOP})
IDS: Final = re.compile(f"(?:{VOLUME_ID.pattern})|(?:{SNAPSHOT_ID.pattern})")


class Trash(Remains):
    """The remains that are removed."""

    def __init__(
        self, folder: Directory, *, retention: float, clock: Callable[[], float], token: Callable[[int], str]
    ) -> None:
        super().__init__(folder, labels=IDS, retention=retention, token=token)
        self._clock = clock

    def names(self) -> tuple[str, ...]:
        """What may be removed at this moment; anything else is not ours, or may be wanted back."""
        return tuple(one.name for one in self.expired(self._clock()))

    def remove(self, name: str, *, batch: Callable[[], None] | None = None) -> None:
        """Remove one folder and all below it, never through a link. Absent: nothing happens.

        ``batch`` is called after every entry and may sleep to hold a rate. A crash leaves what is left of it under a
        name by which it is removed at once.

        Raises:
            OSError: something in it cannot be removed; what could be is gone, and it may be tried again.
        """
        one = self.remnant(name)
        if one is not None and one.left is not None:
            try:
                name = self.put(self.folder, name, one.label, shares=one.shares)
            except FileNotFoundError:
                # Wanted back, or removed by another node of a shared pool.
                return
        with suppress(FileNotFoundError), self.folder.child(name) as folder:
            _destroy_subvolumes(folder, batch)
        self.folder.remove_tree(name, batch=batch)


def _destroy_subvolumes(folder: Directory, batch: Callable[[], None] | None) -> None:
    """Remove those that lie in the folder as a whole, however much is in them, and what is left of their limits."""
    if not btrfs.is_btrfs(folder.fd):
        return
    for name in folder.names():
        try:
            with folder.child(name) as child:
                whole = btrfs.subvolume(child.fd) is not None
        except OSError as error:
            if error.errno not in _NO_DIRECTORY:
                raise
            continue
        if whole:
            # One that was nearly had back may have its limit again.
            qgroups.drop_limit(folder, name)
            btrfs.destroy(folder, name, batch=batch)
