"""What is the in-tree binder's alone, where it runs: never written by us, and all of it written where it does not."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moorage_csi.contract import DRIVER_NAME
from moorage_operator.decide.claims import GRACE, decide_claim
from moorage_operator.decide.plan import DeleteVolume, Plan, RememberWait, Requeue, Verb, Write
from moorage_operator.ledger import Ledger
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import claim_key, volume_key
from moorage_operator.model.rules import Rules
from moorage_operator.model.storage_class import Class
from moorage_operator.model.volume import Volume
from tests.unit.operator import generated
from tests.unit.operator.objects import claim, class_body, volume
from tests.unit.operator.one_claim import NOW, plan_at, writes_of

if TYPE_CHECKING:
    from random import Random

    from moorage_operator.model.ids import Key

DATA, V = claim_key("ns", "data"), volume_key("v")
MARKS = {"pv.kubernetes.io/bind-completed": "yes"}
CHOSEN = {"pv.kubernetes.io/bound-by-controller": "yes"}
OTHERS = "example.com/theirs"

Record = Claim | Volume | Class


def hand(name: str = "v", *, marks: dict[str, str] | None = None, **fields: Any) -> Volume:
    given = {"claim": None, "phase": "Available", "class_name": "", "policy": "Retain", "provisioned_by": ""}
    made = volume(
        **{"name": name, "uid": f"uid-{name}", "driver": "csi.example/hand", "finalizers": ()} | given | fields
    )
    if marks is None:
        return made
    return Volume.from_api(_body_of(name, given | fields, marks))


def _body_of(name: str, fields: dict[str, Any], marks: dict[str, str]) -> dict[str, Any]:
    from tests.unit.operator.objects import volume_body  # noqa: PLC0415

    body = volume_body(name, **{"uid": f"uid-{name}", "driver": "csi.example/hand", "finalizers": ()} | fields)
    body["metadata"]["annotations"] = dict(marks)
    return body


def cls(name: str = "fast", **fields: Any) -> Class:
    body = class_body(name, **{"provisioner": OTHERS} | fields)
    if fields.pop("default", False):
        body["metadata"]["annotations"] = {"storageclass.kubernetes.io/is-default-class": "true"}
    return Class.from_api(body)


def known(*records: Any, instead: bool) -> Ledger:
    ledger = Ledger(Rules(instead=instead))
    for record in records:
        ledger.apply(record)
    return ledger


def decide(ledger: Ledger, key: Key) -> Plan:
    """What is done, once every moment that is left to others has passed."""
    plans = [plan_at(ledger, now, key) for now in (NOW, NOW + GRACE, NOW + 100.0)]
    return plans[-1]


def changes(plan: Plan) -> set[str]:
    """What a plan writes: the paths of its patches, with a phase's value."""
    found = set()
    for write in writes_of(plan):
        for op in write.ops:
            if op["op"] != "test":
                kind = "pvc" if "persistentvolumeclaims" in write.path else "pv"
                value = f"={op['value']}" if op["path"].endswith("/phase") else ""
                found.add(f"{kind}:{op['path']}{value}")
    return found


