"""An API server in memory that keeps to the contract of conditional writes, with faults to order."""

import asyncio
import copy
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from moorage_operator.errors import AlreadyExistsError, ConflictError, InvalidError, NotFoundError

Fault = Callable[[str, str, bool], Awaitable[None]]


class World:
    """What is stored, and how often it was written."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.versions = 0
        self.writes: list[tuple[str, str]] = []

    def version(self) -> str:
        self.versions += 1
        return str(self.versions)


async def no_fault(verb: str, path: str, done: bool) -> None:
    """Answer at once."""


class MemoryStore:
    """One client's view of a world.

    ``fault`` is awaited before each request is carried out (``done`` False) and before its answer
    arrives (``done`` True); it may sleep or raise.
    """

    def __init__(self, world: World, *, fault: Fault = no_fault) -> None:
        self.world = world
        self.fault = fault

    async def get(self, path: str) -> dict[str, Any]:
        await self.fault("get", path, False)
        found = copy.deepcopy(self.world.objects.get(path))
        await self.fault("get", path, True)
        if found is None:
            raise NotFoundError(f"no {path}", status=404, reason="NotFound")
        return found

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        await self.fault("create", path, False)
        target = f"{path}/{body['metadata']['name']}"
        if target in self.world.objects:
            raise AlreadyExistsError(f"{target} exists", status=409, reason="AlreadyExists")
        stored = copy.deepcopy(dict(body))
        stored["metadata"]["uid"] = f"uid-{self.world.version()}"
        answer = self._store("create", target, stored)
        await self.fault("create", path, True)
        return answer

    async def replace(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        await self.fault("replace", path, False)
        current = self._current(path)
        if current["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise ConflictError(f"{path} changed", status=409, reason="Conflict")
        if current.get("type") != body.get("type") or current.get("immutable"):
            raise InvalidError(f"{path} cannot be changed", status=422, reason="Invalid")
        answer = self._store("replace", path, copy.deepcopy(dict(body)))
        await self.fault("replace", path, True)
        return answer

    async def json_patch(self, path: str, ops: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        await self.fault("patch", path, False)
        changed = copy.deepcopy(self._current(path))
        for op in ops:
            *parents, last = op["path"].strip("/").split("/")
            target = changed
            for parent in parents:
                target = target[parent]
            if op["op"] == "test":
                if target[last] != op["value"]:
                    raise ConflictError(f"{path} changed", status=422, reason="Invalid")
            else:
                target[last] = op["value"]
        answer = self._store("patch", path, changed)
        await self.fault("patch", path, True)
        return answer

    async def delete(self, path: str, *, uid: str, resource_version: str | None = None) -> bool:
        await self.fault("delete", path, False)
        current = self.world.objects.get(path)
        if current is None:
            return False
        if current["metadata"]["uid"] != uid or resource_version not in {None, current["metadata"]["resourceVersion"]}:
            raise ConflictError(f"{path} is another", status=409, reason="Conflict")
        del self.world.objects[path]
        self.world.writes.append(("delete", path))
        await self.fault("delete", path, True)
        return True

    def _current(self, path: str) -> dict[str, Any]:
        if path not in self.world.objects:
            raise NotFoundError(f"no {path}", status=404, reason="NotFound")
        return self.world.objects[path]

    def _store(self, verb: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        body["metadata"]["resourceVersion"] = self.world.version()
        self.world.objects[path] = body
        self.world.writes.append((verb, path))
        return copy.deepcopy(body)


async def yielding(verb: str, path: str, done: bool) -> None:
    """Let everybody else run at each step, so that those who race really interleave."""
    await asyncio.sleep(0)
