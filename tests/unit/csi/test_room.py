"""The arithmetic of promising, the choice of a backend, and settings that cannot be meant."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage_csi.backends.choice import Facts, choose
from moorage_csi.volumes.pool import PoolSettings
from moorage_csi.volumes.room import Room, Stake

_BYTES = st.integers(min_value=0, max_value=1 << 50)


@given(st.data(), _BYTES, st.integers(min_value=0, max_value=10))
def test_without_overcommit_every_promise_can_be_kept_whatever_else_is_on_the_disk(
    data: st.DataObject, total: int, count: int
) -> None:
    sizes = data.draw(st.lists(st.integers(min_value=0, max_value=1 << 40), min_size=count, max_size=count))
    allocated = [data.draw(st.integers(min_value=0, max_value=size)) for size in sizes]
    others = data.draw(_BYTES)
    reserve = data.draw(_BYTES)
    available = max(0, total - sum(allocated) - others)
    room = Room(
        total=total,
        available=available,
        reserve=reserve,
        promised=sum(sizes),
        unallocated=sum(sizes) - sum(allocated),
        overcommit=1.0,
    )
    assert room.free >= 0
    if room.free:
        # All volumes written to their ends, the new one too, leave the reserve free.
        assert room.unallocated + room.free + reserve <= available
        assert sum(sizes) + room.free + reserve <= total


def test_a_pool_with_nothing_in_it_promises_all_but_the_reserve() -> None:
    room = Room(total=100, available=100, reserve=10, promised=0, unallocated=0, overcommit=1.0)
    assert room.free == 90


def test_overcommit_multiplies_what_there_is() -> None:
    room = Room(total=100, available=100, reserve=10, promised=50, unallocated=50, overcommit=2.0)
    assert room.free == 130


def test_what_a_filesystem_stores_once_for_several_volumes_is_promised_once_to_each() -> None:
    # Clones or compression: eighty are written, and the disk shows all but ten of it as free.
    room = Room(total=100, available=90, reserve=0, promised=80, unallocated=0, overcommit=1.0)
    assert room.free == 20
    assert room.lacks(Stake(promised=20, unwritten=20)) == 0
    assert room.lacks(Stake(promised=21, unwritten=0)) == 1


def test_what_has_its_data_on_the_disk_lacks_only_what_it_has_not_written() -> None:
    room = Room(total=100, available=10, reserve=5, promised=50, unallocated=2, overcommit=1.0)
    assert room.free == 3
    assert room.lacks(Stake(promised=40, unwritten=3)) == 0
    assert room.lacks(Stake(promised=40, unwritten=7)) == 4
    assert room.lacks(Stake(promised=46, unwritten=0)) == 1


NO_BTRFS = "the filesystem has no subvolumes: btrfs has"


def facts(*, no_subvolume_quota: str | None = NO_BTRFS, **seen: Any) -> Facts:
    return Facts(no_subvolume_quota=no_subvolume_quota, **seen)


PLAIN = facts(filesystem="ext4", shared=False, no_quota="the kernel has no quota support", kept=None)


def test_a_plain_filesystem_gets_images_and_says_why() -> None:
    chosen = choose(PLAIN)
    assert chosen.backend == "image"
    assert "the kernel has no quota support" in chosen.reason


def test_project_quota_gets_directories() -> None:
    assert choose(facts(filesystem="xfs", shared=False, no_quota=None, kept=None)).backend == "directory"


def test_btrfs_that_counts_gets_subvolumes() -> None:
    seen = {"filesystem": "btrfs", "shared": False, "no_quota": "none", "kept": None}
    assert choose(facts(no_subvolume_quota=None, **seen)).backend == "btrfs"
    assert choose(facts(no_subvolume_quota="quotas are off", **seen)).backend == "image"


def test_a_pool_keeps_its_choice() -> None:
    assert choose(facts(filesystem="btrfs", shared=False, no_quota="none", kept="btrfs")).backend == "btrfs"
    assert choose(facts(filesystem="xfs", shared=False, no_quota=None, kept="image")).backend == "image"
    assert choose(facts(filesystem="xfs", shared=False, no_quota="lost", kept="directory")).backend == "directory"


def test_a_shared_pool_never_gets_images() -> None:
    for kept in (None, "image", "directory"):
        assert choose(facts(filesystem="nfs4", shared=True, no_quota="none", kept=kept)).backend == "directory"


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "Upper"},
        {"name": ""},
        {"path": "relative"},
        {"path": "/"},
        {"path": "/a/../b"},
        {"reserve_bytes": -1},
        {"reserve_percent": 100.0},
        {"reserve_percent": -1.0},
        {"overcommit": 0.5},
        {"overcommit": float("nan")},
        {"overcommit": float("inf")},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="pool"):
        PoolSettings(**({"name": "default", "path": "/var/lib/moorage/default"} | wrong))  # type: ignore[arg-type]
