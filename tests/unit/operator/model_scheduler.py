"""The scheduler, as far as it gives volumes to claims that bind late (binding.md 1.11), and a cluster that has one.

Per pod without a node it chooses one, and for each late claim of that pod a volume that can be used there, which it
reserves; or the node, where one is to be made. It too reads at one moment and writes at a later one, conditionally.
"""

from __future__ import annotations

import copy

from moorage_operator.decide import matching
from moorage_operator.errors import ConflictError, NotFoundError
from moorage_operator.ledger import Ledger
from moorage_operator.model.claim import Claim
from moorage_operator.model.node import Node
from moorage_operator.model.volume import ANY_CLAIM, Volume
from tests.unit.operator.model_api import Body, kind_of
from tests.unit.operator.model_binder import HandmadeCluster, foreign
from tests.unit.operator.objects import node_body

SELECTED = "volume.kubernetes.io/selected-node"
BY_CONTROLLER = "pv.kubernetes.io/bound-by-controller"


class ScheduledCluster(HandmadeCluster):
    """A cluster with pods and a scheduler, whose nodes hold storage that was made by hand too."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler_read: list[tuple[str, Body]] = []
        self.by_hand: set[str] = set()
        self.kept_by_people: set[str] = set()

    def scheduler_wants(self, node: str) -> list[tuple[str, Body]]:
        """Every write that it would make now if it chose that node for every pod that waits."""
        ledger = Ledger()
        for path, body in self.api.objects.items():
            ledger.apply(kind_of(path).from_api(foreign(body)))
        wanted = []
        for path, body in self.api.claims.items():
            claim = Claim.from_api(copy.deepcopy(body))
            cls = ledger.storage_class(claim.class_name or "")
            waits = any(not pod.node for pod in ledger.users(claim.key))
            if not waits or claim.volume_name or not matching.is_late(claim, cls):
                continue
            there = Node.from_api(node_body(claim.selected_node or node))
            there = ledger.node(there.name) or there
            volume = matching.match(ledger, claim, late=True, node=there)
            if volume is not None and volume.claim_uid != claim.uid:
                wanted.append(self._reserved(volume, claim))
            elif volume is None and not claim.selected_node:
                marked = copy.deepcopy(body)
                marked["metadata"].setdefault("annotations", {})[SELECTED] = there.name
                wanted.append((path, marked))
        return wanted

    def scheduler_writes(self, path: str, body: Body) -> None:
        """It writes what it decided earlier, if that is still possible."""
        try:
            self.api.replace(path, body)
        except (ConflictError, NotFoundError):
            return

    def check_kept(self) -> None:
        """What a binder chose and another one won is free again: only what people keep for a name stays kept for it."""
        for body in self.api.volumes.values():
            volume = Volume.from_api(copy.deepcopy(body))
            ref = volume.claim
            if ref is None or ref.uid or ref.name == ANY_CLAIM:
                continue
            asked = volume.uid in self.kept_by_people or volume.reuse or volume.reserved_for
            assert asked, f"{volume.name} stays kept for {ref.name}, and nobody has asked for that"

    def check_leaks(self, forgotten: set[str]) -> None:
        """What a node holds is an object's, or was made by hand, or its maker died: then the driver's own record is left."""
        owned = {
            (volume.node, volume.name)
            for body in self.api.volumes.values()
            if (volume := Volume.from_api(copy.deepcopy(body))).node
        }
        for node, table in self.nodes.tables.items():
            for name in table - self.by_hand - forgotten:
                assert (node, name) in owned, f"{name} leaked on {node}"

    def _reserved(self, volume: Volume, claim: Claim) -> tuple[str, Body]:
        path = f"/api/v1/persistentvolumes/{volume.name}"
        body = self.api.get(path)
        body["spec"]["claimRef"] = {"namespace": claim.namespace, "name": claim.name, "uid": claim.uid}
        if volume.claim is None:
            body["metadata"].setdefault("annotations", {})[BY_CONTROLLER] = "yes"
        return path, body
