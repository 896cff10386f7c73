"""Deleting is renaming: a folder goes into the pool's trash in one step and is removed there later.

The rename is what a volume's deletion is; it cannot stop half way. Removing what lies in the trash can
take long, may fail (an immutable file, a mount below) and may be tried again any number of times,
without anybody having to remember it: what lies there is what is left to do. Names carry random
letters, so that a volume made again under its old name and deleted again finds no obstacle.
"""

import re
from collections.abc import Callable
from typing import Final

from moorage_csi.host.paths import Directory
from moorage_csi.volumes.record import ID_PATTERN, VolumeId

_SUFFIX_BYTES: Final = 4
_NAME: Final = re.compile(rf"(?:{ID_PATTERN.pattern})\.[0-9a-f]{{{2 * _SUFFIX_BYTES}}}")


class Trash:
    """One folder of a pool that takes volumes' folders out of their place for good."""

    def __init__(self, folder: Directory, *, token: Callable[[int], str]) -> None:
        """``token(n)`` gives n random bytes in hexadecimal."""
        self._folder = folder
        self._token = token

    def put(self, source: Directory, name: str, volume: VolumeId) -> str:
        """Move the entry ``name`` of ``source`` in here; return its name here. On return the move is on the disk.

        Raises:
            FileNotFoundError: there is no such folder (any more).
        """
        new_name = f"{volume}.{self._token(_SUFFIX_BYTES)}"
        source.rename(name, self._folder, new_name)
        return new_name

    def names(self) -> tuple[str, ...]:
        """What was put here; anything else is not ours to remove."""
        return tuple(name for name in self._folder.names() if _NAME.fullmatch(name))

    def remove(self, name: str, *, batch: Callable[[], None] | None = None) -> None:
        """Remove one folder and all below it, never through a link. Absent: nothing happens.

        ``batch`` is called after every entry and may sleep to hold a rate.

        Raises:
            OSError: something in it cannot be removed; what could be is gone, and it may be tried again.
        """
        self._folder.remove_tree(name, batch=batch)
