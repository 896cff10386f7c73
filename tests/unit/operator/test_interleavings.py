"""Random schedules: claims, faults, deaths, stale reads, the in-tree binder, and two operators that both act.

Hypothesis chooses the order of every step; what must hold is checked after each of them, and at the end
everything is brought to rest, where each claim has to be bound and nothing may be left over.
"""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis import target
from hypothesis.stateful import initialize, precondition, rule

from moorage_operator.model.volume import Volume
from tests.unit.operator.model_cluster import Cluster, claim_path_of
from tests.unit.operator.model_life import Life
from tests.unit.operator.model_nodes import NODES
from tests.unit.operator.objects import claim_body
from tests.unit.operator.steps import CHOICE, MANY, Steps, pick

pytestmark = pytest.mark.timeout(900)

MOODS = ("fine", "down", "mute", "busy", "exhausted", "broken", "refusing")
LIFES = 2
REST_ROUNDS = 400


class Schedules(Steps):
    """Two operators, neither of which knows that it may not be alone."""

    operators = LIFES

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster()
        self.made = 0
        self.forgotten: set[str] = set()

    @initialize()
    def start(self) -> None:
        self.lives = [Life(self.cluster, f"operator-{number}") for number in range(self.operators)]

    @rule(name=st.sampled_from("ab"), late=st.booleans(), node=st.sampled_from(NODES))
    def somebody_makes_a_claim(self, name: str, *, late: bool, node: str) -> None:
        path = f"/api/v1/namespaces/ns/persistentvolumeclaims/{name}"
        if path in self.cluster.api.objects:
            return
        self.made += 1
        marks = {"volume.kubernetes.io/selected-node": node} if late else None
        body = claim_body(name, uid=f"claim-{self.made}", class_name="late" if late else "fast", marks=marks)
        self.cluster.api.store(path, body)

    @rule(name=st.sampled_from("ab"))
    def somebody_deletes_a_claim(self, name: str) -> None:
        self.cluster.api.delete(f"/api/v1/namespaces/ns/persistentvolumeclaims/{name}")

    @rule(node=st.sampled_from(NODES), choice=CHOICE)
    def the_scheduler_selects_a_node(self, node: str, choice: int) -> None:
        pending = [
            claim
            for claim in self.cluster.api.claims.values()
            if claim["spec"]["storageClassName"] == "late"
            and "volume.kubernetes.io/selected-node" not in claim["metadata"].get("annotations", {})
        ]
        if pending:
            claim = pick(pending, choice)
            claim["metadata"].setdefault("annotations", {})["volume.kubernetes.io/selected-node"] = node
            self.cluster.api.store(claim_path_of(claim), claim)

    @rule(choice=CHOICE)
    def somebody_retains_a_volume(self, choice: int) -> None:
        """Not while an operator is between its last look and the destruction: nobody could notice that."""
        volumes = [*self.cluster.api.volumes.items()]
        if volumes and not any(key.kind == "volume" for life in self.lives for key in life.running):
            path, body = pick(volumes, choice)
            body["spec"]["persistentVolumeReclaimPolicy"] = "Retain"
            self.cluster.api.store(path, body)

    @rule(node=st.sampled_from(NODES), mood=st.sampled_from(MOODS))
    def a_node_changes_its_mood(self, node: str, mood: str) -> None:
        self.cluster.nodes.mood[node] = mood

    @rule(seconds=st.sampled_from((0.5, 3.0, 30.0, 400.0)))
    def time_passes(self, seconds: float) -> None:
        self.cluster.now += seconds

    @rule(choice=CHOICE)
    def the_binder_reads(self, choice: int) -> None:
        wanted = self.cluster.binder_wants()
        if wanted:
            self.cluster.binder_read.append(pick(wanted, choice))

    @precondition(lambda self: self.cluster.binder_read)
    @rule(choice=CHOICE)
    def the_binder_writes(self, choice: int) -> None:
        index = choice % len(self.cluster.binder_read)
        self.cluster.binder_writes(*self.cluster.binder_read.pop(index))

    @rule(choice=CHOICE, news=st.booleans())
    def an_operator_works_until_it_has_nothing_to_do(self, choice: int, *, news: bool) -> None:
        life = pick(self.lives, choice)
        while news and life.deliver():
            pass
        for key in sorted(life.ready):
            if key not in life.running:
                life.begin(key)
        while life.running:
            life.advance(min(life.running))

    @rule()
    def the_binder_works_until_it_has_nothing_to_do(self) -> None:
        while wanted := self.cluster.binder_wants():
            self.cluster.binder_writes(*wanted[0])

    @rule(choice=CHOICE)
    def an_operator_is_killed(self, choice: int) -> None:
        index = choice % len(self.lives)
        self.lives[index].die()
        self.forgotten |= {f"pvc-{uid}" for uid in self.lives[index].begun}
        self.lives[index] = Life(self.cluster, f"operator-{index}")

    def teardown(self) -> None:
        if not self.lives:
            return
        self.cluster.nodes.mood = dict.fromkeys(NODES, "fine")
        self.cluster.lose_next_answer = False
        target(float(len(self.cluster.api.log)), label="writes of everybody")
        self._rest()
        self._check_rest()
        before = dict(self.cluster.writes)
        self._rest()
        assert before == dict(self.cluster.writes), "an idle operator has written"
        for life in self.lives:
            life.die()

    def _rest(self) -> None:
        """Everybody works, fairly, until nobody has anything left to do."""
        for _ in range(REST_ROUNDS):
            self.cluster.now += 400.0
            busy = False
            for life in self.lives:
                while life.deliver():
                    busy = True
                for key in life.startable():
                    life.begin(key)
                while life.running:
                    busy = True
                    life.advance(min(life.running))
            busy |= self._schedule()
            for wanted in self.cluster.binder_wants():
                busy = True
                self.cluster.binder_writes(*wanted)
            self.cluster.check()
            if not busy and not any(life.ready for life in self.lives):
                return
        raise AssertionError("it never comes to rest")

    def _schedule(self) -> bool:
        """The scheduler selects a node for every late claim that has none; whether there was one."""
        asked = False
        for claim in list(self.cluster.api.claims.values()):
            marks = claim["metadata"].setdefault("annotations", {})
            if claim["spec"]["storageClassName"] == "late" and "volume.kubernetes.io/selected-node" not in marks:
                marks["volume.kubernetes.io/selected-node"] = NODES[0]
                self.cluster.api.store(claim_path_of(claim), claim)
                asked = True
        return asked

    def _check_rest(self) -> None:
        api = self.cluster.api
        for claim in api.claims.values():
            assert claim["status"]["phase"] == "Bound", claim
        for (uid, what), count in self.cluster.writes.items():
            once = {"create", "/spec/volumeName", "/status/phase", "/metadata/finalizers/0"}
            assert count == 1 or what not in once, f"{what} of {uid} was written {count} times"
        owned = set()
        for body in api.volumes.values():
            volume = Volume.from_api(body)
            assert api.claim_of(volume.claim_uid) or volume.reclaim_policy == "Retain", "a volume outlives its claim"
            owned.add((volume.node, volume.name))
        for node, table in self.cluster.nodes.tables.items():
            for name in table:
                # A death forgets what was begun: the driver's own record is left then.
                assert (node, name) in owned or name in self.forgotten, f"{name} leaked on {node}"


class OneOperator(Schedules):
    """One operator, as a Lease has it: then also the events of each claim are counted."""

    operators = 1

    def _check_rest(self) -> None:
        super()._check_rest()
        for (uid, reason), messages in self.cluster.events.items():
            if reason == "ProvisioningSucceeded":
                assert len(messages) == 1, f"{uid} was told {len(messages)} times"


Schedules.TestCase.settings = MANY
OneOperator.TestCase.settings = MANY
TestTwoOperators = Schedules.TestCase
TestOneOperator = OneOperator.TestCase
