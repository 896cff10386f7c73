"""Quantities are read exactly, rounded up to whole bytes, and written back without loss."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage_operator.errors import QuantityError
from moorage_operator.model.quantity import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("1Ki", 1024),
        ("1.5Gi", 3 * 2**29),
        (".5Gi", 2**29),
        ("5.", 5),
        ("1k", 1000),
        ("1M", 10**6),
        ("1e3", 1000),
        ("1E3", 1000),
        ("1E", 10**18),
        ("12Ei", 12 * 2**60),
        ("800E", 800 * 10**18),
        ("100m", 1),
        ("1001m", 2),
        ("1n", 1),
        ("1u", 1),
        ("1e-3", 1),
        ("+2Gi", 2**31),
        ("-1", -1),
        ("-1500m", -1),
        (7, 7),
    ],
)
def test_what_people_write(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "Gi", "1gi", "10%", "1 Gi", "1Gi ", "1_000", "0x10", "1e", "1e9999", "1KiB", "--1", "\u0661", "1" * 65]
)
def test_what_is_no_quantity_is_named(text: str) -> None:
    with pytest.raises(QuantityError, match="is not a quantity"):
        parse_bytes(text)


@given(st.integers(0, 2**63))
def test_bytes_survive_being_written_and_read(size: int) -> None:
    assert parse_bytes(format_bytes(size)) == size


@given(st.integers(0, 10**9), st.integers(0, 9), st.sampled_from(["Ki", "Mi", "Gi"]))
def test_fractions_round_up_exactly(whole: int, tenth: int, suffix: str) -> None:
    factor = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}[suffix]
    exact = (whole + Fraction(tenth, 10)) * factor
    assert 0 <= parse_bytes(f"{whole}.{tenth}{suffix}") - exact < 1