THEIRS: dict[str, tuple[Key, tuple[Record, ...], str]] = {
    "a new volume is called Available": (V, (hand(phase="Pending"),), "pv:/status/phase=Available"),
    "a volume reserved by name is called Available": (
        V,
        (hand(phase="Pending", claim=("data", "")),),
        "pv:/status/phase=Available",
    ),
    "a volume whose claim is gone is called Released": (
        V,
        (hand(phase="Bound", claim=("data", "u1")),),
        "pv:/status/phase=Released",
    ),
    "a volume that is bound is called so": (
        V,
        (hand(phase="Available", claim=("data", "u1")), claim(class_name="", volumeName="v", marks=MARKS)),
        "pv:/status/phase=Bound",
    ),
    "a volume that lost is given back": (
        V,
        (
            hand(claim=("data", "u1"), marks=CHOSEN),
            claim(class_name="", volumeName="w", marks=MARKS, phase="Bound"),
        ),
        "pv:/spec/claimRef",
    ),
    "a volume that lost and that a person reserved stays reserved": (
        V,
        (hand(claim=("data", "u1")), claim(class_name="", volumeName="w", marks=MARKS, phase="Bound")),
        "pv:/spec/claimRef/uid",
    ),
    "a volume of others that lost is called Released": (
        V,
        (
            hand(
                claim=("data", "u1"),
                policy="Delete",
                marks={"pv.kubernetes.io/provisioned-by": OTHERS},
                phase="Bound",
            ),
            claim(class_name="", volumeName="w", marks=MARKS, phase="Bound"),
        ),
        "pv:/status/phase=Released",
    ),
    "a volume that nothing can delete is called Failed": (
        V,
        (hand(phase="Released", claim=("gone", "u9"), policy="Delete", driver=""),),
        "pv:/status/phase=Failed",
    ),
    "a free volume is chosen": (DATA, (claim(class_name=""), hand()), "pv:/spec/claimRef"),
    "a free volume of a class of ours is chosen": (
        DATA,
        (claim(), cls(provisioner=DRIVER_NAME), hand(class_name="fast")),
        "pv:/spec/claimRef",
    ),
    "a named free volume is reserved": (DATA, (claim(class_name="", volumeName="v"), hand()), "pv:/spec/claimRef"),
    "a volume kept by name is reserved": (DATA, (claim(class_name=""), hand(claim=("data", ""))), "pv:/spec/claimRef"),
    "a volume that forgot its claim is reserved again": (
        DATA,
        (claim(class_name="", volumeName="v", marks=MARKS, phase="Bound"), hand()),
        "pv:/spec/claimRef",
    ),
    "the default class is given": (DATA, (claim(class_name=None), cls(default=True)), "pvc:/spec/storageClassName"),
    "another provisioner is asked": (
        DATA,
        (claim(marks={"theirs": "yes"}), cls()),
        "pvc:/metadata/annotations/volume.kubernetes.io~1storage-provisioner",
    ),
    "a claim is called Lost": (
        DATA,
        (claim(class_name="", volumeName="v", marks=MARKS, phase="Bound"),),
        "pvc:/status/phase=Lost",
    ),
    "a claim whose volume is another's is called Lost": (
        DATA,
        (
            claim(class_name="", volumeName="v", marks=MARKS, phase="Bound"),
            hand(claim=("other", "u2"), phase="Bound"),
        ),
        "pvc:/status/phase=Lost",
    ),
    "a claim that is called Bound and is not is called Pending": (
        DATA,
        (claim(class_name="", phase="Bound"),),
        "pvc:/status/phase=Pending",
    ),
}


@pytest.mark.parametrize("case", THEIRS)
def test_instead_of_the_in_tree_binder_we_do_it_and_beside_it_we_do_not(case: str) -> None:
    key, records, change = THEIRS[case]
    assert change in changes(decide(known(*records, instead=True), key))
    assert not writes_of(decide(known(*records, instead=False), key))


def test_what_others_have_reserved_is_completed_beside_them_too_but_not_at_once() -> None:
    records = (claim(class_name=""), hand(claim=("data", "u1"), marks=CHOSEN))
    ledger = known(*records, instead=False)
    first = decide_claim(ledger, DATA, NOW)
    assert [type(step) for step in first] == [RememberWait, Requeue]
    assert "pvc:/spec/volumeName" in changes(decide(ledger, DATA))
    assert "pvc:/spec/volumeName" in changes(decide_claim(known(*records, instead=True), DATA, NOW))


def test_a_volume_of_ours_is_reclaimed_by_us_in_both_modes_and_others_are_not() -> None:
    ours = volume(name="v", uid="uid-v", claim=("gone", "u9"), phase="Released")
    theirs = volume(name="v", uid="uid-v", claim=("gone", "u9"), phase="Released", driver=OTHERS, provisioned_by=OTHERS)
    for instead in (True, False):
        assert [step for step in decide(known(ours, instead=instead), V) if isinstance(step, DeleteVolume)]
        assert not decide(known(theirs, instead=instead), V)


def test_a_volume_kept_for_a_namespace_is_our_choice_in_both_modes() -> None:
    body = _body_of("v", {"claim": None, "phase": "Available", "class_name": "", "policy": "Retain"}, {})
    body["metadata"]["annotations"] = {"moorage.dev/reserved-for": "ns"}
    body["spec"]["claimRef"] = {"namespace": "ns", "name": "*"}
    for instead in (True, False):
        ledger = known(claim(class_name=""), Volume.from_api(body), instead=instead)
        assert "pv:/spec/claimRef" in changes(decide(ledger, DATA))


