"""Beside the in-tree binder: what is left to it, and when a bind of ours is completed all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moorage_operator.decide.claims import CAUTION, GRACE, MOST_LAG, decide_claim
from moorage_operator.decide.plan import RememberWait, Requeue
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import Uid
from tests.unit.operator.objects import claim, known, sentence, volume
from tests.unit.operator.one_claim import DATA, MARKS, NOW, once_left_to_others, plan_at, stored, waited, writes_of

if TYPE_CHECKING:
    from moorage_operator.ledger import Ledger
    from moorage_operator.model.volume import Volume


def test_a_volume_reserved_by_name_is_the_in_tree_binders_to_reserve_by_uid() -> None:
    reserved = volume(name="static", provisioned_by="", phase="Available", claim=("data", ""))
    plan = decide_claim(waited(known(claim(), reserved)), DATA, NOW)
    assert not writes_of(plan)
    assert sentence(plan).reason == "WaitForBinder"


def test_a_bind_is_not_completed_before_the_in_tree_binder_can_know_the_volume() -> None:
    """To it the claim would be Lost: it works off volumes in the order in which it hears of them."""
    older = volume(name="older", uid="pv0", claim=None, provisioned_by="", phase="Pending")
    later = volume(name="later", uid="pv2", version=6, claim=None, provisioned_by="", phase="Pending")
    ledger = stored(known(claim(), older, volume(version=5), later))
    assert [type(step) for step in decide_claim(ledger, DATA, NOW)] == [RememberWait, Requeue]
    ledger.apply(volume(name="older", uid="pv0", version=7, claim=None, provisioned_by="", phase="Available"))
    # Nor at once when the last of these is written: it hears of its own answer when it is woken.
    assert not writes_of(decide_claim(ledger, DATA, NOW))
    assert len(writes_of(once_left_to_others(ledger))) == 2


def test_a_volume_whose_claim_is_gone_keeps_the_in_tree_binder_too() -> None:
    left = volume(name="left", uid="pv0", claim=("gone", "u0"), phase="Bound")
    ledger = stored(known(claim(name="gone", uid="u0"), left, claim()))
    ledger.forget(Claim, Uid("u0"))
    ledger.apply(volume(version=5))
    assert not writes_of(decide_claim(ledger, DATA, NOW))
    ledger.apply(volume(name="left", uid="pv0", version=6, claim=("gone", "u0"), phase="Released"))
    assert len(writes_of(once_left_to_others(ledger))) == 2


def test_what_only_our_own_answer_has_told_is_not_bound_yet() -> None:
    """The watch has to come to it: only then has it told of all that was before."""
    ledger = stored(known(claim()))
    ledger.apply(volume(), assumed=True)
    assert not writes_of(decide_claim(ledger, DATA, NOW))
    assert DATA in ledger.apply(volume())
    assert len(writes_of(once_left_to_others(ledger))) == 2


def decided(ledger: Ledger, now: float) -> int:
    """How many writes are decided on at that moment."""
    return len(writes_of(plan_at(ledger, now)))


def fresh(name: str, version: int, phase: str = "Pending") -> Volume:
    """A volume that nobody has claimed."""
    return volume(name=name, uid=f"uid-{name}", version=version, claim=None, provisioned_by="", phase=phase)


def test_a_binder_that_was_behind_is_left_more_time_once_it_may_have_come_to_the_volume() -> None:
    ledger = stored(known(claim(), fresh("older", 1), volume(version=5)))
    assert [decided(ledger, NOW + seconds) for seconds in (0, 50)] == [0, 0]
    ledger.apply(fresh("older", 7, "Available"))
    assert [decided(ledger, NOW + 50 + seconds) for seconds in (0, 2 * GRACE, CAUTION + 0.01)] == [0, 0, 2]
    ledger.apply(volume(version=8, phase="Bound"))
    ledger.apply(claim(version=9, volumeName="pvc-u1", marks=MARKS))
    assert decided(ledger, NOW + 50 + CAUTION + 0.02) == 1, "what was begun is not held up again"


def test_what_it_has_written_since_shows_that_it_knows_the_volume() -> None:
    ledger = stored(known(claim(), fresh("older", 1), volume(version=5), fresh("later", 6)))
    assert decided(ledger, NOW) == 0
    ledger.apply(fresh("older", 7, "Available"))
    assert [decided(ledger, NOW + seconds) for seconds in (1, 1.5)] == [0, 0]
    ledger.apply(fresh("later", 8, "Available"))
    assert decided(ledger, NOW + 1.5) == 2


def test_a_binder_that_falls_behind_again_is_waited_for_again_but_not_for_ever() -> None:
    ledger = stored(known(claim(), volume(version=5)))
    assert decided(ledger, NOW) == 0
    ledger.apply(fresh("other", 2))
    assert [decided(ledger, NOW + seconds) for seconds in (1, 60)] == [0, 0]
    assert decided(ledger, NOW + 1 + MOST_LAG) == 2


def test_a_claim_that_the_in_tree_binder_calls_lost_is_left_to_it() -> None:
    lost = claim(volumeName="pvc-u1", marks=MARKS, phase="Lost")
    assert not writes_of(decide_claim(stored(known(lost, volume(phase="Bound"))), DATA, NOW))


def test_a_binder_that_never_comes_is_not_waited_for() -> None:
    older = volume(name="older", uid="pv0", claim=None, provisioned_by="", phase="Pending")
    ledger = waited(stored(known(claim(), older, volume(version=5))))
    assert len(writes_of(decide_claim(ledger, DATA, NOW))) == 2
