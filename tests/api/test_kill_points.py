"""SIGKILL at every write of a bind, before the API server hears of it and before the operator hears of that.

For each write a claim is made, the operator is killed at that very write, and its next life has to finish the pair: one
volume for one claim, complete on all sides, and no storage that nobody owns.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.api.fault_world import FaultWorld
from tests.api.operator_world import USER
from tests.harness.faulty_proxy import FaultyProxy
from tests.harness.faulty_proxy_traps import Moment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness.controlplane import ControlPlane

pytestmark = [pytest.mark.api, pytest.mark.timeout(180)]

SEED = 4
BIND = {
    "PATCH persistentvolumes",
    "PATCH persistentvolumes/status",
    "PATCH persistentvolumeclaims",
    "PATCH persistentvolumeclaims/status",
}


class KillWorld(FaultWorld):
    """A world whose operator is killed at writes."""

    def __init__(self, plane: ControlPlane, folder: Path, proxy: FaultyProxy, *, mode: str) -> None:
        super().__init__(plane, folder, proxy, nodes=2)
        self._proxy = proxy
        self._mode = mode

    def start(self) -> None:
        """Start the operator alone, so that a new life need not wait for the Lease of a killed one."""
        self.start_replica("--leader-election=false", f"--binder-mode={self._mode}")

    def kill_at_every_write(self, moment: Moment, make: Callable[[str], None]) -> Counter[str]:
        """Make claim after claim, and kill at the first write that no bind before was killed at.

        A write is told by its verb and resource, and from others of the same by how many there were before it.

        Args:
            moment: of the kill.
            make: makes the claim of that name, and what it needs.

        Returns:
            The writes that were killed at, when a claim was bound without one that is new.
        """
        killed: Counter[str] = Counter()
        for number in itertools.count(1):
            self._proxy.trap(lambda writes: writes.count(writes[-1]) > killed[writes[-1]], moment, self.kill_replica)
            make(f"data-{number}")
            self.until(lambda: self._proxy.caught or self.all_bound(), "a new write, or the end of the bind")
            if not self._proxy.caught:
                return killed
            killed[self._proxy.caught] += 1
            self.until(lambda: self._proxy.sprung, "the operator is killed")
            self.start()
            self.until(self.all_bound, f"the pair is finished after a kill {moment} {self._proxy.caught}")
            assert self.faults() == [], f"after a kill {moment} {self._proxy.caught}"
        raise AssertionError


@pytest.fixture
def worlds(api_server: ControlPlane, tmp_path: Path) -> Iterator[Callable[[str], KillWorld]]:
    """Makes a world whose operator runs in that mode, without any in-tree controller."""
    chance = random.Random(SEED)  # noqa: S311 (a schedule, not a secret)
    with FaultyProxy(api_server.access(USER), random=chance) as proxy:
        made: list[KillWorld] = []

        def make(mode: str) -> KillWorld:
            made.append(KillWorld(api_server, tmp_path, proxy, mode=mode).__enter__())
            made[-1].start()
            made[-1].start_plugins()
            return made[-1]

        try:
            yield make
        finally:
            for world in made:
                world.__exit__(None, None, None)


@pytest.mark.parametrize("mode", ["beside", "instead"])
@pytest.mark.parametrize("moment", list(Moment))
def test_a_dynamic_claim(worlds: Callable[[str], KillWorld], mode: str, moment: Moment) -> None:
    world = worlds(mode)
    name = world.add_class()
    killed = world.kill_at_every_write(moment, lambda claim: world.add_claim(claim, name))
    assert set(killed) == BIND - {"PATCH persistentvolumes"} | {"POST persistentvolumes"}


@pytest.mark.parametrize("moment", list(Moment))
def test_a_volume_reserved_for_its_claim_by_name(worlds: Callable[[str], KillWorld], moment: Moment) -> None:
    """Instead of the in-tree binder; beside it that is its first step."""
    world = worlds("instead")

    def make(claim: str) -> None:
        holder = {"kind": "PersistentVolumeClaim", "namespace": world.namespace, "name": claim}
        world.add_volume(claim, world.namespace, claimRef=holder)
        world.add_claim(claim, world.namespace)

    assert set(world.kill_at_every_write(moment, make)) == BIND


@pytest.mark.parametrize("moment", list(Moment))
def test_a_bind_that_the_in_tree_binder_has_begun(worlds: Callable[[str], KillWorld], moment: Moment) -> None:
    world = worlds("beside")

    def make(claim: str) -> None:
        uid = world.add_claim(claim, world.namespace)["metadata"]["uid"]
        holder = {"kind": "PersistentVolumeClaim", "namespace": world.namespace, "name": claim, "uid": uid}
        world.add_volume(claim, world.namespace, claimRef=holder)

    assert set(world.kill_at_every_write(moment, make)) == BIND - {"PATCH persistentvolumes"}


@pytest.mark.parametrize("moment", list(Moment))
def test_a_claim_that_names_its_volume(worlds: Callable[[str], KillWorld], moment: Moment) -> None:
    world = worlds("instead")

    def make(claim: str) -> None:
        world.add_volume(claim, world.namespace)
        world.add_claim(claim, world.namespace, volumeName=f"{world.namespace}-{claim}")

    assert set(world.kill_at_every_write(moment, make)) == BIND


@pytest.mark.parametrize("moment", list(Moment))
def test_a_free_volume_instead_of_the_in_tree_binder(worlds: Callable[[str], KillWorld], moment: Moment) -> None:
    world = worlds("instead")

    def make(claim: str) -> None:
        world.add_volume(claim, world.namespace)
        world.add_claim(claim, world.namespace)

    assert set(world.kill_at_every_write(moment, make)) == BIND
