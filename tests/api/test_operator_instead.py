"""The cluster's only binder: a kube-controller-manager without persistentvolume-binder-controller, and us."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.api.operator_world import PATCH, World
from tests.api.static_volumes import Shelf, bound_to

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.controlplane import ControlPlane

DEFAULT = "storageclass.kubernetes.io/is-default-class"


@pytest.fixture
def world(api_server_without_binder: ControlPlane, tmp_path: Path) -> Iterator[World]:
    with World(api_server_without_binder, tmp_path) as made:
        yield made


def start(world: World) -> None:
    world.start_operator("--binder-mode=instead")


def test_the_smallest_volume_that_fits_is_bound_with_four_writes(world: World, shelf: Shelf) -> None:
    made = [shelf.add(name, size) for name, size in (("large", "5Gi"), ("fitting", "2Gi"), ("small", "1Gi"))]
    fitting = made[1]
    start(world)
    world.until(lambda: all(shelf.phase(each) == "Available" for each in made), "the volumes are Available")
    world.mark()
    world.add_claim("data", shelf.class_name, size="1500Mi")
    world.until(lambda: bound_to(world, "data") == fitting, "the smallest that fits is bound")
    writes = world.writes()
    assert writes["patch persistentvolumes"] == 1
    assert writes["patch persistentvolumes/status"] == 1
    assert writes["patch persistentvolumeclaims"] == 1
    assert writes["patch persistentvolumeclaims/status"] == 1
    assert sum(writes.values()) == 4


def test_many_claims_at_once_get_one_volume_each_without_a_conflict(world: World, shelf: Shelf) -> None:
    start(world)
    for number in range(40):
        shelf.add(f"v{number}", f"{number % 7 + 1}Gi")
    for number in range(40):
        world.add_claim(f"c{number}", shelf.class_name, size="1Gi")
    world.until(world.all_bound, "every claim is bound")
    names = [claim["spec"]["volumeName"] for claim in world.claims()]
    assert len(set(names)) == 40


def test_a_volume_that_is_made_later_wakes_the_claim_that_it_fits(world: World, shelf: Shelf) -> None:
    start(world)
    world.add_claim("large", shelf.class_name, size="10Gi")
    world.add_claim("small", shelf.class_name, size="1Gi")
    made = shelf.add("v", "10Gi")
    world.until(lambda: bound_to(world, "large") == made, "the larger claim has it", seconds=5)


def test_a_claim_that_is_gone_leaves_its_volume_released_and_a_lost_one_says_so(world: World, shelf: Shelf) -> None:
    first, second = shelf.add("first"), shelf.add("second", "2Gi")
    start(world)
    world.add_claim("a", shelf.class_name)
    world.until(lambda: bound_to(world, "a") == first, "bound")
    world.add_claim("b", shelf.class_name)
    world.until(lambda: bound_to(world, "b") == second, "bound")
    world.delete_claim("a")
    world.until(lambda: shelf.phase(first) == "Released", "the volume is Released")
    shelf.remove(second)
    world.until(lambda: (world.claim("b") or {})["status"]["phase"] == "Lost", "the claim is Lost")
    world.until(lambda: "ClaimLost" in {event["reason"] for event in world.events("b")}, "it was told")


def test_a_pair_that_names_each_other_is_bound_and_one_that_does_not_fit_is_not(world: World, shelf: Shelf) -> None:
    start(world)
    fits = shelf.add("fits", claimRef={"namespace": world.namespace, "name": "fits"})
    world.add_claim("fits", shelf.class_name, volumeName=fits)
    small = shelf.add("small")
    world.add_claim("large", shelf.class_name, size="2Gi", volumeName=small)
    world.until(lambda: bound_to(world, "fits") == fits, "the pair is bound")
    world.until(lambda: world.events("large"), "the other was told", seconds=10)
    (event,) = world.events("large")
    assert event["reason"] == "VolumeMismatch"
    assert "too small (1Gi, 2Gi asked for)" in event["message"]


def test_the_provisioners_of_others_are_asked_to_act(world: World) -> None:
    start(world)
    name = world.add_class("foreign", provisioner="example.com/other")
    world.add_claim("data", name)
    marks = ("volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner")
    world.until(
        lambda: all(
            (world.claim("data") or {})["metadata"].get("annotations", {}).get(mark) == "example.com/other"
            for mark in marks
        ),
        "both annotations are there",
    )


def test_a_claim_of_our_class_is_made_and_bound_without_the_annotations(world: World) -> None:
    start(world)
    name = world.add_class()
    world.mark()
    world.add_claim("data", name)
    world.until(world.all_bound, "bound")
    world.until(lambda: world.events("data"), "it was told")
    writes = world.writes()
    assert writes.pop("create events") == 1
    assert sum(writes.values()) == 4
    world.delete_claim("data")
    world.until(lambda: not world.volumes(), "the volume is gone", seconds=30)
    assert not any(plugin.volumes for plugin in world.plugins)


def test_a_claim_without_a_class_gets_the_default_one(world: World) -> None:
    start(world)
    world.client(
        "POST",
        world.claim_path(),
        {
            "metadata": {"name": "data"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        },
    )
    name = world.add_class(metadata={"name": f"{world.namespace}-default", "annotations": {DEFAULT: "true"}})
    del name
    world.until(world.all_bound, "bound with the default class")


def test_a_retained_volume_is_used_again_by_the_claim_of_the_same_name(world: World, shelf: Shelf) -> None:
    kept = shelf.add("kept", marks={"moorage.dev/reuse": "same-claim"})
    start(world)
    world.add_claim("data", shelf.class_name)
    world.until(lambda: bound_to(world, "data") == kept, "bound")
    world.delete_claim("data")
    world.until(lambda: shelf.phase(kept) == "Available", "it is kept by name")
    world.add_claim("other", shelf.class_name)
    world.add_claim("data", shelf.class_name)
    world.until(lambda: bound_to(world, "data") == kept, "bound again")
    assert not bound_to(world, "other")


def test_a_volume_kept_for_a_namespace_goes_to_no_other(world: World, shelf: Shelf) -> None:
    start(world)
    theirs = shelf.add("theirs", marks={"moorage.dev/reserved-for": "somewhere-else"})
    ours = shelf.add("ours", "2Gi", marks={"moorage.dev/reserved-for": world.namespace})
    world.until(lambda: shelf.get(theirs)["spec"].get("claimRef", {}).get("name") == "*", "kept for a namespace")
    world.add_claim("data", shelf.class_name)
    world.until(lambda: bound_to(world, "data") == ours, "the one of the own namespace is bound")


def test_at_rest_nothing_is_written(world: World, shelf: Shelf) -> None:
    for number in range(5):
        shelf.add(f"v{number}")
    start(world)
    for number in range(5):
        world.add_claim(f"c{number}", shelf.class_name)
    world.until(world.all_bound, "every claim is bound")
    world.kill_operator()
    start(world)
    world.until(world.ready, "it knows everything")
    path = f"{world.claim_path()}/c0"
    world.mark()
    world.client("PATCH", path, {"metadata": {"labels": {"touched": "yes"}}}, content=PATCH)
    world.add_claim("last", shelf.class_name)
    last = shelf.add("last")
    world.until(lambda: bound_to(world, "last") == last, "the next claim is bound")
    assert sum(count for what, count in world.writes().items() if "events" not in what) <= 5
