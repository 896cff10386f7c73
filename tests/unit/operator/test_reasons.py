"""Each wait has its own sentence, told once, and again only when it has become another."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from moorage_operator.decide import judging, reasons
from moorage_operator.decide.claims import decide_claim
from moorage_operator.decide.explaining import REFRESH, RETELL, waits
from moorage_operator.decide.judging import Case
from moorage_operator.decide.plan import Emit, Plan, RememberWait, Requeue, Write
from moorage_operator.decide.reasons import Answer, WaitsFor
from moorage_operator.ledger import Ledger
from moorage_operator.model.ids import claim_key
from moorage_operator.model.rules import PATIENCE, Rules
from moorage_operator.model.volume import Volume
from tests.unit.operator.objects import claim, volume_body
from tests.unit.operator.wait_cases import CASES, MARKS, default, hand

if TYPE_CHECKING:
    from moorage_operator.model.claim import Claim

DATA = claim_key("ns", "data")
NOW = 1000.0


def known(*records: Any, instead: bool = True) -> Ledger:
    ledger = Ledger(Rules(instead=instead))
    for record in records:
        ledger.apply(record)
    return ledger


def why(ledger: Ledger) -> Answer | None:
    waiting = ledger.claim(DATA)
    assert waiting is not None
    return reasons.answer(ledger, waiting, judging.judge(ledger, waiting))


@pytest.mark.parametrize("case", CASES)
def test_each_wait_has_its_own_sentence(case: str) -> None:
    records, waits_for, reason, warning, message = CASES[case]
    found = why(known(*records))
    assert found is not None
    assert (found.waits_for, found.reason, found.warning) == (waits_for, reason, warning)
    assert found.message == message


def test_no_two_waits_that_differ_are_taken_for_one() -> None:
    """Where the case is another one, so is the key; but not for another pod, provisioner or figure."""
    keys = {case: (answer.key, answer.reason) for case in CASES if (answer := why(known(*CASES[case][0]))) is not None}
    alike = (
        {"nothing there", "no class and no default", "being deleted"},
        {"other provisioner", "other provisioner on a node", "selector with a dynamic class"},
        {"nobody uses it", "pod that has finished"},
        {"pod that names its node", "pod that names a node that is not there"},
        {"named and somebody else's", "named and an earlier claim's"},
        {"class that makes none", "plugin that is not there"},
    )
    for case, key in keys.items():
        same = {other for other in keys if keys[other] == key}
        assert same == {case} or any(same <= group for group in alike), f"{same} share {key}"


def test_two_default_classes_are_pointed_out_where_they_matter() -> None:
    both = (default("old", "2026-01-01T00:00:00Z"), default("new", "2026-01-02T00:00:00Z"))
    said = (
        ". 2 classes are marked as default (new, old): a claim that names none gets the newest, new. Unmark all but one"
    )
    for name, wanted in ((None, True), ("old", True), ("", False)):
        found = why(known(claim(class_name=name), *both, instead=False))
        assert found is not None
        assert found.message.endswith(said) is wanted


def test_what_is_left_to_the_in_tree_binder_says_so() -> None:
    found = why(known(claim(class_name=""), hand(), instead=False))
    assert found is not None
    assert found.waits_for is WaitsFor.BINDER
    assert "volume v fits and is free" in found.message
    assert "binder.mode=instead" in found.message
    assert why(known(claim(class_name=""), hand())) is None


# When it is told.


class Teller:
    """Carries out what concerns a wait, and counts what people are told."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.now = NOW
        self.told: list[Emit] = []

    def look(self) -> float:
        """Decide until it rests; returns in how many seconds it wants to be looked at again."""
        for _ in range(10):
            plan = decide_claim(self.ledger, DATA, self.now)
            assert not [step for step in plan if isinstance(step, Write)]
            if not plan:
                return float("inf")
            for step in plan:
                if isinstance(step, RememberWait):
                    self.ledger.notes.remember_wait(step.uid, step.wait)
                elif isinstance(step, Emit):
                    self.told.append(step)
                elif isinstance(step, Requeue):
                    return step.after
        raise AssertionError("it never rests")


@pytest.fixture(params=[True, False], ids=["instead", "beside"])
def teller(request: pytest.FixtureRequest) -> Teller:
    return Teller(known(claim(class_name=""), hand(size="1Mi"), instead=request.param))


def test_a_short_wait_is_not_told(teller: Teller) -> None:
    assert teller.look() == PATIENCE
    teller.now += PATIENCE - 0.1
    assert teller.look() == pytest.approx(0.1)
    assert not teller.told


