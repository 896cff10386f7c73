"""Random schedules with everything at once: static and dynamic volumes, late binding, pods, wipes, deaths and stale reads.

Who binds: two of ours instead of the in-tree binder, one of ours beside it, two of ours beside it without a Lease.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moorage_operator.model.rules import Rules
from tests.unit.operator.generated import seeds
from tests.unit.operator.model_binder import InTreeLife
from tests.unit.operator.model_life import Life
from tests.unit.operator.model_world import World

if TYPE_CHECKING:
    from tests.unit.operator.model_scheduler import ScheduledCluster

pytestmark = pytest.mark.timeout(900)

BESIDE = Rules(patience=0.0)
INSTEAD = Rules(instead=True, patience=0.0)
schedules = st.lists(seeds, min_size=60, max_size=160)
MANY = settings(
    max_examples=int(os.environ.get("MOORAGE_SCHEDULES", "150")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


def ours(cluster: ScheduledCluster) -> Life:
    return Life(cluster, "ours", BESIDE)


def another(cluster: ScheduledCluster) -> Life:
    return Life(cluster, "another", BESIDE)


def the_only_one(cluster: ScheduledCluster) -> Life:
    return Life(cluster, "instead", INSTEAD)


def in_tree(cluster: ScheduledCluster) -> Life:
    return InTreeLife(cluster, "in-tree")


def play(world: World, moves: list[int]) -> None:
    try:
        for move in moves:
            world.move(move)
        world.end()
    except AssertionError:
        hypothesis.note("\n".join(world.story))
        raise


@given(moves=schedules)
@MANY
def test_two_of_ours_instead_of_the_in_tree_binder(moves: list[int]) -> None:
    play(World(INSTEAD, [the_only_one, the_only_one]), moves)


@given(moves=schedules)
@MANY
def test_one_of_ours_beside_the_in_tree_binder(moves: list[int]) -> None:
    play(World(BESIDE, [ours, in_tree]), moves)


@given(moves=schedules)
@MANY
def test_two_of_ours_beside_the_in_tree_binder(moves: list[int]) -> None:
    play(World(BESIDE, [ours, another, in_tree]), moves)
