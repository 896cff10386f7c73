"""A whole Kubernetes on this machine: the control plane on a first virtual node, a kubelet and containerd on each.

A cluster is a folder and the processes whose command lines name it, so any process can find, use and remove one. The
clusters of a test run end with it, however it ends: the kernel kills their nodes with the thread that started them,
and a watcher removes the rest. A detached cluster (the demonstration) runs until it is stopped.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Self

from tests.harness import apiclient, binaries, images, locks, network, processes, watching
from tests.harness.components import Access, Command, Plane
from tests.harness.errors import StartError
from tests.harness.node import VirtualNode
from tests.harness.places import clusters_dir
from tests.harness.progress import Progress, Silent

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

FIRST = "node-1"


class Cluster:
    """One cluster by name; make the object to start it or to use one that runs.

    Args:
        name: names its state, its cgroups and nothing else; lower-case letters, digits and dashes.
        nodes: how many nodes to start; the first also carries the control plane.
        binder: with the in-tree persistent-volume binder.
        detached: it outlives this process. Otherwise it ends with the thread that started it.
        users: further users and the group of each, every one with a token of its own (see `access`).
        progress: where to tell what happens.
    """

    def __init__(
        self,
        name: str,
        *,
        nodes: int = 1,
        binder: bool = True,
        detached: bool = False,
        users: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.name = name
        self.directory = clusters_dir() / name
        self._wanted = {
            "nodes": nodes,
            "binder": binder,
            "users": list((users or {}).items()),
            "detached": detached,
        }
        self._detached = detached
        self._progress = progress or Silent()
        self._children: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
        self._held = contextlib.ExitStack()

    @property
    def nodes(self) -> list[VirtualNode]:
        """Return the nodes, of the running cluster where one runs."""
        return [
            VirtualNode(
                self.directory / "nodes" / f"node-{number}", number=number, cgroup=f"moorage-{self.name}-node-{number}"
            )
            for number in range(1, self._settings()["nodes"] + 1)
        ]

    def node(self, name: str = FIRST) -> VirtualNode:
        """Return a node by name.

        Raises:
            StartError: the cluster has no such node.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise StartError(f"cluster {self.name} has no node {name!r}, only {[node.name for node in self.nodes]}")

    def node_dir(self, name: str = FIRST) -> Path:
        """Return the folder of a node's state; `moorage` in it is the node's /var/lib/moorage, `log` its /var/log."""
        return self.node(name).directory

    def enter(self, name: str = FIRST) -> list[str]:
        """Return the words to put before a command so that it runs inside a node's namespaces."""
        return self.node(name).enter()

    @property
    def running(self) -> bool:
        """Tell whether every node's first process lives."""
        return self._settings_file.exists() and all(node.first_process() is not None for node in self.nodes)

    @property
    def kept(self) -> bool:
        """Tell whether it runs detached, as somebody wanted it."""
        return bool(self._settings().get("detached", True)) and self.running

    @property
    def audit_log(self) -> Path:
        """Return the file with one line of JSON for each write that reached the API server."""
        return self._plane().audit_log

    def access(self, user: str = "admin") -> Access:
        """Return how a user reaches the API server from this machine."""
        plane = self._plane()
        return plane.access(user, url=f"https://{plane.extra_names[0]}")

    @property
    def kubeconfig(self) -> Path:
        """Return the administrator's kubeconfig, for use on this machine."""
        return self.access().kubeconfig

    def kubectl(
        self, *arguments: str | Path, check: bool = True, stdin: str | None = None, seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl against the cluster, as the administrator.

        Raises:
            CommandError: it failed (unless `check` is false) or did not end in time.
        """
        argv = [binaries.program("kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments]
        return processes.run(argv, check=check, stdin=stdin, seconds=seconds)

    def get(self, *arguments: str) -> Any:
        """Return the parsed answer of `kubectl get ... -o json`."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json").stdout)

    def start(self) -> Self:
        """Start everything and return when all nodes are Ready; what a predecessor left is removed first.

        Raises:
            StartError: something did not come up; what was started is removed again.
        """
        self._held.enter_context(self._hold_name())
        try:
            self._remove()
            self._start()
        except StartError as error:
            told = self._logs()
            self._remove()
            self._held.close()
            raise StartError(f"{error}\n{told}") from error
        except BaseException:
            self._remove()
            self._held.close()
            raise
        if self._detached:
            self._held.close()
        return self

    def stop(self) -> None:
        """End every process and remove links, cgroups, loop devices and the folder. Idempotent."""
        self._remove()
        self._held.close()

    def load_images(self, *archives: Path, nodes: Sequence[str] = ()) -> None:
        """Import image archives into the containerd of the named nodes, or of all."""
        for node in self.nodes:
            if not nodes or node.name in nodes:
                node.load_images(archives)

    def kill(self, program: str, *, node: str = FIRST) -> None:
        """Kill every process of a node that runs a program (`kubelet`, `kube-apiserver`, also one inside a pod)."""
        self.node(node).kill(program)

    def restart(self, program: str, *, node: str = FIRST) -> None:
        """Start one of the cluster's own programs again, on its old state; kill it first where it still runs."""
        chosen = self.node(node)
        with contextlib.suppress(StartError):
            chosen.kill(program)
        self._spawn(chosen, self._command(program, chosen))

    def wait_ready(self, *, seconds: float = 90) -> None:
        """Return when every node is Ready and pods can be made.

        Raises:
            StartError: not within the deadline.
        """
        processes.wait_until(self._ready, what=f"cluster {self.name}", seconds=seconds, every=0.2)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _lock_file(self) -> Path:
        return self.directory.with_name(f".{self.name}.lock")

    @property
    def _settings_file(self) -> Path:
        return self.directory / "cluster.json"

    def _settings(self) -> dict[str, Any]:
        try:
            settings: dict[str, Any] = json.loads(self._settings_file.read_text())
        except FileNotFoundError:
            return self._wanted
        return settings

    def _plane(self) -> Plane:
        settings = self._settings()
        if "number" not in settings:
            raise StartError(f"cluster {self.name} was not started (no {self._settings_file})")
        return Plane(
            directory=self.directory / "plane",
            bind="0.0.0.0",  # noqa: S104 - inside the node's own network namespace
            host=self.nodes[0].address,
            port=443,
            etcd_port=2379,
            etcd_peer_port=2380,
            in_cluster=True,
            extra_names=(network.outside_address(settings["number"]),),
            users=tuple(
                [(f"system:node:{node.name}", "system:nodes") for node in self.nodes]
                + [(user, group) for user, group in settings["users"]]
            ),
            binder=settings["binder"],
        )

    def _start(self) -> None:
        (self.directory / "nodes").mkdir(parents=True)
        self._settings_file.write_text(json.dumps(self._wanted))
        nodes = self.nodes
        if not self._detached:
            watching.watch(f"--cluster={self.name}")
        with self._progress.step(f"starting {len(nodes)} virtual node(s)", usually="1 s"):
            for node in nodes:
                self._children[node.name, "node"] = node.start(dies_with_parent=not self._detached)
            number = network.connect(nodes)
            link = {"number": number, "link": network.interface_index(number)}
            self._settings_file.write_text(json.dumps(self._wanted | link))
        plane = self._plane()
        plane.prepare()
        with self._progress.step("starting etcd, the API server and containerd", usually="5 s"):
            for node in nodes:
                self._spawn(node, node.containerd())
            self._spawn(nodes[0], plane.etcd())
            self._spawn(nodes[0], plane.api_server())
            for node in nodes:
                node.wait_for_runtime()
                node.load_images([images.pause(), images.busybox()])
            self._wait(lambda: apiclient.ready(self.access()), what="the API server")
        with self._progress.step("starting the controllers, the scheduler and the kubelets", usually="5 s"):
            self._spawn(nodes[0], plane.controller_manager())
            self._spawn(nodes[0], plane.scheduler())
            for node in nodes:
                self._spawn(node, self._command("kubelet", node))
            self._wait(self._ready, what="all nodes Ready")

    def _spawn(self, node: VirtualNode, command: Command) -> None:
        before = self._children.get((node.name, command.name))
        if before is not None:
            before.wait(timeout=10)
        self._children[node.name, command.name] = node.spawn(command)

    def _wait(self, happened: Callable[[], bool], *, what: str) -> None:
        processes.wait_until(happened, what=what, seconds=90, every=0.2, broken=self._broken)

    def _logs(self) -> str:
        """Return the end of every log."""
        files = [file for node in self.nodes for file in sorted((node.directory / "log").glob("*.log"))]
        return "\n".join(f"--- {file}\n{processes.tail(file)}" for file in files)

    def _broken(self) -> str:
        for (node, program), child in self._children.items():
            if child.poll() is not None:
                return f"{program} on {node} ended with {child.returncode}"
        return ""

    def _ready(self) -> bool:
        try:
            nodes = apiclient.get(self.access(), "/api/v1/nodes")["items"]
            apiclient.get(self.access(), "/api/v1/namespaces/default/serviceaccounts/default")
        except OSError:
            return False
        ready = [
            node["metadata"]["name"]
            for node in nodes
            if any(each["type"] == "Ready" and each["status"] == "True" for each in node["status"]["conditions"])
        ]
        return len(ready) == len(self.nodes)

    def _command(self, program: str, node: VirtualNode) -> Command:
        plane = self._plane()
        if program == "kubelet":
            access = plane.access(f"system:node:{node.name}")
            return node.kubelet(kubeconfig=access.kubeconfig, ca_file=access.ca_file)
        if program == "containerd":
            return node.containerd()
        commands = (plane.etcd(), plane.api_server(), plane.controller_manager(), plane.scheduler())
        for command in commands:
            if command.name == program:
                return command
        raise StartError(f"{program!r} is none of the cluster's own programs")

    def _remove(self) -> None:
        if not self.directory.exists():
            return
        settings = self._settings()
        for node in self.nodes:
            node.stop()
        for child in self._children.values():
            child.wait(timeout=10)
        self._children.clear()
        if "number" in settings:
            network.disconnect(settings["number"], index=settings.get("link", 0))
        watching.remove(self.directory)

    def remove_if_abandoned(self) -> bool:
        """Remove what is left of the cluster, unless somebody holds its name (its owner, or a newer one).

        Returns:
            Whether nobody held it.
        """
        with locks.hold(self._lock_file, wait=False) as held:
            if held:
                self._remove()
            return held

    @contextlib.contextmanager
    def _hold_name(self) -> Iterator[None]:
        with locks.hold(self._lock_file, wait=False) as held:
            if not held:
                raise StartError(f"another process runs a cluster {self.name!r} (state in {self.directory})")
            yield


def every_name() -> list[str]:
    """Return the names of all clusters that left a folder, running or not."""
    return sorted(entry.name for entry in clusters_dir().glob("[!.]*") if entry.is_dir())
