"""The operator's world behind a faulty proxy: replicas that die and come back, and a look at what must never happen.

The test itself talks straight to the API server, so what it sees is what is stored. A replica that ends by itself is
started again and counted, as a kubelet would do it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from tests.api.operator_world import World, is_pair

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    import grpc

    from tests.api.fake_plugin import FakePlugin
    from tests.harness.controlplane import ControlPlane
    from tests.harness.faulty_proxy import FaultyProxy

VOLUMES = "/api/v1/persistentvolumes"
PATIENCE = 60
"""Seconds."""

COMPLETED = "pv.kubernetes.io/bind-completed"
PROVISIONED = "pv.kubernetes.io/provisioned-by"


class FaultWorld(World):
    """One namespace, whose operator reaches the API server through a proxy, any number of times.

    Args:
        plane: the API server.
        folder: for logs and the kubeconfig.
        proxy: what the operator talks to.
        nodes: how many there are.
    """

    def __init__(self, plane: ControlPlane, folder: Path, proxy: FaultyProxy, *, nodes: int = 1) -> None:
        super().__init__(plane, folder, nodes=nodes)
        self._kubeconfig = proxy.kubeconfig(folder / f"{self.namespace}.kubeconfig")
        self._replicas: dict[subprocess.Popen[bytes], tuple[str, ...]] = {}
        self._guard = threading.Lock()
        self.ended: list[int] = []
        """Exit codes of replicas that ended by themselves."""
        self.harm: list[str] = []
        """Storage destroyed under a living claim."""
        self._asked: set[str] = set()
        """The uids of all claims that there ever were."""
        self._forsaken: set[str] = set()
        """The names of volumes that had no object when an operator was killed that may have been making them."""
        for plugin in self.plugins:
            plugin.fault = self._look_at(plugin)

    # Replicas.

    def start_replica(self, *flags: str) -> None:
        """Start one more operator through the proxy."""
        with self._guard:
            super().start_operator(f"--kubeconfig={self._kubeconfig}", *flags, wait=False)
            assert self._process is not None
            self._replicas[self._process] = flags
            self._process = None

    def kill_replica(self, number: int = 0) -> tuple[str, ...]:
        """SIGKILL one that runs; returns the flags that it was started with, none when none runs."""
        with self._guard:
            if not self._replicas:
                return ()
            process = list(self._replicas)[number % len(self._replicas)]
            flags = self._replicas.pop(process)
        process.kill()
        process.wait()
        stored = {item["metadata"]["name"] for item in self.volumes()}
        self._forsaken |= {f"pvc-{uid}" for uid in self._asked} - stored
        return flags

    def kill_operator(self) -> None:
        """SIGKILL all of them."""
        while self.kill_replica():
            pass

    def revive(self) -> int:
        """Start those again that have ended by themselves; returns how many these were."""
        with self._guard:
            dead = [process for process in self._replicas if process.poll() is not None]
            flags = [self._replicas.pop(process) for process in dead]
        self.ended += [process.returncode for process in dead]
        for each in flags:
            self.start_replica(*each)
        return len(dead)

    def until(self, check: Callable[[], Any], what: str, *, seconds: float = PATIENCE) -> Any:
        """Return what ``check`` returns once that is true; faults take their time."""
        return super().until(check, what, seconds=seconds)

    # Objects.

    def add_claim(self, name: str, class_name: str, **asked: Any) -> Any:
        """Make a claim, and remember that it was there."""
        claim = super().add_claim(name, class_name, **asked)
        self._asked.add(claim["metadata"]["uid"])
        return claim

    def add_volume(
        self, name: str, class_name: str, *, size: str = "1Gi", modes: tuple[str, ...] = ("ReadWriteOnce",), **spec: Any
    ) -> Any:
        """Make a static volume by hand, whose name begins with the world's."""
        body = {
            "metadata": {"name": f"{self.namespace}-{name}"},
            "spec": {
                "capacity": {"storage": size},
                "accessModes": list(modes),
                "storageClassName": class_name,
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": f"/tmp/{self.namespace}-{name}"},  # noqa: S108 - no pod ever mounts it
                **spec,
            },
        }
        return self.client("POST", VOLUMES, body)

    def volumes(self) -> list[Any]:
        """All volumes of this world: those that name a claim of it, and those that were made in it by hand."""
        items = self.client("GET", VOLUMES)["items"]
        return [
            item
            for item in items
            if (item["spec"].get("claimRef") or {}).get("namespace") == self.namespace
            or item["metadata"]["name"].startswith(f"{self.namespace}-")
        ]

    # What must never happen.

    def faults(self) -> list[str]:
        """What is wrong with the world as it is stored, a sentence each; only to be asked when it is at rest."""
        claims, volumes = self.claims(), self.volumes()
        return [
            *self.harm,
            *_split(claims, volumes),
            *_incomplete(claims, volumes),
            *_outlived(claims, volumes),
            *self._leaked(volumes),
        ]

    def _leaked(self, volumes: list[Any]) -> list[str]:
        """Storage and objects that do not belong to each other, one to one.

        Storage whose maker was killed before it had stored the object, and whose claim is gone by now, belongs to the
        driver's record alone, which names the claim: nobody else can have known of it.
        """
        living = {f"pvc-{claim['metadata']['uid']}" for claim in self.claims()}
        recorded = self._forsaken - living
        stored = {(handle, plugin.node): plugin.names[handle] for plugin in self.plugins for handle in plugin.volumes}
        owned = {(item["spec"]["csi"]["volumeHandle"], _node_of(item)) for item in volumes if "csi" in item["spec"]}
        unowned = {where for where, name in stored.items() if name not in recorded} - owned
        leaks = [f"nobody owns the storage {handle} on {node}" for handle, node in sorted(unowned)]
        gone = owned - stored.keys()
        return leaks + [f"the storage {handle} on {node} is gone under its object" for handle, node in gone]

    def _look_at(self, plugin: FakePlugin) -> Callable[[str, str], tuple[grpc.StatusCode, str] | None]:
        def look(method: str, name: str) -> None:
            if method == "DeleteVolume":
                self._judge_deletion(plugin.node, name)

        return look

    def _judge_deletion(self, node: str, handle: str) -> None:
        """Note when storage is destroyed although the claim that it is bound to lives."""
        living = {claim["metadata"]["uid"] for claim in self.claims()}
        for item in self.client("GET", VOLUMES)["items"]:
            if item["spec"].get("csi", {}).get("volumeHandle") == handle and _node_of(item) == node:
                uid = (item["spec"].get("claimRef") or {}).get("uid")
                if uid in living:
                    self.harm.append(f"{handle} on {node} was destroyed while claim {uid} lives")


