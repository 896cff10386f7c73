"""The world of a vector: an API server that writes down what it is asked for, plugins with given answers, and us.

As in the recorded runs, a main write also stores the status that came with it.
"""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

from moorage_operator.act.intree import InTree
from moorage_operator.act.performer import Outcome, Performer, Verdict
from moorage_operator.errors import AlreadyExistsError, ConflictError, InvalidError, PluginError
from moorage_operator.ledger import Ledger
from moorage_operator.loop import Reconciler
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import Key, claim_key, volume_key
from moorage_operator.model.node import Node
from moorage_operator.model.pod import Pod
from moorage_operator.model.rules import Plugin, Rules
from moorage_operator.model.storage_class import Class
from moorage_operator.model.volume import Volume
from tests.unit.operator.model_api import ModelApi
from tests.vectors import shapes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from moorage_operator.model.reference import Reference
    from tests.vectors.shapes import Body, Row

MIGRATED = {"kubernetes.io/migrated-plugin": "migrated.csi.example"}
MOST_ROUNDS = 50


class AllMigrated(dict[str, str]):
    """Every plugin is migrated to the same driver."""

    def __init__(self, driver: str) -> None:
        super().__init__()
        self._driver = driver

    def get(self, _: str, __: Any = None) -> str:
        return self._driver

    def __contains__(self, _: object) -> bool:
        return True


