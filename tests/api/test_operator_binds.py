"""The operator as a process against a real API server, alone: claims of its classes become Bound pairs."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.api.operator_world import PATCH, World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.controlplane import ControlPlane

pytestmark = [pytest.mark.api, pytest.mark.timeout(120)]

WRITES_OF_ONE_CLAIM = {
    "create persistentvolumes": 1,
    "patch persistentvolumes/status": 1,
    "patch persistentvolumeclaims": 1,
    "patch persistentvolumeclaims/status": 1,
    "create events": 1,
}


@pytest.fixture
def wide_world(api_server: ControlPlane, tmp_path: Path) -> Iterator[World]:
    with World(api_server, tmp_path, nodes=3) as world:
        yield world


def settle(world: World, events: int) -> None:
    """Wait for that many events, and then for anything that should not come."""
    world.until(lambda: len(world.events()) >= events, f"{events} events")
    time.sleep(0.5)


def test_one_claim_takes_four_writes_and_one_event(world: World) -> None:
    world.start_operator()
    world.add_claim("data", world.add_class())
    world.until(world.all_bound, "the claim is bound")
    settle(world, 1)
    assert world.writes() == WRITES_OF_ONE_CLAIM
    (event,) = world.events("data")
    assert (event["type"], event["reason"]) == ("Normal", "ProvisioningSucceeded")
    for word in ("pvc-", "image", "1Gi", world.plugins[0].node):
        assert word in event["message"]


def test_the_volume_object_says_all_that_others_need(world: World) -> None:
    world.start_operator()
    name = world.add_class(mountOptions=["noatime"], reclaimPolicy="Retain")
    claim = world.add_claim("data", name, size="1500M", marks={"example.com/kept": "yes"})
    world.until(world.all_bound, "the claim is bound")
    (volume,) = world.volumes()
    meta, spec = volume["metadata"], volume["spec"]
    assert meta["name"] == f"pvc-{claim['metadata']['uid']}"
    assert meta["annotations"]["pv.kubernetes.io/provisioned-by"] == "csi.moorage.dev"
    assert "external-provisioner.volume.kubernetes.io/finalizer" in meta["finalizers"]
    assert spec["claimRef"]["uid"] == claim["metadata"]["uid"]
    assert spec["csi"] == {
        "driver": "csi.moorage.dev",
        "volumeHandle": next(iter(world.plugins[0].volumes)),
        "fsType": "ext4",
        "volumeAttributes": {"backend": "image", "filesystem": "ext4"},
    }
    assert spec["nodeAffinity"]["required"]["nodeSelectorTerms"] == [
        {
            "matchExpressions": [
                {"key": "topology.moorage.dev/node", "operator": "In", "values": [world.plugins[0].node]}
            ]
        }
    ]
    assert (spec["capacity"], spec["mountOptions"]) == ({"storage": "1500M"}, ["noatime"])
    assert (spec["persistentVolumeReclaimPolicy"], spec["storageClassName"]) == ("Retain", name)
    marks = world.claims()[0]["metadata"]["annotations"]
    assert marks["example.com/kept"] == "yes"
    assert marks["pv.kubernetes.io/bound-by-controller"] == "yes"


def test_fifty_claims_at_once_become_fifty_pairs_on_all_nodes(wide_world: World) -> None:
    world = wide_world
    world.start_operator()
    name = world.add_class()
    for number in range(50):
        world.add_claim(f"data-{number}", name)
    world.until(world.all_bound, "all claims are bound", seconds=40)
    settle(world, 50)
    assert world.writes() == dict.fromkeys(WRITES_OF_ONE_CLAIM, 50)
    assert len({volume["spec"]["claimRef"]["uid"] for volume in world.volumes()}) == 50
    spread = Counter(plugin.node for plugin in world.plugins for _ in plugin.volumes)
    assert len(spread) == 3
    assert sum(spread.values()) == 50
    assert sum(plugin.calls["GetCapacity"] for plugin in world.plugins) <= 2 * len(world.plugins)


def test_a_late_claim_waits_for_its_node_and_is_made_there(wide_world: World) -> None:
    world = wide_world
    world.start_operator()
    world.add_claim("data", world.add_class("late", volumeBindingMode="WaitForFirstConsumer"))
    time.sleep(1)
    assert not world.volumes()
    assert not world.writes()
    node = world.plugins[1].node
    marks = {"metadata": {"annotations": {"volume.kubernetes.io/selected-node": node}}}
    world.client("PATCH", f"{world.claim_path()}/data", marks, content=PATCH)
    world.until(world.all_bound, "the claim is bound")
    assert [len(plugin.volumes) for plugin in world.plugins] == [0, 1, 0]


def test_a_raw_block_claim_has_no_filesystem_in_its_volume(world: World) -> None:
    world.start_operator()
    world.add_claim("raw", world.add_class(), volumeMode="Block")
    world.until(world.all_bound, "the claim is bound")
    (volume,) = world.volumes()
    assert volume["spec"]["volumeMode"] == "Block"
    assert "fsType" not in volume["spec"]["csi"]


def test_a_restart_and_an_idle_time_write_nothing(world: World) -> None:
    world.start_operator()
    name = world.add_class()
    for number in range(5):
        world.add_claim(f"data-{number}", name)
    world.until(world.all_bound, "all claims are bound")
    settle(world, 5)
    assert world.stop_operator() == 0
    before = {item["metadata"]["uid"]: item for item in [*world.claims(), *world.volumes()]}
    world.start_operator()
    time.sleep(5)
    assert not world.writes()
    after = {item["metadata"]["uid"]: item for item in [*world.claims(), *world.volumes()]}
    assert after == before
    for item in after.values():
        assert "kopf" not in str(item)


def test_a_stopped_operator_gives_its_lease_back(world: World) -> None:
    world.start_operator()
    assert world.stop_operator() == 0
    path = f"/apis/coordination.k8s.io/v1/namespaces/{world.namespace}/leases/moorage-operator"
    assert not world.client("GET", path)["spec"].get("holderIdentity")


def test_claims_of_others_are_left_alone(world: World) -> None:
    world.start_operator()
    world.add_claim("other", world.add_class("other", provisioner="example.com/other"))
    world.add_claim("none", "")
    world.add_claim("missing", f"{world.namespace}-missing")
    time.sleep(1.5)
    assert not world.writes()
    assert not world.plugins[0].calls["CreateVolume"]


def test_a_class_made_after_the_claim_is_noticed(world: World) -> None:
    world.start_operator()
    world.add_claim("early", f"{world.namespace}-immediate")
    time.sleep(0.5)
    world.add_class()
    world.until(world.all_bound, "the claim is bound")
