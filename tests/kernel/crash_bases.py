"""What is in a pool before an operation is killed: see ``crash_operations``."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from moorage_csi.rpc.validation import volume_id_for
from moorage_csi.volumes.ids import snapshot_id_for
from tests.kernel.crash_world import World, devices_below, gone, sum_of

Step: TypeAlias = Callable[[World], Awaitable[object]]

SOURCE: Final = volume_id_for("source")
SNAPSHOT: Final = snapshot_id_for("snap")
COPY: Final = volume_id_for("copy")
DAY: Final = 86400.0

_SUM: Final = "sum"
_LONG_AGO: Final = "-20200101T000000Z"


async def _volume(world: World, on_delete: str = "") -> None:
    await world.create("source", on_delete=on_delete)
    await world.fill(SOURCE)
    await gone(lambda: devices_below(world.area), "loop devices")
    _remember(world)


async def _snapshot(world: World, on_delete: str = "") -> None:
    await _volume(world, on_delete)
    await world.snapshot("snap", SOURCE)
    _remember(world)


async def _deleted(world: World) -> None:
    await _volume(world)
    await world.delete(SOURCE)


async def _left(world: World) -> None:
    """Something in the trash, and something in the archive whose time is over."""
    await _snapshot(world)
    await world.delete(SOURCE)
    await world.delete_snapshot(SNAPSHOT)
    await world.create("copy", on_delete="archive")
    await world.delete(COPY)
    [archived] = (world.pool / "archived").iterdir()
    label, _, letters = archived.name.rpartition(".")
    archived.rename(archived.with_name(f"{label.rpartition('-')[0]}{_LONG_AGO}.{letters}"))


async def _empty(world: World) -> None:
    assert not await world.listed()


BASES: Final[dict[str, Step]] = {
    "empty": _empty,
    "volume": _volume,
    "snapshot": _snapshot,
    "archive": lambda world: _snapshot(world, "archive"),
    "retain": lambda world: _snapshot(world, "retain"),
    "deleted": _deleted,
    "left": _left,
}
RETENTIONS: Final = {"deleted": DAY, "left": DAY}


def remembered(world: World) -> str:
    """The sum of the source, as it was before."""
    return (world.area / _SUM).read_text(encoding="ascii")


def _remember(world: World) -> None:
    """Keep a sum of the source beside the pool."""
    (world.area / _SUM).write_text(sum_of(world.folder(SOURCE)), encoding="ascii")
