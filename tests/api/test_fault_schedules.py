"""Schedules on a real API server: claims and volumes come and go while everything goes wrong that can on the way there.

Each schedule follows from its seed, which is printed; ``MOORAGE_API_SCHEDULES`` says how many there are and
``MOORAGE_API_SEED`` with which seed they begin, so that one of them can be had again alone. Odd seeds run beside the in-tree
binder, even ones instead of it.

After a few seconds everything is calm. Then each claim that can be bound must be, one to one, complete on all sides; no
storage may be left that nobody owns; and nothing may be written any more. At the end all claims are deleted, and all
that was made for them has to go.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, assert_never

import pytest

from tests.api.fault_schedule import (
    CROWD,
    DYNAMIC,
    LATE,
    STATIC,
    AddClaim,
    AddVolume,
    DeleteClaim,
    Kill,
    Schedule,
    Step,
    starved,
)
from tests.api.fault_world import FaultWorld
from tests.api.operator_world import USER, RefusedError
from tests.harness.controlplane import ControlPlane
from tests.harness.faulty_proxy import FaultyProxy
from tests.harness.faulty_proxy_faults import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.api, pytest.mark.timeout(180)]

SCHEDULES = int(os.environ.get("MOORAGE_API_SCHEDULES", "14"))
FIRST_SEED = int(os.environ.get("MOORAGE_API_SEED", "1"))
PLANNED = [Schedule.of(seed) for seed in range(FIRST_SEED, FIRST_SEED + SCHEDULES)]
ENOUGH = 10
"""Schedules after which every fault has happened."""

LEAST = 15
"""Faults that a storm lasts for, although its steps are over."""

LUCKY_SECONDS = 8
"""An operator that has met none by then has nothing to do, or is lucky."""

SETTLE_SECONDS = 60
STILL_SECONDS = 1.0


class Run:
    """One schedule in a world of its own."""

    def __init__(self, schedule: Schedule, world: FaultWorld, proxy: FaultyProxy) -> None:
        self._schedule = schedule
        self._world = world
        self._proxy = proxy
        self._classes = {kind: f"{world.namespace}-{kind}" for kind in (STATIC, CROWD)}

    def prepare(self) -> None:
        """Let an operator make the node plugins' certificate in peace, and end it."""
        world = self._world
        self._proxy.calm()
        world.start_replica("--leader-election=false")
        world.start_plugins()
        world.kill_operator()
        self._classes[DYNAMIC] = world.add_class()
        self._classes[LATE] = world.add_class("late", volumeBindingMode="WaitForFirstConsumer")
        for step in self._schedule.first:
            self._do(step)

    def storm(self) -> None:
        """Start the operators and let everything happen while everything goes wrong."""
        world = self._world
        self._proxy.storm()
        for flags in self._schedule.replicas:
            world.start_replica(*flags)
        self._until_faults(1)
        began = time.monotonic()
        for after, step in self._schedule.steps:
            world.revive()
            time.sleep(max(began + after - time.monotonic(), 0.0))
            self._do(step)
        self._until_faults(LEAST)

    def settle(self) -> None:
        """Return when the world is as it should be and nobody writes any more."""
        world = self._world
        self._proxy.calm()
        deadline = time.monotonic() + SETTLE_SECONDS
        while wrong := self._wrong():
            assert time.monotonic() < deadline, self._tell(wrong)
            world.revive()
            time.sleep(0.1)
        while not self._is_still():
            assert time.monotonic() < deadline, self._tell([f"somebody still writes: {dict(world.writes())}"])
        wrong = [*self._wrong(), *(f"an operator has ended with {code}" for code in world.ended)]
        assert not wrong, self._tell(wrong)

    def finish(self) -> None:
        """Delete every claim: whatever was made for them goes, and under none of them was anything destroyed."""
        world = self._world
        for claim in world.claims():
            world.client("DELETE", f"{world.claim_path()}/{claim['metadata']['name']}")
        deadline = time.monotonic() + SETTLE_SECONDS
        while wrong := [*self._left(), *world.faults()]:
            assert time.monotonic() < deadline, self._tell(wrong)
            time.sleep(0.1)

    def _left(self) -> list[str]:
        """The claims, and the volumes that were made for one, that are still there."""
        made = [item for item in self._world.volumes() if "csi" in item["spec"]]
        return [f"{item['metadata']['name']} is left" for item in [*self._world.claims(), *made]]

    def _until_faults(self, least: int) -> None:
        """Return when so much has gone wrong, or when after a while it did not."""
        deadline = time.monotonic() + LUCKY_SECONDS
        while self._proxy.counts.total() < least and time.monotonic() < deadline:
            self._world.revive()
            time.sleep(0.05)

    def _wrong(self) -> list[str]:
        """What is not as it has to be in the end."""
        world = self._world
        claims, volumes = world.claims(), world.volumes()
        ours = frozenset({self._classes[DYNAMIC], self._classes[LATE]})
        going = [claim["metadata"]["name"] for claim in claims if "deletionTimestamp" in claim["metadata"]]
        return [*world.faults(), *starved(claims, volumes, ours=ours), *(f"claim {name} is going" for name in going)]

    def _is_still(self) -> bool:
        """Whether nothing changes and the operators write nothing for a while."""
        world = self._world
        world.mark()
        before = self._versions()
        time.sleep(STILL_SECONDS)
        return self._versions() == before and not world.writes()

    def _versions(self) -> dict[str, str]:
        items = [*self._world.claims(), *self._world.volumes()]
        return {item["metadata"]["uid"]: item["metadata"]["resourceVersion"] for item in items}

    def _tell(self, wrong: list[str]) -> str:
        return "\n".join([str(self._schedule), *wrong, f"ended: {self._world.ended}", self._world.log()[-6000:]])

    def _do(self, step: Step) -> None:
        match step:
            case AddVolume():
                self._add_volume(step)
            case AddClaim():
                self._add_claim(step)
            case DeleteClaim():
                self._delete(step)
            case Kill():
                flags = self._world.kill_replica(step.number)
                if flags:
                    self._world.start_replica(*flags)
            case _:
                assert_never(step)

    def _add_volume(self, step: AddVolume) -> None:
        spec: dict[str, Any] = {"volumeMode": "Block" if step.block else "Filesystem"}
        if step.holder:
            spec["claimRef"] = {
                "kind": "PersistentVolumeClaim",
                "namespace": self._world.namespace,
                "name": step.holder,
            }
        self._world.add_volume(step.name, self._classes[step.kind], size=f"{step.size}Gi", modes=step.modes, **spec)

    def _add_claim(self, step: AddClaim) -> None:
        spec: dict[str, Any] = {"accessModes": list(step.modes), "volumeMode": "Block" if step.block else "Filesystem"}
        if step.volume:
            spec["volumeName"] = f"{self._world.namespace}-{step.volume}"
        node = self._world.plugins[step.node].node
        marks = {"volume.kubernetes.io/selected-node": node} if step.kind == LATE else {}
        try:
            self._world.add_claim(step.name, self._classes[step.kind], size=f"{step.size}Gi", marks=marks, **spec)
        except RefusedError as error:
            # One that is made anew has to wait for its predecessor, which may still be going.
            if error.status != HTTPStatus.CONFLICT:
                raise

    def _delete(self, step: DeleteClaim) -> None:
        claim = self._world.claim(step.name)
        if claim is not None and (claim["status"]["phase"] == "Bound" or not step.bound):
            self._world.client("DELETE", f"{self._world.claim_path()}/{step.name}")


