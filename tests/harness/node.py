"""One virtual node: a set of namespaces in which containerd, a kubelet and pods run as on a machine of their own.

Nothing it mounts, listens on or starts reaches the machine, and killing its first process removes all of it. That
process is found by its command line, which names the node's folder: no pid file can be stale, and a harness that was
killed between starting a node and writing it down leaves nothing that the next one does not find.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness import binaries, cgroups, images, processes
from tests.harness.components import Command
from tests.harness.errors import MissingError, StartError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence

    from tests.harness.processes import Running

INIT = Path(__file__).resolve().parent / "node_init.py"
CNI_PLUGINS = "/usr/lib/cni"
RUNTIME_SOCKET = "/run/containerd/containerd.sock"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_PODS = 240


class VirtualNode:
    """A node of a cluster, found again by its folder: any process may make this object for a node that runs.

    Args:
        directory: the folder of its state; its last element is the node's name.
        number: its place in the cluster from 1 on, from which its addresses follow.
        cgroup: the name of its cgroup in every hierarchy; no other node of the machine may have the same.
    """

    def __init__(self, directory: Path, *, number: int, cgroup: str) -> None:
        self.directory = directory
        self.number = number
        self.cgroup = cgroup

    @property
    def name(self) -> str:
        """Return the node's name, which is its host name too."""
        return self.directory.name

    @property
    def address(self) -> str:
        """Return its address among the nodes."""
        return f"10.245.0.{self.number}"

    @property
    def pod_network(self) -> str:
        """Return the network that its pods' addresses come from."""
        return f"10.244.{self.number - 1}.0/24"

    @property
    def pod_gateway(self) -> str:
        """Return its own address among its pods."""
        return f"10.244.{self.number - 1}.1"

    def first_process(self) -> Running | None:
        """Return the first process of the node, None where the node does not run."""
        for process in processes.running():
            if str(self.directory) in process.argv and process.first_of_namespace():
                return process
        return None

    def enter(self, *namespaces: str) -> list[str]:
        """Return the words to put before a command so that it runs inside the node.

        Args:
            namespaces: which of mount, net, pid, ipc, uts; all of them where none is named.

        Raises:
            StartError: the node does not run.
        """
        first = self.first_process()
        if first is None:
            raise StartError(f"node {self.name} does not run (state in {self.directory})")
        chosen = namespaces or ("mount", "net", "pid", "ipc", "uts")
        return ["nsenter", f"--target={first.identity.pid}", *(f"--{name}" for name in chosen), "--"]

    def start(self, *, dies_with_parent: bool) -> subprocess.Popen[bytes]:
        """Make the namespaces and mounts, and return the process that holds them; nothing runs in them yet.

        Raises:
            StartError: the first process ended or was not ready in time.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "ready").unlink(missing_ok=True)
        argv = ["unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL", "--mount-proc"]
        log = self.directory / "init.log"
        process = processes.spawn(
            [*argv, sys.executable, "-I", INIT, self.directory],
            log=log,
            dies_with_parent=dies_with_parent,
            environment={"PATH": SYSTEM_PATH},
        )
        processes.wait_until(
            (self.directory / "ready").exists,
            what=f"the namespaces of node {self.name}",
            seconds=15,
            broken=lambda: "" if process.poll() is None else processes.tail(log),
        )
        return process

    def stop(self) -> None:
        """End everything that runs in the node and remove its cgroups. Idempotent."""
        for process in processes.running():
            if str(self.directory) in process.argv and (process.first_of_namespace() or process.program == "unshare"):
                process.identity.end()
        cgroups.remove(self.cgroup)

    def spawn(self, command: Command) -> subprocess.Popen[bytes]:
        """Start a program inside the node and return the process that waits for it outside; both end with the node."""
        programs = str(Path(command.argv[0]).parent)
        runtime = str(binaries.program("containerd").parent)
        return processes.spawn(
            [*self.enter(), *command.argv],
            log=self.log_of(command.name),
            dies_with_parent=False,
            environment={"PATH": f"{programs}:{runtime}:{SYSTEM_PATH}"},
        )

    def log_of(self, program: str) -> Path:
        """Return the log of a program that `spawn` started."""
        return self.directory / "log" / f"{program}.log"

    def kill(self, program: str, *, with_signal: int = signal.SIGKILL) -> None:
        """Kill every process of the node that runs a program, and wait until they are gone.

        Raises:
            StartError: none does.
        """
        first = self.first_process()
        namespace = 0 if first is None else first.pid_namespace
        victims = [
            process
            for process in processes.running()
            if process.program == program and process.pid_namespace == namespace
        ]
        if not victims:
            raise StartError(f"no {program} runs on node {self.name}")
        for process in victims:
            process.identity.end(with_signal=with_signal)

    def run(self, *argv: str | Path, seconds: float = 120) -> str:
        """Run a command inside the node and return its output.

        Raises:
            CommandError: it failed.
        """
        return processes.run([*self.enter(), *argv], seconds=seconds).stdout

    def load_images(self, archives: Sequence[Path]) -> None:
        """Import image archives into the node's containerd.

        Raises:
            CommandError: an archive was refused.
        """
        for archive in archives:
            self.run(*self._ctr("images", "import", "--local", str(archive)))

    def wait_for_runtime(self) -> None:
        """Return when containerd answers.

        Raises:
            StartError: it does not.
        """

        def answers() -> bool:
            done = processes.run([*self.enter(), *self._ctr("version")], check=False, seconds=10)
            return done.returncode == 0

        processes.wait_until(answers, what=f"containerd on {self.name}", seconds=30, every=0.2)

    def _ctr(self, *arguments: str) -> list[str]:
        return [str(binaries.program("ctr")), "-a", RUNTIME_SOCKET, "-n", "k8s.io", *arguments]

    def containerd(self) -> Command:
        """Write containerd's configuration and return its command."""
        runc = shutil.which("runc", path=SYSTEM_PATH)
        if runc is None or not Path(CNI_PLUGINS, "bridge").exists():
            raise MissingError("runc or the CNI plugins are missing: apt-get install runc containernetworking-plugins")
        networks = self.directory / "network"
        networks.mkdir(exist_ok=True)
        network = {
            "cniVersion": "1.0.0",
            "name": "moorage",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": True,
                    "ipMasq": False,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": self.pod_network, "gateway": self.pod_gateway}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                }
            ],
        }
        (networks / "10-moorage.conflist").write_text(json.dumps(network, indent=1))
        configuration = self.directory / "containerd.toml"
        configuration.write_text(
            f"""version = 3
root = '{self.directory / "containerd"}'
state = '/run/containerd'
[grpc]
address = '{RUNTIME_SOCKET}'
[plugins.'io.containerd.metadata.v1.bolt']
no_sync = true
[plugins.'io.containerd.internal.v1.opt']
path = '{self.directory / "opt"}'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{images.PAUSE}'
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['{CNI_PLUGINS}']
conf_dir = '{networks}'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = '{runc}'
SystemdCgroup = false
"""
        )
        return Command("containerd", (str(binaries.program("containerd")), f"--config={configuration}"))

    def kubelet(self, *, kubeconfig: Path, ca_file: Path) -> Command:
        """Make the node's cgroups, write the kubelet's configuration and return its command."""
        cgroups.make(self.cgroup)
        resolver = self.directory / "resolv.conf"
        resolver.write_text("# The cluster has no name service.\n")
        configuration = self.directory / "kubelet.json"
        configuration.write_text(
            json.dumps(
                {
                    "apiVersion": "kubelet.config.k8s.io/v1beta1",
                    "kind": "KubeletConfiguration",
                    "authentication": {
                        "anonymous": {"enabled": False},
                        "webhook": {"enabled": False},
                        "x509": {"clientCAFile": str(ca_file)},
                    },
                    "authorization": {"mode": "AlwaysAllow"},
                    "containerRuntimeEndpoint": f"unix://{RUNTIME_SOCKET}",
                    "cgroupDriver": "cgroupfs",
                    "cgroupRoot": f"/{self.cgroup}",
                    # Tests kill programs again and again: minutes of back-off would be all that they see.
                    "crashLoopBackOff": {"maxContainerRestartPeriod": "2s"},
                    "enforceNodeAllocatable": [],
                    "failCgroupV1": False,
                    "failSwapOn": False,
                    "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
                    "imageGCHighThresholdPercent": 100,
                    "makeIPTablesUtilChains": False,
                    "maxPods": MAX_PODS,
                    "resolvConf": str(resolver),
                    "serializeImagePulls": False,
                    "volumeStatsAggPeriod": "10s",
                },
                indent=1,
            )
        )
        return Command(
            "kubelet",
            (
                str(binaries.program("kubelet")),
                f"--config={configuration}",
                f"--kubeconfig={kubeconfig}",
                f"--hostname-override={self.name}",
                f"--node-ip={self.address}",
            ),
        )
