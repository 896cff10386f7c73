"""What is destroyed, in which order, and what never is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moorage_csi.contract import DRIVER_NAME
from moorage_operator.decide.abandoning import OWNER_REST, decide_orphan
from moorage_operator.decide.plan import (
    NOTHING,
    ConfirmReleased,
    CreateVolume,
    DeleteVolume,
    Emit,
    ForgetAttempt,
    Reach,
    Requeue,
    Verb,
    Write,
)
from moorage_operator.decide.volumes import NOT_NEEDED, decide_volume, may_destroy
from moorage_operator.model.attempt import Attempt, Progress
from moorage_operator.model.ids import Uid, claim_key, orphan_key, volume_key
from moorage_operator.model.node import Node
from moorage_operator.model.provisioning import Created
from moorage_operator.model.storage_class import Class
from moorage_operator.model.volume import Volume
from tests.unit.operator.objects import (
    claim,
    class_body,
    known,
    node_body,
    sentence,
    volume,
)

PV = volume_key("pvc-u1")
MARKS = {"pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes"}


RELEASED = {"phase": "Released"}


def test_a_released_volume_is_destroyed_after_a_live_look() -> None:
    plan = decide_volume(known(volume(**RELEASED)), PV)
    assert [type(step) for step in plan] == [Reach, ConfirmReleased, DeleteVolume]
    deletion = plan[-1]
    assert isinstance(deletion, DeleteVolume)
    assert (deletion.node, deletion.volume_id) == ("n1", "vol-pvc-u1")


def test_then_the_object_goes_and_then_the_finalizer() -> None:
    ledger = known(volume(**RELEASED))
    ledger.notes.destroy(Uid("pv1"))
    write = decide_volume(ledger, PV)[0]
    assert isinstance(write, Write)
    assert (write.verb, write.target.uid) == (Verb.DELETE, "pv1")
    ledger.apply(volume(version=2, deleting=True, finalizers=("kubernetes.io/pv-protection", FINALIZER), **RELEASED))
    (patch,) = decide_volume(ledger, PV)
    assert isinstance(patch, Write)
    assert patch.ops[1] == {"op": "remove", "path": "/metadata/finalizers/1"}


FINALIZER = "external-provisioner.volume.kubernetes.io/finalizer"


@pytest.mark.parametrize(
    "fields",
    [
        {"policy": "Retain", **RELEASED},
        {"policy": "Recycle", **RELEASED},
        {"phase": "Bound"},
        {"phase": "Bound", "deleting": True},
        {"phase": "Pending"},
        {"phase": "Failed"},
        {"phase": "Available", "claim": None},
        {"phase": "Pending", "deleting": True},
        {"phase": "Released", "claim": None},
        {"phase": "Released", "claim": ("data", "")},
        {"driver": "example.com/other", **RELEASED},
        {"provisioned_by": "example.com/other", **RELEASED},
        {"finalizers": ("example.com/theirs",), "deleting": True, **RELEASED},
    ],
)
def test_what_is_never_destroyed(fields: dict[str, Any]) -> None:
    kept_one = volume(**fields)
    assert not may_destroy(kept_one, None)
    assert not [step for step in decide_volume(known(kept_one), PV) if isinstance(step, DeleteVolume)]


def test_nothing_is_destroyed_while_a_claim_of_that_uid_lives() -> None:
    for living in (claim(), claim(deleting=True)):
        assert not may_destroy(volume(**RELEASED), living)
        assert decide_volume(known(living, volume(**RELEASED)), PV) == NOTHING


def test_what_was_made_for_a_claim_that_got_another_is_kept_while_it_lives_and_says_so_once() -> None:
    living = claim(volumeName="another", marks=MARKS, phase="Bound")
    assert not may_destroy(volume(**RELEASED), living)
    ledger = known(living, volume(**RELEASED))
    (told,) = decide_volume(ledger, PV)
    assert isinstance(told, Emit)
    assert (told.reason, told.regarding.uid) == (NOT_NEEDED, "pv1")
    assert "was bound to volume another while this one was made for it" in told.message
    ledger.notes.tell(Uid("pv1"), told.key, told.message)
    assert decide_volume(ledger, PV) == NOTHING
    kept = known(living, volume(policy="Retain", **RELEASED))
    assert decide_volume(kept, PV) == NOTHING


def test_a_new_claim_of_the_same_name_does_not_keep_the_old_volume() -> None:
    assert decide_volume(known(claim(uid="u2"), volume(**RELEASED)), PV)


def test_a_node_that_is_not_ready_or_gone_destroys_nothing_by_itself() -> None:
    ledger = known(volume(phase="Bound"), claim(volumeName="pvc-u1", marks=MARKS, phase="Bound"), nodes=())
    ledger.apply(Node.from_api(node_body("n1", ready=False)))
    assert decide_volume(ledger, PV) == NOTHING
    gone = known(volume(**RELEASED), nodes=())
    assert "does not exist" in sentence(decide_volume(gone, PV)).message


def test_a_retained_volume_lets_its_object_go_and_keeps_its_data() -> None:
    (patch,) = decide_volume(known(volume(policy="Retain", deleting=True, **RELEASED)), PV)
    assert isinstance(patch, Write)
    assert patch.ops[1]["path"] == "/metadata/finalizers/0"
    assert decide_volume(known(volume(policy="Retain", deleting=True, phase="Bound")), PV) == NOTHING


def test_an_unclaimed_volume_goes_when_a_person_deletes_it() -> None:
    assert may_destroy(volume(phase="Available", claim=None, deleting=True), None)


def test_storage_that_every_node_reaches_is_destroyed_from_any() -> None:
    plan = decide_volume(known(volume(node="", **RELEASED), nodes=("n7",)), PV)
    assert isinstance(plan[-1], DeleteVolume)
    assert plan[-1].node == "n7"


def test_the_driver_is_ours() -> None:
    assert Class.from_api(class_body()).provisioner == DRIVER_NAME
    assert replace(volume(), driver=DRIVER_NAME).ours


@pytest.mark.parametrize("progress", [Progress.RUNNING, Progress.CREATED])
def test_what_a_late_call_has_made_again_is_destroyed_once_its_object_is_gone(progress: Progress) -> None:
    """The object's storage was destroyed while the call was on its way: that the object owns it is not true any more."""
    made = Created(volume_id="vol-pvc-u1", capacity_bytes=2**30)
    attempt = Attempt(
        claim=claim_key("ns", "data"),
        uid=Uid("u1"),
        name="pvc-u1",
        began=0.0,
        node="n1",
        progress=progress,
        created=made if progress is Progress.CREATED else None,
    )
    ledger, orphan = known(volume(phase="Released")), orphan_key(Uid("u1"))
    ledger.notes.remember(attempt)
    assert decide_orphan(ledger, orphan, 1000.0) == (Requeue(after=OWNER_REST),)
    ledger.forget(Volume, Uid("pv1"))
    assert isinstance(decide_orphan(ledger, orphan, 1000.0)[-1], DeleteVolume | CreateVolume)
    kept = known(volume(phase="Released", policy="Retain"))
    kept.notes.remember(attempt)
    assert decide_orphan(kept, orphan, 1000.0) == (ForgetAttempt(uid=Uid("u1")),)
