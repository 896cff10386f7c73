"""A cluster in which everything happens at once, one move at a time, each made by one number.

People make, change and delete claims, volumes and pods; nodes fail; the scheduler and the binders read at one moment and
write at a later one; whoever works may be killed between any two calls. What a move does depends on its number and
on the world alone, so a schedule is a list of numbers, and shrinks by them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moorage_csi.contract import DRIVER_NAME
from tests.unit.operator.generated import dice
from tests.unit.operator.model_nodes import NODES
from tests.unit.operator.model_scheduler import ScheduledCluster
from tests.unit.operator.objects import claim_body, volume_body

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from moorage_operator.model.rules import Rules
    from tests.unit.operator.model_api import Body
    from tests.unit.operator.model_life import Life

CLAIMS, VOLUMES = "abcd", "vwxyz"
MODES = (*([["ReadWriteOnce"]] * 4), ["ReadWriteOnce", "ReadWriteMany"])
MARKS: tuple[dict[str, str], ...] = (
    {},
    {},
    {"moorage.dev/reuse": "after-wipe"},
    {"moorage.dev/reuse": "same-claim"},
    {"moorage.dev/reserved-for": "ns"},
    {"moorage.dev/reserved-for": "ns/b"},
)
MOODS = ("fine", "fine", "down", "mute", "busy", "exhausted", "broken")
REST_ROUNDS = 400
LAPSE = 400.0
"""Seconds from one round of rest to the next: longer than any pause but the one before a wait is told again."""


class World:
    """One schedule's world.

    Args:
        setting: what the operators among the binders are told.
        births: how each binder begins.
    """

    def __init__(self, setting: Rules, births: list[Callable[[ScheduledCluster], Life]]) -> None:
        self.cluster = ScheduledCluster()
        self.setting = setting
        self.births = births
        self.lives = [birth(self.cluster) for birth in births]
        self.story: list[str] = []
        self._made = 0
        self._forgotten: set[str] = set()
        self._moves: list[Callable[[Random], str]] = []
        for move, weight in (
            (self._make_claim, 6),
            (self._make_volume, 6),
            (self._delete_claim, 3),
            (self._delete_volume, 1),
            (self._free_volume, 1),
            (self._label_volume, 1),
            (self._start_pod, 4),
            (self._end_pod, 1),
            (self._turn_a_node, 1),
            (self._lose_an_answer, 1),
            (self._pass_time, 2),
            (self._scheduler_reads, 3),
            (self._scheduler_writes, 3),
            (self._deliver, 8),
            (self._begin, 8),
            (self._go_on, 10),
            (self._work, 4),
            (self._kill, 1),
        ):
            self._moves += [move] * weight

    def move(self, number: int) -> None:
        """Let one thing happen, and look whether it was allowed to."""
        random = dice(number)
        chosen = random.choice(self._moves)
        self.story.append(f"{chosen.__name__.lstrip('_')}: {chosen(random)}")
        self.cluster.check()

    def end(self) -> None:
        """Let everybody come to rest: all that can be bound is, nothing is left over, and nothing is written any more."""
        self.cluster.nodes.mood = dict.fromkeys(NODES, "fine")
        self.cluster.lose_next_answer = False
        calm = len(self.cluster.api.log)
        self._rest()
        self.cluster.check_calm(calm)
        self.cluster.check_rest(self.setting)
        self.cluster.check_kept()
        self.cluster.check_leaks(self._forgotten)
        before = dict(self.cluster.writes)
        self._rest()
        assert before == dict(self.cluster.writes), "an idle binder has written"
        for life in self.lives:
            life.check_told()
            life.die()

    def _rest(self) -> None:
        for _ in range(REST_ROUNDS):
            self.cluster.now += LAPSE
            busy = False
            for life in self.lives:
                life.ready |= life.waiting
                busy |= life.work()
            self.cluster.check()
            if not busy and not any(life.ready for life in self.lives):
                return
        raise AssertionError("it never comes to rest")

    # What people do.

    def _make_claim(self, random: Random) -> str:
        name = random.choice(CLAIMS)
        path = _claim_path(name)
        if path in self.cluster.api.objects:
            return "there is one"
        self._made += 1
        rare = (
            ("volumeName", random.choice(VOLUMES), 0.1),
            ("volumeMode", "Block", 0.1),
            ("selector", {"matchLabels": {"tier": "gold"}}, 0.15),
        )
        spec: dict[str, Any] = {"accessModes": list(random.choice(MODES))}
        spec |= {field: value for field, value, chance in rare if random.random() < chance}
        size, class_name = random.choice(("1Gi", "1Gi", "2Gi")), random.choice(("", "", "late", "late", "fast", None))
        body = claim_body(name, uid=f"claim-{self._made}", class_name=class_name, size=size, **spec)
        self.cluster.api.store(path, body)
        return f"{name} {class_name!r} {size} {spec}"

    def _make_volume(self, random: Random) -> str:
        """One of our driver is on a node, which then holds its storage."""
        name = random.choice(VOLUMES)
        path = _volume_path(name)
        if path in self.cluster.api.objects:
            return "there is one"
        self._made += 1
        node, ours = random.choice((*NODES, "")), random.random() < 0.5
        body = volume_body(
            name,
            uid=f"volume-{self._made}",
            claim=None,
            policy=random.choice(("Retain", "Retain", "Delete")),
            node=node,
            driver=DRIVER_NAME if ours and node else "csi.example/hand",
            provisioned_by="",
            finalizers=(),
            size=random.choice(("1Gi", "2Gi")),
            class_name=random.choice(("", "", "late", "late", "fast")),
        )
        body["spec"]["accessModes"] = list(random.choice(MODES))
        if ours and node:
            self.cluster.nodes.tables[node].add(name)
            self.cluster.by_hand.add(name)
        if random.random() < 0.1:
            body["spec"]["volumeMode"] = "Block"
        if random.random() < 0.2:
            body["spec"]["claimRef"] = self._reference(random)
            self.cluster.kept_by_people.add(body["metadata"]["uid"])
        body["metadata"]["annotations"] = dict(random.choice(MARKS))
        body["metadata"]["labels"] = random.choice(({}, {"tier": "gold"}))
        self.cluster.api.store(path, body)
        return f"{name} {body['metadata']} {body['spec']}"

    def _reference(self, random: Random) -> Body:
        """Kept by a person: by name, or by the uid of a claim that lives."""
        name = random.choice(CLAIMS)
        living = self.cluster.api.claims.get(_claim_path(name))
        by_uid = {} if living is None or random.random() < 0.5 else {"uid": living["metadata"]["uid"]}
        return {"namespace": "ns", "name": name, **by_uid}

    def _delete_claim(self, random: Random) -> str:
        name = random.choice(CLAIMS)
        self.cluster.api.delete(_claim_path(name))
        return name

    def _delete_volume(self, random: Random) -> str:
        """As its protection has it: one that is bound stays until it is not."""
        name = random.choice(VOLUMES)
        body = self.cluster.api.volumes.get(_volume_path(name))
        if body is None or body["status"]["phase"] == "Bound":
            return "none"
        self.cluster.api.delete(_volume_path(name))
        return name

    def _free_volume(self, random: Random) -> str:
        name, whole = random.choice(VOLUMES), random.random() < 0.5
        body = self.cluster.api.volumes.get(_volume_path(name))
        if body is None or body["status"]["phase"] not in {"Released", "Failed"} or "claimRef" not in body["spec"]:
            return "none"
        if whole:
            del body["spec"]["claimRef"]
        else:
            body["spec"]["claimRef"].pop("uid", None)
            self.cluster.kept_by_people.add(body["metadata"]["uid"])
        self.cluster.api.store(_volume_path(name), body)
        return name

    def _label_volume(self, random: Random) -> str:
        name, tier = random.choice(VOLUMES), random.choice(("gold", "lead"))
        body = self.cluster.api.volumes.get(_volume_path(name))
        if body is not None:
            body["metadata"]["labels"] = {"tier": tier}
            self.cluster.api.store(_volume_path(name), body)
        return f"{name} {tier}"

    def _start_pod(self, random: Random) -> str:
        name, node = random.choice(CLAIMS), random.choice((*NODES, "", "", ""))
        path = f"/api/v1/namespaces/ns/pods/of-{name}"
        if path in self.cluster.api.objects:
            return "there is one"
        self._made += 1
        source = {"persistentVolumeClaim": {"claimName": name}}
        meta = {"name": f"of-{name}", "namespace": "ns", "uid": f"pod-{self._made}"}
        self.cluster.api.store(path, {"metadata": meta, "spec": {"volumes": [source], "nodeName": node}})
        return f"{name} on {node or 'any'}"

    def _end_pod(self, random: Random) -> str:
        name = random.choice(CLAIMS)
        self.cluster.api.delete(f"/api/v1/namespaces/ns/pods/of-{name}")
        return name

    # What happens to everybody.

    def _turn_a_node(self, random: Random) -> str:
        node, mood = random.choice(NODES), random.choice(MOODS)
        self.cluster.nodes.mood[node] = mood
        return f"{node} {mood}"

    def _lose_an_answer(self, random: Random) -> str:
        self.cluster.lose_next_answer = True
        self.cluster.backwards = random.random() < 0.5
        return f"backwards={self.cluster.backwards}"

    def _pass_time(self, random: Random) -> str:
        seconds = random.choice((0.05, 0.5, 30.0, 400.0))
        self.cluster.now += seconds
        return f"{seconds}"

    # What those do who work.

    def _scheduler_reads(self, random: Random) -> str:
        wanted = self.cluster.scheduler_wants(random.choice(NODES))
        if wanted:
            self.cluster.scheduler_read.append(random.choice(wanted))
        return f"{len(wanted)}"

    def _scheduler_writes(self, random: Random) -> str:
        read = self.cluster.scheduler_read
        if not read:
            return "nothing"
        path, body = read.pop(random.randrange(len(read)))
        self.cluster.scheduler_writes(path, body)
        return path

    def _deliver(self, random: Random) -> str:
        life = random.choice(self.lives)
        delivered = sum(life.deliver() for _ in range(random.randint(1, 8)))
        return f"{life.name} {delivered}"

    def _begin(self, random: Random) -> str:
        life = random.choice(self.lives)
        keys = life.startable()
        if not keys:
            return f"{life.name} nothing"
        key = random.choice(keys)
        life.begin(key)
        return f"{life.name} {key}"

    def _go_on(self, random: Random) -> str:
        life = random.choice(self.lives)
        told = []
        for _ in range(random.randint(1, 4)):
            if life.running:
                key = random.choice(sorted(life.running))
                life.advance(key)
                told.append(str(key))
        return f"{life.name} {told}"

    def _work(self, random: Random) -> str:
        life = random.choice(self.lives)
        life.work(news=random.random() < 0.5, last_first=random.random() < 0.5)
        return life.name

    def _kill(self, random: Random) -> str:
        index = random.randrange(len(self.lives))
        self._forgotten |= {f"pvc-{uid}" for uid in self.lives[index].begun}
        self.lives[index].check_told()
        self.lives[index].die()
        self.lives[index] = self.births[index](self.cluster)
        return self.lives[index].name


def _claim_path(name: str) -> str:
    return f"/api/v1/namespaces/ns/persistentvolumeclaims/{name}"


def _volume_path(name: str) -> str:
    return f"/api/v1/persistentvolumes/{name}"
