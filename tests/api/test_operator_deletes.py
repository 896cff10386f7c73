"""Beside the in-tree binder: it binds too, it releases; storage goes exactly when policy and claims allow it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.api.operator_world import PATCH, World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.controlplane import ControlPlane

pytestmark = [pytest.mark.api, pytest.mark.timeout(180)]


@pytest.fixture
def world(api_server_with_controllers: ControlPlane, tmp_path: Path) -> Iterator[World]:
    with World(api_server_with_controllers, tmp_path, nodes=2) as world:
        yield world


def test_fifty_claims_beside_the_in_tree_binder_become_fifty_pairs(world: World) -> None:
    world.start_operator()
    name = world.add_class()
    for number in range(50):
        world.add_claim(f"data-{number}", name)
    world.until(world.all_bound, "all claims are bound", seconds=60)
    assert len({volume["spec"]["claimRef"]["uid"] for volume in world.volumes()}) == 50
    assert sum(len(plugin.volumes) for plugin in world.plugins) == 50
    world.until(lambda: len(world.events()) >= 50, "the events")
    time.sleep(1)
    assert len(world.events()) == 50
    done = {what: count for what, count in world.writes().items() if what[-3:] not in {"409", "422"}}
    assert done.pop("create events") == 50
    assert done.pop("create persistentvolumes") == 50
    assert all(count <= 50 for count in done.values()), done
    world.mark()
    time.sleep(3)
    assert not world.writes()


def test_a_deleted_claim_takes_volume_and_storage_with_it(world: World) -> None:
    world.start_operator()
    world.add_claim("data", world.add_class())
    world.until(world.all_bound, "the claim is bound")
    world.client("DELETE", f"{world.claim_path()}/data")
    world.until(lambda: not world.volumes(), "the volume is gone", seconds=30)
    assert not any(plugin.volumes for plugin in world.plugins)
    assert not [event for event in world.events() if event["type"] == "Warning"]


def test_retained_data_stays_and_policy_is_read_live(world: World) -> None:
    world.start_operator()
    world.add_claim("kept", world.add_class("kept", reclaimPolicy="Retain"))
    world.until(world.all_bound, "the claim is bound")
    world.client("DELETE", f"{world.claim_path()}/kept")
    world.until(lambda: world.volumes()[0]["status"]["phase"] == "Released", "the volume is released", seconds=30)
    time.sleep(2)
    assert sum(len(plugin.volumes) for plugin in world.plugins) == 1, world.log()
    (volume,) = world.volumes()
    # Deleting the object of a retained volume lets the object go and keeps the data.
    world.client("DELETE", f"/api/v1/persistentvolumes/{volume['metadata']['name']}")
    world.until(lambda: not world.volumes(), "the object is gone")
    assert sum(len(plugin.volumes) for plugin in world.plugins) == 1, world.log()
    assert not any(plugin.calls["DeleteVolume"] for plugin in world.plugins)


def test_a_volume_deleted_under_a_living_claim_keeps_its_data(world: World) -> None:
    world.start_operator()
    world.add_claim("data", world.add_class())
    world.until(world.all_bound, "the claim is bound")
    (volume,) = world.volumes()
    world.client("DELETE", f"/api/v1/persistentvolumes/{volume['metadata']['name']}")
    time.sleep(2)
    assert len(world.volumes()) == 1
    assert sum(len(plugin.volumes) for plugin in world.plugins) == 1, world.log()
    world.client("DELETE", f"{world.claim_path()}/data")
    world.until(lambda: not world.volumes(), "the volume is gone", seconds=30)
    assert not any(plugin.volumes for plugin in world.plugins)


def test_storage_on_a_node_that_is_down_is_deleted_when_it_is_back(world: World) -> None:
    world.start_operator()
    world.add_claim("data", world.add_class())
    world.until(world.all_bound, "the claim is bound")
    for plugin in world.plugins:
        plugin.stop()
    world.client("DELETE", f"{world.claim_path()}/data")
    world.until(lambda: world.volumes()[0]["status"]["phase"] == "Released", "the volume is released", seconds=30)
    time.sleep(3)
    (volume,) = world.volumes()
    assert "deletionTimestamp" not in volume["metadata"]
    world.start_plugins()
    world.until(lambda: not world.volumes(), "the volume is gone", seconds=30)
    assert not any(plugin.volumes for plugin in world.plugins)


def test_storage_in_use_is_said_on_the_volume_and_tried_again(world: World) -> None:
    world.start_operator()
    world.add_claim("data", world.add_class())
    world.until(world.all_bound, "the claim is bound")
    for plugin in world.plugins:
        plugin.fault = lambda method, _name: (
            (grpc.StatusCode.FAILED_PRECONDITION, "still mounted at /x") if method == "DeleteVolume" else None
        )
    (volume,) = world.volumes()
    world.client("DELETE", f"{world.claim_path()}/data")

    def told() -> list[object]:
        items = world.client("GET", "/api/v1/namespaces/default/events")["items"]
        return [item for item in items if item["involvedObject"]["name"] == volume["metadata"]["name"]]

    found = world.until(told, "the event on the volume", seconds=30)
    assert "still mounted at /x" in str(found)
    for plugin in world.plugins:
        plugin.fault = lambda *_: None
    world.until(lambda: not world.volumes(), "the volume is gone", seconds=30)


def test_an_available_volume_of_the_class_is_used_before_a_new_one_is_made(world: World) -> None:
    world.start_operator()
    name = world.add_class()
    body = {
        "metadata": {"name": f"{world.namespace}-static"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "2Gi"},
            "storageClassName": name,
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": "/nowhere"},
        },
    }
    world.client("POST", "/api/v1/persistentvolumes", body)
    path = f"/api/v1/persistentvolumes/{world.namespace}-static"
    world.until(lambda: world.client("GET", path)["status"]["phase"] == "Available", "the volume is available")
    world.add_claim("data", name)
    world.until(world.all_bound, "the claim is bound", seconds=30)
    claim = world.claim("data")
    assert claim is not None
    assert claim["spec"]["volumeName"] == f"{world.namespace}-static"
    assert not any(plugin.calls["CreateVolume"] for plugin in world.plugins)
    assert not world.events()


def test_a_policy_turned_to_retain_after_the_release_is_obeyed(world: World) -> None:
    world.start_operator()
    world.add_claim("data", world.add_class())
    world.until(world.all_bound, "the claim is bound")
    for plugin in world.plugins:
        plugin.stop()
    world.client("DELETE", f"{world.claim_path()}/data")
    world.until(lambda: world.volumes()[0]["status"]["phase"] == "Released", "the volume is released", seconds=30)
    name = world.volumes()[0]["metadata"]["name"]
    keep = {"spec": {"persistentVolumeReclaimPolicy": "Retain"}}
    world.client("PATCH", f"/api/v1/persistentvolumes/{name}", keep, content=PATCH)
    world.start_plugins()
    time.sleep(3)
    assert len(world.volumes()) == 1
    assert sum(len(plugin.volumes) for plugin in world.plugins) == 1, world.log()
