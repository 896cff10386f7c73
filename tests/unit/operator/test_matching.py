"""Which volume a claim gets, against the same rules told once more by brute force."""

from __future__ import annotations

import copy
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from moorage_operator import shelf
from moorage_operator.decide import matching
from moorage_operator.errors import DecisionError
from moorage_operator.ledger import Ledger
from moorage_operator.model.claim import Claim
from moorage_operator.model.node import Node
from moorage_operator.model.rules import Rules
from moorage_operator.model.volume import Volume
from tests.unit.operator import generated, model_rules
from tests.unit.operator.generated import ZONE
from tests.unit.operator.objects import claim, node_body

Body = dict[str, Any]
MANY = settings(
    max_examples=int(os.environ.get("MOORAGE_CASES", "400")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
EXCLUDED = st.frozensets(st.sampled_from([f"v{number}" for number in range(4)]), max_size=2)


def stocked(volumes: list[Body], *, attributes: bool = True) -> Ledger:
    ledger = Ledger(Rules(instead=True, attributes_classes=attributes))
    for body in volumes:
        ledger.apply(Volume.from_api(copy.deepcopy(body)))
    return ledger


def name_of(volume: Volume | None) -> str | None:
    return None if volume is None else volume.name


@given(body=generated.claims, volumes=generated.stocks, late=st.booleans(), excluded=EXCLUDED)
@MANY
def test_the_binder_chooses_what_the_rule_says(
    body: Body, volumes: list[Body], excluded: frozenset[str], *, late: bool
) -> None:
    asks = Claim.from_api(copy.deepcopy(body))
    found = matching.match(stocked(volumes), asks, late=late, excluded=excluded)
    wanted = model_rules.allowed(body, volumes, late=late, excluded=excluded)
    event("found" if found else "nothing fits")
    assert name_of(found) in wanted


@given(body=generated.claims, volumes=generated.stocks, zone=st.sampled_from(("east", "west")), excluded=EXCLUDED)
@MANY
def test_for_a_node_the_scheduler_chooses_what_the_rule_says(
    body: Body, volumes: list[Body], zone: str, excluded: frozenset[str]
) -> None:
    node = Node.from_api(node_body("n", labels={ZONE: zone}))
    asks = Claim.from_api(copy.deepcopy(body))
    found = matching.match(stocked(volumes), asks, late=True, node=node, excluded=excluded)
    event("found" if found else "nothing fits")
    assert name_of(found) in model_rules.allowed_on(body, volumes, zone, excluded=excluded)


@given(body=generated.claims, volumes=generated.stocks)
@MANY
def test_without_attributes_classes_who_has_one_is_refused_or_left_out(body: Body, volumes: list[Body]) -> None:
    ledger, asks = stocked(volumes, attributes=False), Claim.from_api(copy.deepcopy(body))
    if asks.attributes_class:
        with pytest.raises(DecisionError, match="fast"):
            matching.match(ledger, asks)
        return
    assert name_of(matching.match(ledger, asks)) in model_rules.allowed(body, volumes, attributes=False)


@given(body=generated.claims, volumes=generated.stocks, changes=st.lists(generated.volumes, max_size=12))
@MANY
def test_a_choice_does_not_depend_on_what_was_before(body: Body, volumes: list[Body], changes: list[Body]) -> None:
    """Volumes change, go and come again: what is left over of that on a shelf would be chosen."""
    ledger = stocked(volumes)
    current = {each["metadata"]["name"]: each for each in volumes}
    for change in changes:
        name = change["metadata"]["name"]
        if name in current and change["metadata"].get("deletionTimestamp"):
            ledger.forget(Volume, current.pop(name)["metadata"]["uid"])
            continue
        newer = copy.deepcopy(change)
        newer["metadata"]["uid"] = f"{name}-{len(current)}" if name not in current else current[name]["metadata"]["uid"]
        newer["metadata"]["resourceVersion"] = "2"
        current[name] = newer
        ledger.apply(Volume.from_api(copy.deepcopy(newer)), listed=True)
    found = matching.match(ledger, Claim.from_api(copy.deepcopy(body)))
    assert name_of(found) in model_rules.allowed(body, [*current.values()])


@given(
    bodies=st.lists(generated.claims, min_size=2, max_size=5),
    volumes=generated.stocks,
    zone=st.sampled_from(("east", "west")),
)
@MANY
def test_a_choice_does_not_depend_on_what_was_asked_before(bodies: list[Body], volumes: list[Body], zone: str) -> None:
    """What is remembered of one question must answer the next one right, with a node and without."""
    ledger, node = stocked(volumes), Node.from_api(node_body("n", labels={ZONE: zone}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shelf, "PATIENCE", 1)
        for body in (*bodies, *bodies):
            asks = Claim.from_api(copy.deepcopy(body))
            assert name_of(matching.match(ledger, asks)) in model_rules.allowed(body, volumes)
            on_node = matching.match(ledger, asks, late=True, node=node)
            assert name_of(on_node) in model_rules.allowed_on(body, volumes, zone, excluded=frozenset())


def test_a_volume_that_a_write_in_flight_reserves_is_not_chosen_again() -> None:
    asks = claim(class_name="")
    small = _free("small", "1Gi")
    large = _free("large", "2Gi")
    ledger = stocked([large, small])
    assert name_of(matching.match(ledger, asks)) == "small"
    ledger.hold("small")
    assert name_of(matching.match(ledger, asks)) == "large"
    ledger.let_go("small")
    assert name_of(matching.match(ledger, asks)) == "small"


def test_what_somebody_else_is_being_given_is_left_out() -> None:
    ledger, node = stocked([_free("small", "1Gi"), _free("large", "2Gi")]), Node.from_api(node_body("n"))
    for where in (None, node):
        assert name_of(matching.match(ledger, claim(class_name=""), node=where, excluded={"small"})) == "large"
        assert matching.match(ledger, claim(class_name=""), node=where, excluded={"small", "large"}) is None


def test_of_volumes_of_one_size_the_first_by_name_is_chosen() -> None:
    ledger = stocked([_free("b", "1Gi"), _free("a", "1Gi"), _free("c", "1Gi")])
    assert name_of(matching.match(ledger, claim(class_name=""))) == "a"


def test_a_selector_that_nobody_can_read_is_an_error() -> None:
    wrong = {"matchExpressions": [{"key": "tier", "operator": "Near", "values": ["gold"]}]}
    with pytest.raises(DecisionError, match="Near"):
        matching.match(stocked([_free("a", "1Gi")]), claim(class_name="", selector=wrong))


def _free(name: str, size: str) -> Body:
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": "1"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": size},
            "storageClassName": "",
            "hostPath": {"path": f"/srv/{name}"},
        },
        "status": {"phase": "Available"},
    }
