"""One state, one decision: the tables of what is done next, and of what must never be."""

from __future__ import annotations

from typing import Any

import pytest

from moorage_operator.decide import answers, placing
from moorage_operator.decide.abandoning import decide_orphan
from moorage_operator.decide.claims import decide_claim
from moorage_operator.decide.plan import (
    NOTHING,
    ConfirmUnowned,
    CreateVolume,
    DeleteVolume,
    Emit,
    ForgetAttempt,
    MeasureRoom,
    Plan,
    Remember,
    RememberWait,
    Requeue,
    Settled,
    Together,
    Verb,
    Write,
)
from moorage_operator.errors import (
    DriverExhaustedError,
    DriverFinalError,
    DriverInfeasibleError,
    DriverRunningError,
    DriverUnreachableError,
)
from moorage_operator.model.attempt import Attempt, Progress
from moorage_operator.model.ids import Uid, orphan_key
from moorage_operator.model.node import Node, NodeDrivers
from moorage_operator.model.provisioning import Created
from moorage_operator.model.storage_class import Class
from moorage_operator.notes import Rooms
from tests.unit.operator.objects import claim, class_body, csinode_body, known, node_body, sentence, volume
from tests.unit.operator.one_claim import (
    DATA,
    MARKS,
    NOW,
    SELECTED,
    attempt,
    once_left_to_others,
    stored,
    waited,
    writes_of,
)

# Binding.


def test_a_claim_of_our_class_is_made_at_once() -> None:
    remember, create = decide_claim(known(claim()), DATA, NOW)
    assert isinstance(remember, Remember)
    assert isinstance(create, CreateVolume)
    assert (create.attempt.node, create.again) == ("n1", False)
    assert create.attempt.request is not None
    assert create.attempt.request.name == "pvc-u1"
    assert create.attempt.request.parameters["csi.storage.k8s.io/pvc/name"] == "data"


def test_the_steps_of_a_bind_come_one_after_the_other() -> None:
    ledger = known(claim())
    ledger.notes.remember(attempt(Progress.CREATED, created=Created(volume_id="vol-1", capacity_bytes=2**30)))
    (post,) = decide_claim(ledger, DATA, NOW)
    assert isinstance(post, Write)
    assert post.verb is Verb.CREATE
    assert post.body is not None
    assert post.body["spec"]["claimRef"]["uid"] == "u1"

    ledger.apply(volume())
    (adopt,) = decide_claim(ledger, DATA, NOW)
    assert isinstance(adopt, Remember)
    stored(ledger)
    (beside,) = once_left_to_others(ledger)
    assert isinstance(beside, Together)
    assert [write.path.endswith("/status") for write in beside.writes] == [True, False]

    ledger.apply(volume(version=2, phase="Bound"))
    ledger.apply(claim(version=2, volumeName="pvc-u1", marks=MARKS))
    (status,) = once_left_to_others(ledger)
    assert isinstance(status, Write)
    assert status.path.endswith("data/status")

    ledger.apply(claim(version=3, volumeName="pvc-u1", marks=MARKS, phase="Bound"))
    emit, settled = decide_claim(ledger, DATA, NOW)
    assert isinstance(emit, Emit)
    assert isinstance(settled, Settled)
    assert emit.message == "Volume pvc-u1 (image, 1Gi) was made on node n1 and bound in 1.00 s"
    ledger.notes.settle(Uid("u1"))
    assert decide_claim(ledger, DATA, NOW) == NOTHING


def test_every_patch_tests_what_it_was_decided_upon() -> None:
    ledger = stored(known(claim(version=7), volume(version=8)))
    (beside,) = once_left_to_others(ledger)
    assert isinstance(beside, Together)
    of_volume, of_claim = (write.ops for write in beside.writes)
    assert of_volume[:2] == (
        {"op": "test", "path": "/metadata/uid", "value": "pv1"},
        {"op": "test", "path": "/spec/claimRef/uid", "value": "u1"},
    )
    assert of_claim[:2] == (
        {"op": "test", "path": "/metadata/uid", "value": "u1"},
        {"op": "test", "path": "/spec/volumeName", "value": None},
    )


