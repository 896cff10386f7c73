"""What is known: the newest record of every object, and who waits for what.

Two sources feed it. The watch delivers every change, in order for each object but late. The answers
to our own writes (and to reads made after a conflict) are newer than the watch; they are *assumed* and
win until the watch has caught up. resourceVersions are compared as integers; where one is not an
integer, an assumption holds until the watch delivers that very version, or a list overrules it.

The watch can also lose deletions (a stream that has to start over lists what exists, not what is
gone), so ``sweep`` compares uids with a list that somebody else fetched. The other way round, an
answer that arrives after the watch has said "gone" must not bring the object back: uids that went
lately are remembered, and a uid is never used twice.

Every method that changes something returns the keys that the change concerns; a record equal to the
known one concerns nobody. There is no lock: a ledger belongs to one event loop and nothing here awaits.
"""

from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping
from typing import Any, Final, TypeVar

from moorage_operator.debts import Debts, owes
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import Key, Uid, claim_key, orphan_key, volume_key
from moorage_operator.model.node import Node, NodeDrivers
from moorage_operator.model.pod import Pod
from moorage_operator.model.rules import Rules
from moorage_operator.model.storage_class import Class
from moorage_operator.model.volume import RELEASED, Volume
from moorage_operator.notes import Notes
from moorage_operator.stock import Standing, Stock, standing
from moorage_operator.table import Table
from moorage_operator.waiting import Waiting

Record = Claim | Volume | Class | Node | NodeDrivers | Pod
Keys = frozenset[Key]

NOBODY: Final[Keys] = frozenset()

_Name = TypeVar("_Name", bound=Hashable)
_Value = TypeVar("_Value")


