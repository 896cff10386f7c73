"""Volumes used again, and kept, where an annotation asks for it; and never data that a claim may still need."""

from __future__ import annotations

from typing import Any

import pytest

from moorage_csi.contract import DRIVER_NAME
from moorage_operator.decide import reclaiming
from moorage_operator.decide.plan import (
    NOTHING,
    ConfirmGone,
    ConfirmReclaimable,
    Emit,
    Plan,
    WipeVolume,
    Write,
)
from moorage_operator.decide.volumes import decide_volume
from moorage_operator.ledger import Ledger
from moorage_operator.model.ids import volume_key
from moorage_operator.model.node import Node, NodeDrivers
from moorage_operator.model.rules import Rules
from moorage_operator.model.storage_class import Class
from moorage_operator.model.volume import Volume
from tests.unit.operator.objects import claim, class_body, csinode_body, node_body, sentence, volume_body

V = volume_key("v")
REUSE, RESERVED_FOR = "moorage.dev/reuse", "moorage.dev/reserved-for"
BY_CONTROLLER = "pv.kubernetes.io/bound-by-controller"
DONE = {"pv.kubernetes.io/bind-completed": "yes"}
BOTH = pytest.mark.parametrize("instead", [True, False], ids=["instead", "beside"])


def marked(marks: dict[str, str], **fields: Any) -> Volume:
    given: dict[str, Any] = {"claim": ("data", "u1"), "phase": "Released", "policy": "Retain", "provisioned_by": ""}
    body = volume_body("v", **{"uid": "uid-v", "finalizers": (), "class_name": "hand"} | given | fields)
    body["metadata"]["annotations"] = dict(marks)
    return Volume.from_api(body)


def known(*records: Any, instead: bool = True, nodes: tuple[str, ...] = ("n1",)) -> Ledger:
    ledger = Ledger(Rules(instead=instead))
    for name in nodes:
        ledger.apply(Node.from_api(node_body(name)))
        ledger.apply(NodeDrivers.from_api(csinode_body(name)))
    for record in records:
        ledger.apply(record)
    return ledger


def steps(plan: Plan) -> list[type]:
    return [type(step) for step in plan]


def ops(plan: Plan) -> list[tuple[str, str]]:
    (write,) = [step for step in plan if isinstance(step, Write)]
    return [(op["op"], op["path"]) for op in write.ops if op["op"] != "test"]


def removes(*paths: str) -> list[tuple[str, str]]:
    return [("remove", path) for path in paths]


MARK_PATH = "/metadata/annotations/" + BY_CONTROLLER.replace("/", "~1")


# For the next claim of the same name.


@BOTH
def test_the_next_claim_of_the_same_name_gets_it(*, instead: bool) -> None:
    plan = decide_volume(known(marked({REUSE: "same-claim"}), instead=instead), V)
    assert steps(plan) == [ConfirmGone, Write, Emit]
    assert isinstance(plan[0], ConfirmGone)
    assert (plan[0].target.key.namespace, plan[0].target.key.name, plan[0].target.uid) == ("ns", "data", "u1")
    assert ops(plan) == removes("/spec/claimRef/uid")
    assert "for the next claim ns/data" in sentence(plan).message


def test_then_no_controller_gives_it_back_to_everybody() -> None:
    """With the mark of a controller's choice, the next loser's rule would take the name away too."""
    plan = decide_volume(known(marked({REUSE: "same-claim", BY_CONTROLLER: "yes"})), V)
    assert ops(plan) == removes("/spec/claimRef/uid", MARK_PATH)


def test_the_write_is_refused_if_anything_has_changed() -> None:
    (write,) = [
        step for step in decide_volume(known(marked({REUSE: "same-claim"}, version=7)), V) if isinstance(step, Write)
    ]
    assert write.ops[0] == {"op": "test", "path": "/metadata/resourceVersion", "value": "7"}