def test_a_wait_is_told_once_however_often_it_is_looked_at(teller: Teller) -> None:
    for seconds in (0.0, PATIENCE, 1.0, 100.0, 1000.0):
        teller.now += seconds
        teller.look()
    assert len(teller.told) == 1


def test_other_figures_are_no_other_reason(teller: Teller) -> None:
    teller.look()
    teller.now += PATIENCE
    teller.look()
    for number in range(2, 40):
        teller.ledger.apply(hand(f"v{number}", size=f"{number}Mi"))
        teller.now += RETELL
        teller.look()
    assert len(teller.told) == 1
    assert "1 too small" in teller.told[0].message


def test_another_reason_is_told_after_a_while_and_only_then(teller: Teller) -> None:
    teller.look()
    teller.now += PATIENCE
    teller.look()
    teller.ledger.apply(hand("w", claim=("other", "u2"), phase="Released"))
    assert teller.look() == pytest.approx(RETELL)
    teller.now += RETELL - 0.1
    teller.look()
    assert len(teller.told) == 1
    teller.now += 0.1
    teller.look()
    assert [re.search(r"v would|w would|too small", emit.message) is not None for emit in teller.told] == [True, True]
    assert "w would fit but is Released" in teller.told[1].message


def test_reasons_that_change_all_the_time_are_told_twice_a_minute_at_most(teller: Teller) -> None:
    for number in range(600):
        teller.now += 1.0
        reserved = ("other", "u2") if number % 2 else None
        teller.ledger.apply(
            hand("w", size="2Gi", version=number + 2, claim=reserved, class_name="" if reserved else "slow")
        )
        teller.look()
    assert len(teller.told) <= 600 / RETELL + 1


def test_a_wait_that_goes_on_is_told_again_before_its_event_expires(teller: Teller) -> None:
    teller.look()
    teller.now += PATIENCE
    teller.look()
    assert teller.look() == pytest.approx(REFRESH)
    teller.now += REFRESH
    teller.look()
    assert len(teller.told) == 2
    assert teller.told[0].message == teller.told[1].message
    assert REFRESH < 3600


def test_nothing_is_told_where_the_setting_is_silent_and_the_in_tree_binder_is_too() -> None:
    ledger = Ledger(Rules(instead=True, explains=False, patience=0.0))
    asks = claim(volumeName="v")
    ledger.apply(asks)
    found = why(ledger)
    assert found is not None
    assert not found.binder
    assert waits(ledger, asks, found, NOW) == ()
    assert waits(ledger, asks, replace(found, binder=True), NOW)


def test_a_claim_that_is_bound_waits_no_more_and_its_wait_is_forgotten() -> None:
    ledger = known(claim(class_name=""))
    teller = Teller(ledger)
    teller.look()
    assert ledger.notes.waiting_for(WaitsFor.VOLUME) == 1
    ledger.apply(hand(claim=("data", "u1"), phase="Bound"))
    ledger.apply(claim(class_name="", version=2, volumeName="v", marks=MARKS, phase="Bound"))
    teller.look()
    assert ledger.notes.waiting_for(WaitsFor.VOLUME) == 0
    assert not teller.told


@pytest.mark.parametrize(
    ("records", "case"),
    [
        ((claim(marks=MARKS, phase="Bound", volumeName="v"),), Case.VOLUME_LOST),
        ((claim(marks=MARKS, phase="Bound"),), Case.NAME_LOST),
    ],
)
def test_a_loss_is_told_once_with_the_change_of_the_phase(records: tuple[Claim, ...], case: Case) -> None:
    ledger = known(*records)
    assert judging.judge(ledger, records[0]).case is case
    plan = decide_claim(ledger, DATA, NOW)
    assert [type(step) for step in plan][-2:] == [Write, Emit]
    lost = replace(records[0], phase="Lost", resource_version="2")
    ledger.apply(lost)
    nothing: Plan = ()
    assert decide_claim(ledger, DATA, NOW) == nothing


def test_a_pair_of_different_volume_modes_is_told_on_both_objects() -> None:
    from moorage_operator.decide.volumes import decide_volume  # noqa: PLC0415

    body = volume_body("v", uid="pv", claim=("data", "u1"), phase="Available", class_name="")
    body["spec"]["volumeMode"] = "Block"
    kept = Volume.from_api(body)
    plan = decide_volume(known(claim(class_name=""), kept), kept.key)
    assert [step.regarding.kind for step in plan if isinstance(step, Emit)] == [
        "PersistentVolume",
        "PersistentVolumeClaim",
    ]
    assert all(step.reason == "VolumeMismatch" and step.warning for step in plan if isinstance(step, Emit))
