"""Next to the in-tree binder: what is its choice stays its choice, and what involves none is finished by whoever is first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.api.operator_world import World
from tests.api.static_volumes import Shelf, bound_to

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.controlplane import ControlPlane


@pytest.fixture
def world(api_server_with_controllers: ControlPlane, tmp_path: Path) -> Iterator[World]:
    with World(api_server_with_controllers, tmp_path) as made:
        yield made


def pod(world: World, name: str, claim: str, node: str = "") -> None:
    """A pod that uses a claim; with a node it is one that the scheduler never sees."""
    body: dict[str, Any] = {
        "metadata": {"name": name},
        "spec": {
            "containers": [{"name": "main", "image": "none"}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
        },
    }
    if node:
        body["spec"]["nodeName"] = node
    world.client("POST", f"/api/v1/namespaces/{world.namespace}/pods", body)


def test_a_free_volume_is_the_in_tree_binders_to_give(world: World, shelf: Shelf) -> None:
    made = shelf.add("v")
    world.start_operator()
    world.until(lambda: shelf.phase(made) == "Available", "the in-tree binder has seen it")
    world.mark()
    world.add_claim("data", shelf.class_name)
    world.until(lambda: bound_to(world, "data") == made, "it is bound")
    writes = world.writes()
    assert not writes["patch persistentvolumes"], "the reservation was ours"


def test_a_pair_that_names_each_other_is_finished_at_once(world: World, shelf: Shelf) -> None:
    world.start_operator()
    for number in range(10):
        made = shelf.add(f"v{number}", claimRef={"namespace": world.namespace, "name": f"c{number}"})
        world.add_claim(f"c{number}", shelf.class_name, volumeName=made)
    world.until(world.all_bound, "all are bound", seconds=5)


def test_a_queue_of_the_in_tree_binder_is_worked_off_with_it(world: World, shelf: Shelf) -> None:
    """It has begun 60 binds, of which it makes five a second: we finish them, and reserve none."""
    world.start_operator()
    made = [shelf.add(f"v{number}") for number in range(60)]
    world.until(lambda: all(shelf.phase(name) == "Available" for name in made[-2:]), "Available", seconds=30)
    world.mark()
    for number in range(60):
        world.add_claim(f"c{number}", shelf.class_name)
    world.until(world.all_bound, "all are bound", seconds=40)
    names = {claim["spec"]["volumeName"] for claim in world.claims()}
    assert len(names) == 60
    assert not world.writes()["patch persistentvolumes"]


def test_a_volume_is_made_on_the_node_that_a_pod_names(world: World) -> None:
    world.start_operator()
    name = world.add_class("late", volumeBindingMode="WaitForFirstConsumer")
    world.add_claim("data", name)
    pod(world, "pinned", "data", world.plugins[0].node)
    world.until(world.all_bound, "the claim is bound")
    assert world.plugins[0].volumes


def test_a_claim_nobody_uses_is_told_so_once_and_a_pod_of_another_class_what_is_wrong(world: World) -> None:
    world.start_operator()
    own = world.add_class("late", volumeBindingMode="WaitForFirstConsumer")
    other = world.add_class("other", volumeBindingMode="WaitForFirstConsumer", provisioner="example.com/other")
    world.add_claim("unused", own)
    world.add_claim("pinned", other)
    pod(world, "pinned", "pinned", world.plugins[0].node)
    world.until(lambda: world.events("unused") and world.events("pinned"), "both were told", seconds=15)
    (unused,), (pinned,) = world.events("unused"), world.events("pinned")
    assert "none does yet" in unused["message"]
    assert "spec.nodeName" in pinned["message"]


def test_a_volume_kept_for_a_namespace_is_given_to_its_claims_only(world: World, shelf: Shelf) -> None:
    world.start_operator()
    theirs = shelf.add("theirs", marks={"moorage.dev/reserved-for": "somewhere-else"})
    ours = shelf.add("ours", "2Gi", marks={"moorage.dev/reserved-for": world.namespace})
    world.until(lambda: all(shelf.get(name)["spec"].get("claimRef") for name in (theirs, ours)), "both are kept")
    world.add_claim("data", shelf.class_name)
    world.until(lambda: bound_to(world, "data") == ours, "the one of the own namespace is bound")
    assert "uid" not in shelf.get(theirs)["spec"]["claimRef"]


def test_a_retained_volume_goes_to_the_next_claim_of_its_name(world: World, shelf: Shelf) -> None:
    kept = shelf.add("kept", marks={"moorage.dev/reuse": "same-claim"})
    world.start_operator()
    world.add_claim("data", shelf.class_name)
    world.until(lambda: bound_to(world, "data") == kept, "bound")
    world.delete_claim("data")
    world.until(lambda: shelf.phase(kept) == "Available", "it is kept by name")
    world.add_claim("other", shelf.class_name)
    world.add_claim("data", shelf.class_name)
    world.until(lambda: bound_to(world, "data") == kept, "bound again")
    assert not bound_to(world, "other")
