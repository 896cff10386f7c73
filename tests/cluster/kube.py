"""One namespace of a running cluster, seen through kubectl as a person sees it."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness import processes
from tests.harness.cluster import Cluster

POOL = "moorage/default"
"""Where the default pool of a node lies below the folder of the node's state."""


class NotSeenError(AssertionError):
    """What a test waited for did not happen in time; says what was there instead."""


@dataclass(frozen=True, slots=True)
class Kube:
    """A namespace of its own in a cluster, with waiting and looking."""

    cluster: Cluster
    namespace: str

    def kubectl(self, *arguments: str, check: bool = True, stdin: str | None = None) -> str:
        """Run kubectl in the namespace and return what it printed."""
        return self.cluster.kubectl("-n", self.namespace, *arguments, check=check, stdin=stdin).stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects, as `kubectl apply` does."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(listed))

    def delete(self, kind: str, *names: str, wait: bool = True) -> None:
        """Delete objects; return when they are gone, unless told not to wait."""
        self.kubectl("delete", kind, *names, f"--wait={str(wait).lower()}", "--timeout=60s", "--ignore-not-found")

    def get(self, *arguments: str) -> Any:
        """Return an object, or a list of them, as parsed JSON."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def run(self, pod: str, *command: str) -> str:
        """Run a command in a pod and return what it printed."""
        return self.kubectl("exec", pod, "--", *command)

    def attempt(self, pod: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a pod that may fail, and return all of its answer."""
        return self.cluster.kubectl("-n", self.namespace, "exec", pod, "--", *command, check=False)

    def until(self, what: str, seen: Callable[[], Any], *, seconds: float = 60) -> Any:
        """Return the first true answer of `seen`; raise NotSeenError after `seconds`, with the last events."""
        deadline = time.monotonic() + seconds
        while True:
            if answer := seen():
                return answer
            if time.monotonic() > deadline:
                told = self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False)
                objects = self.kubectl("get", "pvc,pod,pv", "-o", "wide", check=False)
                raise NotSeenError(f"not within {seconds:.0f} s: {what}\n{objects}\n{told}")
            time.sleep(0.1)

    def bound(self, claim: str, *, seconds: float = 60) -> dict[str, Any]:
        """Return the volume of a claim once it is Bound."""
        self.until(
            f"claim {claim} Bound", lambda: self.get("pvc", claim)["status"]["phase"] == "Bound", seconds=seconds
        )
        volume: dict[str, Any] = self.get("pv", self.get("pvc", claim)["spec"]["volumeName"])
        return volume

    def running(self, *pods: str, seconds: float = 90) -> None:
        """Return when all these pods run."""
        wanted = set(pods)

        def run() -> bool:
            found = self.get("pod")["items"]
            return wanted <= {each["metadata"]["name"] for each in found if each["status"]["phase"] == "Running"}

        self.until(f"pods {', '.join(pods)} Running", run, seconds=seconds)

    def events(self, name: str, *, reason: str = "") -> list[dict[str, Any]]:
        """Return the events about an object of the namespace, by its name."""
        found = self.get("events", f"--field-selector=involvedObject.name={name}")["items"]
        return [event for event in found if reason in ("", event["reason"])]

    def message(self, name: str, *, saying: str, seconds: float = 30) -> str:
        """Return the message of the first event about an object that says something, once there is one."""
        answer: str = self.until(
            f"an event on {name} saying {saying!r}",
            lambda: next((e["message"] for e in self.events(name) if saying in e["message"]), None),
            seconds=seconds,
        )
        return answer

    def gone(self, *volumes: dict[str, Any]) -> None:
        """Return when neither the objects nor the storage of these volumes are left."""
        names = {volume["metadata"]["name"] for volume in volumes}

        def left() -> list[str]:
            objects = [each["metadata"]["name"] for each in self.get("pv")["items"]]
            return [name for name in objects if name in names] + [
                place for volume in volumes for place in self.storage_of(volume)
            ]

        self.until(f"volumes {', '.join(sorted(names))} gone with their storage", lambda: not left())

    def storage_of(self, volume: dict[str, Any]) -> list[str]:
        """Return all that the node still has of a volume: its folder, trash of it, and attached loop devices."""
        handle = volume["spec"]["csi"]["volumeHandle"]
        pool = self.cluster.node_dir() / POOL
        folders = [str(path) for path in pool.glob(f"*/{handle}*")]
        attached = processes.run(["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"])
        return folders + [line for line in attached.stdout.splitlines() if handle in line]

    def product_processes(self, program: str) -> list[processes.Running]:
        """Return the processes of `moorage-operator` or `moorage-csi` that run in this cluster's pods."""
        prefix = f"moorage-{self.cluster.name}-node-"
        return [
            process
            for process in processes.running()
            if any(Path(word).name == program for word in process.argv[:2]) and prefix in _cgroups(process.identity.pid)
        ]

    def kill_product(self, program: str) -> int:
        """SIGKILL every process of one of our programs, and return how many there were."""
        victims = self.product_processes(program)
        for process in victims:
            process.identity.end()
        return len(victims)


def _cgroups(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
