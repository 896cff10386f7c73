"""Which record is the newest, who is told of a change, and that what is gone stays gone."""

from __future__ import annotations

import pytest

from moorage_operator.ledger import Ledger
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import Uid, claim_key, orphan_key, volume_key
from moorage_operator.model.node import Node, NodeDrivers
from moorage_operator.model.storage_class import Class
from moorage_operator.model.volume import Volume
from tests.unit.operator.objects import claim_body, class_body, csinode_body, node_body, volume_body

DATA = claim_key("ns", "data")


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def test_an_answer_to_our_own_write_wins_until_the_watch_has_caught_up(ledger: Ledger) -> None:
    ledger.apply(Claim.from_api(claim_body(version=5)))
    ledger.apply(Claim.from_api(claim_body(version=9, phase="Bound")), assumed=True)
    assert not ledger.apply(Claim.from_api(claim_body(version=7)))
    assert ledger.claim(DATA).phase == "Bound"  # type: ignore[union-attr]
    assert ledger.apply(Claim.from_api(claim_body(version=10))) == {DATA}
    assert ledger.claim(DATA).phase == "Pending"  # type: ignore[union-attr]


def test_versions_that_are_no_numbers_are_compared_for_being_the_same_only(ledger: Ledger) -> None:
    def at(version: str, phase: str = "Pending") -> Claim:
        body = claim_body(phase=phase)
        body["metadata"]["resourceVersion"] = version
        return Claim.from_api(body)

    ledger.apply(at("aa"))
    ledger.apply(at("cc", "Bound"), assumed=True)
    assert not ledger.apply(at("bb"))
    ledger.apply(at("cc", "Bound"))
    assert ledger.apply(at("dd")) == {DATA}


def test_a_list_overrules_everything(ledger: Ledger) -> None:
    ledger.apply(Claim.from_api(claim_body(version=900)))
    assert ledger.apply(Claim.from_api(claim_body(version=3, phase="Bound")), listed=True) == {DATA}


def test_an_equal_record_concerns_nobody(ledger: Ledger) -> None:
    assert ledger.apply(Node.from_api(node_body("n1"))) == frozenset()
    ledger.apply(Class.from_api(class_body()))
    ledger.apply(Claim.from_api(claim_body()))
    assert not ledger.apply(Claim.from_api(claim_body()))
    assert not ledger.apply(Class.from_api(class_body()))
    assert not ledger.apply(Node.from_api(node_body("n1")))
    assert ledger.apply(Node.from_api(node_body("n1", ready=False))) == {DATA}


def test_a_late_answer_does_not_bring_back_what_is_gone(ledger: Ledger) -> None:
    ledger.apply(Volume.from_api(volume_body(version=5)))
    ledger.forget(Volume, Uid("pv1"))
    ledger.apply(Volume.from_api(volume_body(version=6)), assumed=True)
    assert ledger.volume("pvc-u1") is None


def test_late_news_of_an_earlier_claim_does_not_take_the_place_of_the_next(ledger: Ledger) -> None:
    """A read has told of the next one already; its storage must not be taken for that of a claim that is gone."""
    ledger.apply(Claim.from_api(claim_body(uid="u1", version=5)))
    ledger.apply(Claim.from_api(claim_body(uid="u2", version=9)), assumed=True)
    assert not ledger.apply(Claim.from_api(claim_body(uid="u1", version=7, deleting=True)))
    assert not ledger.forget(Claim, Uid("u1"))
    assert ledger.claim_of(Uid("u2")) is not None
    assert not ledger.is_gone(Claim, Uid("u2"))


def test_what_was_forgotten_by_mistake_comes_back_with_the_watch(ledger: Ledger) -> None:
    ledger.apply(Claim.from_api(claim_body(version=5)))
    ledger.forget(Claim, Uid("u1"))
    assert DATA in ledger.apply(Claim.from_api(claim_body(version=6)))
    assert ledger.claim_of(Uid("u1")) is not None


