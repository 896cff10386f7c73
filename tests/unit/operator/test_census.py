"""What is said to be wrong with each volume, against looking at all of them."""

from __future__ import annotations

import copy
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from moorage_operator.decide.census import Census, Miss, census, describe
from moorage_operator.ledger import Ledger
from moorage_operator.model.claim import Claim
from moorage_operator.model.rules import Rules
from moorage_operator.model.volume import Volume
from moorage_operator.stock import Standing
from tests.unit.operator import generated, model_rules
from tests.unit.operator.objects import claim, volume_body

if TYPE_CHECKING:
    from collections.abc import Mapping

Body = dict[str, Any]
MANY = settings(
    max_examples=int(os.environ.get("MOORAGE_CASES", "400")), deadline=None, suppress_health_check=list(HealthCheck)
)
ONLY_NEAR_IF_FITTING = {Miss.RELEASED, Miss.RESERVED, Miss.NAMESPACE}


def counted(body: Body, volumes: list[Body], held: frozenset[str] = frozenset()) -> Census:
    ledger = Ledger(Rules(instead=True))
    for each in volumes:
        ledger.apply(Volume.from_api(copy.deepcopy(each)))
    for name in held:
        ledger.hold(name)
    return census(ledger, Claim.from_api(copy.deepcopy(body)))


@given(
    body=generated.claims, volumes=generated.stocks, held=st.frozensets(st.sampled_from(("v0", "v1", "v2")), max_size=2)
)
@MANY
def test_every_volume_is_counted_once_by_the_first_thing_that_rules_it_out(
    body: Body, volumes: list[Body], held: frozenset[str]
) -> None:
    assume(model_rules.allowed(body, volumes, excluded=held) == {None})
    found = counted(body, volumes, held)
    wanted = Counter(_shortcoming(body, each, held) for each in volumes)
    assert {miss.value: count for miss, count in found.failed.items()} == wanted
    assert found.looked == len(volumes) == sum(found.failed.values())
    assert list(found.failed) == sorted(found.failed, key=list(Miss).index)


@given(body=generated.claims, volumes=generated.stocks)
@MANY
def test_what_came_nearest_is_named_and_really_did(body: Body, volumes: list[Body]) -> None:
    assume(model_rules.allowed(body, volumes) == {None})
    found = counted(body, volumes)
    by_name = {each["metadata"]["name"]: each for each in volumes}
    small = [each for each in volumes if model_rules.shortcoming(body, each) == "too small"]
    assert found.largest == max(map(model_rules.size_of, small), default=0)
    near = [miss for miss in found.failed if _comes_near(miss, body, volumes)]
    assert found.nearest is (near[0] if near else None)
    if found.example:
        named = by_name[found.example]
        assert model_rules.shortcoming(body, named) == found.nearest
        if found.nearest in ONLY_NEAR_IF_FITTING:
            assert model_rules.would_fit(body, named)
    elif found.nearest is not None:
        assert found.nearest not in ONLY_NEAR_IF_FITTING


@given(body=generated.claims, volumes=generated.stocks)
@MANY
def test_the_sentence_has_every_count(body: Body, volumes: list[Body]) -> None:
    assume(model_rules.allowed(body, volumes) == {None})
    found = counted(body, volumes)
    sentence = describe(found, Claim.from_api(copy.deepcopy(body)))
    assert sentence.startswith((f"{len(volumes)} volume", "there is no volume at all"))
    assert sentence.count(",") >= len(found.failed) - 1
    assert "  " not in sentence


def _shortcoming(body: Body, volume: Body, held: frozenset[str]) -> str:
    """A free volume that a write in flight reserves is as good as reserved."""
    found = model_rules.shortcoming(body, volume)
    free = found not in {"deleting", "released", "failed", "bound", "reserved", "pending"}
    return "reserved" if free and volume["metadata"]["name"] in held else found


def _comes_near(miss: Miss, body: Body, volumes: list[Body]) -> bool:
    alike = [each for each in volumes if model_rules.shortcoming(body, each) == miss]
    return miss not in ONLY_NEAR_IF_FITTING or any(model_rules.would_fit(body, each) for each in alike)


# One shortcoming each.


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"phase": "Released"}, "1 Released (nearest: v)"),
        ({"phase": "Failed"}, "1 Failed"),
        ({"phase": "Pending"}, "1 not Available yet"),
        ({"deleting": True}, "1 being deleted"),
        ({"claim": ("other", "u2")}, "1 reserved for a claim (nearest: v)"),
        ({"claim": ("other", "u2"), "phase": "Bound"}, "1 bound"),
        ({"size": "512Mi"}, "1 too small (largest free 512Mi, 1Gi asked for)"),
        ({"class_name": "slow"}, "1 of another storage class (nearest: v)"),
    ],
)
def test_each_shortcoming_has_its_words(fields: dict[str, Any], said: str) -> None:
    body = volume_body("v", **{"claim": None, "phase": "Available", "class_name": "", "policy": "Retain"} | fields)
    asks = claim(class_name="")
    ledger = Ledger(Rules(instead=True))
    ledger.apply(Volume.from_api(body))
    assert describe(census(ledger, asks), asks) == f"1 volume was looked at: {said}"


def test_what_would_not_fit_anyhow_is_not_called_near() -> None:
    body = volume_body("v", claim=("other", "u2"), phase="Released", class_name="", policy="Retain", size="1Mi")
    ledger = Ledger(Rules(instead=True))
    ledger.apply(Volume.from_api(body))
    found = census(ledger, claim(class_name=""))
    assert (found.nearest, found.example) == (None, "")


def test_counting_looks_at_no_more_volumes_the_more_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A selector that hardly anything matches must not make one sentence cost a look at everything."""
    ledger = Ledger(Rules(instead=True))
    for number in range(2000):
        body = volume_body(f"v{number}", uid=f"p{number}", claim=("other", "u2"), phase="Released", class_name="")
        body["metadata"]["labels"] = {"tier": "lead", "disk": "a"}
        ledger.apply(Volume.from_api(body))
    looked: list[str] = []
    shelf = ledger.stock.shelves[Standing.RELEASED]
    labels = shelf.labels

    def counted_labels(name: str) -> Mapping[str, str]:
        looked.append(name)
        return labels(name)

    monkeypatch.setattr(shelf, "labels", counted_labels)
    wanted = {"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["lead"]}]}
    census(ledger, claim(class_name="", selector=wanted))
    assert 0 < len(looked) < 200
