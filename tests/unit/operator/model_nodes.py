"""The node plugins as a model: what each holds, and how it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moorage_csi.contract import TOPOLOGY_KEY
from moorage_operator.errors import (
    DriverExhaustedError,
    DriverFinalError,
    DriverInfeasibleError,
    DriverRunningError,
)
from moorage_operator.model.provisioning import Created, CreateRequest
from moorage_operator.model.volume import Volume

if TYPE_CHECKING:
    from tests.unit.operator.model_api import ModelApi

NODES = ("n1", "n2")


class ModelNodes:
    """What the node plugins hold, and how they fail."""

    def __init__(self, api: ModelApi) -> None:
        self.api = api
        self.tables: dict[str, set[str]] = {node: set() for node in NODES}
        self.mood: dict[str, str] = dict.fromkeys(NODES, "fine")
        self.destroyed: list[tuple[str, str]] = []
        self.wiped_for: dict[str, str] = {}

    def create(self, node: str, request: CreateRequest) -> Created:
        mood = self.mood[node]
        if mood == "exhausted" and request.name not in self.tables[node]:
            raise DriverExhaustedError(f"{node} is full", node=node, code="RESOURCE_EXHAUSTED")
        if mood == "broken" and request.name not in self.tables[node]:
            raise DriverFinalError(f"{node} is broken", node=node, code="INTERNAL")
        if mood == "refusing" and request.name not in self.tables[node]:
            raise DriverInfeasibleError("bad class", node=node, code="INVALID_ARGUMENT")
        if mood == "busy":
            raise DriverRunningError(f"{node} is at it", node=node, code="ABORTED")
        self.tables[node].add(request.name)
        if mood == "mute":
            raise DriverRunningError(f"{node} did not answer", node=node, code="DEADLINE_EXCEEDED")
        return Created(
            volume_id=f"vol-{request.name}",
            capacity_bytes=request.required_bytes,
            context={"backend": "image"},
            topology=({TOPOLOGY_KEY: node},),
        )

    def delete(self, node: str, volume_id: str) -> None:
        name = volume_id.removeprefix("vol-")
        if name in self.tables[node]:
            self.check_may_destroy(node, name)
            self.tables[node].discard(name)
            self.destroyed.append((node, name))

    def wipe(self, node: str, volume_id: str, released_uid: str) -> None:
        name = volume_id.removeprefix("vol-")
        if self.wiped_for.get(name) == released_uid:
            return
        assert self.api.claim_of(released_uid) is None, f"{name} was wiped under its living claim"
        assert name in self.tables[node], f"{name} is not there"
        self.wiped_for[name] = released_uid

    def check_may_destroy(self, node: str, name: str) -> None:
        """What must never happen: data of a living claim, or of a volume with policy Retain, destroyed."""
        volume = self.api.volumes.get(f"/api/v1/persistentvolumes/{name}")
        reference = {} if volume is None else volume["spec"].get("claimRef") or {}
        claim = self.api.claim_of(reference.get("uid") or name.removeprefix("pvc-"))
        if volume is not None and Volume.from_api(volume).node == node:
            assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete", f"{name} was retained"
            assert claim is None, f"{name} was destroyed under its living claim"
        else:
            elsewhere = claim is not None and claim["spec"].get("volumeName") not in {None, "", name}
            assert claim is None or volume is not None or elsewhere, (
                f"{name} was destroyed while its claim waits for it"
            )