@pytest.mark.parametrize(
    ("of_claim", "of_volume", "left"),
    [
        ({}, {"phase": "Bound"}, 1),
        ({"volumeName": "pvc-u1", "marks": MARKS}, {}, 1),
        ({"volumeName": "pvc-u1", "marks": MARKS, "phase": "Bound"}, {"phase": "Bound"}, 0),
    ],
)
def test_what_the_in_tree_binder_has_done_is_not_done_again(
    of_claim: dict[str, Any], of_volume: dict[str, Any], left: int
) -> None:
    ledger = stored(known(claim(**of_claim), volume(**of_volume)))
    assert len(writes_of(once_left_to_others(ledger))) == left


def test_bound_by_controller_is_only_said_of_a_volume_we_chose() -> None:
    ledger = stored(known(claim(volumeName="pvc-u1"), volume(phase="Bound")))
    (write,) = writes_of(once_left_to_others(ledger))
    assert "bound-by-controller" not in str(write.ops)
    assert "bind-completed" in str(write.ops)


def test_a_volume_that_belongs_to_another_claim_is_not_touched() -> None:
    ledger = known(claim(volumeName="pvc-u1"), volume(claim=("data", "someone-else")))
    assert not writes_of(decide_claim(ledger, DATA, NOW))


@pytest.mark.parametrize("fields", [{"driver": "example.com/other"}, {"provisioned_by": "example.com/other"}, {}])
def test_a_volume_that_names_the_claim_is_bound_whoever_made_it(fields: dict[str, Any]) -> None:
    ledger = waited(stored(known(claim(volumeName="pvc-u1"), volume(**fields))))
    assert [write.path.rpartition("/")[2] for write in writes_of(decide_claim(ledger, DATA, NOW))] == ["status", "data"]


@pytest.mark.parametrize(
    "fields",
    [
        {"class_name": None},
        {"class_name": ""},
        {"class_name": "absent"},
        {"volumeName": "static"},
    ],
)
def test_claims_that_are_not_ours_to_make_are_explained_and_nothing_else(fields: dict[str, Any]) -> None:
    ledger = known(claim(**fields))
    assert [type(step) for step in decide_claim(ledger, DATA, NOW)] == [RememberWait, Requeue]
    assert [type(step) for step in decide_claim(waited(ledger), DATA, NOW)] == [RememberWait, Emit]


def test_nothing_is_made_for_a_claim_that_is_being_deleted() -> None:
    assert decide_claim(known(claim(deleting=True)), DATA, NOW) == NOTHING


def test_a_class_of_others_is_explained_and_nothing_else() -> None:
    plan = decide_claim(waited(known(claim(), provisioner="example.com/other")), DATA, NOW)
    assert "example.com/other" in sentence(plan).message
    assert not writes_of(plan)


def test_the_beta_annotation_beats_the_class_in_the_spec() -> None:
    mine = claim(class_name="other", marks={"volume.beta.kubernetes.io/storage-class": "fast"})
    assert isinstance(decide_claim(known(mine), DATA, NOW)[-1], CreateVolume)
    not_mine = claim(marks={"volume.beta.kubernetes.io/storage-class": ""})
    assert not any(isinstance(step, CreateVolume) for step in decide_claim(known(not_mine), DATA, NOW))


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({"selector": {}}, "selector"),
        ({"dataSource": {"kind": "VolumeSnapshot", "name": "s"}}, "VolumeSnapshot 's'"),
        ({"dataSourceRef": {"kind": "PersistentVolumeClaim", "name": "c"}}, "PersistentVolumeClaim 'c'"),
        ({"volumeAttributesClassName": "gold"}, "'gold'"),
    ],
)
def test_what_cannot_be_made_is_told_once(spec: dict[str, Any], word: str) -> None:
    ledger = known(claim(**spec))
    (emit,) = decide_claim(ledger, DATA, NOW)
    assert isinstance(emit, Emit)
    assert word in emit.message
    ledger.notes.tell(Uid("u1"), emit.key, emit.message)
    assert decide_claim(ledger, DATA, NOW) == NOTHING


