"""Random schedules of volumes made by hand: two binders of ours, or ours beside the in-tree one, step by step.

As in ``test_interleavings``, Hypothesis chooses the order of every step: what people do, which read arrives when, which
write takes effect when, who dies where. What must hold is checked after each step, and at the end all come to rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from moorage_operator.model.rules import Rules
from tests.unit.operator.model_binder import HandmadeCluster, InTreeLife
from tests.unit.operator.model_life import Life
from tests.unit.operator.model_nodes import NODES
from tests.unit.operator.objects import claim_body, volume_body
from tests.unit.operator.steps import CHOICE, MANY, Steps, pick

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.timeout(900)

CLAIMS, VOLUMES = "abc", "vwx"
# Few of each, and most of them alike: what matters happens where many want the same.
CLASSES = ("", "", "", "", "static", "fast")
MODES = (*([["ReadWriteOnce"]] * 5), ["ReadWriteOnce", "ReadWriteMany"], ["ReadOnlyMany"])
SIZES = ("1Gi", "1Gi", "1Gi", "2Gi")
REST_ROUNDS = 400
BESIDE = Rules(patience=0.0)
INSTEAD = Rules(instead=True, patience=0.0)


def claim_path(name: str) -> str:
    return f"/api/v1/namespaces/ns/persistentvolumeclaims/{name}"


def volume_path(name: str) -> str:
    return f"/api/v1/persistentvolumes/{name}"


class Binders(Steps):
    """Two of ours, each the only binder as far as it knows."""

    setting = INSTEAD
    cluster: HandmadeCluster

    def __init__(self) -> None:
        super().__init__()
        self.cluster = HandmadeCluster()
        self.made = 0

    def births(self) -> list[Callable[[], Life]]:
        """How each life begins."""
        return [lambda: Life(self.cluster, "one", self.setting), lambda: Life(self.cluster, "two", self.setting)]

    @initialize()
    def start(self) -> None:
        self.lives = [birth() for birth in self.births()]

    # What people do.

    @rule(
        name=st.sampled_from(CLAIMS),
        size=st.sampled_from(SIZES),
        class_name=st.sampled_from((*CLASSES, None)),
        modes=st.sampled_from(MODES[:-1]),
        names=st.sampled_from((*VOLUMES, *([""] * 12))),
        selects=st.sampled_from((False, False, False, False, True)),
    )
    def somebody_makes_a_claim(
        self, name: str, size: str, class_name: str | None, modes: list[str], names: str, *, selects: bool
    ) -> None:
        if claim_path(name) in self.cluster.api.objects:
            return
        self.made += 1
        spec: dict[str, Any] = {"accessModes": list(modes)}
        if names:
            spec["volumeName"] = names
        if selects:
            spec["selector"] = {"matchLabels": {"tier": "gold"}}
        body = claim_body(name, uid=f"claim-{self.made}", class_name=class_name, size=size, **spec)
        self.cluster.api.store(claim_path(name), body)

    @rule(
        name=st.sampled_from(VOLUMES),
        size=st.sampled_from(SIZES),
        class_name=st.sampled_from(CLASSES),
        modes=st.sampled_from(MODES),
        kept_for=st.sampled_from((*CLAIMS, *([""] * 12))),
        policy=st.sampled_from(("Retain", "Retain", "Delete")),
        marks=st.sampled_from(
            (
                {},
                {},
                {},
                {},
                {},
                {"moorage.dev/reuse": "same-claim"},
                {"moorage.dev/reserved-for": "ns"},
                {"moorage.dev/reserved-for": "ns/a"},
            )
        ),
        gold=st.booleans(),
    )
    def somebody_makes_a_volume(  # noqa: PLR0917 (Hypothesis gives them by name)
        self,
        name: str,
        size: str,
        class_name: str,
        modes: list[str],
        kept_for: str,
        policy: str,
        marks: dict[str, str],
        *,
        gold: bool,
    ) -> None:
        if volume_path(name) in self.cluster.api.objects:
            return
        self.made += 1
        body = volume_body(
            name,
            uid=f"volume-{self.made}",
            claim=None,
            policy=policy,
            node="",
            driver="csi.example/hand",
            provisioned_by="",
            finalizers=(),
            size=size,
            class_name=class_name,
        )
        body["spec"]["accessModes"] = list(modes)
        if kept_for:
            body["spec"]["claimRef"] = {"namespace": "ns", "name": kept_for}
        if marks:
            body["metadata"]["annotations"] = dict(marks)
        if gold:
            body["metadata"]["labels"] = {"tier": "gold"}
        self.cluster.api.store(volume_path(name), body)

    @rule(name=st.sampled_from(CLAIMS))
    def somebody_deletes_a_claim(self, name: str) -> None:
        self.cluster.api.delete(claim_path(name))

    @rule(name=st.sampled_from(VOLUMES))
    def somebody_deletes_a_volume(self, name: str) -> None:
        """As its protection has it: one that is bound stays until it is not."""
        body = self.cluster.api.volumes.get(volume_path(name))
        if body is not None and body["status"]["phase"] != "Bound":
            self.cluster.api.delete(volume_path(name))

    @rule(name=st.sampled_from(VOLUMES), whole=st.booleans())
    def somebody_frees_a_released_volume(self, name: str, *, whole: bool) -> None:
        body = self.cluster.api.volumes.get(volume_path(name))
        if body is not None and body["status"]["phase"] in {"Released", "Failed"} and "claimRef" in body["spec"]:
            if whole:
                del body["spec"]["claimRef"]
            else:
                body["spec"]["claimRef"].pop("uid", None)
            self.cluster.api.store(volume_path(name), body)

    @rule(name=st.sampled_from(VOLUMES), gold=st.booleans())
    def somebody_labels_a_volume(self, name: str, *, gold: bool) -> None:
        body = self.cluster.api.volumes.get(volume_path(name))
        if body is not None:
            body["metadata"]["labels"] = {"tier": "gold" if gold else "lead"}
            self.cluster.api.store(volume_path(name), body)

    @rule(seconds=st.sampled_from((0.05, 0.5, 30.0, 400.0)))
    def time_passes(self, seconds: float) -> None:
        self.cluster.now += seconds

    # What binders do.

    @rule(choice=CHOICE, news=st.booleans(), last_first=st.booleans())
    def a_binder_works_until_it_has_nothing_to_do(self, choice: int, *, news: bool, last_first: bool) -> None:
        pick(self.lives, choice).work(news=news, last_first=last_first)

    @rule(choice=CHOICE)
    def a_binder_is_killed(self, choice: int) -> None:
        index = choice % len(self.lives)
        self.lives[index].die()
        self.lives[index] = self.births()[index]()

    def teardown(self) -> None:
        if not self.lives:
            return
        self.cluster.nodes.mood = dict.fromkeys(NODES, "fine")
        self.cluster.lose_next_answer = False
        calm = len(self.cluster.api.log)
        self._rest()
        self.cluster.check_calm(calm)
        self.cluster.check_rest(self.setting)
        before = dict(self.cluster.writes)
        self._rest()
        assert before == dict(self.cluster.writes), "an idle binder has written"
        for life in self.lives:
            life.die()

    def _rest(self) -> None:
        """Everybody works, fairly, until nobody has anything left to do."""
        for _ in range(REST_ROUNDS):
            self.cluster.now += 400.0
            busy = False
            for life in self.lives:
                life.ready |= life.waiting
                busy |= life.work()
            self.cluster.check()
            if not busy and not any(life.ready for life in self.lives):
                return
        raise AssertionError("it never comes to rest")


class BesideTheInTreeBinder(Binders):
    """One of ours, and the in-tree binder."""

    setting = BESIDE

    def births(self) -> list[Callable[[], Life]]:
        return [lambda: Life(self.cluster, "ours", self.setting), lambda: InTreeLife(self.cluster, "in-tree")]


class TwoBesideTheInTreeBinder(Binders):
    """Two of ours without a Lease, and the in-tree binder."""

    setting = BESIDE

    def births(self) -> list[Callable[[], Life]]:
        return [*super().births(), lambda: InTreeLife(self.cluster, "in-tree")]


for machine in (Binders, BesideTheInTreeBinder, TwoBesideTheInTreeBinder):
    machine.TestCase.settings = MANY
TestTwoOfOurs = Binders.TestCase
TestBesideTheInTreeBinder = BesideTheInTreeBinder.TestCase
TestTwoBesideTheInTreeBinder = TwoBesideTheInTreeBinder.TestCase
