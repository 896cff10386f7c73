"""What every random schedule has in common: watches that deliver, workers that go on, answers that are lost."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

if TYPE_CHECKING:
    from tests.unit.operator.model_cluster import Cluster
    from tests.unit.operator.model_life import Life

CHOICE = st.integers(0, 1_000_000)
MANY_SCHEDULES = int(os.environ.get("MOORAGE_SCHEDULES", "300"))
MANY = settings(
    max_examples=MANY_SCHEDULES,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


def pick(items: list[Any], choice: int) -> Any:
    return items[choice % len(items)]


class Steps(RuleBasedStateMachine):
    """A cluster and those who act in it; whoever takes these steps makes both."""

    cluster: Cluster

    def __init__(self) -> None:
        super().__init__()
        self.lives: list[Life] = []

    @rule()
    def an_answer_will_be_lost(self) -> None:
        self.cluster.lose_next_answer = True

    @rule(backwards=st.booleans())
    def writes_beside_each_other_turn_round(self, *, backwards: bool) -> None:
        self.cluster.backwards = backwards

    @rule(choice=CHOICE, times=st.integers(1, 6))
    def the_watch_delivers(self, choice: int, times: int) -> None:
        life = pick(self.lives, choice)
        for _ in range(times):
            life.deliver()

    @rule(choice=CHOICE, which=CHOICE)
    def a_worker_begins(self, choice: int, which: int) -> None:
        life = pick(self.lives, choice)
        keys = life.startable()
        if keys:
            life.begin(pick(keys, which))

    @rule(choice=CHOICE, which=CHOICE, times=st.integers(1, 4))
    def a_worker_goes_on(self, choice: int, which: int, times: int) -> None:
        life = pick(self.lives, choice)
        for _ in range(times):
            keys = sorted(life.running)
            if keys:
                life.advance(pick(keys, which))

    @invariant()
    def nothing_forbidden_has_happened(self) -> None:
        self.cluster.check()