# Where.


def test_a_late_claim_waits_for_its_node() -> None:
    assert not any(isinstance(step, CreateVolume) for step in decide_claim(known(claim(), late=True), DATA, NOW))
    plan = decide_claim(known(claim(marks=SELECTED), late=True, nodes=("n1", "n2")), DATA, NOW)
    assert isinstance(plan[-1], CreateVolume)
    assert plan[-1].attempt.node == "n1"


def test_a_selected_node_without_the_plugin_is_waited_for_and_then_given_back() -> None:
    ledger = known(claim(marks=SELECTED), late=True, nodes=())
    ledger.apply(Node.from_api(node_body("n1")))
    plan = decide_claim(ledger, DATA, NOW)
    assert sentence(plan).reason == "WaitingForNode"
    assert plan[-1] == Requeue(after=20.0)
    ledger.notes.remember(attempt(Progress.NOTHING, unserved_since=NOW))
    assert decide_claim(ledger, DATA, NOW + 5) == (Requeue(after=15.0),)
    plan = decide_claim(ledger, DATA, NOW + 20)
    assert isinstance(plan[-1], Write)
    assert plan[-1].ops[1]["op"] == "remove"


def test_a_selected_node_that_is_gone_is_given_back_at_once() -> None:
    plan = decide_claim(known(claim(marks=SELECTED), late=True, nodes=()), DATA, NOW)
    assert isinstance(plan[-1], Write)


def test_cordoned_foreign_and_excluded_nodes_are_no_candidates() -> None:
    term = {"matchLabelExpressions": [{"key": "zone", "values": ["a"]}]}
    ledger = known(claim(), nodes=(), allowedTopologies=[term])
    ledger.apply(Node.from_api(node_body("good", labels={"zone": "a"})))
    ledger.apply(Node.from_api(node_body("cordoned", labels={"zone": "a"}, cordoned=True)))
    ledger.apply(Node.from_api(node_body("elsewhere", labels={"zone": "b"})))
    ledger.apply(Node.from_api(node_body("without", labels={"zone": "a"})))
    for name in ("good", "cordoned", "elsewhere"):
        ledger.apply(NodeDrivers.from_api(csinode_body(name)))
    ledger.apply(NodeDrivers.from_api(csinode_body("without", "example.com/other")))
    cls = ledger.storage_class("fast")
    assert cls is not None
    assert [node.name for node in placing.candidates(ledger, cls)] == ["good"]


def test_why_no_node_is_a_candidate() -> None:
    term = {"matchLabelExpressions": [{"key": "zone", "values": ["a"]}]}
    ledger = known(claim(), nodes=(), allowedTopologies=[term])
    cls = ledger.storage_class("fast")
    assert cls is not None
    assert placing.why_none(ledger, cls).startswith("No node has Moorage's node plugin registered")
    for name in ("n1", "n2"):
        ledger.apply(Node.from_api(node_body(name, labels={"zone": "b"})))
        ledger.apply(NodeDrivers.from_api(csinode_body(name)))
        among = {"n1": "The one node with Moorage's node plugin is not", "n2": "None of the 2 nodes with Moorage's"}[
            name
        ]
        assert placing.why_none(ledger, cls).startswith(among)
    ledger.apply(Node.from_api(node_body("n1", labels={"zone": "a"}, cordoned=True)))
    assert placing.why_none(ledger, cls) == "Every node that could hold the volume is marked unschedulable: n1"


