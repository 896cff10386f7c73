"""Random schedules with everything at once: late binding, pods, the scheduler, wipes, volumes of our driver and of others.

The machines of ``test_binders`` with more that people and the scheduler do, and the same that must hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from moorage_csi.contract import DRIVER_NAME
from tests.unit.operator import generated
from tests.unit.operator.model_binder import InTreeLife
from tests.unit.operator.model_life import Life
from tests.unit.operator.model_nodes import NODES
from tests.unit.operator.model_scheduler import ScheduledCluster
from tests.unit.operator.objects import claim_body, volume_body
from tests.unit.operator.test_binders import BESIDE, INSTEAD, Binders, claim_path, volume_path
from tests.unit.operator.test_interleavings import CHOICE, MANY, pick

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from tests.unit.operator.model_api import Body

pytestmark = pytest.mark.timeout(900)

CLAIMS, VOLUMES = "abcd", "vwxyz"
SEVERAL = st.lists(generated.seeds, min_size=1, max_size=4)
MODES = (*([["ReadWriteOnce"]] * 4), ["ReadWriteOnce", "ReadWriteMany"])
MARKS: tuple[dict[str, str], ...] = (
    {},
    {},
    {},
    {"moorage.dev/reuse": "after-wipe"},
    {"moorage.dev/reuse": "same-claim"},
    {"moorage.dev/reserved-for": "ns"},
    {"moorage.dev/reserved-for": "ns/b"},
)


class Schedulers(Binders):
    """Two of ours, each the only binder as far as it knows, and the scheduler."""

    setting = INSTEAD

    def __init__(self) -> None:
        super().__init__()
        self.cluster: ScheduledCluster = ScheduledCluster()
        self.forgotten: set[str] = set()

    @rule(several=SEVERAL)
    def people_make_claims_of_every_kind(self, several: list[int]) -> None:
        for random in map(generated.dice, several):
            name = random.choice(CLAIMS)
            if claim_path(name) not in self.cluster.api.objects:
                self.made += 1
                self.cluster.api.store(claim_path(name), self._claim(random, name))

    def _claim(self, random: Random, name: str) -> Body:
        spec: dict[str, Any] = {"accessModes": list(random.choice(MODES))}
        for field, value, chance in (
            ("volumeName", random.choice(VOLUMES), 0.1),
            ("volumeMode", "Block", 0.15),
            ("selector", {"matchLabels": {"tier": "gold"}}, 0.15),
        ):
            if random.random() < chance:
                spec[field] = value
        size, class_name = random.choice(("1Gi", "1Gi", "2Gi")), random.choice(("", "late", "late", "fast", None))
        return claim_body(name, uid=f"claim-{self.made}", class_name=class_name, size=size, **spec)

    @rule(several=SEVERAL)
    def people_make_volumes_of_every_kind(self, several: list[int]) -> None:
        for random in map(generated.dice, several):
            name = random.choice(VOLUMES)
            if volume_path(name) not in self.cluster.api.objects:
                self.made += 1
                self.cluster.api.store(volume_path(name), self._volume(random, name))

    def _volume(self, random: Random, name: str) -> Body:
        """One of our driver is on a node, which then holds its storage."""
        node, ours = random.choice((*NODES, "")), random.random() < 0.5
        body = volume_body(
            name,
            uid=f"volume-{self.made}",
            claim=None,
            policy=random.choice(("Retain", "Retain", "Delete")),
            node=node,
            driver=DRIVER_NAME if ours and node else "csi.example/hand",
            provisioned_by="",
            finalizers=(),
            size=random.choice(("1Gi", "2Gi")),
            class_name=random.choice(("", "late", "late", "fast")),
        )
        body["spec"]["accessModes"] = list(random.choice(MODES))
        body["spec"]["csi"]["volumeHandle"] = f"vol-{name}"
        if ours and node:
            self.cluster.nodes.tables[node].add(name)
            self.cluster.by_hand.add(name)
        if random.random() < 0.15:
            body["spec"]["volumeMode"] = "Block"
        if random.random() < 0.2:
            body["spec"]["claimRef"] = self._reference(random)
        body["metadata"]["annotations"] = dict(random.choice(MARKS))
        body["metadata"]["labels"] = random.choice(({}, {"tier": "gold"}))
        return body

    def _reference(self, random: Random) -> Body:
        """Kept by a person: by name, or by the uid of a claim that lives."""
        name = random.choice(CLAIMS)
        living = self.cluster.api.claims.get(claim_path(name))
        by_uid = {} if living is None or random.random() < 0.5 else {"uid": living["metadata"]["uid"]}
        return {"namespace": "ns", "name": name, **by_uid}

    @rule(name=st.sampled_from(CLAIMS), node=st.sampled_from((*NODES, "", "")))
    def somebody_starts_a_pod(self, name: str, node: str) -> None:
        path = f"/api/v1/namespaces/ns/pods/of-{name}"
        if path not in self.cluster.api.objects:
            self.made += 1
            source = {"persistentVolumeClaim": {"claimName": name}}
            self.cluster.api.store(
                path,
                {
                    "metadata": {"name": f"of-{name}", "namespace": "ns", "uid": f"pod-{self.made}"},
                    "spec": {"volumes": [source], "nodeName": node},
                },
            )

    @rule(name=st.sampled_from(CLAIMS))
    def a_pod_goes(self, name: str) -> None:
        self.cluster.api.delete(f"/api/v1/namespaces/ns/pods/of-{name}")

    @rule(node=st.sampled_from(NODES), choice=CHOICE)
    def the_scheduler_reads(self, node: str, choice: int) -> None:
        wanted = self.cluster.scheduler_wants(node)
        if wanted:
            self.cluster.scheduler_read.append(pick(wanted, choice))

    @precondition(lambda self: self.cluster.scheduler_read)
    @rule(choice=CHOICE)
    def the_scheduler_writes(self, choice: int) -> None:
        index = choice % len(self.cluster.scheduler_read)
        self.cluster.scheduler_writes(*self.cluster.scheduler_read.pop(index))

    @rule(node=st.sampled_from(NODES))
    def the_scheduler_works(self, node: str) -> None:
        for wanted in self.cluster.scheduler_wants(node):
            self.cluster.scheduler_writes(*wanted)

    @rule(
        node=st.sampled_from(NODES),
        mood=st.sampled_from(("fine", "fine", "down", "mute", "busy", "exhausted", "broken")),
    )
    def a_node_changes_its_mood(self, node: str, mood: str) -> None:
        self.cluster.nodes.mood[node] = mood

    @rule(choice=CHOICE)
    def a_binder_is_killed(self, choice: int) -> None:
        self.forgotten |= {f"pvc-{uid}" for uid in self.lives[choice % len(self.lives)].begun}
        super().a_binder_is_killed(choice)

    def teardown(self) -> None:
        super().teardown()
        self.cluster.check_leaks(self.forgotten)


class BesideTheInTreeBinder(Schedulers):
    """Two of ours without a Lease, the in-tree binder and the scheduler."""

    setting = BESIDE

    def births(self) -> list[Callable[[], Life]]:
        return [*super().births(), lambda: InTreeLife(self.cluster, "in-tree")]


for machine in (Schedulers, BesideTheInTreeBinder):
    machine.TestCase.settings = MANY
TestTwoOfOurs = Schedulers.TestCase
TestBesideTheInTreeBinder = BesideTheInTreeBinder.TestCase
