"""A world for the operator on a real API server: nodes, fake node plugins, classes, claims, and the operator itself.

The operator runs as a process of its own, by its entry point and as a user of its own, so that it can
be killed, and so that the audit log tells its writes from everybody else's.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from moorage_csi.contract import DRIVER_NAME, TOPOLOGY_KEY
from tests.api.fake_plugin import GIB, FakePlugin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from tests.harness.components import Access
    from tests.harness.controlplane import ControlPlane

ROOT = Path(__file__).parents[2]
USER = "moorage-operator"
LABELS = {"app.kubernetes.io/name": "moorage", "app.kubernetes.io/component": "node"}
__all__ = ["GIB", "PATCH", "World"]

PATCH = "application/merge-patch+json"


class RefusedError(Exception):
    """The API server's answer to the test itself was an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Client:
    """Requests of the test itself, over one connection for each thread."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._address = urllib.parse.urlsplit(access.url)
        self._tls = ssl.create_default_context(cafile=str(access.ca_file))
        self._local = threading.local()
        self._open: list[http.client.HTTPSConnection] = []

    def close(self) -> None:
        """Close the connections of all threads."""
        for connection in self._open:
            connection.close()

    def __call__(self, verb: str, path: str, body: Any = None, *, content: str = "application/json") -> Any:
        headers = {"Authorization": f"Bearer {self._access.token}", "Content-Type": content}
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = http.client.HTTPSConnection(
                self._address.hostname or "", self._address.port, context=self._tls, timeout=20
            )
            self._local.connection = connection
            self._open.append(connection)
        try:
            connection.request(verb, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        except (OSError, http.client.HTTPException):
            connection.close()
            self._local.connection = None
            raise
        if answer.status >= 400:
            raise RefusedError(answer.status, text[:500])
        return json.loads(text)

    def find(self, path: str) -> Any | None:
        """Return the object, or None."""
        try:
            return self("GET", path)
        except RefusedError as error:
            if error.status == 404:
                return None
            raise


class World:
    """One namespace with nodes of its own, and an operator that can be started and killed."""

    def __init__(self, plane: ControlPlane, tmp_path: Path, *, nodes: int = 1) -> None:
        self.plane = plane
        self.client = Client(plane.access())
        self.namespace = f"world-{uuid.uuid4().hex[:8]}"
        self.plugins = [FakePlugin(node=f"{self.namespace}-n{number}") for number in range(1, nodes + 1)]
        self._addresses = {plugin.node: f"127.0.0.{number}" for number, plugin in enumerate(self.plugins, 11)}
        self._port = _free_port(list(self._addresses.values()))
        self._log = tmp_path / "operator.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._marked = 0
        self._health = ""
        self._classes: list[str] = []
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self.client("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        for path in ("/api/v1/namespaces/kube-node-lease",):
            if self.client.find(path) is None:
                self.client("POST", "/api/v1/namespaces", {"metadata": {"name": "kube-node-lease"}})
        for plugin in self.plugins:
            self._add_node(plugin)
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self.kill_operator()
        for plugin in self.plugins:
            plugin.stop()
            for path in (
                f"/api/v1/nodes/{plugin.node}",
                f"/apis/storage.k8s.io/v1/csinodes/{plugin.node}",
                f"/api/v1/namespaces/{self.namespace}/pods/plugin-{plugin.node}",
            ):
                self._remove(path)
        for name in self._classes:
            self._remove(f"/apis/storage.k8s.io/v1/storageclasses/{name}")
        for claim in self.claims():
            self._remove(f"{self.claim_path()}/{claim['metadata']['name']}", finalized=True)
        for volume in self.volumes():
            self._remove(f"/api/v1/persistentvolumes/{volume['metadata']['name']}", finalized=True)
        self._heart.join()
        self.client.close()

    # The operator.

    def start_operator(self, *flags: str, wait: bool = True) -> None:
        """Start the operator, and the plugins once it has made their certificate."""
        port = _free_port(["127.0.0.1"])
        self._health = f"127.0.0.1:{port}"
        argv = [
            sys.executable,
            "-m",
            "moorage_operator",
            f"--kubeconfig={self.plane.access(USER).kubeconfig}",
            f"--namespace={self.namespace}",
            f"--node-port={self._port}",
            f"--listen={self._health}",
            "--lease-duration=3",
            "--lease-renew=2",
            "--lease-retry=0.3",
            "--csi-timeout=5",
            *flags,
        ]
        environment = os.environ | {"PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'csi'}"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(argv, stderr=log, stdout=log, env=environment, cwd=ROOT)
        if wait:
            self.start_plugins()
            self.until(self.ready, "the operator is ready")
            self.mark()

    def start_plugins(self) -> None:
        """Serve on every node, as soon as the certificate is there."""
        path = f"/api/v1/namespaces/{self.namespace}/secrets/moorage-node-tls"
        secret = self.until(lambda: self.client.find(path), "the node plugins' Secret")
        data = {key: base64.b64decode(value) for key, value in secret["data"].items()}
        for plugin in self.plugins:
            plugin.stop()
            plugin.start(
                f"{self._addresses[plugin.node]}:{self._port}",
                authority=data["ca.crt"],
                certificate=data["tls.crt"],
                key=data["tls.key"],
            )

    def kill_operator(self) -> None:
        """SIGKILL, nothing flushed, nothing released."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause_operator(self) -> subprocess.Popen[bytes]:
        """SIGSTOP: it still believes that it leads when it goes on; the caller ends it."""
        paused = self._process
        assert paused is not None
        paused.send_signal(signal.SIGSTOP)
        self._process = None
        return paused

    def stop_operator(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self._process is not None
        self._process.terminate()
        code = self._process.wait(15)
        self._process = None
        return code

    def ready(self) -> bool:
        """Whether the operator says that it is."""
        with suppress(OSError), closing(http.client.HTTPConnection(self._health, timeout=2)) as connection:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        return False

    def log(self) -> str:
        """What the operator has said."""
        return self._log.read_text() if self._log.exists() else ""

    # Objects.

    def add_class(self, name: str = "", **fields: Any) -> str:
        """Make a class of the driver; returns its name."""
        full = f"{self.namespace}-{name or 'immediate'}"
        body = {
            "metadata": {"name": full},
            "provisioner": DRIVER_NAME,
            "volumeBindingMode": "Immediate",
            "allowedTopologies": [
                {"matchLabelExpressions": [{"key": TOPOLOGY_KEY, "values": [plugin.node for plugin in self.plugins]}]}
            ],
            **fields,
        }
        self.client("POST", "/apis/storage.k8s.io/v1/storageclasses", body)
        self._classes.append(full)
        return full

    def add_claim(self, name: str, class_name: str, *, size: str = "1Gi", marks: Any = None, **spec: Any) -> Any:
        """Make a claim."""
        body = {
            "metadata": {"name": name, "annotations": marks or {}},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": class_name,
                "resources": {"requests": {"storage": size}},
                **spec,
            },
        }
        return self.client("POST", self.claim_path(), body)

    def claim_path(self) -> str:
        """Where the claims are."""
        return f"/api/v1/namespaces/{self.namespace}/persistentvolumeclaims"

    def claim(self, name: str) -> Any | None:
        """A claim of this world, or None."""
        return self.client.find(f"{self.claim_path()}/{name}")

    def claims(self) -> list[Any]:
        """All claims of this world."""
        return list(self.client("GET", self.claim_path())["items"])

    def volumes(self) -> list[Any]:
        """All volumes that name a claim of this world."""
        items = self.client("GET", "/api/v1/persistentvolumes")["items"]
        return [item for item in items if (item["spec"].get("claimRef") or {}).get("namespace") == self.namespace]

    def events(self, name: str = "") -> list[Any]:
        """The operator's events about the claims of this world, or about one of them."""
        items = self.client("GET", f"/api/v1/namespaces/{self.namespace}/events")["items"]
        return [
            item
            for item in items
            if item["source"].get("component") == USER
            and item["involvedObject"]["kind"] == "PersistentVolumeClaim"
            and name in {"", item["involvedObject"]["name"]}
        ]

    def delete_claim(self, name: str) -> None:
        """Delete a claim as if no pod used it: where nobody else does, its protection is taken off too."""
        self._remove(f"{self.claim_path()}/{name}", finalized=True)

    def mark(self) -> None:
        """Count writes from here on."""
        self._marked = self.plane.audit_log.stat().st_size

    def writes(self) -> Counter[str]:
        """What the operator has written since the mark, from the API server's audit log; all but the Lease."""
        counted: Counter[str] = Counter()
        for entry in self._audit():
            ref = entry.get("objectRef", {})
            resource = "/".join(filter(None, (ref.get("resource"), ref.get("subresource"))))
            if entry["user"]["username"] == USER and resource != "leases":
                code = entry["responseStatus"]["code"]
                counted[f"{entry['verb']} {resource}{'' if code < 300 else f' {code}'}"] += 1
        return counted

    def _audit(self) -> Iterator[Any]:
        with self.plane.audit_log.open() as log:
            log.seek(self._marked)
            for line in log:
                with suppress(json.JSONDecodeError):
                    yield json.loads(line)

    def until(self, check: Callable[[], Any], what: str, *, seconds: float = 20) -> Any:
        """Return what ``check`` returns once that is true."""
        deadline = time.monotonic() + seconds
        while True:
            found = check()
            if found:
                return found
            if self._process is not None and self._process.poll() is not None:
                raise AssertionError(f"the operator has ended with {self._process.returncode}: {self.log()[-4000:]}")
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"not within {seconds} s: {what}; claims {self._states()}; log:\n{self.log()[-4000:]}"
                )
            time.sleep(0.03)

    def all_bound(self) -> bool:
        """Whether each claim is Bound, and each pair consistent from both sides."""
        claims, volumes = self.claims(), {item["metadata"]["name"]: item for item in self.volumes()}
        return all(is_pair(claim, volumes.get(claim["spec"].get("volumeName", ""))) for claim in claims)

    def _states(self) -> list[str]:
        return [
            f"{claim['metadata']['name']} {claim['status']['phase']} {claim['spec'].get('volumeName')}"
            for claim in self.claims()
        ][:10]

    def _add_node(self, plugin: FakePlugin) -> None:
        name = plugin.node
        self.client("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": {TOPOLOGY_KEY: name}}})
        ready = {"conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": ""}]}
        self.client("PATCH", f"/api/v1/nodes/{name}/status", {"status": ready}, content=PATCH)
        self.register(plugin)
        pods = f"/api/v1/namespaces/{self.namespace}/pods"
        pod = {
            "metadata": {"name": f"plugin-{name}", "labels": LABELS},
            "spec": {"nodeName": name, "containers": [{"name": "plugin", "image": "plugin"}]},
        }
        self.until(lambda: self._try_create(pods, pod), "the service account of pods")
        status = ready | {"phase": "Running", "podIP": self._addresses[name], "podIPs": [{"ip": self._addresses[name]}]}
        self.client("PATCH", f"{pods}/plugin-{name}/status", {"status": status}, content=PATCH)

    def register(self, plugin: FakePlugin) -> None:
        """Do what the kubelet does when a plugin registers."""
        driver = {"name": DRIVER_NAME, "nodeID": plugin.node, "topologyKeys": [TOPOLOGY_KEY]}
        body = {"metadata": {"name": plugin.node}, "spec": {"drivers": [driver]}}
        self.client("POST", "/apis/storage.k8s.io/v1/csinodes", body)

    def unregister(self, plugin: FakePlugin) -> None:
        """Do what the kubelet does when a plugin's socket is gone."""
        self._remove(f"/apis/storage.k8s.io/v1/csinodes/{plugin.node}")

    def _try_create(self, path: str, body: Any) -> bool:
        try:
            self.client("POST", path, body)
        except RefusedError as error:
            if error.status != 403:
                raise
            return False
        return True

    def _remove(self, path: str, *, finalized: bool = False) -> None:
        with suppress(RefusedError):
            self.client("DELETE", path)
            if finalized:
                self.client("PATCH", path, {"metadata": {"finalizers": None}}, content=PATCH)

    def _beat(self) -> None:
        """Renew the nodes' Leases, so that the node controller leaves them Ready."""
        made: set[str] = set()
        while not self._ended.wait(5):
            for plugin in self.plugins:
                spec = {
                    "holderIdentity": plugin.node,
                    "leaseDurationSeconds": 40,
                    "renewTime": time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime()),
                }
                leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
                with suppress(RefusedError, OSError):
                    if plugin.node not in made:
                        made.add(plugin.node)
                        self.client("POST", leases, {"metadata": {"name": plugin.node}, "spec": spec})
                    else:
                        self.client("PATCH", f"{leases}/{plugin.node}", {"spec": spec}, content=PATCH)


def is_pair(claim: Any, volume: Any | None) -> bool:
    """Whether claim and volume are bound to each other, from both sides, completely."""
    if volume is None:
        return False
    marks = claim["metadata"].get("annotations", {})
    return bool(
        claim["status"]["phase"] == "Bound"
        and volume["status"]["phase"] == "Bound"
        and marks.get("pv.kubernetes.io/bind-completed") == "yes"
        and volume["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"]
        and claim["status"]["accessModes"] == volume["spec"]["accessModes"]
        and claim["status"]["capacity"] == volume["spec"]["capacity"]
    )


def _free_port(addresses: list[str]) -> int:
    """Return a port that is free on all of the addresses."""
    while True:
        with socket.socket() as first:
            first.bind((addresses[0], 0))
            port = int(first.getsockname()[1])
            try:
                for address in addresses[1:]:
                    with socket.socket() as other:
                        other.bind((address, port))
            except OSError:
                continue
            return port
