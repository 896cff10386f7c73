"""The order of volumes on the shelf, and that nothing of a volume stays when it is taken off."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moorage_operator import shelf as shelves
from moorage_operator.model.affinity import fits
from moorage_operator.model.node import Node
from moorage_operator.model.requirement import Requirement, Requirements, hold
from moorage_operator.model.volume import Volume
from moorage_operator.shelf import Place, Shelf
from moorage_operator.stock import Standing, Stock, kept_for, standing
from tests.unit.operator import generated
from tests.unit.operator.objects import claim, node_body, volume, volume_body

HERE = Place("", "Filesystem", "")
ONCE = frozenset({"ReadWriteOnce"})


def stands(name: str, size: str = "1Gi", **labels: str) -> Volume:
    body = volume_body(name, uid=f"uid-{name}", claim=None, phase="Available", class_name="", size=size)
    body["metadata"]["labels"] = labels
    return Volume.from_api(body)


def only(key: str, *values: str) -> tuple[Requirement, ...]:
    return (Requirement(key=key, operator="In", values=values),)


def filled(*volumes: Volume) -> Shelf:
    shelf = Shelf()
    for each in volumes:
        shelf.put(each, HERE)
    return shelf


def names(shelf: Shelf, size: int, requirements: tuple[Requirement, ...] | None = None) -> list[str]:
    return [name for _, name in shelf.rows(HERE)[ONCE].from_size(size, requirements)]


def test_the_smallest_that_is_large_enough_comes_first_and_of_equal_ones_the_first_by_name() -> None:
    shelf = filled(stands("d", "3Gi"), stands("c", "2Gi"), stands("a", "2Gi"), stands("b", "1Gi"))
    assert names(shelf, 2**31) == ["a", "c", "d"]
    assert names(shelf, 2**31 + 1) == ["d"]
    assert names(shelf, 0) == ["b", "a", "c", "d"]
    assert names(shelf, 2**40) == []


def test_of_the_labels_asked_for_the_rarest_is_followed() -> None:
    shelf = filled(*(stands(f"v{number}", tier="gold", disk="a" if number else "b") for number in range(100)))
    assert names(shelf, 0, only("tier", "gold") + only("disk", "b")) == ["v0"]
    assert names(shelf, 0, only("disk", "b") + only("tier", "gold")) == ["v0"]
    assert names(shelf, 0, only("disk", "c")) == []
    assert len(names(shelf, 0, only("disk", "a", "b"))) == 100
    assert names(shelf, 0, only("disk", "b", "b")) == ["v0"]


def test_a_shelf_that_is_emptied_holds_nothing() -> None:
    volumes = [stands(f"v{number}", tier="gold") for number in range(20)]
    shelf = filled(*volumes)
    assert len(shelf) == 20
    for each in volumes:
        assert each.name in shelf
        shelf.take(each.name)
        shelf.take(each.name)
    assert len(shelf) == 0
    assert not shelf.places()


def test_claims_and_volumes_meet_at_the_same_place() -> None:
    assert Place.of_claim(claim(class_name=None)) == Place.of_volume(stands("v"))
    assert Place.of_claim(claim(class_name="fast")) == Place.of_volume(volume(class_name="fast"))
    assert Place.of_claim(claim(), "ns") != Place.of_claim(claim())


@given(drawn=st.lists(generated.seeds, min_size=1, max_size=20), size=st.sampled_from([*generated.SIZES.values()]))
@settings(
    max_examples=int(os.environ.get("MOORAGE_CASES", "400")), deadline=None, suppress_health_check=list(HealthCheck)
)
def test_the_label_index_leaves_nothing_out_that_a_selector_takes(drawn: list[int], size: int) -> None:
    bodies = [generated.volume(generated.dice(seed), f"v{number}") for number, seed in enumerate(drawn)]
    volumes = [Volume.from_api(body) for body in bodies]
    shelf = Shelf()
    for each in volumes:
        shelf.put(each, Place.of_volume(each))
    for each in volumes[::3]:
        shelf.take(each.name)
    left = [each for index, each in enumerate(volumes) if index % 3]
    wanted = only("tier", "gold", "lead") + only("disk", generated.dice(drawn[0]).choice("ab"))
    for place, rows in shelf.places().items():
        for modes, row in rows.items():
            found = list(row.from_size(size, wanted))
            assert found == sorted(found)
            here = [each for each in left if Place.of_volume(each) == place and frozenset(each.access_modes) == modes]
            fitting = {each.name for each in here if each.capacity >= size and hold(wanted, each.labels)}
            assert fitting <= {name for _, name in found} <= {each.name for each in here if each.capacity >= size}


# What is remembered of a selector.

EITHER = ("a", "b")
REACHES = (None, None, "a", "b")


def at(host: str) -> Node:
    return Node.from_api(node_body(f"n-{host}", labels={"host": host}))


requirements = st.builds(
    lambda key, operator, values: Requirement(
        key=key, operator=operator, values=values if operator in {"In", "NotIn"} else ()
    ),
    st.sampled_from(("tier", "disk", "nobody")),
    st.sampled_from(("In", "In", "NotIn", "Exists", "DoesNotExist")),
    st.sampled_from((("a",), ("b",), ("a", "b"), ("a", "a"))),
)
selectors = st.lists(requirements, max_size=2).map(tuple)
wares = st.builds(
    lambda number, size, labels, reach: _ware(f"v{number}", size, labels, reach),
    st.integers(0, 15),
    st.integers(1, 3),
    st.dictionaries(st.sampled_from(("tier", "disk")), st.sampled_from(EITHER)),
    st.sampled_from(REACHES),
)
questions = st.tuples(st.integers(0, 4), selectors, st.none() | st.sampled_from(EITHER).map(at))


def _ware(name: str, size: int, labels: dict[str, str], reach: str | None) -> Volume:
    body = volume_body(name, uid=f"uid-{name}", claim=None, phase="Available", class_name="", size=str(size), node="")
    body["metadata"]["labels"] = labels
    if reach is not None:
        term = {"matchExpressions": [{"key": "host", "operator": "In", "values": [reach]}]}
        body["spec"]["nodeAffinity"] = {"required": {"nodeSelectorTerms": [term]}}
    return Volume.from_api(body)


@given(
    begun=st.lists(wares, max_size=16),
    steps=st.lists(wares | st.integers(0, 15) | questions, min_size=8, max_size=40),
    patience=st.sampled_from((1, 2, 16)),
    most=st.sampled_from((1, 2, 64)),
)
@settings(
    max_examples=int(os.environ.get("MOORAGE_CASES", "400")), deadline=None, suppress_health_check=list(HealthCheck)
)
def test_what_fits_is_what_a_look_at_everything_finds_whatever_was_asked_and_changed_before(
    begun: list[Volume], steps: list[Any], patience: int, most: int
) -> None:
    """Volumes come and go between questions: what is remembered has to follow."""
    shelf = Shelf()
    current: dict[str, Volume] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shelves, "PATIENCE", patience)
        patch.setattr(shelves, "MOST_SELECTIONS", most)
        for step in (*begun, *steps):
            match step:
                case Volume():
                    shelf.take(step.name)
                    shelf.put(step, HERE)
                    current[step.name] = step
                case int():
                    shelf.take(f"v{step}")
                    current.pop(f"v{step}", None)
                case (size, selector, node):
                    row = shelf.rows(HERE).get(ONCE)
                    found = [] if row is None else list(row.fitting(size, selector, node))
                    assert found == sorted(
                        (each.capacity, each.name)
                        for each in current.values()
                        if each.capacity >= size
                        and hold(selector, each.labels)
                        and (node is None or fits(each.affinity, node))
                    )
                    # Whoever takes only the first must not be told of another one either.
                    assert (None if row is None else next(row.fitting(size, selector, node), None)) == next(
                        iter(found), None
                    )
    for name in current:
        shelf.take(name)
    assert not shelf.places()


class Looks:
    """How many volumes a selector was tried on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._count = 0
        monkeypatch.setattr(shelves, "hold", self._hold)

    def _hold(self, selector: Requirements, labels: dict[str, str]) -> bool:
        self._count += 1
        return hold(selector, labels)

    def since(self) -> int:
        """Those since the last time."""
        count, self._count = self._count, 0
        return count