def test_a_class_asks_for_all_of_its_volumes_and_a_volume_for_itself() -> None:
    body = class_body("hand", provisioner="example.com/x")
    body["metadata"]["annotations"] = {REUSE: "same-claim"}
    assert steps(decide_volume(known(Class.from_api(body), marked({})), V)) == [ConfirmGone, Write, Emit]
    own = marked({REUSE: "after-wipe"})
    assert steps(decide_volume(known(Class.from_api(body), own), V)) == [ConfirmReclaimable, WipeVolume]


def test_a_class_that_is_marked_later_wakes_its_released_volumes() -> None:
    ledger = known(Class.from_api(class_body("hand")), marked({}))
    body = class_body("hand", version=2)
    body["metadata"]["annotations"] = {REUSE: "same-claim"}
    assert V in ledger.apply(Class.from_api(body))


# After it has been emptied.


@BOTH
@pytest.mark.parametrize("provisioned_by", ["", DRIVER_NAME])
def test_our_driver_empties_it_after_a_live_look(provisioned_by: str, *, instead: bool) -> None:
    marks = {REUSE: "after-wipe"} | ({"pv.kubernetes.io/provisioned-by": provisioned_by} if provisioned_by else {})
    released = marked(marks)
    plan = decide_volume(known(released, instead=instead), V)
    assert plan == (ConfirmReclaimable(volume=released), WipeVolume(node="n1", volume=released))


def test_then_it_is_anybodys() -> None:
    plan = reclaiming.wiped(marked({REUSE: "after-wipe", BY_CONTROLLER: "yes"}))
    assert steps(plan) == [Emit, Write]
    assert ops(plan) == removes("/spec/claimRef", MARK_PATH)


def test_storage_that_every_node_reaches_is_emptied_by_any_and_without_one_it_is_told() -> None:
    shared = marked({REUSE: "after-wipe"}, node="")
    assert decide_volume(known(shared), V)[-1] == WipeVolume(node="n1", volume=shared)
    assert "No node has Moorage's node plugin" in sentence(decide_volume(known(shared, nodes=()), V)).message


def test_a_driver_that_fails_is_told_and_changes_nothing() -> None:
    released = marked({REUSE: "after-wipe"})
    ledger = known(released)
    plan = reclaiming.not_wiped(ledger, released, "the disk is on fire")
    assert steps(plan) == [Emit]
    assert sentence(plan).warning


@BOTH
@pytest.mark.parametrize(
    ("marks", "fields", "said"),
    [
        ({REUSE: "after-wipe"}, {"driver": "csi.example/hand"}, "not one of Moorage's driver"),
        ({REUSE: "after-wipe", "pv.kubernetes.io/provisioned-by": "csi.example"}, {}, "not one of Moorage's driver"),
        ({REUSE: "always"}, {}, "'always': expected same-claim or after-wipe"),
    ],
)
def test_what_cannot_be_done_is_told_once(
    marks: dict[str, str], fields: dict[str, Any], said: str, *, instead: bool
) -> None:
    ledger = known(marked(marks, **fields), instead=instead)
    plan = decide_volume(ledger, V)
    assert steps(plan) == [Emit]
    emit = sentence(plan)
    assert (emit.reason, emit.warning) == ("AnnotationNotUnderstood", True)
    assert said in emit.message
    ledger.notes.tell(marked({}).uid, emit.key, emit.message)
    assert decide_volume(ledger, V) == NOTHING


# What is never used again.


ALL_WAYS = pytest.mark.parametrize("reuse", ["same-claim", "after-wipe"])


@BOTH
@ALL_WAYS
@pytest.mark.parametrize(
    "living", [{}, {"name": "renamed"}, {"volumeName": "w", "marks": DONE, "phase": "Bound"}, {"deleting": True}]
)
def test_never_while_a_claim_of_that_uid_lives(reuse: str, living: dict[str, Any], *, instead: bool) -> None:
    """Not under another name, not when it is bound to another volume, and not while it is being deleted."""
    plan = decide_volume(known(marked({REUSE: reuse}), claim(**living), instead=instead), V)
    assert not [step for step in plan if isinstance(step, WipeVolume | ConfirmGone)]
    gives_back = instead and "volumeName" in living
    assert bool([step for step in plan if isinstance(step, Write) and "claimRef" in str(step.ops)]) is gives_back


