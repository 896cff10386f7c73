"""A whole cluster as a model: API server, in-tree binder, node plugins, and operators that are run step by step.

The operators are the real ones: ledger, decisions, performer and reconciler. Only what they call is modelled,
and each call stops twice, before it takes effect and after, so that a test decides in which order
everything happens, what is lost, and who dies where. There is no event loop: a coroutine is advanced by hand.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, TypeVar

from moorage_csi.contract import TOPOLOGY_KEY
from moorage_operator.act.performer import Outcome, Performer
from moorage_operator.errors import (
    AlreadyExistsError,
    ConflictError,
    DriverExhaustedError,
    DriverFinalError,
    DriverInfeasibleError,
    DriverRunningError,
    DriverUnreachableError,
    NotFoundError,
    UnreachableError,
)
from moorage_operator.ledger import Ledger, Record
from moorage_operator.loop import Reconciler
from moorage_operator.model.claim import Claim
from moorage_operator.model.node import Node, NodeDrivers
from moorage_operator.model.provisioning import Created, CreateRequest
from moorage_operator.model.storage_class import Class
from moorage_operator.model.volume import Volume
from moorage_operator.notes import Rooms
from tests.unit.operator.objects import class_body, csinode_body, node_body

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Generator, Mapping, Sequence

    from moorage_operator.model.ids import Key
    from moorage_operator.model.reference import Reference

Body = dict[str, Any]
NODES = ("n1", "n2")
Answer = TypeVar("Answer")


class Point:
    """Where a coroutine lets others go first."""

    def __await__(self) -> Generator[Point, None, None]:
        yield self


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
    }
    return kinds[path.split("/")[-2]]


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
        claim = self.api.claim_of(name.removeprefix("pvc-"))
        if volume is not None and Volume.from_api(volume).node == node:
            assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete", f"{name} was retained"
            assert claim is None, f"{name} was destroyed under its living claim"
        else:
            assert claim is None or volume is not None, f"{name} was destroyed while its claim waits for it"


class Life:
    """One run of one operator's process: everything it knows dies with it."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.ledger = Ledger()
        for class_name in ("fast", "late"):
            self.ledger.notes.measure(class_name, Rooms(measured=1e12, free={}))
        self.ready: set[Key] = set()
        self.waiting: set[Key] = set()
        self.running: dict[Key, Any] = {}
        self.begun: set[str] = set()
        self.cursor = len(cluster.api.log)
        performer = Performer(
            ledger=self.ledger,
            objects=self,
            plugins=self,
            tellers=self,
            wake=self.ready.update,
            bound=lambda _seconds: None,
            clock=lambda: cluster.now,
            wall=lambda: cluster.now,
            gather=self._gather,
        )
        self.reconciler = Reconciler(ledger=self.ledger, performer=performer, clock=lambda: cluster.now)
        for path, body in cluster.api.objects.items():
            self.ready |= self.ledger.apply(kind_of(path).from_api(copy.deepcopy(body)), listed=True)

    # What the performer calls.

    async def get(self, path: str) -> Body:
        return await self._call("get", path, lambda: self.cluster.api.get(path))

    async def create(self, path: str, body: Mapping[str, Any]) -> Body:
        return await self._call("create", path, lambda: self.cluster.api.create(path, body))

    async def json_patch(self, path: str, ops: Sequence[Mapping[str, Any]]) -> Body:
        what = next(op["path"] for op in ops if op["op"] != "test")
        return await self._call(what, path, lambda: self.cluster.api.patch(path, ops))

    async def delete(self, path: str, *, uid: str, resource_version: str | None = None) -> bool:
        del resource_version
        return await self._call("delete", path, lambda: self.cluster.api.delete(path, uid=uid))

    async def create_volume(self, node: str, request: CreateRequest) -> Created:
        self.begun.add(request.name.removeprefix("pvc-"))
        await Point()
        self._connect(node)
        answer = self.cluster.nodes.create(node, request)
        await Point()
        return answer

    async def delete_volume(self, node: str, volume_id: str) -> None:
        self._connect(node)
        self.cluster.nodes.delete(node, volume_id)
        await Point()

    async def wipe_volume(self, node: str, volume_id: str, *, released_uid: str) -> None:
        await Point()
        self._connect(node)
        self.cluster.nodes.wipe(node, volume_id, released_uid)
        await Point()

    async def reach(self, node: str) -> None:
        await Point()
        self._connect(node)

    async def capacity(self, node: str, parameters: Mapping[str, str]) -> int:
        raise NotImplementedError

    def event(self, regarding: Reference, *, type: str, reason: str, message: str) -> None:  # noqa: A002
        del type
        self.cluster.events[regarding.uid, reason].append(message)

    def _connect(self, node: str) -> None:
        if self.cluster.nodes.mood[node] == "down":
            raise DriverUnreachableError(f"{node} is down", node=node)

    async def _call(self, what: str, path: str, effect: Callable[[], Answer]) -> Answer:
        await Point()
        answer = effect()
        if what != "get":
            uid = answer["metadata"]["uid"] if isinstance(answer, dict) else path
            self.cluster.writes[uid, what] += 1
            if self.cluster.lose_next_answer:
                self.cluster.lose_next_answer = False
                raise UnreachableError("the answer was lost")
            await Point()
        return answer

    async def _gather(self, *calls: Coroutine[Any, Any, Any]) -> Collection[Any]:
        ordered = list(enumerate(calls))
        if self.cluster.backwards:
            ordered.reverse()
        try:
            answers = {place: await call for place, call in ordered}
        finally:
            for _, call in ordered:
                call.close()
        return [answers[place] for place in range(len(calls))]

    # What the test does with it.

    def deliver(self) -> bool:
        """One event of the watch arrives; whether there was one."""
        if self.cursor >= len(self.cluster.api.log):
            return False
        path, body, gone = self.cluster.api.log[self.cursor]
        self.cursor += 1
        kind = kind_of(path)
        if gone:
            self.ready |= self.ledger.forget(kind, body["metadata"]["uid"])
        else:
            self.ready |= self.ledger.apply(kind.from_api(copy.deepcopy(body)))
        return True

    def begin(self, key: Key) -> None:
        """A worker takes a key."""
        self.ready.discard(key)
        self.waiting.discard(key)
        self.running[key] = self.reconciler.reconcile(key)
        self.advance(key)

    def advance(self, key: Key) -> None:
        """A worker goes on to its next call, or to the end."""
        try:
            self.running[key].send(None)
        except StopIteration as end:
            del self.running[key]
            outcome: Outcome | None = end.value
            if outcome is not None:
                self.waiting.add(key)

    def startable(self) -> list[Key]:
        return sorted((self.ready | self.waiting) - self.running.keys())

    def die(self) -> None:
        """SIGKILL."""
        for coroutine in self.running.values():
            coroutine.close()
        self.running.clear()


