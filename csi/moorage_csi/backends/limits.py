"""Lowering a limit that the kernel holds for a volume: never below what is in use."""

from collections.abc import Callable

from moorage_csi import quantity
from moorage_csi.errors import PreconditionError
from moorage_csi.host.quotas import Limit


def lower(size: int, *, read: Callable[[], Limit], write: Callable[[int], None], beside: int = 0) -> None:
    """Lower a limit to ``size`` bytes and ``beside`` more; ``write`` reads back what it wrote.

    Raises:
        PreconditionError: more than ``size`` is in use; the limit is what it was.
    """
    before = read()
    _refuse_fuller(before.used, size)
    write(size + beside)
    after = read()
    if after.used > size:
        # Somebody was faster: the volume keeps its size, rather than being fuller than full.
        write(before.limit)
        _refuse_fuller(after.used, size)


def _refuse_fuller(used: int, size: int) -> None:
    if used > size:
        raise PreconditionError(
            f"{quantity.text(used)} are in use, more than {quantity.text(size)}: delete files first, or snapshots that hold on "
            "to what was deleted"
        )