@pytest.fixture(scope="module")
def api_server_without_binder() -> Iterator[ControlPlane]:
    """Every in-tree controller but the binder."""
    users = {USER: "system:masters", "somebody": "system:masters"}
    with ControlPlane(f"schedules-{os.getpid()}", controllers=True, binder=False, users=users) as plane:
        yield plane


@pytest.fixture(scope="module")
def happened() -> Counter[Fault]:
    """The faults of all schedules."""
    return Counter()


@pytest.mark.parametrize("schedule", PLANNED, ids=Schedule.id)
def test_a_schedule_ends_one_to_one_without_leaks_and_at_rest(
    schedule: Schedule,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    happened: Counter[Fault],
    capsys: pytest.CaptureFixture[str],
) -> None:
    planes = {"beside": "api_server_with_controllers", "instead": "api_server_without_binder"}
    plane: ControlPlane = request.getfixturevalue(planes[schedule.mode])
    began = time.monotonic()
    with (
        FaultyProxy(
            plane.access(USER),
            rival=plane.access("somebody"),
            faults=schedule.faults,
            random=random.Random(schedule.seed),  # noqa: S311 (a schedule, not a secret)
        ) as proxy,
        FaultWorld(plane, tmp_path, proxy, nodes=2) as world,
    ):
        run = Run(schedule, world, proxy)
        run.prepare()
        run.storm()
        run.settle()
        run.finish()
        happened.update(proxy.counts)
        with capsys.disabled():
            print(f"\n{schedule}; {proxy.counts.total()} faults; {time.monotonic() - began:.1f} s", end=" ")  # noqa: T201


def test_every_fault_has_happened(happened: Counter[Fault]) -> None:
    if SCHEDULES < ENOUGH:
        pytest.skip(f"MOORAGE_API_SCHEDULES={SCHEDULES}: fewer than {ENOUGH} need not meet every fault")
    assert {fault for fault in Fault if not happened[fault]} == set(), happened
