"""A file of vectors."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vectors.shapes import Row

SCHEMA = "pv-binding-vectors/v1"
SECTIONS = ("vectors", "matchVectors", "extraMatchVectors", "predicateVectors")


class BookError(Exception):
    """The file is not one of vectors; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Book:
    """All vectors of a file, in order, and the sets of volumes that they share."""

    vectors: list[Row]
    sets: Row


def read(path: Path) -> Book:
    """Read a file of vectors.

    Raises:
        BookError: it cannot be read, or is something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise BookError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise BookError(f"{path} has no line 'schema: {SCHEMA}'")
    vectors = [vector for section in SECTIONS for vector in content.get(section) or ()]
    if not vectors:
        raise BookError(f"{path} has no vectors: expected {', '.join(SECTIONS)}")
    return Book(vectors=vectors, sets=content.get("volumeSets") or {})
