"""Volumes that an administrator makes by hand, in a world of their own: each by its class, so that worlds do not mix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.api.operator_world import PATCH, RefusedError, is_pair

if TYPE_CHECKING:
    from tests.api.operator_world import World

VOLUMES = "/api/v1/persistentvolumes"


def bound_to(world: World, claim: str) -> str:
    """The volume that a claim is completely bound to; empty when it is not."""
    found = world.claim(claim)
    assert found is not None
    name = str(found["spec"].get("volumeName", ""))
    volumes = {item["metadata"]["name"]: item for item in world.volumes()}
    return name if is_pair(found, volumes.get(name)) else ""


class Shelf:
    """Static volumes of one class name, which no StorageClass object has to have; removed at the end."""

    def __init__(self, world: World, name: str = "") -> None:
        self.world = world
        self.class_name = name or f"{world.namespace}-static"
        self._made: list[str] = []

    def add(self, name: str, size: str = "1Gi", *, marks: dict[str, str] | None = None, **spec: Any) -> str:
        """Make a volume; returns its full name."""
        full = f"{self.world.namespace}-{name}"
        body = {
            "metadata": {"name": full, "annotations": marks or {}},
            "spec": {
                "capacity": {"storage": size},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": self.class_name,
                "hostPath": {"path": f"/srv/{full}"},
                **spec,
            },
        }
        self.world.client("POST", VOLUMES, body)
        self._made.append(full)
        return full

    def get(self, name: str) -> Any:
        """A volume by its full name."""
        return self.world.client("GET", f"{VOLUMES}/{name}")

    def phase(self, name: str) -> str:
        """Its phase."""
        return str(self.get(name)["status"]["phase"])

    def patch(self, name: str, body: Any) -> None:
        """Change it as a person would."""
        self.world.client("PATCH", f"{VOLUMES}/{name}", body, content=PATCH)

    def clear(self) -> None:
        """Remove all of them."""
        for name in self._made:
            self.remove(name)

    def remove(self, name: str) -> None:
        """Remove one, whatever protects it."""
        try:
            self.world.client("DELETE", f"{VOLUMES}/{name}")
            self.patch(name, {"metadata": {"finalizers": None}})
        except RefusedError as error:
            if error.status != 404:
                raise
