"""Watches that are refused, that fail, or that tell late: the operator goes on, and harms nobody by what it knows too late."""

from __future__ import annotations

import itertools
import random
import time
from typing import TYPE_CHECKING, Any

import pytest

from moorage_operator.decide.volumes import NOT_NEEDED
from tests.api.fault_world import FaultWorld
from tests.api.operator_world import PATCH, USER
from tests.harness.faulty_proxy import FaultyProxy
from tests.harness.faulty_proxy_faults import Fault, Faults

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.controlplane import ControlPlane

pytestmark = [pytest.mark.api, pytest.mark.timeout(120)]

SEED = 10
OFTEN = 4
"""How often it has to happen."""

TOLD_LATE = 6
"""Claims, of some of which we know too little at the wrong moment."""

MOST_ROUNDS = 8
LATE_SECONDS = 3.0
SETTLE_SECONDS = 15

Beside = tuple[FaultyProxy, FaultWorld]


@pytest.fixture
def beside(api_server_with_controllers: ControlPlane, tmp_path: Path) -> Iterator[Beside]:
    """An operator without a Lease beside the in-tree binder, and what it reaches the API server through."""
    plane = api_server_with_controllers
    chance = random.Random(SEED)  # noqa: S311 (a schedule, not a secret)
    with FaultyProxy(plane.access(USER), random=chance) as proxy, FaultWorld(plane, tmp_path, proxy) as world:
        world.start_replica("--leader-election=false")
        world.start_plugins()
        yield proxy, world


@pytest.mark.parametrize(
    "fault", [Fault.END, Fault.EXPIRED, Fault.BUSY, Fault.ERROR, Fault.RESET, Fault.GONE, Fault.FAILED]
)
def test_the_operator_survives_what_happens_to_its_watches(
    api_server: ControlPlane, tmp_path: Path, fault: Fault
) -> None:
    chance = random.Random(SEED)  # noqa: S311 (a schedule, not a secret)
    with (
        FaultyProxy(api_server.access(USER), random=chance) as proxy,
        FaultWorld(api_server, tmp_path, proxy) as world,
    ):
        world.start_replica()
        world.start_plugins()
        name = world.add_class()
        world.add_claim("before", name)
        world.until(world.all_bound, "the first claim is bound")
        # Each other event ends its stream, and each other stream begins with the fault.
        proxy.storm(Faults(**{"end": 0.5, fault.value: 0.5}))  # type: ignore[arg-type]
        stirs = itertools.count()

        def has_happened() -> bool:
            mark = {"metadata": {"annotations": {"example.com/stirred": str(next(stirs))}}}
            world.client("PATCH", f"{world.claim_path()}/before", mark, content=PATCH)
            return world.revive() > 0 or proxy.counts[fault] >= OFTEN

        world.until(has_happened, f"{fault} has happened often")
        assert world.ended == [], f"it ended when a watch was {fault}: {world.log()[-3000:]}"
        proxy.calm()
        world.add_claim("after", name)
        world.until(world.all_bound, "all claims are bound")
        assert world.revive() == 0, world.log()[-3000:]
        assert world.faults() == []


def test_what_was_made_for_a_claim_that_was_bound_meanwhile_goes_with_it(beside: Beside) -> None:
    """The in-tree binder takes a free volume of our class while we, told late, have one made: it is kept as long as
    the claim lives, and says so."""
    proxy, world = beside
    name = world.add_class()
    # What is told of each claim comes in order, and the end of the story seconds after its beginning.
    proxy.storm(Faults(late=1.0, late_seconds=LATE_SECONDS))
    # Who is late is chance: with none of so many, there is another round.
    for number in range(MOST_ROUNDS * TOLD_LATE):
        world.add_volume(f"free-{number}", name)
        world.until(lambda number=number: is_available(world, number), "the volume is free")  # type: ignore[misc]
        world.add_claim(f"data-{number}", name)
        if (number + 1) % TOLD_LATE == 0:
            world.until(world.all_bound, "all claims are bound")
            time.sleep(LATE_SECONDS + 1)
            if unneeded(world):
                break
    proxy.calm()
    assert unneeded(world), "we were never late"
    world.until(
        lambda: {each["metadata"]["name"] for each in unneeded(world)} <= told(world), "each says why it is there"
    )
    assert world.harm == []
    for claim in world.claims():
        world.client("DELETE", f"{world.claim_path()}/{claim['metadata']['name']}")
    world.until(lambda: not unneeded(world), "they go with their claims")
    assert not any(plugin.volumes for plugin in world.plugins)
    assert world.harm == []


def test_a_released_volume_is_not_marked_bound_by_who_was_told_late(beside: Beside) -> None:
    """The in-tree binder releases a volume; we hear of that before we hear that its claim is gone."""
    proxy, world = beside
    name = world.add_class()
    for number in range(TOLD_LATE):
        world.add_claim(f"data-{number}", name)
    world.until(world.all_bound, "all claims are bound")
    time.sleep(1)
    world.mark()
    proxy.storm(Faults(late=1.0, late_seconds=LATE_SECONDS))
    for number in range(TOLD_LATE):
        world.client("DELETE", f"{world.claim_path()}/data-{number}")
    world.until(lambda: not world.volumes(), "all volumes are gone")
    assert world.writes()["patch persistentvolumes/status"] == 0, world.writes()


def test_the_only_claim_vanishes_in_a_gap(beside: Beside) -> None:
    """The list after the gap is empty: nothing in it tells that something is missing."""
    proxy, world = beside
    world.add_claim("only", world.add_class())
    world.until(world.all_bound, "the claim is bound")
    proxy.storm(Faults(deletion_gap=1.0))
    world.client("DELETE", f"{world.claim_path()}/only")
    world.until(lambda: proxy.counts[Fault.UNSEEN_DELETION], "the deletion falls into a gap")
    proxy.calm()
    world.until(lambda: not world.volumes(), "the volume goes with its claim", seconds=SETTLE_SECONDS)


def is_available(world: FaultWorld, number: int) -> bool:
    path = f"/api/v1/persistentvolumes/{world.namespace}-free-{number}"
    return bool(world.client("GET", path)["status"]["phase"] == "Available")


def unneeded(world: FaultWorld) -> list[Any]:
    """The volumes of ours that are not bound."""
    return [item for item in world.volumes() if "csi" in item["spec"] and item["status"]["phase"] != "Bound"]


def told(world: FaultWorld) -> set[str]:
    """The volumes about which it was said that nobody needs them."""
    events = world.client("GET", "/api/v1/namespaces/default/events")["items"]
    return {each["involvedObject"]["name"] for each in events if each["reason"] == NOT_NEEDED}
