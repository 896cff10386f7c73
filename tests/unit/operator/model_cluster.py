"""A whole cluster as a model: API server, node plugins, the clock, and the in-tree binder as far as volumes are made."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict

from moorage_operator.errors import ConflictError, NotFoundError
from moorage_operator.model.volume import Volume
from tests.unit.operator.model_api import Body, ModelApi
from tests.unit.operator.model_nodes import NODES, ModelNodes
from tests.unit.operator.objects import class_body, csinode_body, node_body


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