class Cluster:
    """Everything, and the clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.api = ModelApi()
        self.nodes = ModelNodes(self.api)
        self.events: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        self.writes: Counter[tuple[str, str]] = Counter()
        self.lose_next_answer = False
        self.backwards = False
        self.binder_read: list[tuple[str, Body]] = []
        self.lives: list[Life] = []
        for name in NODES:
            self.api.store(f"/api/v1/nodes/{name}", node_body(name))
            self.api.store(f"/apis/storage.k8s.io/v1/csinodes/{name}", csinode_body(name))
        for name in ("fast", "late"):
            path = f"/apis/storage.k8s.io/v1/storageclasses/{name}"
            self.api.store(path, class_body(name, late=name == "late", reclaimPolicy="Delete"))

    # The in-tree binder (binding.md 1.5 to 1.7), which reads at one moment and writes at a later one.

    def binder_wants(self) -> list[tuple[str, Body]]:
        """Every single write that it would make now."""
        wanted = []
        for path, volume in self.api.volumes.items():
            ref = volume["spec"]["claimRef"]
            claim = self.api.claim_of(ref["uid"])
            phase = volume["status"]["phase"]
            if claim is None:
                if phase not in {"Released", "Failed"}:
                    wanted.append((path, _with(volume, phase="Released")))
                continue
            name = volume["metadata"]["name"]
            claim_path = claim_path_of(claim)
            if phase != "Bound":
                wanted.append((path, _with(volume, phase="Bound")))
            elif claim["spec"].get("volumeName", name) == name and not _completed(claim):
                wanted.append((claim_path, _bound(claim, name)))
            elif _completed(claim) and claim["status"]["phase"] != "Bound":
                done = _with(claim, phase="Bound")
                done["status"] |= {"accessModes": volume["spec"]["accessModes"], "capacity": volume["spec"]["capacity"]}
                wanted.append((claim_path, done))
        for path, claim in self.api.claims.items():
            marks = claim["metadata"].get("annotations", {})
            if not claim["spec"].get("volumeName") and "volume.kubernetes.io/storage-provisioner" not in marks:
                marked = copy.deepcopy(claim)
                marked["metadata"].setdefault("annotations", {})["volume.kubernetes.io/storage-provisioner"] = "ours"
                wanted.append((path, marked))
        return wanted

    def binder_writes(self, path: str, body: Body) -> None:
        """It writes what it decided earlier, if that is still possible."""
        try:
            self.api.replace(path, body)
        except (ConflictError, NotFoundError):
            return

    # What must hold at every moment.

    def check(self) -> None:
        owners: defaultdict[str, list[str]] = defaultdict(list)
        for body in self.api.volumes.values():
            owners[body["spec"]["claimRef"]["uid"]].append(body["metadata"]["name"])
        assert all(len(names) == 1 for names in owners.values()), f"two volumes for one claim: {owners}"
        for claim in self.api.claims.values():
            self._check_claim(claim)

    def _check_claim(self, claim: Body) -> None:
        uid, name = claim["metadata"]["uid"], claim["spec"].get("volumeName")
        if claim["status"]["phase"] == "Bound":
            assert name, "Bound without a volume"
            assert _completed(claim), "Bound before the marks"
        if name:
            volume = self.api.volumes.get(f"/api/v1/persistentvolumes/{name}")
            assert volume is not None, "a claim names a volume that is not there"
            assert volume["spec"]["claimRef"]["uid"] == uid, "bound to somebody else's volume"
            node = Volume.from_api(volume).node
            assert name in self.nodes.tables[node], "bound to storage that is not there"


def claim_path_of(claim: Body) -> str:
    return f"/api/v1/namespaces/ns/persistentvolumeclaims/{claim['metadata']['name']}"


def _completed(claim: Body) -> bool:
    return "pv.kubernetes.io/bind-completed" in claim["metadata"].get("annotations", {})


def _with(body: Body, *, phase: str) -> Body:
    changed = copy.deepcopy(body)
    changed["status"]["phase"] = phase
    return changed


def _bound(claim: Body, name: str) -> Body:
    changed = copy.deepcopy(claim)
    changed["spec"]["volumeName"] = name
    changed["metadata"].setdefault("annotations", {})["pv.kubernetes.io/bind-completed"] = "yes"
    return changed
