"""The order of volumes on the shelf, and that nothing of a volume stays when it is taken off."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moorage_operator.model.requirement import Requirement, hold
from moorage_operator.model.volume import Volume
from moorage_operator.shelf import Place, Shelf
from moorage_operator.stock import Standing, Stock, kept_for, standing
from tests.unit.operator import generated
from tests.unit.operator.objects import claim, volume, volume_body

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
