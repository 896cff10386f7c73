"""The chart rendered once with its defaults, for every test that only looks."""

from __future__ import annotations

import pytest

from tests.unit.chart.rendering import Rendering, render


@pytest.fixture(scope="session")
def defaults() -> Rendering:
    """The chart with its own values."""
    return render()


@pytest.fixture(scope="session")
def with_tests() -> Rendering:
    """The same with the pods of `helm test`."""
    return render(tests=True)
