"""The pages for people agree with the files they speak of."""

from __future__ import annotations

import itertools
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.chart.rendering import CHART, ROOT, default_values

if TYPE_CHECKING:
    from collections.abc import Iterator

SPOKEN = {"pools", "storageClasses", "operator.resources", "node.resources", "node.tolerations"}
"""Values whose default the page tells in words."""

DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for key, each in value.items():
        name = f"{path}{key}"
        if isinstance(each, dict) and each and name not in SPOKEN:
            yield from _leaves(each, f"{name}.")
        else:
            yield name, each


def _rows(section: str) -> dict[str, str]:
    """Return the second column by the first, of the tables of one section of values.md."""
    pages = re.split(r"^## ", (ROOT / "docs" / "values.md").read_text(), flags=re.MULTILINE)
    (page,) = (each for each in pages if each.startswith(section))
    return dict(re.findall(r"^\| `([^`]+)` \| (.+?) \| ", page, flags=re.MULTILINE))


def test_the_page_of_values_has_every_value_with_its_default() -> None:
    told = _rows("# Values")
    real = dict(_leaves(default_values()))
    assert set(told) == set(real)
    for name, value in real.items():
        if name not in SPOKEN:
            assert told[name] == f"`{json.dumps(value)}`", name


def test_the_pages_of_pools_and_classes_have_every_field() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    for section, name in (("A pool", "pools"), ("A class", "storageClasses")):
        told, items = _rows(section), schema[name]["items"]
        assert set(told) == set(items["properties"])
        assert {field for field, without in told.items() if without == "needed"} == set(items["required"])


def test_every_value_has_a_comment() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    allowed = {"requests:", "limits:", "cpu:", "memory:", "- operator:", "backend:", "quota:"}
    sections = {f"{key}:" for key, value in default_values().items() if isinstance(value, dict) and value}
    inside_later_classes = False
    for before, line in itertools.pairwise(lines):
        text = line.strip()
        inside_later_classes = (inside_later_classes or "moorage-immediate" in line) and not line.startswith("binder")
        key = re.match(r"(- )?[A-Za-z]+:", text)
        if key is None or inside_later_classes or key[0] in allowed or (key[0] in sections and line == text):
            continue
        assert before.strip().startswith("#"), f"{text} has no comment"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_page_links_to_is_there(document: Any) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_a_page_names_are_there(document: Any) -> None:
    named = re.findall(r"`((?:charts|manifests|docs|operator|csi|tests)/[\w./-]+)`", document.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []
