"""A world at rest costs nothing: a thousand bound pairs, and claims that wait with a reason, and not one write.

Both modes of the binder are looked at in the same minute, each on an API server of its own: beside the in-tree binder
with every in-tree controller, and instead of it with none.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.operator_world import PATCH, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from tests.harness.controlplane import ControlPlane

pytestmark = [pytest.mark.api, pytest.mark.timeout(300)]

PAIRS = 1000
FREE = 20
IDLE_SECONDS = 60
SETTLED_SECONDS = 8
"""Longer than a claim waits before its reason is told, and than an event is held back."""
AT_ONCE = 16
VOLUMES = "/api/v1/persistentvolumes"
MARKS = {"pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes"}


class RestingWorld(World):
    """A world that is filled, and emptied, by many requests at a time."""

    def fill(self) -> None:
        """Make bound pairs as a binder leaves them, free volumes, and claims that nothing fits."""
        self._each(self._add_pair, range(PAIRS))
        self._each(self._add_free, range(FREE))
        self.add_claim("too-large", self.namespace, size="1Ti")
        self.add_claim("no-class", "")
        self.add_claim("unknown-class", f"{self.namespace}-missing")
        self.add_claim("not-scheduled", self.add_class("late", volumeBindingMode="WaitForFirstConsumer"))

    def empty(self) -> None:
        """End the operator, and remove claims and volumes, whatever protects them."""
        self.kill_operator()
        self._each(self.delete_claim, [claim["metadata"]["name"] for claim in self.claims()])
        self._each(self._remove_volume, [volume["metadata"]["name"] for volume in self.volumes()])
        self._each(self._remove_volume, [f"{self.namespace}-free-{number}" for number in range(FREE)])

    def _add_pair(self, number: int) -> None:
        claim = self.add_claim(f"data-{number}", self.namespace)
        meta, name = claim["metadata"], f"{self.namespace}-{number}"
        holder = {"kind": "PersistentVolumeClaim", "apiVersion": "v1"}
        holder |= {key: meta[key] for key in ("namespace", "name", "uid")}
        volume = self._volume(name, claimRef=holder)
        path = f"{self.claim_path()}/{meta['name']}"
        self._patch(f"{VOLUMES}/{name}/status", {"status": {"phase": "Bound"}})
        self._patch(path, {"metadata": {"annotations": MARKS}, "spec": {"volumeName": name}})
        held = {"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": volume["spec"]["capacity"]}
        self._patch(f"{path}/status", {"status": held})

    def _add_free(self, number: int) -> None:
        name = f"{self.namespace}-free-{number}"
        self._volume(name)
        self._patch(f"{VOLUMES}/{name}/status", {"status": {"phase": "Available"}})

    def _volume(self, name: str, **spec: Any) -> Any:
        body = {
            "metadata": {"name": name, "annotations": {"pv.kubernetes.io/bound-by-controller": "yes"} if spec else {}},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": self.namespace,
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": f"/tmp/{name}"},  # noqa: S108 - no pod ever mounts it
                **spec,
            },
        }
        return self.client("POST", VOLUMES, body)

    def _patch(self, path: str, body: Any) -> None:
        self.client("PATCH", path, body, content=PATCH)

    def _remove_volume(self, name: str) -> None:
        self._remove(f"{VOLUMES}/{name}", finalized=True)

    def _each(self, job: Callable[[Any], None], items: Iterable[Any]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(job, items))


@pytest.fixture
def worlds(
    api_server_with_controllers: ControlPlane, api_server: ControlPlane, tmp_path: Path
) -> Iterator[dict[str, RestingWorld]]:
    planes = {"beside": api_server_with_controllers, "instead": api_server}
    with ExitStack() as stack:
        found = {}
        for mode, plane in planes.items():
            folder = tmp_path / mode
            folder.mkdir()
            found[mode] = stack.enter_context(RestingWorld(plane, folder))
            stack.callback(found[mode].empty)
            found[mode].fill()
        yield found


def test_a_thousand_pairs_and_waiting_claims_take_no_write_in_a_minute(worlds: dict[str, RestingWorld]) -> None:
    for mode, world in worlds.items():
        world.start_operator(f"--binder-mode={mode}")
    time.sleep(SETTLED_SECONDS)
    for world in worlds.values():
        world.mark()
    time.sleep(IDLE_SECONDS)
    assert {mode: dict(world.writes()) for mode, world in worlds.items()} == {"beside": {}, "instead": {}}
    for world in worlds.values():
        world.add_claim("fresh", world.add_class())
        world.until(lambda world=world: "Bound" in world.claim("fresh")["status"]["phase"], "it was awake")  # type: ignore[misc]
