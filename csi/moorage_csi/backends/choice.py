"""What ``backend: auto`` means in a pool: chosen from facts, kept from then on, and explained.

As Docker picks its storage driver: a pool that has a choice keeps it, and otherwise what its
filesystem can do decides. A plain filesystem gets images, whose size holds everywhere. A pool that
nodes share gets directories, because a filesystem inside a file does not survive two kernels.
"""

from dataclasses import dataclass

from moorage_csi.contract import BACKEND_BTRFS, BACKEND_DIRECTORY, BACKEND_IMAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found out about a pool.

    ``no_quota`` says why the kernel cannot limit a directory in it, None where it can, and ``no_subvolume_quota`` the same
    of a subvolume; ``kept`` is the choice that lies in the pool already.
    """

    filesystem: str
    shared: bool
    no_quota: str | None
    no_subvolume_quota: str | None
    kept: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A backend's name and why it was chosen, for people."""

    backend: str
    reason: str


def choose(facts: Facts) -> Choice:
    """The backend for volumes whose class asks for none in particular."""
    if facts.shared:
        return Choice(
            backend=BACKEND_DIRECTORY,
            reason="several nodes share the pool, and a filesystem inside an image would not survive two of them",
        )
    if facts.kept in (BACKEND_IMAGE, BACKEND_DIRECTORY, BACKEND_BTRFS):
        return Choice(backend=facts.kept, reason="the pool was begun with it")
    if facts.no_subvolume_quota is None:
        return Choice(
            backend=BACKEND_BTRFS,
            reason="the pool's btrfs counts for subvolumes, so they keep their size, and snapshots and copies take no time",
        )
    if facts.no_quota is None:
        return Choice(
            backend=BACKEND_DIRECTORY,
            reason=f"the pool's {facts.filesystem} holds project quotas, so a directory keeps its size",
        )
    return Choice(
        backend=BACKEND_IMAGE,
        reason=f"an image keeps its size anywhere, and a directory would not: {facts.no_quota}",
    )
