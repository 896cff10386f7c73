"""What people get when a volume cannot be made: a sentence, no storm of retries, and nothing left behind."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.api.operator_world import GIB, PATCH, World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.controlplane import ControlPlane

pytestmark = [pytest.mark.api, pytest.mark.timeout(120)]

Fault = tuple[grpc.StatusCode, str]


@pytest.fixture
def wide_world(api_server: ControlPlane, tmp_path: Path) -> Iterator[World]:
    with World(api_server, tmp_path, nodes=2) as world:
        yield world


def sentence(world: World, name: str, reason: str) -> str:
    """Wait for the one event of that reason and return what it says."""
    found = world.until(lambda: [e for e in world.events(name) if e["reason"] == reason], f"event {reason}")
    assert len(found) == 1
    return str(found[0]["message"])


def test_a_refused_parameter_is_told_once_and_not_asked_again_until_the_class_changes(world: World) -> None:
    plugin = world.plugins[0]
    plugin.fault = lambda *_: (grpc.StatusCode.INVALID_ARGUMENT, "pool 'gold' is unknown; allowed: default")
    world.start_operator()
    name = world.add_class()
    world.add_claim("data", name)
    assert "pool 'gold' is unknown; allowed: default" in sentence(world, "data", "ProvisioningFailed")
    time.sleep(3)
    assert plugin.calls["CreateVolume"] == 1
    assert world.writes() == {"create events": 1}
    plugin.fault = lambda *_: None
    label = {"metadata": {"labels": {"changed": "yes"}}}
    world.client("PATCH", f"/apis/storage.k8s.io/v1/storageclasses/{name}", label, content=PATCH)
    world.until(world.all_bound, "the claim is bound")


def test_a_failing_driver_is_asked_less_and_less_and_told_once(world: World) -> None:
    plugin = world.plugins[0]
    plugin.fault = lambda *_: (grpc.StatusCode.INTERNAL, f"mkfs failed at {time.monotonic()}")
    world.start_operator()
    world.add_claim("data", world.add_class())
    time.sleep(5)
    assert 2 <= plugin.calls["CreateVolume"] <= 4
    assert "mkfs failed" in sentence(world, "data", "ProvisioningFailed")
    plugin.fault = lambda *_: None
    world.until(world.all_bound, "the claim is bound")


def test_a_full_node_is_passed_over_for_an_immediate_claim(wide_world: World) -> None:
    world = wide_world
    world.plugins[0].size = 0
    world.start_operator()
    name = world.add_class()
    for number in range(6):
        world.add_claim(f"data-{number}", name)
    world.until(world.all_bound, "all claims are bound")
    assert [len(plugin.volumes) for plugin in world.plugins] == [0, 6]


def test_full_nodes_are_all_named_and_room_that_appears_is_used(wide_world: World) -> None:
    world = wide_world
    for plugin in world.plugins:
        plugin.size = GIB // 2
    world.start_operator()
    world.add_claim("data", world.add_class())
    message = sentence(world, "data", "ProvisioningFailed")
    for plugin in world.plugins:
        assert plugin.node in message
    assert not any(plugin.volumes for plugin in world.plugins)
    world.plugins[1].size = 2 * GIB
    world.until(world.all_bound, "the claim is bound")


def test_a_full_node_gives_a_late_claim_back_to_the_scheduler(wide_world: World) -> None:
    world = wide_world
    world.plugins[0].size = 0
    world.start_operator()
    name = world.add_class("late", volumeBindingMode="WaitForFirstConsumer")
    marks = {"volume.kubernetes.io/selected-node": world.plugins[0].node}
    world.add_claim("data", name, marks=marks)

    def given_back() -> bool:
        claim = world.claim("data")
        assert claim is not None
        return "volume.kubernetes.io/selected-node" not in claim["metadata"].get("annotations", {})

    world.until(given_back, "the selected node is removed")
    assert "RESOURCE_EXHAUSTED" in sentence(world, "data", "ProvisioningFailed")
    again = {"metadata": {"annotations": {"volume.kubernetes.io/selected-node": world.plugins[1].node}}}
    world.client("PATCH", f"{world.claim_path()}/data", again, content=PATCH)
    world.until(world.all_bound, "the claim is bound")


def test_a_plugin_that_is_down_is_waited_for_with_one_event_and_used_within_seconds(world: World) -> None:
    world.start_operator()
    plugin = world.plugins[0]
    plugin.stop()
    name = world.add_class("late", volumeBindingMode="WaitForFirstConsumer")
    world.add_claim("data", name, marks={"volume.kubernetes.io/selected-node": plugin.node})
    assert plugin.node in sentence(world, "data", "WaitingForNode")
    time.sleep(5)
    assert world.writes() == {"create events": 1}
    back = time.monotonic()
    world.start_plugins()
    world.until(world.all_bound, "the claim is bound")
    assert time.monotonic() - back < 5


def test_an_unreachable_node_does_not_hold_up_an_immediate_claim(wide_world: World) -> None:
    world = wide_world
    world.start_operator()
    world.plugins[0].stop()
    name = world.add_class()
    for number in range(4):
        world.add_claim(f"data-{number}", name)
    world.until(world.all_bound, "all claims are bound")
    assert len(world.plugins[1].volumes) == 4


def test_no_node_with_the_driver_is_said_and_a_new_one_is_used(world: World) -> None:
    world.unregister(world.plugins[0])
    world.start_operator()
    world.add_claim("data", world.add_class())
    assert "node plugin" in sentence(world, "data", "WaitingForNode")
    world.register(world.plugins[0])
    world.until(world.all_bound, "the claim is bound")


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({"selector": {"matchLabels": {"a": "b"}}}, "selector"),
        ({"dataSource": {"kind": "PersistentVolumeClaim", "name": "source"}}, "source"),
    ],
)
def test_what_cannot_be_made_is_refused_in_a_sentence(world: World, spec: dict[str, Any], word: str) -> None:
    world.start_operator()
    world.add_claim("data", world.add_class(), **spec)
    assert word in sentence(world, "data", "ProvisioningFailed")
    assert not world.plugins[0].calls["CreateVolume"]


def test_a_claim_deleted_while_its_volume_may_be_being_made_leaves_nothing(world: World) -> None:
    plugin = world.plugins[0]
    plugin.delay = 1.5
    world.start_operator()
    world.add_claim("data", world.add_class())
    world.until(lambda: plugin.calls["CreateVolume"], "the call")
    world.delete_claim("data")
    world.until(lambda: plugin.calls["DeleteVolume"] and not plugin.volumes, "the volume is deleted again")
    assert not world.volumes()


def test_a_call_whose_answer_was_lost_is_made_again_and_finds_the_same_volume(world: World) -> None:
    plugin = world.plugins[0]
    lost: list[str] = []

    def fault(method: str, name: str) -> Fault | None:
        if method == "CreateVolume" and not lost:
            lost.append(name)
            return grpc.StatusCode.DEADLINE_EXCEEDED, "still formatting"
        return None

    plugin.fault = fault
    world.start_operator()
    world.add_claim("data", world.add_class())
    world.until(world.all_bound, "the claim is bound")
    assert len(plugin.volumes) == 1


def test_a_claim_deleted_after_a_lost_answer_leaves_nothing(world: World) -> None:
    plugin = world.plugins[0]
    plugin.fault = lambda *_: (grpc.StatusCode.UNAVAILABLE, "connection lost")
    world.start_operator()
    claim = world.add_claim("data", world.add_class())
    world.until(lambda: plugin.calls["CreateVolume"], "the call")
    # The call went through although its answer did not.
    plugin.volumes["vol-unknown"] = 0
    world.delete_claim("data")
    plugin.fault = lambda *_: None
    plugin.volumes.clear()
    world.until(lambda: plugin.calls["DeleteVolume"], "the volume is looked for and deleted")
    world.until(lambda: not plugin.volumes, "nothing is left")
    assert claim["metadata"]["uid"] not in str(world.volumes())
