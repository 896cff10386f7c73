"""One run of an operator's process, stepped by hand: the real ledger, decisions, performer and reconciler.

Only what they call is modelled, and each call stops twice, before it takes effect and after, so that a test decides in
which order everything happens, what is lost, and who dies where. There is no event loop: a coroutine is advanced by hand.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from moorage_operator.act.performer import Outcome, Performer
from moorage_operator.decide.explaining import REFRESH, RETELL
from moorage_operator.decide.plan import Emit
from moorage_operator.errors import DriverUnreachableError, UnreachableError
from moorage_operator.ledger import Ledger
from moorage_operator.loop import Reconciler
from moorage_operator.model.ids import Uid
from moorage_operator.notes import Rooms
from tests.unit.operator.model_api import Body, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Generator, Mapping, Sequence

    from moorage_operator.decide.plan import Note
    from moorage_operator.ledger import Record
    from moorage_operator.model.ids import Key
    from moorage_operator.model.provisioning import Created, CreateRequest
    from moorage_operator.model.reference import Reference
    from moorage_operator.model.rules import Rules
    from tests.unit.operator.model_cluster import Cluster

Answer = TypeVar("Answer")


class Point:
    """Where a coroutine lets others go first."""

    def __await__(self) -> Generator[Point, None, None]:
        yield self


class Overheard(Performer):
    """Notes of which waits people are told, and when that was decided.

    Args:
        told: by claim.
        parts: those of a performer.
    """

    def __init__(self, *, told: Mapping[str, list[tuple[float, str]]], **parts: Any) -> None:
        super().__init__(**parts)
        self._told = told

    def _note(self, step: Note) -> None:
        if isinstance(step, Emit) and step.key.startswith("waits:"):
            wait = self._ledger.notes.wait(Uid(step.regarding.uid))
            assert wait is not None, "a wait that is told is remembered"
            self._told[step.regarding.uid].append((wait.told_at, step.key))
        super()._note(step)


class Life:
    """One run of one operator's process: everything it knows dies with it."""

    def __init__(self, cluster: Cluster, name: str, rules: Rules | None = None) -> None:
        self.cluster = cluster
        self.name = name
        self.ledger = Ledger(rules)
        for class_name in ("fast", "late"):
            self.ledger.notes.measure(class_name, Rooms(measured=1e12, free={}))
        self.ready: set[Key] = set()
        self.waiting: set[Key] = set()
        self.running: dict[Key, Any] = {}
        self.begun: set[str] = set()
        self.told: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
        self.cursor = len(cluster.api.log)
        performer = Overheard(
            told=self.told,
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
            self.ready |= self.ledger.apply(self.read(path, body), listed=True)

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
            self.ready |= self.ledger.apply(self.read(path, body))
        return True

    def read(self, path: str, body: Body) -> Record:
        """An object as this life understands it."""
        return kind_of(path).from_api(copy.deepcopy(body))

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

    def check_told(self) -> None:
        """People are told of a wait once, again when it has become another, and at most every so often."""
        for uid, told in self.told.items():
            for (before, was), (now, is_now) in pairwise(told):
                least = REFRESH if was == is_now else RETELL
                assert now - before >= least, f"{uid} was told {is_now} {now - before} s after {was}"

    def work(self, *, news: bool = True, last_first: bool = False) -> bool:
        """Work until nothing is left to do; what was begun before goes on last: meanwhile it has become late."""
        busy, begun = False, sorted(self.running)
        while news and self.deliver():
            busy = True
        for key in sorted(self.ready, reverse=last_first):
            if key in self.running:
                continue
            self.begin(key)
            while key in self.running:
                busy = True
                self.advance(key)
        for key in begun:
            while key in self.running:
                busy = True
                self.advance(key)
        return busy

    def startable(self) -> list[Key]:
        return sorted((self.ready | self.waiting) - self.running.keys())

    def die(self) -> None:
        """SIGKILL."""
        for coroutine in self.running.values():
            coroutine.close()
        self.running.clear()