def test_a_claim_made_again_is_another_claim(ledger: Ledger) -> None:
    ledger.apply(Claim.from_api(claim_body(uid="u1", version=5)))
    ledger.apply(Volume.from_api(volume_body()))
    concerned = ledger.apply(Claim.from_api(claim_body(uid="u2", version=9)))
    assert concerned == {DATA, volume_key("pvc-u1")}
    assert ledger.claim_of(Uid("u1")) is None
    assert not ledger.forget(Claim, Uid("u1"))
    assert ledger.claim_of(Uid("u2")) is not None


def test_a_deleted_claim_concerns_its_volume_and_what_was_begun_for_it(ledger: Ledger) -> None:
    from moorage_operator.model.attempt import Attempt  # noqa: PLC0415

    ledger.apply(Claim.from_api(claim_body()))
    ledger.apply(Volume.from_api(volume_body()))
    ledger.notes.remember(Attempt(claim=DATA, uid=Uid("u1"), name="pvc-u1", began=0.0))
    assert ledger.forget(Claim, Uid("u1")) == {DATA, volume_key("pvc-u1"), orphan_key(Uid("u1"))}


def test_a_sweep_forgets_what_the_list_does_not_hold_and_nothing_newer(ledger: Ledger) -> None:
    ledger.apply(Claim.from_api(claim_body("old", uid="u1")))
    known = ledger.uids(Claim)
    ledger.apply(Claim.from_api(claim_body("new", uid="u2")))
    assert ledger.sweep(Claim, known=known, listed=set()) == {claim_key("ns", "old")}
    assert ledger.claim(claim_key("ns", "new")) is not None


def test_classes_and_nodes_wake_the_claims_that_wait_for_them_only(ledger: Ledger) -> None:
    ledger.apply(Claim.from_api(claim_body("waits", uid="u1")))
    ledger.apply(Claim.from_api(claim_body("other", uid="u2", class_name="slow")))
    marks = {"pv.kubernetes.io/bind-completed": "yes"}
    ledger.apply(Claim.from_api(claim_body("bound", uid="u3", phase="Bound", marks=marks, volumeName="v")))
    waits = claim_key("ns", "waits")
    assert ledger.apply(Class.from_api(class_body())) == {waits}
    ledger.apply(Class.from_api(class_body("slow", provisioner="example.com/other")))
    assert ledger.apply(NodeDrivers.from_api(csinode_body("n1"))) == {waits}
    assert ledger.forget(NodeDrivers, Uid("csinode-n1")) == {waits}


def test_indexes_leave_nothing_behind(ledger: Ledger) -> None:
    for number in range(50):
        ledger.apply(Claim.from_api(claim_body(f"c{number}", uid=f"u{number}")))
        ledger.apply(Volume.from_api(volume_body(f"v{number}", uid=f"p{number}", claim=(f"c{number}", f"u{number}"))))
        ledger.apply(Volume.from_api(volume_body(f"f{number}", uid=f"q{number}", claim=None, phase="Available")))
    for number in range(50):
        ledger.forget(Claim, Uid(f"u{number}"))
        ledger.forget(Volume, Uid(f"p{number}"))
        ledger.forget(Volume, Uid(f"q{number}"))
    assert not any((ledger._unbound, ledger._of_claim, ledger._naming, ledger.stock.free.places()))
    assert dict(ledger.counts()) == dict.fromkeys(("claim", "volume", "class", "node", "pod", "attempt"), 0)


def test_a_list_that_began_before_our_write_does_not_undo_its_answer() -> None:
    ledger = Ledger()
    ledger.apply(Claim.from_api(claim_body(version=7, phase="Bound")), assumed=True)
    assert not ledger.apply(Claim.from_api(claim_body(version=3)), listed=True)
    known = ledger.claim(DATA)
    assert known is not None
    assert known.phase == "Bound"
    assert ledger.apply(Claim.from_api(claim_body(version=8)), listed=True) == {DATA}