def test_full_and_unready_nodes_come_last_and_claims_spread() -> None:
    nodes = [Node.from_api(node_body(name, ready=name != "n3")) for name in ("n1", "n2", "n3")]
    rooms = Rooms(measured=0, free={"n1": 10, "n2": 1, "n3": 10})
    assert placing.order(nodes, uid=Uid("u"), size=5, rooms=rooms) == ("n1", "n3", "n2")
    firsts = {placing.order(nodes, uid=Uid(f"u{number}"), size=5, rooms=None)[0] for number in range(50)}
    assert firsts == {"n1", "n2"}


def test_room_is_measured_once_for_many_claims() -> None:
    ledger = known(claim(), nodes=("n1", "n2"))
    (measure,) = decide_claim(ledger, DATA, NOW)
    assert isinstance(measure, MeasureRoom)
    assert measure.nodes == ("n1", "n2")
    ledger.notes.measure("fast", Rooms(measured=NOW - 10, free={}))
    assert isinstance(decide_claim(ledger, DATA, NOW)[-1], CreateVolume)


def test_a_volume_reserved_for_the_claim_is_bound_instead_of_making_one() -> None:
    reserved = volume(name="static", provisioned_by="", phase="Available")
    assert writes_of(decide_claim(waited(known(claim(), reserved)), DATA, NOW))
    small = volume(name="static", provisioned_by="", phase="Available", size="1Mi")
    assert isinstance(decide_claim(known(claim(), small), DATA, NOW)[-1], CreateVolume)


# After a failure.


def failed(error: Any, *, again: bool = False, late: bool = False, nodes: tuple[str, ...] = ("n1",)) -> Plan:
    ledger = known(claim(marks=SELECTED), nodes=nodes, late=late)
    return answers.create_failed(ledger, attempt(), error, again=again, now=NOW)


def kept(plan: Plan) -> Attempt:
    (remember,) = [step for step in plan if isinstance(step, Remember)]
    return remember.attempt


def test_an_unknown_outcome_pins_the_node() -> None:
    after = kept(failed(DriverRunningError("?", node="n1")))
    assert (after.progress, after.node) == (Progress.RUNNING, "n1")
    ledger = known(claim(), nodes=("n1", "n2"))
    ledger.notes.remember(after)
    assert isinstance(decide_claim(ledger, DATA, NOW)[0], Requeue)
    (again,) = decide_claim(ledger, DATA, NOW + 100)
    assert isinstance(again, CreateVolume)
    assert (again.attempt.node, again.again) == ("n1", True)
    assert kept(failed(DriverUnreachableError("?", node="n1"), again=True)).progress is Progress.RUNNING


def test_a_final_failure_is_told_and_rests_longer_each_time() -> None:
    plan = failed(DriverFinalError("mkfs broke", node="n1"))
    assert sentence(plan).warning
    assert kept(plan).progress is Progress.NOTHING
    rests, current = [], attempt()
    for _ in range(12):
        current = current.rested(NOW, base=1.0, most=300.0)
        rests.append(current.rest_until - NOW)
    assert rests[:4] == [1, 2, 4, 8]
    assert rests[-1] == 300


def test_a_request_called_wrong_waits_for_a_change_or_five_minutes() -> None:
    plan = failed(DriverInfeasibleError("pool 'x' is unknown", node="n1"))
    assert "pool 'x'" in sentence(plan).message
    ledger = known(claim(marks=SELECTED))
    ledger.notes.remember(kept(plan))
    assert decide_claim(ledger, DATA, NOW + 10) == (Requeue(after=290.0),)
    assert isinstance(decide_claim(ledger, DATA, NOW + 300)[-1], CreateVolume)
    ledger.apply(Class.from_api(class_body(version=2)))
    assert isinstance(decide_claim(ledger, DATA, NOW + 11)[-1], CreateVolume)