class Recording(ModelApi):
    """Writes down every write that takes effect, or that fails as the vector says."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__()
        self.writes: list[str] = []
        self.faults = list(faults)

    def create(self, path: str, body: Mapping[str, Any]) -> Body:
        name = body["metadata"]["name"]
        self.writes.append(f"create volume {name}")
        if self.faults and self.faults[0].startswith("create volume:"):
            fault = self.faults.pop(0).partition(": ")[2]
            raise (AlreadyExistsError if fault == "AlreadyExists" else InvalidError)(fault, status=409)
        new = copy.deepcopy(dict(body))
        new["metadata"].setdefault("uid", f"uid-{name}")
        return self.store(f"{path}/{name}", new)

    def patch(self, path: str, ops: Sequence[Mapping[str, Any]]) -> Body:
        kind = "claim" if "/persistentvolumeclaims/" in path else "volume"
        if path.endswith("/status"):
            kind += "/status"
        if self.faults and self.faults[0].startswith(f"update {kind}:"):
            fault = self.faults.pop(0).partition(": ")[2]
            raise (ConflictError if fault.lower() == "conflict" else InvalidError)(fault, status=409)
        answer = super().patch(path, ops)
        phase = ""
        if path.endswith("/status"):
            phase = f" -> {answer['status'].get('phase')}"
        self.writes.append(f"update {kind} {answer['metadata']['name']}{phase}")
        return answer

    def delete(self, path: str, *, uid: str | None = None) -> bool:  # noqa: ARG002 (the recorded runs delete by name)
        self.writes.append(f"delete volume {path.rpartition('/')[2]}")
        return self.objects.pop(path, None) is not None


class MockPlugin:
    """A plugin that gives the answers of the vector, in order."""

    def __init__(self, answers: Row) -> None:
        self.answers = {operation: list(answers.get(operation, ())) for operation in ("provision", "delete", "recycle")}

    async def provision(self, name: str) -> Mapping[str, Any]:
        self._answer("provision")
        return {"hostPath": {"path": f"/srv/{name}"}}

    async def destroy(self, name: str) -> None:
        del name
        self._answer("delete")

    async def scrub(self, name: str) -> None:
        del name
        self._answer("recycle")

    def _answer(self, operation: str) -> None:
        answers = self.answers[operation]
        if not answers or answers.pop(0) != "ok":
            raise PluginError(f"{operation} failed")


class World:
    """One vector's world; also what the performer calls."""

    def __init__(self, vector: Row) -> None:
        given = vector["given"]
        plugin = given.get("inTree") or {}
        self.api = Recording(given.get("apiFaults", ()))
        self.ledger = Ledger(_rules(vector))
        self.events: list[tuple[str, str]] = []
        self.meanwhile: Row | None = vector["when"].get("meanwhileState")
        self.ready: set[Key] = set()
        self.performer = Performer(
            ledger=self.ledger,
            objects=self,
            plugins=self,
            tellers=self,
            wake=self.ready.update,
            bound=lambda _seconds: None,
            intree=InTree(
                ledger=self.ledger, objects=self, running={plugin.get("plugin", ""): MockPlugin(plugin)}, rest=_no_rest
            ),
            clock=lambda: 1000.0,
            wall=lambda: 1000.0,
            gather=_in_order,
        )
        self.reconciler = Reconciler(ledger=self.ledger, performer=self.performer, clock=lambda: 1000.0)
        for row in given.get("classes", ()):
            self.ledger.apply(Class.from_api(shapes.class_body(row)))
        for row in given.get("pods", ()):
            self.ledger.apply(Pod.from_api(shapes.pod_body(row)))
        self.ledger.apply(Node.from_api(shapes.node_body((given.get("node") or {}).get("labels", {}))))
        for row in given.get("volumes", ()):
            self.add_volume(row)
        for row in given.get("claims", ()):
            self.add_claim(row)

    def add_volume(self, row: Row) -> None:
        """A volume appears, or takes another form."""
        path = f"/api/v1/persistentvolumes/{row['name']}"
        body = self.api.store(path, shapes.volume_body(row))
        self.ready |= self.ledger.apply(Volume.from_api(body))

    def add_claim(self, row: Row) -> None:
        """A claim appears: in the API, in what we know, or both."""
        body = shapes.claim_body(row)
        path = claim_path(body["metadata"]["namespace"], row["name"])
        if row.get("visibleIn") != "cache-only":
            body = self.api.store(path, body)
        if row.get("visibleIn") != "api-only":
            self.ready |= self.ledger.apply(Claim.from_api(body))

    def remove(self, kind: type[Claim | Volume], path: str) -> None:
        """An object is deleted, and the watch says so."""
        body = self.api.objects.pop(path)
        self.ready |= self.ledger.forget(kind, body["metadata"]["uid"])

    def happen(self) -> None:
        """What somebody else did meanwhile happens now, once."""
        state, self.meanwhile = self.meanwhile, None
        for name in (state or {}).get("volumesGone", ()):
            self.api.objects.pop(f"/api/v1/persistentvolumes/{name}", None)
        for row in (state or {}).get("volumes", ()):
            self.api.store(f"/api/v1/persistentvolumes/{row['name']}", shapes.volume_body(row))
        for row in (state or {}).get("claims", ()):
            self.api.store(claim_path(shapes.NAMESPACE, row["name"]), shapes.claim_body(row))

    def catch_up(self) -> None:
        """The watch tells us everything that is."""
        for path, body in self.api.objects.items():
            kind: type[Claim | Volume] = Claim if "/persistentvolumeclaims/" in path else Volume
            self.ready |= self.ledger.apply(kind.from_api(copy.deepcopy(body)))

    async def once(self, key: Key) -> Outcome | None:
        """One sync."""
        return await self.reconciler.reconcile(key)

    async def until_stable(self, key: Key) -> None:
        """Sync whatever is woken, and what wants to be tried again, until nothing changes any more."""
        self.ready.add(key)
        for _ in range(MOST_ROUNDS):
            before = list(self.api.writes)
            again = set()
            while self.ready:
                outcome = await self.reconciler.reconcile(current := min(self.ready))
                self.ready.discard(current)
                if outcome is not None and outcome.verdict is Verdict.RETRY:
                    again.add(current)
            if self.meanwhile is not None:
                self.happen()
                self.catch_up()
            elif before == self.api.writes and not again:
                return
            self.ready |= again | {key}

    # What the performer calls.

    async def get(self, path: str) -> Body:
        if self.meanwhile is not None and "/persistentvolumes/" in path:
            self.happen()
        return self.api.get(path)

    async def create(self, path: str, body: Mapping[str, Any]) -> Body:
        answer = self.api.create(path, body)
        self.ready |= self.ledger.apply(Volume.from_api(answer))
        return answer

    async def json_patch(self, path: str, ops: Sequence[Mapping[str, Any]]) -> Body:
        return self.api.patch(path, ops)

    async def delete(self, path: str, *, uid: str, resource_version: str | None = None) -> bool:
        del resource_version
        self.ready |= self.ledger.forget(Volume, uid)  # type: ignore[arg-type]
        return self.api.delete(path)

    def event(self, regarding: Reference, *, type: str, reason: str, message: str) -> None:  # noqa: A002
        assert regarding.name
        assert message
        self.events.append((type, reason))

    async def create_volume(self, *_: Any) -> Any:
        raise NotImplementedError

    async def delete_volume(self, *_: Any) -> None:
        raise NotImplementedError

    async def wipe_volume(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError

    async def reach(self, *_: Any) -> None:
        raise NotImplementedError

    async def capacity(self, *_: Any) -> int:
        raise NotImplementedError


def claim_path(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"


def key_of(when: Row) -> Key:
    """The target of a sync."""
    return claim_key(shapes.NAMESPACE, when["target"]) if when["sync"] == "claim" else volume_key(when["target"])


def _rules(vector: Row) -> Rules:
    given = vector["given"]
    plugins = {}
    if "inTree" in given:
        answers = given["inTree"]
        plugins[answers["plugin"]] = Plugin(
            sources=frozenset({"hostPath"}),
            provisions="provision" in answers,
            deletes="delete" in answers,
            recycles="recycle" in answers,
        )
    migrated: Mapping[str, str] = MIGRATED
    if "migration" in given:
        driver = re.search(r"migrated to (\S+)", given["migration"])
        assert driver, f"not understood: {given['migration']}"
        migrated = AllMigrated(driver[1])
    gates = vector.get("gates") or {}
    return Rules(
        instead=True,
        attributes_classes=gates.get("VolumeAttributesClass", True),
        migrated=migrated,
        plugins=plugins,
        patience=0.0,
        explains=False,
    )


async def _no_rest(_: float) -> None:
    return


async def _in_order(*calls: Any) -> list[Any]:
    return [await call for call in calls]
