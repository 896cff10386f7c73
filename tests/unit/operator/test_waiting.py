"""Who is woken for a volume that becomes free: one claim that can use it, and never none while one could."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from moorage_operator.decide import judging
from moorage_operator.decide.judging import Case
from moorage_operator.ledger import Ledger
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import Key, Kind, Uid, claim_key
from moorage_operator.model.rules import Rules
from moorage_operator.model.volume import Volume
from moorage_operator.waiting import Waiting
from tests.unit.operator import generated
from tests.unit.operator.objects import claim, claim_body, volume, volume_body

Body = dict[str, Any]
GOLD = {"matchLabels": {"tier": "gold"}}
DONE = {"pv.kubernetes.io/bind-completed": "yes"}
MODES = (["ReadWriteOnce"], ["ReadWriteOnce", "ReadWriteMany"])
SEVERAL = st.lists(st.integers(0, 2**32), min_size=1, max_size=5)
CHOICE = st.integers(0, 1000)
RARE, OFTEN = 0.1, 0.5


def free(name: str, size: str = "1Gi", *, gold: bool = False, **fields: Any) -> Volume:
    body = volume_body(name, uid=f"uid-{name}", claim=None, phase="Available", size=size, class_name="", **fields)
    body["metadata"]["labels"] = {"tier": "gold"} if gold else {}
    return Volume.from_api(body)


def waits(name: str, size: str = "1Gi", *, created: int = 0, **fields: Any) -> Claim:
    body = claim_body(name, uid=f"uid-{name}", class_name="", size=size, **fields)
    body["metadata"]["creationTimestamp"] = f"2026-01-02T03:04:{created:02}Z"
    return Claim.from_api(body)


def key(name: str) -> Key:
    return claim_key("ns", name)


# One offer.


def test_the_largest_request_that_is_satisfied_is_woken_and_of_equal_ones_the_oldest() -> None:
    waiting = Waiting()
    for each in (
        waits("tiny", "1Mi"),
        waits("younger", "1Gi", created=9),
        waits("older", "1Gi", created=1),
        waits("huge", "2Gi"),
    ):
        waiting.put(each)
    assert waiting.offer(free("v", "1Gi")) == key("older")


def test_only_who_can_use_it_is_woken() -> None:
    waiting = Waiting()
    waiting.put(waits("selects", selector=GOLD))
    waiting.put(waits("shares", accessModes=["ReadWriteMany"]))
    waiting.put(waits("blocks", volumeMode="Block"))
    waiting.put(claim(name="classed", uid="uid-classed", class_name="other"))
    assert waiting.offer(free("v")) is None
    assert waiting.offer(free("gold", gold=True)) == key("selects")


def test_what_is_kept_for_another_namespace_wakes_nobody() -> None:
    waiting = Waiting()
    waiting.put(waits("data"))
    body = volume_body(claim=None, phase="Available", class_name="")
    body["spec"]["claimRef"] = {"namespace": "elsewhere", "name": "*"}
    assert waiting.offer(Volume.from_api(body)) is None
    body["spec"]["claimRef"] = {"namespace": "ns", "name": "*"}
    assert waiting.offer(Volume.from_api(body)) == key("data")


def test_two_volumes_are_offered_to_two_claims() -> None:
    waiting = Waiting()
    waiting.put(waits("a", created=1))
    waiting.put(waits("b", created=2))
    assert {waiting.offer(free("v")), waiting.offer(free("w"))} == {key("a"), key("b")}
    assert waiting.offer(free("x")) == key("a")


def test_who_waits_no_more_gives_back_all_that_it_was_offered() -> None:
    waiting = Waiting()
    waiting.put(waits("a"))
    for name in ("v", "w"):
        waiting.offer(free(name))
    assert sorted(waiting.take(waits("a"))) == ["v", "w"]
    assert not waiting.take(waits("a"))
    assert not len(waiting)


def test_what_is_offered_to_another_or_withdrawn_is_not_given_back() -> None:
    waiting = Waiting()
    waiting.put(waits("a", created=1))
    assert waiting.offer(free("v")) == waiting.offer(free("w")) == key("a")
    waiting.put(waits("b", created=2))
    assert waiting.offer(free("v")) == key("b")
    waiting.withdraw("w")
    waiting.withdraw("never offered")
    assert not waiting.take(waits("a", created=1))
    assert sorted(waiting.take(waits("b", created=2))) == ["v"]


# Through the ledger.


def test_a_volume_that_its_taker_left_is_offered_to_the_next() -> None:
    """The first was offered both and took the smaller, which the second could not have taken."""
    ledger = Ledger(Rules(instead=True))
    ledger.apply(waits("first", "2Gi"))
    ledger.apply(waits("second", "1Gi", selector=GOLD))
    assert key("first") in ledger.apply(free("large", "3Gi", gold=True))
    assert key("first") in ledger.apply(free("small", "2Gi"))
    assert key("second") in ledger.apply(waits("first", "2Gi", version=2, volumeName="small"))


def test_a_volume_is_held_while_it_is_being_reserved_and_offered_again_after_a_failure() -> None:
    ledger = Ledger(Rules(instead=True))
    ledger.apply(waits("data"))
    ledger.apply(free("v"))
    ledger.hold("v")
    assert key("data") not in ledger.apply(waits("another"))
    assert ledger.let_go("v") <= {key("data"), key("another")}
    assert not ledger.let_go("v")


def test_a_volume_that_was_reserved_wakes_nobody_when_it_is_let_go() -> None:
    ledger = Ledger(Rules(instead=True))
    ledger.apply(waits("data"))
    ledger.apply(free("v"))
    ledger.hold("v")
    ledger.apply(volume(name="v", uid="uid-v", version=2, claim=("data", "uid-data"), phase="Available", class_name=""))
    assert not ledger.let_go("v")


def test_many_volumes_wake_as_many_claims_and_not_all_of_them_each_time() -> None:
    ledger = Ledger(Rules(instead=True))
    for number in range(50):
        ledger.apply(waits(f"c{number}"))
    woken = [key for number in range(50) for key in ledger.apply(free(f"v{number}")) if key.kind is Kind.CLAIM]
    assert len(woken) == len(set(woken)) == 50


class Offers(RuleBasedStateMachine):
    """The ledger alone, with workers of one step each: whatever the order, nobody is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(Rules(instead=True))
        self.woken: set[Key] = set()
        self.flights: list[tuple[Key, str]] = []
        self.volumes: dict[str, Body] = {}
        self.claims: dict[str, Body] = {}
        self.made = 0

    # What people do.

    @rule(several=SEVERAL)
    def volumes_are_made(self, several: list[int]) -> None:
        for random in map(generated.dice, several):
            self.made += 1
            name, size = f"v{self.made}", random.choice(("1Gi", "2Gi"))
            body = volume_body(name, uid=f"uid-{name}", claim=None, phase="Available", size=size, class_name="")
            body["spec"]["accessModes"] = random.choice(MODES)
            body["metadata"]["labels"] = random.choice(({}, {"tier": "gold"}))
            if random.random() < RARE:
                body["spec"]["claimRef"] = {"namespace": random.choice(("ns", "elsewhere")), "name": "*"}
            self._store_volume(body)

    @rule(choice=CHOICE, gold=st.booleans())
    def a_volume_is_labelled(self, choice: int, *, gold: bool) -> None:
        for name in self._one_of(self.volumes, choice):
            self.volumes[name]["metadata"]["labels"] = {"tier": "gold"} if gold else {}
            self._store_volume(self.volumes[name])

    @rule(choice=CHOICE)
    def a_volume_is_freed(self, choice: int) -> None:
        for name in self._one_of(self.volumes, choice):
            body = self.volumes[name]
            if body["spec"].get("claimRef", {}).get("name", "*") not in self.claims:
                body["spec"].pop("claimRef", None)
                body["status"]["phase"] = "Available"
                self._store_volume(body)

    @rule(choice=CHOICE)
    def a_volume_goes(self, choice: int) -> None:
        for name in self._one_of(self.volumes, choice):
            del self.volumes[name]
            self.woken |= self.ledger.forget(Volume, Uid(f"uid-{name}"))

    @rule(several=SEVERAL)
    def claims_are_made(self, several: list[int]) -> None:
        for random in map(generated.dice, several):
            self.made += 1
            name, size = f"c{self.made}", random.choice(("1Gi", "2Gi"))
            fields: Body = {"accessModes": random.choice((*MODES, MODES[0]))}
            if random.random() < OFTEN:
                fields["selector"] = GOLD
            self._store_claim(claim_body(name, uid=f"uid-{name}", class_name="", size=size, **fields))

    @rule(choice=CHOICE)
    def a_claim_is_touched(self, choice: int) -> None:
        for name in self._one_of(self.claims, choice):
            self._store_claim(self.claims[name])

    @rule(choice=CHOICE)
    def a_claim_goes(self, choice: int) -> None:
        for name in self._one_of(self.claims, choice):
            del self.claims[name]
            self.woken |= self.ledger.forget(Claim, Uid(f"uid-{name}"))

    def _one_of(self, objects: dict[str, Body], choice: int) -> list[str]:
        return sorted(objects)[choice % len(objects) :][:1] if objects else []

    # What workers do.

    @rule(choice=CHOICE)
    def a_worker_decides(self, choice: int) -> None:
        if self.woken:
            self._decide(sorted(self.woken)[choice % len(self.woken)])

    @rule(choice=CHOICE, fails=st.booleans())
    def an_answer_arrives(self, choice: int, *, fails: bool) -> None:
        if self.flights:
            self._land(choice % len(self.flights), fails=fails)

    @rule(backwards=st.booleans())
    def all_work_is_done(self, *, backwards: bool) -> None:
        while self.woken or self.flights:
            if self.flights:
                self._land(0, fails=False)
            else:
                self._decide(max(self.woken) if backwards else min(self.woken))

    @invariant()
    def nobody_is_forgotten(self) -> None:
        if self.woken or self.flights:
            return
        for name in self.claims:
            known = self.ledger.claim(key(name))
            if known is not None and not known.bound:
                judgement = judging.judge(self.ledger, known)
                assert judgement.case is Case.NONE_FITS, f"{name} could have {judgement.volume} and was not woken"

    def teardown(self) -> None:
        self.all_work_is_done(backwards=bool(self.made % 2))
        self.nobody_is_forgotten()

    def _decide(self, woken: Key) -> None:
        """One decision, up to the write that reserves a volume."""
        self.woken.discard(woken)
        known = self.ledger.claim(woken)
        if known is None or known.bound or any(woken == busy for busy, _ in self.flights):
            return
        judgement = judging.judge(self.ledger, known)
        if judgement.case is Case.CHOOSE and judgement.volume is not None:
            self.ledger.hold(judgement.volume.name)
            self.flights.append((woken, judgement.volume.name))
        elif judgement.case is Case.BIND and judgement.volume is not None:
            self._bind(known, self.volumes[judgement.volume.name])

    def _land(self, index: int, *, fails: bool) -> None:
        """The write that reserves has been answered; a claim that was woken meanwhile is looked at again anyhow."""
        woken, name = self.flights.pop(index)
        known, body = self.ledger.claim(woken), self.volumes.get(name)
        taken = body is None or body["spec"].get("claimRef", {}).get("name", "*") != "*"
        if known is not None and body is not None and not taken and not fails:
            body["spec"]["claimRef"] = {"namespace": "ns", "name": known.name, "uid": known.uid}
            self._store_volume(body)
        self.woken |= self.ledger.let_go(name)
        self.woken.add(woken)

    def _bind(self, known: Claim, body: Body) -> None:
        body["status"]["phase"] = "Bound"
        self._store_volume(body)
        mine = self.claims[known.name]
        mine["spec"]["volumeName"] = body["metadata"]["name"]
        mine["metadata"]["annotations"] = dict(DONE)
        mine["status"]["phase"] = "Bound"
        self._store_claim(mine)

    def _store_volume(self, body: Body) -> None:
        self.volumes[body["metadata"]["name"]] = body
        self._version(body)
        self.woken |= self.ledger.apply(Volume.from_api(body))

    def _store_claim(self, body: Body) -> None:
        self.claims[body["metadata"]["name"]] = body
        self._version(body)
        self.woken |= self.ledger.apply(Claim.from_api(body))

    def _version(self, body: Body) -> None:
        self.made += 1
        body["metadata"]["resourceVersion"] = str(self.made)


Offers.TestCase.settings = settings(
    max_examples=int(os.environ.get("MOORAGE_SCHEDULES", "300")),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestOffers = Offers.TestCase
