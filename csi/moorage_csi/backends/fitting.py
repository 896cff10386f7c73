"""Making the filesystem in an image that nobody uses as large as the image, so that a crash in the middle heals.

    <folder>/image.growing    the superblock that the filesystem had before its first change, until it is as large as the image

The tool that grows ext4 does not journal what it does. One that dies in the middle leaves all data where it was, and a
filesystem that has to be repaired before it may be mounted, copied or grown. The file is what that begins with. It proves
too that the filesystem was whole before; any other damage is for a person to decide about.
"""

from typing import Final

from moorage_csi.backends.targets import path_of
from moorage_csi.errors import UnavailableError
from moorage_csi.host import growing
from moorage_csi.host.paths import Directory

GROWING: Final = "image.growing"


async def fit(folder: Directory, fd: int, filesystem: str, *, lock: int) -> None:
    """Grow the filesystem on the image that ``fd`` is open on; ``lock`` as in ``growing.grow_image``.

    After a crash at any step the next call begins with what has to be repaired. OSError and CommandError as there.
    """

    def keep(before: bytes | None) -> None:
        if before is None:
            folder.unlink(GROWING, missing_ok=True)
            folder.sync()
        else:
            folder.write_atomic(GROWING, before)

    kept = folder.read_bytes(GROWING) if folder.exists(GROWING) else None
    await growing.grow_image(fd, filesystem, lock=lock, kept=kept, keep=keep)


def refuse_half_grown(folder: Directory) -> None:
    """Refuse to mount or to copy an image whose filesystem is in the middle of being grown.

    Raises:
        UnavailableError: it is; growing the volume again, or publishing it, goes on with that first.
    """
    if folder.exists(GROWING):
        raise UnavailableError(
            f"the filesystem of the image in {path_of(folder.fd)} is half grown, and growing it has to end first: ask again"
        )
