"""Every recorded behaviour of the in-tree binder, one test each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.vectors.book import BookError, read
from tests.vectors.checking import differences

if TYPE_CHECKING:
    from tests.vectors.shapes import Row

BOOK = read(Path(__file__).with_name("binding_vectors.yaml"))


@pytest.mark.parametrize("vector", BOOK.vectors, ids=[vector["id"] for vector in BOOK.vectors])
def test_decided_as_recorded(vector: Row) -> None:
    assert differences(vector, BOOK.sets) == []


def test_none_is_missing() -> None:
    assert len(BOOK.vectors) == 234


def test_another_file_is_refused_unless_it_is_one_of_vectors(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("schema: something/else\n", encoding="utf-8")
    with pytest.raises(BookError, match="pv-binding-vectors/v1"):
        read(other)