def test_no_room_sends_a_late_claim_back_and_an_immediate_one_on() -> None:
    error = DriverExhaustedError("full", node="n1")
    assert isinstance(failed(error, late=True)[-1], Write)
    ledger = known(claim(), nodes=("n1", "n2"))
    ledger.notes.measure("fast", Rooms(measured=NOW, free={}))
    ledger.notes.remember(kept(failed(error, nodes=("n1", "n2"))))
    step = decide_claim(ledger, DATA, NOW)[-1]
    assert isinstance(step, CreateVolume)
    assert step.attempt.node == "n2"


def test_figures_in_a_sentence_do_not_make_it_a_new_one() -> None:
    ledger = known(claim(marks=SELECTED), late=True)
    plan = answers.create_failed(ledger, attempt(), DriverFinalError("17 bytes free", node="n1"), again=False, now=NOW)
    ledger.notes.tell(Uid("u1"), sentence(plan).key, sentence(plan).message)
    more = answers.create_failed(ledger, attempt(), DriverFinalError("5 bytes free", node="n1"), again=False, now=NOW)
    assert not [step for step in more if isinstance(step, Emit)]


def test_a_volume_smaller_than_asked_for_is_destroyed_again() -> None:
    plan = answers.created(known(claim()), attempt(), Created(volume_id="v", capacity_bytes=2**20), now=NOW)
    assert sentence(plan).warning
    assert isinstance(plan[-1], DeleteVolume)


def test_what_was_made_on_another_node_than_the_volume_object_says_is_destroyed_there() -> None:
    made = Created(volume_id="vol-1", capacity_bytes=2**30)
    ledger = known(claim(), volume(node="n1"), nodes=("n1", "n2"))
    ledger.notes.remember(attempt(Progress.CREATED, node="n2", created=made))
    (deletion,) = decide_claim(ledger, DATA, NOW)
    assert isinstance(deletion, DeleteVolume)
    assert (deletion.node, deletion.kept is not None and deletion.kept.progress) == ("n2", Progress.STORED)
    bound = known(
        claim(volumeName="pvc-u1", marks=MARKS, phase="Bound"), volume(node="n1", phase="Bound"), nodes=("n1", "n2")
    )
    bound.notes.remember(attempt(Progress.CREATED, node="n2", created=made))
    (deletion,) = decide_claim(bound, DATA, NOW)
    assert isinstance(deletion, DeleteVolume)
    ledger.notes.remember(attempt(Progress.RUNNING, node="n2"))
    (again,) = decide_claim(ledger, DATA, NOW)
    assert isinstance(again, CreateVolume)
    assert again.again
    ledger.notes.remember(attempt(Progress.CREATED, node="n1", created=made))
    assert kept(decide_claim(ledger, DATA, NOW)).progress is Progress.STORED


def test_for_a_claim_that_is_gone_an_unknown_outcome_is_asked_about_until_it_is_known() -> None:
    ledger = known()
    ledger.notes.remember(attempt())
    orphan = orphan_key(Uid("u1"))
    (again,) = decide_orphan(ledger, orphan, NOW)
    assert isinstance(again, CreateVolume)
    for error in (DriverRunningError("?", node="n1"), DriverUnreachableError("?", node="n1")):
        plan = answers.create_failed(ledger, attempt(), error, again=True, now=NOW)
        assert kept(plan).progress is Progress.RUNNING
    for over in (DriverFinalError("no", node="n1"), DriverExhaustedError("no", node="n1")):
        assert answers.create_failed(ledger, attempt(), over, again=True, now=NOW) == (ForgetAttempt(uid=Uid("u1")),)
    ledger.notes.remember(attempt(Progress.CREATED, created=Created(volume_id="vol-1", capacity_bytes=1)))
    assert [type(step) for step in decide_orphan(ledger, orphan, NOW)] == [ConfirmUnowned, DeleteVolume]
    ledger.notes.remember(attempt(Progress.STORED))
    assert decide_orphan(ledger, orphan, NOW) == (ForgetAttempt(uid=Uid("u1")),)