def _split(claims: list[Any], volumes: list[Any]) -> list[str]:
    """Volumes with two claims and claims with two volumes, by either side's word."""
    wrong = []
    # A name without the mark is a wish.
    named = [claim["spec"].get("volumeName") for claim in claims if _is_completed(claim)]
    wrong += [f"two claims have volume {name}" for name in {name for name in named if named.count(name) > 1}]
    by_uid = {claim["metadata"]["uid"]: claim for claim in claims}
    for item in volumes:
        uid = (item["spec"].get("claimRef") or {}).get("uid")
        claim = by_uid.get(uid or "")
        # One that was made for a claim that got another meanwhile is kept as long as that claim lives.
        kept = PROVISIONED in item["metadata"].get("annotations", {}) and item["status"]["phase"] == "Released"
        if claim is not None and not kept and claim["spec"].get("volumeName") != item["metadata"]["name"]:
            wrong.append(
                f"volume {item['metadata']['name']} ({item['status']['phase']}) is reserved for claim "
                f"{claim['metadata']['name']}, which has {claim['spec'].get('volumeName')}"
            )
    return wrong


def _incomplete(claims: list[Any], volumes: list[Any]) -> list[str]:
    """Pairs of which a part is missing, lost claims, and volumes that are bound to nobody."""
    by_name = {item["metadata"]["name"]: item for item in volumes}
    wrong, whole = [], set()
    for claim in claims:
        meta, phase = claim["metadata"], claim["status"]["phase"]
        begun = phase != "Pending" or _is_completed(claim)
        if begun and not is_pair(claim, by_name.get(claim["spec"].get("volumeName", ""))):
            wrong.append(f"claim {meta['name']} is {phase} without a complete pair")
        elif begun:
            whole.add(claim["spec"]["volumeName"])
    bound = {name for name, item in by_name.items() if item["status"]["phase"] == "Bound"}
    return wrong + [f"volume {name} is Bound to no claim that has it" for name in sorted(bound - whole)]


def _outlived(claims: list[Any], volumes: list[Any]) -> list[str]:
    """Volumes whose claim is gone, and which are neither released nor, where the policy says so, gone with it."""
    living = {claim["metadata"]["uid"] for claim in claims}
    wrong = []
    for item in volumes:
        spec, phase = item["spec"], item["status"]["phase"]
        uid = (spec.get("claimRef") or {}).get("uid")
        if uid and uid not in living and (phase != "Released" or spec["persistentVolumeReclaimPolicy"] == "Delete"):
            wrong.append(f"volume {item['metadata']['name']} is {phase} although its claim {uid} is gone")
    return wrong


def _is_completed(claim: Any) -> bool:
    return COMPLETED in claim["metadata"].get("annotations", {})


def _node_of(volume: Any) -> str:
    """Where the driver's volume is; empty for others."""
    terms = volume["spec"].get("nodeAffinity", {}).get("required", {}).get("nodeSelectorTerms", [])
    return str(terms[0]["matchExpressions"][0]["values"][0]) if terms else ""