@given(seed=generated.seeds, volumes=generated.stocks, classes=st.sets(st.sampled_from("ab")), instead=st.booleans())
@settings(
    max_examples=int(os.environ.get("MOORAGE_CASES", "400")), deadline=None, suppress_health_check=list(HealthCheck)
)
def test_in_no_world_is_a_forbidden_write_made(
    seed: int, volumes: list[generated.Body], classes: set[str], *, instead: bool
) -> None:
    ledger = Ledger(Rules(instead=instead))
    for name in classes:
        ledger.apply(cls(name, provisioner=DRIVER_NAME if name == "a" else OTHERS, default=name == "b"))
    for body in volumes:
        ledger.apply(Volume.from_api(copy.deepcopy(body)))
    asks = Claim.from_api(_any_claim(generated.dice(seed)))
    ledger.apply(asks)
    plans = [decide(ledger, key) for key in (DATA, *(volume_key(body["metadata"]["name"]) for body in volumes))]
    for write in [write for plan in plans for write in writes_of(plan)]:
        _check_conditions(ledger, write)
        _check_order(ledger, asks, write)
        if not instead:
            _check_beside(ledger, write)


def _any_claim(random: Random) -> generated.Body:
    """A claim in any state of a bind, also ones that only an accident can leave."""
    body = generated.claim(random)
    if random.random() < 0.5:
        body["spec"]["volumeName"] = random.choice(("v0", "v1", "v2", "gone"))
    marks = {mark: "yes" for mark in (*MARKS, *CHOSEN) if random.random() < 0.4}
    if marks:
        body["metadata"]["annotations"] = body["metadata"].get("annotations", {}) | marks
    body["status"]["phase"] = random.choice(("Pending", "Pending", "Bound", "Lost"))
    return body


def _check_conditions(ledger: Ledger, write: Write) -> None:
    """No write goes out without saying what it was decided upon: who gets a volume, upon this very version of it."""
    if write.verb is not Verb.PATCH:
        assert write.target.uid
        return
    tested = {op["path"]: op["value"] for op in write.ops if op["op"] == "test"}
    decides = any(op["path"].startswith("/spec/claimRef") for op in write.ops if op["op"] != "test")
    if write.target.kind is Volume and (decides or any(op["op"] == "remove" for op in write.ops)):
        known_as = ledger.volume(write.target.key.name)
        assert known_as is not None
        assert tested["/metadata/resourceVersion"] == known_as.resource_version
    assert tested.keys() & {"/metadata/resourceVersion", "/metadata/uid"}


def _check_order(ledger: Ledger, asks: Claim, write: Write) -> None:
    """Whatever the mode: reserved, then marked, then called Bound; and nobody is robbed."""
    done = {op["path"]: op.get("value") for op in write.ops if op["op"] != "test"}
    if write.target.kind is Claim:
        named = done.get("/spec/volumeName", asks.volume_name)
        holder = ledger.volume(str(named))
        if "/spec/volumeName" in done or any("bind-completed" in path for path in done):
            assert not asks.bind_completed or asks.volume_name == named
            assert holder is not None
            assert holder.claim_uid == asks.uid
        if done.get("/status/phase") == "Bound":
            assert asks.bind_completed
            assert holder is not None
            assert holder.claim_uid == asks.uid
        return
    before = ledger.volume(write.target.key.name)
    assert before is not None
    assert write.verb is not Verb.DELETE or before.ours
    if "/spec/claimRef" in done and done["/spec/claimRef"] is not None:
        robbed = before.claim is not None and before.claim.name != "*" and not before.claim.means(asks)
        assert not robbed, "a claimRef of somebody else was overwritten"
    if "/spec/claimRef" in str(done) and done.get("/spec/claimRef") is None:
        bound_here = asks.bind_completed and asks.volume_name == before.name and before.claim_uid == asks.uid
        assert not bound_here, "a volume was taken from the claim that is bound to it"


def _check_beside(ledger: Ledger, write: Write) -> None:
    done = {op["path"]: op.get("value") for op in write.ops if op["op"] != "test"}
    if write.target.kind is Claim:
        assert "/spec/storageClassName" not in done
        assert done.get("/status/phase") in {None, "Bound"}
        assert not any("provisioner" in path or "migrated" in path for path in done)
        return
    before = ledger.volume(write.target.key.name)
    assert before is not None
    assert done.get("/status/phase") in {None, "Bound"}
    assert "/metadata/finalizers" not in done
    kept = before.reserved_for or (before.claim is not None and before.claim.name == "*")
    if any(path.startswith("/spec/claimRef") for path in done):
        assert kept, "a free volume was given away beside the in-tree binder"