@BOTH
@ALL_WAYS
@pytest.mark.parametrize(
    "fields",
    [
        {"policy": "Delete", "driver": "csi.example/hand"},
        {"policy": "Recycle", "driver": "csi.example/hand"},
        {"phase": "Bound"},
        {"phase": "Failed"},
        {"phase": "Available", "claim": ("data", "")},
        {"deleting": True, "finalizers": ("kubernetes.io/pv-protection",)},
        {"claim": ("data", "")},
    ],
)
def test_never_but_released_and_retained(reuse: str, fields: dict[str, Any], *, instead: bool) -> None:
    plan = decide_volume(known(marked({REUSE: reuse}, **fields), instead=instead), V)
    assert not [step for step in plan if isinstance(step, WipeVolume)]
    assert not [step for step in plan if isinstance(step, Write) and "claimRef" in str(step.ops)]


@BOTH
def test_never_unless_somebody_asked(*, instead: bool) -> None:
    assert decide_volume(known(marked({}), instead=instead), V) == NOTHING


# Kept for somebody.


def written(plan: Plan) -> Any:
    (write,) = [step for step in plan if isinstance(step, Write)]
    (op,) = [op for op in write.ops if op["path"] == "/spec/claimRef"]
    return op.get("value")


FREE: dict[str, Any] = {"claim": None, "phase": "Available"}


@BOTH
@pytest.mark.parametrize("phase", ["Available", "Pending", ""])
def test_a_free_volume_is_kept_for_a_namespace_or_a_claim(phase: str, *, instead: bool) -> None:
    for wanted, name in (("team", "*"), ("team/data", "data")):
        free = marked({RESERVED_FOR: wanted}, claim=None, phase=phase)
        value = written(decide_volume(known(free, instead=instead), V))
        assert (value["namespace"], value["name"]) == ("team", name)
        assert "uid" not in value


@BOTH
def test_what_is_kept_already_is_left_as_it_is(*, instead: bool) -> None:
    body = volume_body("v", uid="uid-v", claim=None, phase="Available", policy="Retain", provisioned_by="")
    body["metadata"]["annotations"] = {RESERVED_FOR: "team"}
    body["spec"]["claimRef"] = {"namespace": "team", "name": "*"}
    assert decide_volume(known(Volume.from_api(body), instead=instead), V) == NOTHING
    body["metadata"]["annotations"] = {RESERVED_FOR: "others"}
    assert written(decide_volume(known(Volume.from_api(body), instead=instead), V))["namespace"] == "others"
    body["metadata"]["annotations"] = {}
    assert ops(decide_volume(known(Volume.from_api(body), instead=instead), V)) == removes("/spec/claimRef")


@BOTH
@pytest.mark.parametrize(
    "fields", [{"phase": "Bound"}, {"phase": "Released"}, {"phase": "Failed"}, {"phase": "Available"}]
)
def test_what_somebody_has_or_had_is_not_kept_for_another(fields: dict[str, Any], *, instead: bool) -> None:
    plan = decide_volume(known(marked({RESERVED_FOR: "team"}, **fields), claim(), instead=instead), V)
    assert not [step for step in plan if isinstance(step, Write) and "claimRef" in str(step.ops)]


@pytest.mark.parametrize("wanted", ["/data", "team/", "team/data/more", "/"])
def test_what_names_nobody_is_told(wanted: str) -> None:
    plan = decide_volume(known(marked({RESERVED_FOR: wanted}, **FREE), instead=False), V)
    assert steps(plan) == [Emit]
    assert f"{wanted!r}: expected a namespace, or namespace/claim" in sentence(plan).message
