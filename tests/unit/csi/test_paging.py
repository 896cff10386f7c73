"""Pages of a list: whatever comes and goes between two of them, nothing else is left out or told twice."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage_csi.errors import InFlightError, InvalidArgumentError
from moorage_csi.rpc.paging import page

IDS = re.compile(r"vol-[0-9a-f]{2}")
NAMES = st.integers(0, 255).map("vol-{:02x}".format)


def walked(entries: dict[str, int], most: int) -> list[int]:
    told: list[int] = []
    token = ""
    while True:
        some, token = page(entries, token=token, most=most, ids=IDS)
        told += some
        if not token:
            return told


@given(st.dictionaries(NAMES, st.integers(), max_size=40), st.integers(0, 50))
def test_pages_together_are_the_list_in_order(entries: dict[str, int], most: int) -> None:
    assert walked(entries, most) == [entries[each] for each in sorted(entries)]


@given(st.sets(NAMES, min_size=1), st.integers(1, 10), st.data())
def test_what_goes_between_two_pages_takes_nothing_with_it(names: set[str], most: int, data: st.DataObject) -> None:
    entries = {each: each for each in names}
    told: list[str] = []
    token = ""
    while True:
        some, token = page(entries, token=token, most=most, ids=IDS)
        assert 0 < len(some) <= most or not entries or not token
        told += some
        if not token:
            break
        for gone in data.draw(st.sets(st.sampled_from(sorted(names)), max_size=3)):
            entries.pop(gone, None)
    assert len(told) == len(set(told))
    assert set(entries) <= set(told)


def test_an_empty_list_has_one_empty_page() -> None:
    assert page({}, token="", most=3, ids=IDS) == ((), "")


@pytest.mark.parametrize("token", ["vol-zz", "1", "../vol-00", "vol-000"])
def test_a_token_that_was_never_given_begins_anew(token: str) -> None:
    with pytest.raises(InFlightError, match="begin the list anew"):
        page({"vol-00": 0}, token=token, most=1, ids=IDS)


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="max_entries is -1"):
        page({}, token="", most=-1, ids=IDS)