def apart(count: int, **more: str) -> Shelf:
    """Half of them have one tier and one disk, the other half the others."""
    return filled(
        *(stands(f"v{number:05}", tier=EITHER[number % 2], disk=EITHER[number % 2], **more) for number in range(count))
    )


def test_labels_that_nobody_has_together_make_us_look_at_everything_once_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks, shelf = Looks(monkeypatch), apart(2000)
    row, never = shelf.rows(HERE)[ONCE], only("tier", "a") + only("disk", "b")
    assert next(row.fitting(1, never), None) is None
    assert looks.since() >= 1000
    for _ in range(10):
        assert next(row.fitting(1, never), None) is None
    assert looks.since() == 0
    shelf.put(stands("late", tier="a", disk="b"), HERE)
    assert looks.since() == 1
    assert next(row.fitting(1, never)) == (2**30, "late")
    shelf.take("late")
    assert next(row.fitting(1, never), None) is None


def test_a_selector_without_exact_values_is_remembered_too(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, shelf = Looks(monkeypatch), apart(2000)
    row = shelf.rows(HERE)[ONCE]
    never = (Requirement(key="tier", operator="NotIn", values=EITHER),)
    assert [next(row.fitting(1, never), None) for _ in range(3)] == [None, None, None]
    assert looks.since() == 2000 + shelves.PATIENCE


def test_a_selector_that_finds_at_once_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, shelf = Looks(monkeypatch), apart(2000)
    row, plenty = shelf.rows(HERE)[ONCE], only("tier", "a") + only("disk", "a")
    assert next(row.fitting(1, plenty)) == (2**30, "v00000")
    assert looks.since() == 1
    shelf.put(stands("more", tier="a", disk="a"), HERE)
    assert looks.since() == 0


def test_the_selectors_that_were_asked_for_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, shelf = Looks(monkeypatch), apart(200)
    row = shelf.rows(HERE)[ONCE]

    def ask(number: int) -> int:
        wanted = (*only("tier", "a"), Requirement(key="disk", operator="NotIn", values=("a", f"x{number}")))
        looks.since()
        assert next(row.fitting(1, wanted), None) is None
        return looks.since()

    for number in range(shelves.MOST_SELECTIONS):
        assert ask(number) > 0
    assert ask(0) == 0
    assert ask(shelves.MOST_SELECTIONS) > 0
    assert ask(0) == 0
    assert ask(1) > 0
    shelf.put(stands("more", tier="a", disk="b"), HERE)
    assert looks.since() == shelves.MOST_SELECTIONS


def test_what_a_selector_takes_is_found_by_the_node_that_can_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch)
    shelf = filled(
        *(_ware(f"v{number:05}", 1, {"disk": EITHER[number % 2]}, EITHER[number % 2]) for number in range(2000))
    )
    row = shelf.rows(HERE)[ONCE]
    assert next(row.fitting(1, only("disk", "a"), at("b")), None) is None
    looks.since()
    assert next(row.fitting(1, only("disk", "a"), at("b")), None) is None
    assert next(row.fitting(1, only("disk", "a"), at("a"))) == (1, "v00000")
    assert looks.since() == 0


