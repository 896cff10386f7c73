"""An API server as a model: objects with versions, conditional writes, finalizers, and a log that is watched."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from moorage_operator.errors import AlreadyExistsError, ConflictError, NotFoundError
from moorage_operator.model.claim import Claim
from moorage_operator.model.node import Node, NodeDrivers
from moorage_operator.model.pod import Pod
from moorage_operator.model.storage_class import Class
from moorage_operator.model.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moorage_operator.ledger import Record

Body = dict[str, Any]


class ModelApi:
    """Objects with resourceVersions, conditional writes, finalizers, and a log that the operators watch."""

    def __init__(self) -> None:
        self.objects: dict[str, Body] = {}
        self.log: list[tuple[str, Body, bool]] = []
        self.version = 100
        self.born = 0

    def store(self, path: str, body: Body) -> Body:
        """Keep a new state of an object; without finalizers a deleting one goes."""
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        if not body["metadata"].get("annotations", True):
            # A map that has become empty is not stored.
            del body["metadata"]["annotations"]
        gone = "deletionTimestamp" in body["metadata"] and not body["metadata"].get("finalizers")
        if gone:
            self.objects.pop(path, None)
        else:
            self.objects[path] = body
        self.log.append((path, copy.deepcopy(body), gone))
        return copy.deepcopy(body)

    def get(self, path: str) -> Body:
        if path not in self.objects:
            raise NotFoundError(path, status=404)
        return copy.deepcopy(self.objects[path])

    def create(self, path: str, body: Mapping[str, Any]) -> Body:
        new = copy.deepcopy(dict(body))
        if "claimRef" in new["spec"]:
            path = f"{path}/{new['metadata']['name']}"
        if path in self.objects:
            raise AlreadyExistsError(path, status=409)
        self.born += 1
        new["metadata"].setdefault("uid", f"uid-{self.born}")
        new["status"] = {"phase": "Pending"}
        return self.store(path, new)

    def patch(self, path: str, ops: Sequence[Mapping[str, Any]]) -> Body:
        path, _, subresource = path.partition("/status")
        del subresource
        body = self.get(path)
        for op in ops:
            *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in op["path"].split("/")[1:]]
            inside: Any = body
            for part in parents:
                if part not in inside:
                    raise ConflictError(f"{path} has no {op['path']}", status=422)
                inside = inside[part]
            if op["op"] == "test":
                if inside.get(last) != op["value"]:
                    raise ConflictError(path, status=422)
            elif op["op"] == "add":
                inside[last] = copy.deepcopy(op["value"])
            elif isinstance(inside, list):
                del inside[int(last)]
            elif inside.pop(last, None) is None:
                raise ConflictError(path, status=422)
        return self.store(path, body)

    def replace(self, path: str, body: Body) -> Body:
        if self.get(path)["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise ConflictError(path, status=409)
        return self.store(path, copy.deepcopy(body))

    def delete(self, path: str, *, uid: str | None = None) -> bool:
        if path not in self.objects:
            return False
        body = self.get(path)
        if uid is not None and body["metadata"]["uid"] != uid:
            raise ConflictError(path, status=409)
        if "deletionTimestamp" not in body["metadata"]:
            body["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z"
            self.store(path, body)
        return True

    def of_kind(self, part: str) -> dict[str, Body]:
        return {path: body for path, body in self.objects.items() if part in path}

    @property
    def claims(self) -> dict[str, Body]:
        return self.of_kind("/persistentvolumeclaims/")

    @property
    def volumes(self) -> dict[str, Body]:
        return self.of_kind("/persistentvolumes/")

    def claim_of(self, uid: str) -> Body | None:
        return next((body for body in self.claims.values() if body["metadata"]["uid"] == uid), None)


def kind_of(path: str) -> type[Record]:
    kinds: dict[str, type[Record]] = {
        "persistentvolumeclaims": Claim,
        "persistentvolumes": Volume,
        "storageclasses": Class,
        "nodes": Node,
        "csinodes": NodeDrivers,
        "pods": Pod,
    }
    return kinds[path.split("/")[-2]]
