"""SIGKILL at any moment: the next life of the operator converges, one volume for one claim, nothing leaked."""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.api.operator_world import World

if TYPE_CHECKING:
    from pathlib import Path

    from tests.harness.controlplane import ControlPlane

pytestmark = [pytest.mark.api, pytest.mark.timeout(180)]

SEED = 20
CLAIMS = 60
LIVES = 4


def test_killed_again_and_again_it_converges(api_server: ControlPlane, tmp_path: Path) -> None:
    chance = random.Random(SEED)  # noqa: S311 (a schedule, not a secret)
    with World(api_server, tmp_path, nodes=2) as world:
        world.start_operator()
        name = world.add_class()
        for plugin in world.plugins:
            plugin.delay = 0.05
        for number in range(CLAIMS):
            world.add_claim(f"data-{number}", name)
        for _ in range(LIVES):
            time.sleep(chance.uniform(0.05, 0.4))
            world.kill_operator()
            world.start_operator(wait=False)
            world.until(lambda: len(world.volumes()) > 0, "work goes on")
        world.until(world.all_bound, "all claims are bound", seconds=60)
        volumes = world.volumes()
        assert len({volume["spec"]["claimRef"]["uid"] for volume in volumes}) == CLAIMS == len(volumes)
        made = sorted(handle for plugin in world.plugins for handle in plugin.volumes)
        assert made == sorted(volume["spec"]["csi"]["volumeHandle"] for volume in volumes)


def test_a_paused_leader_that_wakes_up_beside_its_successor_does_no_harm(
    api_server: ControlPlane, tmp_path: Path
) -> None:
    with World(api_server, tmp_path, nodes=2) as world:
        world.start_operator()
        name = world.add_class()
        for plugin in world.plugins:
            plugin.delay = 0.1
        for number in range(CLAIMS):
            world.add_claim(f"data-{number}", name)
        world.until(lambda: len(world.volumes()) > CLAIMS // 4, "work is under way")
        paused = world.pause_operator()
        try:
            world.start_operator(wait=False)
            world.until(lambda: len(world.volumes()) > CLAIMS // 2, "the successor works")
            paused.send_signal(signal.SIGCONT)
            world.until(world.all_bound, "all claims are bound", seconds=60)
            time.sleep(1)
            assert world.all_bound()
        finally:
            paused.kill()
            paused.wait()
        volumes = world.volumes()
        assert len({volume["spec"]["claimRef"]["uid"] for volume in volumes}) == CLAIMS == len(volumes)
        made = sorted(handle for plugin in world.plugins for handle in plugin.volumes)
        assert made == sorted(volume["spec"]["csi"]["volumeHandle"] for volume in volumes)
