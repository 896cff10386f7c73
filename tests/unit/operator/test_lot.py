"""Which volumes a node finds, against asking every volume, and how many it has to ask for that."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from moorage_operator import lot as lots
from moorage_operator.lot import Entry, Lot, merged
from moorage_operator.model.affinity import Affinity, affinity, fits
from moorage_operator.model.node import Node
from tests.unit.operator.objects import node_body

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Expression = dict[str, object]
NOTHING = (0, "")


def node(name: str, **labels: str) -> Node:
    return Node.from_api(node_body(name, labels=labels))


def one_of(key: str, *values: str) -> Expression:
    return {"key": key, "operator": "In", "values": [*values]}


def on(*expressions: Expression, of_fields: tuple[Expression, ...] = ()) -> Affinity | None:
    term = {"matchExpressions": [*expressions], "matchFields": [*of_fields]}
    return affinity({"required": {"nodeSelectorTerms": [term]}})


def local(host: int) -> Affinity | None:
    """As volumes are made whose zone is named too."""
    return on(one_of("zone", "east"), one_of("host", f"h{host}"))


def named(host: int) -> Affinity | None:
    """As volumes are made by tools that know nodes by their names."""
    return on({"key": "zone", "operator": "Exists", "values": []}, of_fields=(one_of("metadata.name", f"h{host}"),))


def filled(wanted: Mapping[str, Affinity | None]) -> Lot:
    lot = Lot()
    for name, reach in wanted.items():
        lot.put((1, name), reach)
    return lot


def names(lot: Lot, asked: Node | None, start: Entry = NOTHING) -> list[str]:
    return [name for _, name in merged(lot.usable(asked), start)]


values = st.lists(st.sampled_from(("a", "b", "c", "1", "5")), max_size=2)
expressions = st.fixed_dictionaries(
    {
        "key": st.sampled_from(("zone", "host", "metadata.name")),
        "operator": st.sampled_from(("In", "In", "In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt")),
        "values": values,
    }
)
terms = st.fixed_dictionaries(
    {"matchExpressions": st.lists(expressions, max_size=2), "matchFields": st.lists(expressions, max_size=1)}
)
affinities = st.none() | st.lists(terms, max_size=2).map(
    lambda some: affinity({"required": {"nodeSelectorTerms": some}})
)
nodes = st.builds(
    lambda name, labels: node(name, **labels),
    st.sampled_from(("a", "b", "c")),
    st.dictionaries(st.sampled_from(("zone", "host", "metadata.name")), st.sampled_from(("a", "b", "1", "5"))),
)


@given(
    drawn=st.lists(st.tuples(st.integers(1, 3), affinities), max_size=12),
    gone=st.sets(st.integers(0, 11)),
    asked=st.lists(nodes, min_size=1, max_size=3),
    start=st.tuples(st.integers(0, 4), st.sampled_from(("", "v3"))),
)
@settings(
    max_examples=int(os.environ.get("MOORAGE_CASES", "400")), deadline=None, suppress_health_check=list(HealthCheck)
)
def test_a_node_finds_what_fits_it_and_nothing_else(
    drawn: list[tuple[int, Affinity | None]], gone: set[int], asked: list[Node], start: Entry
) -> None:
    lot = Lot()
    for number, (size, reach) in enumerate(drawn):
        lot.put((size, f"v{number}"), reach)
    left = {number: each for number, each in enumerate(drawn) if number not in gone}
    for number in gone & {*range(len(drawn))}:
        lot.take((drawn[number][0], f"v{number}"), drawn[number][1])
    for each in asked:
        wanted = sorted((size, f"v{number}") for number, (size, reach) in left.items() if fits(reach, each))
        event("some fit" if wanted else "none fits")
        assert list(merged(lot.usable(each), start)) == [entry for entry in wanted if entry >= start]
    assert lot.entries == sorted((size, f"v{number}") for number, (size, _) in left.items())


def test_without_a_node_everything_is_usable() -> None:
    lot = filled({"a": None, "b": on(one_of("host", "h1")), "c": affinity({"required": {"nodeSelectorTerms": []}})})
    assert names(lot, None) == ["a", "b", "c"]
    assert names(lot, node("n", host="h1")) == ["a", "b"]
    assert names(lot, node("n", host="h1"), (1, "b")) == ["b"]


def test_a_node_is_also_found_by_its_name() -> None:
    lot = filled({"a": on(of_fields=(one_of("metadata.name", "n"),)), "b": on(one_of("host", "n"))})
    assert names(lot, node("n")) == ["a"]


def test_a_lot_that_is_emptied_holds_nothing() -> None:
    reaches = {f"v{number}": local(number % 3) if number % 2 else None for number in range(12)}
    lot = filled(reaches)
    for name, reach in reaches.items():
        lot.take((1, name), reach)
    assert not any((lot.entries, lot._groups, lot._pinned))


@pytest.mark.parametrize("reach", [local, named])
@pytest.mark.parametrize("hosts", [20, 2000])
def test_a_node_asks_its_own_volumes_only_however_many_others_have_some(
    reach: Callable[[int], Affinity | None], hosts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lot = filled({f"v{number}": reach(number) for number in range(hosts)} | {"everywhere": None})
    asked: list[Affinity | None] = []

    def counted(terms: Affinity | None, where: Node) -> bool:
        asked.append(terms)
        return fits(terms, where)

    monkeypatch.setattr(lots, "fits", counted)
    assert names(lot, node("h7", zone="east", host="h7")) == ["everywhere", "v7"]
    assert names(lot, node("moon", zone="east", host="moon")) == ["everywhere"]
    assert len(asked) <= 5


def test_volumes_of_one_affinity_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = on({"key": "host", "operator": "NotIn", "values": ["h1"]})
    lot = filled({f"v{number}": elsewhere for number in range(200)})
    asked: list[Affinity | None] = []
    monkeypatch.setattr(lots, "fits", lambda reach, _: asked.append(reach))
    assert names(lot, node("n", host="h1")) == []
    assert asked == [elsewhere]
