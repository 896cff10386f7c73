"""Installing and upgrading on a real API server: what is refused before anything is written, and what is said."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import binaries
from tests.harness.controlplane import ControlPlane
from tests.harness.errors import MissingError
from tests.unit.chart.rendering import CHART, NAMESPACE, default_values, helm

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.api


class Cluster:
    """The release on one API server."""

    def __init__(self, kubeconfig: str, kubectl: str) -> None:
        self._kubeconfig = kubeconfig
        self._kubectl = kubectl

    def helm(self, *arguments: str, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        """Run helm in the release's namespace."""
        given = ["--values", "-"] if values else []
        argv = [helm(), "--kubeconfig", self._kubeconfig, "--namespace", NAMESPACE, *arguments, *given]
        text = json.dumps(values) if values else ""
        return subprocess.run(argv, input=text, capture_output=True, text=True, check=False, timeout=60)

    def upgrade(self, values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        """Upgrade the release to these values over the chart's own."""
        return self.helm("upgrade", "moorage", str(CHART), values=values)

    def kubectl(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run kubectl."""
        argv = [self._kubectl, "--kubeconfig", self._kubeconfig, *arguments]
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=60)

    def get(self, *arguments: str) -> Any:
        """Read objects."""
        done = self.kubectl("get", *arguments, "--output", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def own_api_server() -> Iterator[ControlPlane]:
    """An API server that nobody else installs into or reads classes from."""
    with ControlPlane(f"pytest-{os.getpid()}-chart") as plane:
        yield plane


@pytest.fixture
def installed(own_api_server: ControlPlane) -> Iterator[Cluster]:
    """The chart installed with its defaults, and taken away afterwards."""
    try:
        cluster = Cluster(str(own_api_server.kubeconfig), str(binaries.program("kubectl")))
    except MissingError as error:
        pytest.skip(f"kubectl: {error}")
    done = cluster.helm("install", "moorage", str(CHART), "--create-namespace")
    assert done.returncode == 0, done.stderr
    try:
        yield cluster
    finally:
        removed = cluster.helm("uninstall", "moorage")
        cluster.kubectl("delete", "storageclass", "--all")
        assert removed.returncode == 0, removed.stderr


def _with_class(**changes: Any) -> dict[str, Any]:
    classes = default_values()["storageClasses"]
    return {"storageClasses": [classes[0] | changes, *classes[1:]]}


def test_an_upgrade_without_a_change_changes_nothing(installed: Cluster) -> None:
    def versions() -> dict[str, str]:
        kinds = "csidrivers,storageclasses,clusterroles,clusterrolebindings"
        items = installed.get(kinds, "--selector=app.kubernetes.io/name=moorage")["items"]
        return {f"{each['kind']} {each['metadata']['name']}": each["metadata"]["resourceVersion"] for each in items}

    before = versions()
    assert len(before) == 7
    assert installed.upgrade().returncode == 0
    assert versions() == before


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"parameters": {"backend": "directory"}}, "parameters"),
        ({"reclaimPolicy": "Retain"}, "reclaimPolicy"),
        ({"volumeBindingMode": "Immediate"}, "volumeBindingMode"),
    ],
)
def test_what_a_class_can_never_change_is_refused_before_anything_is_written(
    installed: Cluster, changes: dict[str, Any], field: str
) -> None:
    before = installed.get("configmap", "moorage-pools", "-n", NAMESPACE)
    values = _with_class(**changes) | {"pools": [{"name": "default", "path": "/srv/elsewhere"}]}
    done = installed.upgrade(values)
    assert done.returncode != 0
    assert f"the class moorage exists with {field} " in done.stderr
    assert "add a class under a new name" in done.stderr
    assert installed.get("configmap", "moorage-pools", "-n", NAMESPACE) == before


def test_which_volumes_the_driver_offers_is_refused_before_anything_is_written_and_can_be_had(
    installed: Cluster,
) -> None:
    wanted = {"ephemeralVolumes": {"enabled": True}, "logging": {"level": "debug"}}
    done = installed.upgrade(wanted)
    assert done.returncode != 0
    assert "kubectl delete csidriver csi.moorage.dev" in done.stderr
    arguments = installed.get("daemonset", "moorage-node", "--namespace", NAMESPACE)["spec"]["template"]["spec"]
    assert "--log-level=info" in arguments["containers"][0]["args"]
    assert installed.kubectl("delete", "csidriver", "csi.moorage.dev").returncode == 0
    done = installed.upgrade(wanted)
    assert done.returncode == 0, done.stderr
    assert installed.get("csidriver", "csi.moorage.dev")["spec"]["volumeLifecycleModes"] == ["Persistent", "Ephemeral"]
    assert installed.upgrade(wanted).returncode == 0


def test_what_a_class_can_change_is_changed(installed: Cluster) -> None:
    done = installed.upgrade(_with_class(default=True, mountOptions=["noatime"]))
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout
    found = installed.get("storageclass", "moorage")
    assert found["mountOptions"] == ["noatime"]
    assert found["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true"


def test_a_default_mark_set_by_hand_outlives_an_upgrade(installed: Cluster) -> None:
    mark = "storageclass.kubernetes.io/is-default-class"
    assert installed.kubectl("annotate", "storageclass", "moorage", f"{mark}=true").returncode == 0
    assert installed.upgrade({"logging": {"level": "debug"}}).returncode == 0
    assert installed.get("storageclass", "moorage")["metadata"]["annotations"][mark] == "true"


def test_two_defaults_are_warned_of(installed: Cluster) -> None:
    other = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "example.com/local",
    }
    assert installed.kubectl("create", "-f", "-", stdin=json.dumps(other)).returncode == 0
    assert "WARNING" not in installed.upgrade().stdout, "none of ours is a default"
    said = installed.upgrade(_with_class(default=True)).stdout
    assert "WARNING: local is a default class too" in said
    assert "kubectl annotate storageclass local storageclass.kubernetes.io/is-default-class=false" in said


def test_a_namespace_that_does_not_admit_the_node_plugin_is_warned_of(installed: Cluster) -> None:
    label = ("label", "namespace", NAMESPACE, "--overwrite")
    assert installed.kubectl(*label, "pod-security.kubernetes.io/enforce=restricted").returncode == 0
    assert "enforces the Pod Security level restricted" in installed.upgrade().stdout
    assert installed.kubectl(*label, "pod-security.kubernetes.io/enforce=privileged").returncode == 0
    assert "WARNING" not in installed.upgrade().stdout


def test_who_takes_the_binders_place_is_told_what_has_to_be_switched_off(installed: Cluster) -> None:
    switch = "--controllers=*,-persistentvolume-binder-controller"
    assert switch in installed.upgrade({"binder": {"mode": "instead"}}).stdout
    assert switch not in installed.upgrade({"binder": {"mode": "beside"}}).stdout


def test_a_kept_class_stays_when_the_release_goes(installed: Cluster) -> None:
    assert installed.upgrade(_with_class(keep=True)).returncode == 0
    assert installed.helm("uninstall", "moorage").returncode == 0
    assert [each["metadata"]["name"] for each in installed.get("storageclass")["items"]] == ["moorage"]
    again = installed.helm("install", "moorage", str(CHART))
    assert again.returncode == 0, again.stderr


def test_the_node_plugins_account_can_do_nothing(installed: Cluster) -> None:
    account = f"--as=system:serviceaccount:{NAMESPACE}:moorage-node"
    for verb, resource in (("list", "secrets"), ("list", "pods"), ("get", "persistentvolumes"), ("get", "nodes")):
        assert installed.kubectl("auth", "can-i", verb, resource, "-n", NAMESPACE, account).stdout.strip() == "no"


def test_the_operators_account_can_do_its_work_and_reads_no_other_secret(installed: Cluster) -> None:
    account = f"--as=system:serviceaccount:{NAMESPACE}:moorage-operator"

    def may(*arguments: str) -> bool:
        return installed.kubectl("auth", "can-i", *arguments, account).stdout.strip() == "yes"

    assert may("patch", "persistentvolumeclaims", "-n", "anywhere")
    assert may("patch", "persistentvolumes", "--subresource=status")
    assert may("get", "secrets/moorage-ca", "-n", NAMESPACE)
    assert may("update", "leases.coordination.k8s.io/moorage-operator", "-n", NAMESPACE)
    assert not may("get", "secrets/another", "-n", NAMESPACE)
    assert not may("list", "secrets", "-n", NAMESPACE)
    assert not may("get", "secrets/moorage-ca", "-n", "anywhere")
    assert may("watch", "pods", "-n", "anywhere")
    assert not may("delete", "pods", "-n", "anywhere")
    assert not may("get", "pods", "--subresource=log", "-n", "anywhere")
    assert not may("delete", "persistentvolumeclaims", "-n", "anywhere")