def test_the_few_volumes_of_a_node_are_looked_at_rather_than_the_many_with_a_label(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = Looks(monkeypatch)
    shelf = filled(*(_ware(f"v{number:05}", 1, {"disk": "a"}, f"h{number // 5}") for number in range(2000)))
    found = list(shelf.rows(HERE)[ONCE].fitting(1, only("disk", "a"), at("h300")))
    assert found == [(1, f"v{number:05}") for number in range(1500, 1505)]
    assert looks.since() == 5


def test_the_few_volumes_with_a_label_are_looked_at_rather_than_the_many_of_a_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = Looks(monkeypatch)
    shelf = filled(*(_ware(f"v{number:05}", 1, {"disk": f"d{number // 5}"}, "a") for number in range(2000)))
    found = list(shelf.rows(HERE)[ONCE].fitting(1, only("disk", "d300"), at("a")))
    assert found == [(1, f"v{number:05}") for number in range(1500, 1505)]
    assert looks.since() == 5


@pytest.mark.parametrize("node", [None, at("a"), at("nowhere")])
@pytest.mark.parametrize("selector", [None, ()])
def test_without_a_selector_no_volume_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, selector: Requirements | None, node: Node | None
) -> None:
    looks = Looks(monkeypatch)
    row = filled(*(_ware(f"v{number}", 1, {}, "a") for number in range(100))).rows(HERE)[ONCE]
    assert bool([*row.fitting(1, selector, node)]) == (node is None or node.name == "n-a")
    assert looks.since() == 0


