"""What the tests of the operator share: its world on a real API server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.operator_world import World
from tests.api.static_volumes import Shelf
from tests.harness.controlplane import ControlPlane


@pytest.fixture
def world(api_server: ControlPlane, tmp_path: Path) -> Iterator[World]:
    """One node and no operator yet, without the in-tree controllers."""
    with World(api_server, tmp_path) as world:
        yield world


@pytest.fixture
def shelf(world: World) -> Iterator[Shelf]:
    """Static volumes of the world."""
    made = Shelf(world)
    yield made
    made.clear()