class Ledger:
    """Records by name and uid, their indexes, and the notes beside them.

    Args:
        rules: how the cluster is set up.
    """

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules: Final = rules or Rules()
        self.notes: Final = Notes()
        self.stock: Final = Stock()
        self.debts: Final = Debts()
        self._claims: Table[Key, Claim] = Table()
        self._volumes: Table[str, Volume] = Table()
        self._classes: Table[str, Class] = Table()
        self._nodes: Table[str, Node] = Table()
        self._drivers: Table[str, NodeDrivers] = Table()
        self._pods: Table[tuple[str, str], Pod] = Table()
        self._unbound: defaultdict[str, set[Key]] = defaultdict(set)
        self._of_claim: defaultdict[Key, set[str]] = defaultdict(set)
        self._naming: defaultdict[str, set[Key]] = defaultdict(set)
        self._users: defaultdict[Key, set[tuple[str, str]]] = defaultdict(set)
        self._waiting = Waiting()

    def claim(self, key: Key) -> Claim | None:
        """The claim of that namespace and name."""
        return self._claims.by_name.get(key)

    def claim_of(self, uid: Uid) -> Claim | None:
        """The claim of that uid, if it lives."""
        key = self._claims.names.get(uid)
        return None if key is None else self._claims.by_name[key]

    def volume(self, name: str) -> Volume | None:
        """The volume of that name."""
        return self._volumes.by_name.get(name)

    def is_confirmed(self, volume: Volume) -> bool:
        """Whether the watch has told of the volume as it is known: then it has told of all that was before it."""
        return self._volumes.is_confirmed(volume.uid)

    def storage_class(self, name: str) -> Class | None:
        """The class of that name."""
        return self._classes.by_name.get(name)

    def default_classes(self) -> tuple[Class, ...]:
        """The classes marked as default, the one that counts first: the newest, then the first by name."""
        marked = (cls for cls in self._classes.by_name.values() if cls.default)
        return tuple(sorted(marked, key=lambda cls: (-cls.created, cls.name)))

    def classes(self) -> tuple[str, ...]:
        """The names of all classes, sorted."""
        return tuple(sorted(self._classes.by_name))

    def node(self, name: str) -> Node | None:
        """The node of that name."""
        return self._nodes.by_name.get(name)

    def serves(self, node: str, driver: str) -> bool:
        """Whether the kubelet of that node has the driver registered."""
        known = self._drivers.by_name.get(node)
        return known is not None and driver in known.drivers

    def nodes_with(self, driver: str) -> tuple[Node, ...]:
        """Every node whose kubelet has the driver registered, in no order."""
        names = (known.name for known in self._drivers.by_name.values() if driver in known.drivers)
        nodes = (self.node(name) for name in names)
        return tuple(node for node in nodes if node is not None)

    def volumes_for(self, claim: Key) -> tuple[Volume, ...]:
        """The volumes whose claimRef names the claim, by whatever uid."""
        return tuple(self._volumes.by_name[name] for name in self._of_claim.get(claim, ()))

    def users(self, claim: Key) -> tuple[Pod, ...]:
        """The pods that use a claim and have not finished, by name."""
        pods = (self._pods.by_name[name] for name in sorted(self._users.get(claim, ())))
        return tuple(pod for pod in pods if not pod.finished)

    def unbound(self, class_name: str) -> Keys:
        """The claims of a class that are not bound; of the empty name, those without a class."""
        return frozenset(self._unbound.get(class_name, ()))

    def waiting(self) -> Keys:
        """Every claim that is not bound."""
        return frozenset().union(*self._unbound.values())

    def uids(self, kind: type[Record]) -> frozenset[Uid]:
        """The uids known of a kind: taken before a list begins, they are what the list may overrule."""
        return frozenset(self._table(kind).names)

    def is_gone(self, kind: type[Record], uid: Uid) -> bool:
        """Whether an object of that uid is known to have been deleted; its uid never comes back."""
        return self._table(kind).is_gone(uid)

    def counts(self) -> Mapping[str, int]:
        """How many records there are of each kind, for the metrics."""
        return {
            "claim": len(self._claims.by_name),
            "volume": len(self._volumes.by_name),
            "class": len(self._classes.by_name),
            "node": len(self._nodes.by_name),
            "pod": len(self._pods.by_name),
            "attempt": len(self.notes),
        }

    def hold(self, name: str) -> None:
        """Keep a volume off the shelf while a write is about to reserve or to bind it."""
        volume = self.volume(name)
        if volume is not None:
            self.stock.hold(volume)

    def let_go(self, name: str) -> Keys:
        """The write that held a volume has been answered; returns who is offered it if it is still free."""
        if not self.stock.held(name):
            return NOBODY
        volume = self.volume(name)
        self.stock.let_go(name, volume)
        return NOBODY if volume is None else self._offer(volume)

    def apply(self, record: Record, *, assumed: bool = False, listed: bool = False) -> Keys:
        """Take in a record from the watch, or (``assumed``) from an answer of the API server to ourselves.

        A record from a list (``listed``) is taken even if its version is lower than that of one from the watch:
        that is how it looks when the API server's store was restored from a backup.
        """
        match record:
            case Claim():
                return self._apply_claim(record, assumed=assumed, listed=listed)
            case Volume():
                return self._apply_volume(record, assumed=assumed, listed=listed)
            case Class():
                old = self._classes.put(record.name, record, record.resource_version, assumed=False)
                return NOBODY if old == record else self._of_class(record, old)
            case Pod():
                return self._apply_pod(record)
            case Node():
                changed = self._nodes.put(record.name, record, "", assumed=False) != record
            case NodeDrivers():
                changed = self._drivers.put(record.name, record, "", assumed=False) != record
        return self._waiting_for_nodes() if changed else NOBODY

    def forget(self, kind: type[Record], uid: Uid) -> Keys:
        """An object does not exist any more; harmless when it was not known."""
        match self._table(kind).drop(uid):
            case Claim() as claim:
                return self._claim_gone(claim)
            case Volume() as volume:
                self._unindex_volume(volume)
                self.debts.forget(volume.name)
                self.notes.object_gone(uid)
                return self._concerned(volume)
            case Class() as cls:
                return self._of_class(cls)
            case Pod() as pod:
                return self._unindex_pod(pod)
            case Node() | NodeDrivers():
                return self._waiting_for_nodes()
        return NOBODY

    def sweep(self, kind: type[Record], *, known: Collection[Uid], listed: Collection[str]) -> Keys:
        """Forget what a list that began after ``known`` was taken does not hold any more."""
        return frozenset().union(*(self.forget(kind, uid) for uid in known if uid not in listed))

    def _table(self, kind: type[Record]) -> Table[Any, Any]:
        tables: dict[type[Record], Table[Any, Any]] = {
            Claim: self._claims,
            Volume: self._volumes,
            Class: self._classes,
            Node: self._nodes,
            NodeDrivers: self._drivers,
            Pod: self._pods,
        }
        return tables[kind]

    def _apply_claim(self, claim: Claim, *, assumed: bool, listed: bool) -> Keys:
        version = claim.resource_version
        if not self._claims.accepts(claim.key, claim.uid, version, assumed=assumed, listed=listed):
            return NOBODY
        old = self._claims.put(claim.key, claim, claim.resource_version, assumed=assumed)
        if old == claim:
            return NOBODY
        woken = {claim.key}
        if old is None or old.uid != claim.uid or old.volume_name != claim.volume_name:
            woken |= {volume.key for volume in self.volumes_for(claim.key)}
        if old is not None:
            woken.update(self._claim_gone(old) if old.uid != claim.uid else self._unindex_claim(old))
        if not claim.bound:
            self._unbound[claim.class_name or ""].add(claim.key)
            if claim.volume_name:
                self._naming[claim.volume_name].add(claim.key)
            else:
                self._waiting.put(claim)
        return frozenset(woken)

    def _unindex_claim(self, claim: Claim) -> Keys:
        _discard(self._unbound, claim.class_name or "", claim.key)
        _discard(self._naming, claim.volume_name, claim.key)
        offered = (self.volume(name) for name in self._waiting.take(claim))
        return frozenset().union(*(self._offer(volume) for volume in offered if volume is not None))

    def _claim_gone(self, claim: Claim) -> Keys:
        offered = self._unindex_claim(claim)
        self.notes.object_gone(claim.uid)
        for volume in self.volumes_for(claim.key):
            self._count_debt(volume, news=False)
        concerned = {claim.key, *(volume.key for volume in self.volumes_for(claim.key))}
        if claim.volume_name:
            concerned.add(volume_key(claim.volume_name))
        if self.notes.attempt(claim.uid) is not None:
            concerned.add(orphan_key(claim.uid))
        return offered | concerned

    def _apply_volume(self, volume: Volume, *, assumed: bool, listed: bool) -> Keys:
        version = volume.resource_version
        if not self._volumes.accepts(volume.name, volume.uid, version, assumed=assumed, listed=listed):
            return NOBODY
        awaited = not assumed and not self._volumes.is_confirmed(volume.uid)
        old = self._volumes.put(volume.name, volume, volume.resource_version, assumed=assumed)
        if old == volume:
            return self._concerned(volume) if awaited and self.debts.awaits(volume.name) else NOBODY
        if old is not None:
            self._unindex_volume(old)
            if old.uid != volume.uid:
                self.notes.object_gone(old.uid)
        self.stock.put(volume)
        self._count_debt(volume, news=old is None or old.claim_uid != volume.claim_uid)
        if volume.claim is not None:
            self._of_claim[volume.claim.key].add(volume.name)
        concerned = self._concerned(volume) | self._offer(volume)
        return concerned if old is None else concerned | self._concerned(old) | self._no_longer_free(old, volume)

    def _count_debt(self, volume: Volume, *, news: bool) -> None:
        """What the in-tree binder has to write; a claim that is not known counts as gone only when it was seen to go."""
        lives = not self.is_gone(Claim, volume.claim_uid)
        self.debts.note(volume, owed=owes(volume, claim_lives=lives), news=news)

    def _unindex_volume(self, volume: Volume) -> None:
        self.stock.take(volume)
        self._waiting.withdraw(volume.name)
        if volume.claim is not None:
            _discard(self._of_claim, volume.claim.key, volume.name)

    def _concerned(self, volume: Volume) -> Keys:
        """Itself, the claim it names, and the claims that name it."""
        concerned = {volume.key, *self._naming.get(volume.name, ())}
        if volume.claim is not None:
            concerned.add(volume.claim.key)
        return frozenset(concerned)

    def _offer(self, volume: Volume) -> Keys:
        """Whom a volume that is free could satisfy.

        One claim for each volume; of a late-binding class only those whose pod has a node already, since the
        others are the scheduler's.
        """
        if volume.name not in self.stock.free:
            return NOBODY
        cls = self.storage_class(volume.class_name)
        if cls is not None and cls.late:
            return frozenset(key for key in self.unbound(cls.name) if any(pod.node for pod in self.users(key)))
        key = self._waiting.offer(volume)
        return NOBODY if key is None else frozenset((key,))

    def _no_longer_free(self, old: Volume, volume: Volume) -> Keys:
        """Claims of our classes that left a free volume to the in-tree binder, and now have to be served otherwise."""
        if self.rules.instead or standing(old) is not Standing.FREE or standing(volume) is Standing.FREE:
            return NOBODY
        cls = self.storage_class(old.class_name)
        return self.unbound(cls.name) if cls is not None and cls.ours else NOBODY

    def _apply_pod(self, pod: Pod) -> Keys:
        old = self._pods.put((pod.namespace, pod.name), pod, "", assumed=False)
        if old == pod:
            return NOBODY
        woken = NOBODY if old is None else self._unindex_pod(old)
        keys = frozenset(claim_key(pod.namespace, name) for name in pod.claims)
        for key in keys:
            self._users[key].add((pod.namespace, pod.name))
        return woken | self._unbound_of(keys)

    def _unindex_pod(self, pod: Pod) -> Keys:
        keys = frozenset(claim_key(pod.namespace, name) for name in pod.claims)
        for key in keys:
            _discard(self._users, key, (pod.namespace, pod.name))
        return self._unbound_of(keys)

    def _unbound_of(self, keys: Keys) -> Keys:
        """Those claims that are not bound, and of the others the volumes that wait to be reused."""
        woken: set[Key] = set()
        for key in keys:
            claim = self.claim(key)
            if claim is not None and not claim.bound:
                woken.add(key)
            woken |= {volume.key for volume in self.volumes_for(key) if volume.phase == RELEASED}
        return frozenset(woken)

    def _of_class(self, cls: Class, old: Class | None = None) -> Keys:
        """The claims of a class, and where it is a default one those without any; for a reuse mark also its volumes."""
        default = cls.default or (old is not None and old.default)
        woken = self.unbound(cls.name) | (self.unbound("") if default else NOBODY)
        if old is not None and old.reuse != cls.reuse:
            volumes = self._volumes.by_name.values()
            woken |= {each.key for each in volumes if each.class_name == cls.name and each.phase == RELEASED}
        return woken

    def _waiting_for_nodes(self) -> Keys:
        ours = (cls.name for cls in self._classes.by_name.values() if cls.ours)
        return frozenset().union(*(self.unbound(name) for name in ours))


def _discard(index: defaultdict[_Name, set[_Value]], name: _Name, value: _Value) -> None:
    """Take a value out of an index, and the index's entry with its last value."""
    values = index.get(name)
    if values is not None:
        values.discard(value)
        if not values:
            del index[name]