# How volumes stand.


@pytest.mark.parametrize(
    ("fields", "stands_as"),
    [
        ({"claim": None, "phase": "Available"}, Standing.FREE),
        ({"claim": None, "phase": "Pending"}, Standing.PENDING),
        ({"claim": None, "phase": "Bound"}, Standing.PENDING),
        ({"phase": "Bound"}, Standing.BOUND),
        ({"phase": "Available"}, Standing.RESERVED),
        ({"phase": "Pending"}, Standing.RESERVED),
        ({"phase": "Released"}, Standing.RELEASED),
        ({"phase": "Failed"}, Standing.FAILED),
        ({"phase": "Released", "deleting": True}, Standing.DELETING),
        ({"claim": ("*", ""), "phase": "Available"}, Standing.FREE),
        ({"claim": ("*", ""), "phase": "Pending"}, Standing.PENDING),
    ],
)
def test_every_volume_stands_somewhere(fields: dict[str, object], stands_as: Standing) -> None:
    assert standing(volume(**fields)) is stands_as


@pytest.mark.parametrize(
    ("wanted", "stands_as", "whose"),
    [("ns", Standing.FREE, "ns"), ("ns/data", Standing.RESERVED, "ns/data"), ("", Standing.FREE, "")],
)
def test_what_an_annotation_keeps_is_kept_before_any_claimref_says_so(
    wanted: str, stands_as: Standing, whose: str
) -> None:
    body = volume_body(claim=None, phase="Available")
    body["metadata"]["annotations"] = {"moorage.dev/reserved-for": wanted} if wanted else {}
    kept = Volume.from_api(body)
    assert (standing(kept), kept_for(kept)) == (stands_as, whose)


@given(volumes=generated.stocks, changes=st.lists(generated.volumes, max_size=12))
@settings(
    max_examples=int(os.environ.get("MOORAGE_CASES", "400")), deadline=None, suppress_health_check=list(HealthCheck)
)
def test_the_counts_add_up_whatever_happens(volumes: list[generated.Body], changes: list[generated.Body]) -> None:
    stock = Stock()
    current: dict[str, Volume] = {}
    for body in (*volumes, *changes):
        each = Volume.from_api(body)
        if each.name in current:
            stock.take(current[each.name])
        current[each.name] = each
        stock.put(each)
    assert sum(stock.counts.values()) == len(current)
    for where, shelf in stock.shelves.items():
        assert {name for name in current if name in shelf} == {
            name for name, each in current.items() if standing(each) is where
        }
    for each in current.values():
        stock.take(each)
    assert not any(stock.counts.values())
    assert not any(shelf.places() for shelf in stock.shelves.values())


def test_a_held_volume_stays_off_the_shelf_whatever_news_there_is_of_it() -> None:
    stock, free = Stock(), stands("v")
    stock.put(free)
    stock.hold(free)
    assert stock.held("v")
    stock.take(free)
    stock.put(stands("v", "2Gi"))
    assert "v" not in stock.free
    stock.let_go("v", stands("v", "2Gi"))
    assert "v" in stock.free
    assert not stock.held("v")


def test_a_held_volume_that_is_gone_or_taken_does_not_come_back() -> None:
    for newest in (None, volume(name="v", uid="uid-v", phase="Available")):
        stock, free = Stock(), stands("v")
        stock.put(free)
        stock.hold(free)
        stock.take(free)
        stock.let_go("v", newest)
        assert "v" not in stock.free
