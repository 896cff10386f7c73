"""The virtual nodes themselves: side by side, wired up, restartable, and gone without a trace."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import cgroups, loops, network, processes
from tests.harness.cluster import Cluster
from tests.harness.errors import StartError
from tests.harness.places import clusters_dir

ROOT = Path(__file__).parents[3]
NAME = f"nodes-{os.getpid()}"


def _pod(name: str, *, node: str = "node-1") -> str:
    container = {
        "name": "shell",
        "image": "busybox:1.37",
        "command": ["sh", "-c", "echo hello; nc -l -p 7000 -e hostname & exec sleep 1000"],
        "volumeMounts": [{"name": "pool", "mountPath": "/pool"}],
    }
    spec = {
        "nodeName": node,
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
        "volumes": [{"name": "pool", "hostPath": {"path": "/var/lib/moorage"}}],
    }
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})


def _start_pod(cluster: Cluster, name: str, *, node: str = "node-1") -> dict[str, Any]:
    cluster.kubectl("apply", "-f", "-", stdin=_pod(name, node=node))
    cluster.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s")
    pod: dict[str, Any] = cluster.get("pod", name)
    return pod


def _traces(name: str) -> list[str]:
    """Return everything of a cluster that the machine still has."""
    folder = clusters_dir() / name
    found = [f"folder {entry.name}" for entry in folder.glob("*")]
    found += [f"process {each.argv}" for each in processes.running() if any(f"{folder}/" in word for word in each.argv)]
    roots = [cgroups.MOUNT, *(entry for entry in cgroups.MOUNT.iterdir() if entry.is_dir())]
    found += [f"cgroup {path}" for root in roots for path in root.glob(f"moorage-{name}-*")]
    found += [f"mount {line}" for line in Path("/proc/mounts").read_text().splitlines() if str(folder) in line]
    return found


@pytest.fixture(scope="module")
def pair(bare_machine: None) -> Iterator[Cluster]:
    """Two nodes, without the in-tree binder."""
    with Cluster(NAME, nodes=2, binder=False) as cluster:
        yield cluster


def test_pods_of_both_nodes_reach_each_other_and_the_api_server(pair: Cluster) -> None:
    for node in ("node-1", "node-2"):
        pod = _start_pod(pair, f"on-{node}", node=node)
        assert pod["spec"]["nodeName"] == node
        assert pair.kubectl("logs", f"on-{node}").stdout == "hello\n"
    for here, there in (("on-node-1", "on-node-2"), ("on-node-2", "on-node-1")):
        address = pair.get("pod", there)["status"]["podIP"]
        answer = pair.kubectl("exec", here, "--", "sh", "-c", f"nc -w 5 {address} 7000 </dev/null; echo;").stdout
        assert answer.split() == [there]
        connected = pair.kubectl("exec", here, "--", "sh", "-c", "echo | nc -w 5 10.96.0.1 443 >/dev/null; echo $?")
        assert connected.stdout == "0\n"


def test_the_pool_of_a_node_lies_on_the_disk_of_the_machine(pair: Cluster) -> None:
    _start_pod(pair, "writer")
    pair.kubectl("exec", "writer", "--", "sh", "-c", "echo kept > /pool/file; sync")
    file = pair.node_dir() / "moorage" / "file"
    assert file.read_text() == "kept\n"
    assert file.stat().st_dev == pair.directory.stat().st_dev
    assert not (pair.node_dir("node-2") / "moorage" / "file").exists()


def test_nothing_a_node_mounts_or_sets_reaches_the_machine(pair: Cluster) -> None:
    assert str(pair.directory) not in Path("/proc/mounts").read_text()
    inside = pair.node().run("cat", "/proc/mounts", "/proc/sys/kernel/panic")
    assert " /var/lib/kubelet " in inside
    assert inside.endswith("\n10\n")


@pytest.mark.parametrize("program", ["kubelet", "containerd", "kube-apiserver", "etcd", "kube-controller-manager"])
def test_a_program_is_killed_and_restarted_while_a_pod_runs_on(pair: Cluster, program: str) -> None:
    pod = _start_pod(pair, f"beside-{program}")
    pair.kill(program)
    with pytest.raises(StartError, match=f"no {program} runs"):
        pair.kill(program)
    pair.restart(program)
    pair.wait_ready()
    _eventually(lambda: pair.kubectl("exec", f"beside-{program}", "--", "true", check=False).returncode == 0)
    after = pair.get("pod", f"beside-{program}")
    assert (
        after["status"]["containerStatuses"][0]["containerID"] == pod["status"]["containerStatuses"][0]["containerID"]
    )


def test_without_the_binder_nobody_binds(pair: Cluster) -> None:
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "static"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "",
            "hostPath": {"path": "/var/lib/moorage"},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "static"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    pair.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": [volume, claim]}))
    # By the time that a pod runs, a binder would long have bound the two.
    _start_pod(pair, "later")
    assert pair.get("pvc", "static")["status"]["phase"] == "Pending"
    writers = {json.loads(line)["user"]["username"] for line in pair.audit_log.read_text().splitlines()}
    assert "system:serviceaccount:kube-system:service-account-controller" in writers
    assert "system:serviceaccount:kube-system:persistent-volume-binder" not in writers


def test_two_clusters_run_side_by_side_and_one_leaves_no_trace(pair: Cluster, tmp_path: Path) -> None:
    other = Cluster(f"{NAME}-other").start()
    try:
        _start_pod(other, "alone")
        assert other.access().url != pair.access().url
        with pytest.raises(StartError, match="another process runs"):
            Cluster(other.name).start()
        image = other.node_dir() / "moorage" / "left.img"
        with image.open("wb") as file:
            file.truncate(1 << 20)
        device = other.node().run("losetup", "--find", "--show", "/var/lib/moorage/left.img").strip()
        assert Path(device) in {each for each, _ in loops.attached()}
        link = Path("/sys/class/net") / network.link_name(
            json.loads((other.directory / "cluster.json").read_text())["number"]
        )
        assert link.exists()
    finally:
        other.stop()
    assert _traces(other.name) == []
    assert not link.exists()
    assert Path(device) not in {each for each, _ in loops.attached()}
    assert pair.running
    assert pair.kubectl("get", "nodes").stdout.count(" Ready ") == 2
    other.stop()


@pytest.mark.parametrize("after", ["node-1/ready", "plane/tokens.csv", "plane/etcd", "node-1/log/kubelet.log", "end"])
def test_a_cluster_goes_with_its_owner_however_far_its_start_was(bare_machine: None, after: str) -> None:
    name = f"{NAME}-killed"
    folder = clusters_dir() / name
    awaited = folder / after if after.startswith("plane") else folder / "nodes" / after
    program = "import sys; from tests.harness.cluster import Cluster; Cluster(sys.argv[1]).start(); print('up', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as owner:
        assert owner.stdout is not None
        if after == "end":
            assert owner.stdout.readline() == "up\n"
        else:
            processes.wait_until(awaited.exists, what=str(awaited), seconds=30, every=0.005)
        owner.kill()
    _eventually(lambda: _traces(name) == [])
    assert not folder.exists()


def test_a_start_removes_what_a_killed_detached_start_left(bare_machine: None) -> None:
    name = f"{NAME}-detached"
    program = "import sys; from tests.harness.cluster import Cluster; Cluster(sys.argv[1], detached=True).start()"
    with subprocess.Popen([sys.executable, "-c", program, name], cwd=ROOT) as owner:
        awaited = clusters_dir() / name / "nodes" / "node-1" / "log" / "kube-apiserver.log"
        processes.wait_until(awaited.exists, what=str(awaited), seconds=30, every=0.005)
        owner.kill()
    assert _traces(name) != []
    with Cluster(name) as cluster:
        assert cluster.kubectl("get", "nodes").stdout.count(" Ready ") == 1
    assert _traces(name) == []


def _eventually(happened: Callable[[], bool]) -> None:
    processes.wait_until(happened, what="what should happen", seconds=30, every=0.1)
