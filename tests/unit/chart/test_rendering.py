"""What the chart makes of its values."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.chart.rendering import CHART, KUBERNETES, NAMESPACE, Rendering, Values, render, run_helm

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {
    "ServiceAccount": ["moorage-node", "moorage-operator"],
    "ConfigMap": ["moorage-pools"],
    "ClusterRole": ["moorage-operator"],
    "ClusterRoleBinding": ["moorage-operator"],
    "Role": ["moorage-operator"],
    "RoleBinding": ["moorage-operator"],
    "PodDisruptionBudget": ["moorage-operator"],
    "Deployment": ["moorage-operator"],
    "DaemonSet": ["moorage-node"],
    "CSIDriver": ["csi.moorage.dev"],
    "StorageClass": ["moorage", "moorage-directory", "moorage-directory-immediate", "moorage-immediate"],
}
CLUSTER_WIDE = ("ClusterRole", "ClusterRoleBinding", "CSIDriver", "StorageClass")
POOL = {"name": "default", "path": "/var/lib/moorage/default"}


def test_lint_has_nothing_to_say() -> None:
    run_helm("lint", "--strict", str(CHART), "--kube-version", KUBERNETES)


def test_the_defaults_make_these_objects_and_no_other(defaults: Rendering) -> None:
    found: dict[str, list[str]] = {}
    for each in defaults.objects:
        found.setdefault(each["kind"], []).append(each["metadata"]["name"])
    assert {kind: sorted(names) for kind, names in found.items()} == NAMES


def test_every_object_says_where_it_belongs(with_tests: Rendering) -> None:
    for each in with_tests.objects:
        labels = each["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "moorage"
        assert labels["app.kubernetes.io/instance"] == "moorage"
        assert labels["helm.sh/chart"] == "moorage-0.1.0"
        assert each["metadata"].get("namespace") == (None if each["kind"] in CLUSTER_WIDE else NAMESPACE)


def test_the_driver_object_never_changes(defaults: Rendering) -> None:
    assert defaults.only("CSIDriver")["spec"] == {
        "attachRequired": False,
        "podInfoOnMount": True,
        "storageCapacity": False,
        "fsGroupPolicy": "File",
        "volumeLifecycleModes": ["Persistent"],
        "requiresRepublish": False,
        "seLinuxMount": False,
    }


def test_volumes_of_pods_are_offered_where_that_is_asked_for(defaults: Rendering) -> None:
    label = "security.openshift.io/csi-ephemeral-volume-profile"
    assert label not in defaults.only("CSIDriver")["metadata"]["labels"]
    made = render({"ephemeralVolumes": {"enabled": True}}).only("CSIDriver")
    assert made["spec"] == defaults.only("CSIDriver")["spec"] | {"volumeLifecycleModes": ["Persistent", "Ephemeral"]}
    assert made["metadata"]["labels"][label] == "restricted"


def test_what_may_be_imported_is_mounted_at_its_own_path_and_a_change_replaces_the_pods(defaults: Rendering) -> None:
    made = render({"imports": ["/srv/data/", "/mnt/nas"]})
    assert json.loads(made.only("ConfigMap")["data"]["pools.json"])["imports"] == ["/srv/data", "/mnt/nas"]
    paths = _host_paths(made)
    # A node that has none of it goes on with its other volumes.
    assert paths["import-0"] == {"path": "/srv/data", "type": "DirectoryOrCreate"}
    assert paths["import-1"] == {"path": "/mnt/nas", "type": "DirectoryOrCreate"}
    mounts = {each["name"]: each for each in made.container("DaemonSet")["volumeMounts"]}
    assert mounts["import-0"]["mountPath"] == "/srv/data"
    assert mounts["import-1"]["mountPropagation"] == "HostToContainer"
    sums = {each.pod("DaemonSet")["metadata"]["annotations"]["checksum/pools"] for each in (made, defaults)}
    assert len(sums) == 2


def test_the_released_classes_never_change(defaults: Rendering) -> None:
    image, directory = {"backend": "auto"}, {"backend": "directory", "quota": "best-effort"}
    expected = {
        "moorage": ("Delete", "WaitForFirstConsumer", image),
        "moorage-immediate": ("Delete", "Immediate", image),
        "moorage-directory": ("Delete", "WaitForFirstConsumer", directory),
        "moorage-directory-immediate": ("Delete", "Immediate", directory),
    }
    found = {
        each["metadata"]["name"]: (each["reclaimPolicy"], each["volumeBindingMode"], each["parameters"])
        for each in defaults.all("StorageClass")
    }
    assert found == expected
    assert all(each["allowVolumeExpansion"] is False for each in defaults.all("StorageClass"))


def test_selectors_outlive_every_upgrade(tmp_path: Path, defaults: Rendering) -> None:
    newer = tmp_path / "moorage"
    shutil.copytree(CHART, newer)
    text = (newer / "Chart.yaml").read_text().replace("version: 0.1.0", "version: 9.9.9")
    (newer / "Chart.yaml").write_text(text.replace('appVersion: "0.1.0"', 'appVersion: "9.9.9"'))
    upgraded = render({"node": {"podLabels": {"team": "storage"}}}, chart=newer)
    assert upgraded.only("CSIDriver")["metadata"]["labels"]["helm.sh/chart"] == "moorage-9.9.9"
    for kind in ("Deployment", "DaemonSet", "PodDisruptionBudget"):
        assert upgraded.only(kind)["spec"]["selector"] == defaults.only(kind)["spec"]["selector"]
        assert set(defaults.only(kind)["spec"]["selector"]["matchLabels"]) == {
            f"app.kubernetes.io/{key}" for key in ("name", "instance", "component")
        }


@pytest.mark.parametrize("kind", ["Deployment", "DaemonSet"])
def test_pods_carry_what_selects_them_whatever_labels_are_added(kind: str) -> None:
    own = {"team": "storage", "app.kubernetes.io/component": "mine"}
    made = render({"operator": {"podLabels": own}, "node": {"podLabels": own}})
    labels = made.pod(kind)["metadata"]["labels"]
    assert labels["team"] == "storage"
    assert labels.items() >= made.only(kind)["spec"]["selector"]["matchLabels"].items()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "moorage:0.1.0"),
        ({"image": {"tag": "edge"}}, "moorage:edge"),
        ({"image": {"registry": "registry.example/", "tag": "edge"}}, "registry.example/moorage:edge"),
        ({"image": {"registry": "a.example"}, "global": {"imageRegistry": "b.example"}}, "b.example/moorage:0.1.0"),
        ({"image": {"tag": "edge", "digest": "sha256:" + "a" * 64}}, "moorage@sha256:" + "a" * 64),
    ],
)
def test_one_image_for_everything(values: Values, expected: str) -> None:
    made = render(values, tests=True)
    pods = [made.pod("Deployment")["spec"], made.pod("DaemonSet")["spec"], *(pod["spec"] for pod in made.all("Pod"))]
    assert len(pods) == 6
    assert {container["image"] for pod in pods for container in pod["containers"]} == {expected}


def test_pull_secrets_of_both_places_reach_every_pod() -> None:
    values = {"image": {"pullSecrets": [{"name": "one"}]}, "global": {"imagePullSecrets": [{"name": "two"}]}}
    made = render(values, tests=True)
    pods = [made.pod("Deployment")["spec"], made.pod("DaemonSet")["spec"], *(pod["spec"] for pod in made.all("Pod"))]
    assert all(pod["imagePullSecrets"] == [{"name": "two"}, {"name": "one"}] for pod in pods)


@pytest.mark.parametrize("given", ["/var/lib/k0s/kubelet", "/var/lib/k0s/kubelet/"])
def test_the_kubelet_directory_is_the_same_everywhere(given: str) -> None:
    made = render({"kubeletDir": given})
    container = made.container("DaemonSet")
    assert "--kubelet-dir=/var/lib/k0s/kubelet" in container["args"]
    assert "--kubelet-endpoint=/var/lib/k0s/kubelet/plugins/csi.moorage.dev/csi.sock" in container["args"]
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "kubelet")
    assert mount == {"name": "kubelet", "mountPath": "/var/lib/k0s/kubelet", "mountPropagation": "Bidirectional"}
    volumes = _host_paths(made)
    assert volumes["kubelet"] == {"path": "/var/lib/k0s/kubelet", "type": "Directory"}
    assert volumes["registration"] == {"path": "/var/lib/k0s/kubelet/plugins_registry", "type": "Directory"}
    assert volumes["plugin"]["path"] == "/var/lib/k0s/kubelet/plugins/csi.moorage.dev"


def test_pools_are_mounted_at_their_own_path_and_a_change_replaces_the_pods(defaults: Rendering) -> None:
    made = render({"pools": [POOL, {"name": "shared", "path": "/mnt/shared/", "shared": True, "reserve": "1Gi"}]})
    given = {"overcommit": 1, "trashRetention": "0s", "archiveRetention": "0s"}
    assert json.loads(made.only("ConfigMap")["data"]["pools.json"]) == {
        "imports": [],
        "pools": [
            {**POOL, "reserve": "0", "shared": False, **given},
            {"name": "shared", "path": "/mnt/shared", "reserve": "1Gi", "shared": True, **given},
        ],
    }
    assert _host_paths(made)["pool-shared"] == {"path": "/mnt/shared", "type": "DirectoryOrCreate"}
    mounts = {each["name"]: each["mountPath"] for each in made.container("DaemonSet")["volumeMounts"]}
    assert mounts["pool-default"] == "/var/lib/moorage/default"
    assert mounts["pool-shared"] == "/mnt/shared"
    sums = {each.pod("DaemonSet")["metadata"]["annotations"]["checksum/pools"] for each in (made, defaults)}
    assert len(sums) == 2


def test_a_class_has_what_its_values_say() -> None:
    made = render(
        {
            "storageClasses": [
                {
                    "name": "fast",
                    "default": True,
                    "keep": True,
                    "annotations": {"team": "storage"},
                    "reclaimPolicy": "Retain",
                    "volumeBindingMode": "Immediate",
                    "mountOptions": ["noatime"],
                    "parameters": {"pool": "default", "csi.storage.k8s.io/fstype": "xfs", "mountPermissions": "0750"},
                },
                {"name": "plain", "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"},
            ]
        }
    )
    fast = made.only("StorageClass", "fast")
    assert fast["metadata"]["annotations"] == {
        "team": "storage",
        "storageclass.kubernetes.io/is-default-class": "true",
        "helm.sh/resource-policy": "keep",
    }
    assert fast["reclaimPolicy"] == "Retain"
    assert fast["mountOptions"] == ["noatime"]
    assert fast["parameters"] == {"pool": "default", "csi.storage.k8s.io/fstype": "xfs", "mountPermissions": "0750"}
    plain = made.only("StorageClass", "plain")
    assert "annotations" not in plain["metadata"], "a default mark set by hand would not outlive an upgrade"
    assert "parameters" not in plain


def test_no_classes_is_a_choice() -> None:
    made = render({"storageClasses": []}, tests=True)
    assert made.all("StorageClass") == []
    assert made.all("Pod") == []


def test_scheduling_values_reach_their_own_pods() -> None:
    own: dict[str, Any] = {
        "nodeSelector": {"disk": "ssd"},
        "affinity": {"nodeAffinity": {"marker": "here"}},
        "tolerations": [{"key": "storage", "operator": "Exists", "effect": "NoSchedule"}],
        "podAnnotations": {"note": "yes"},
        "resources": {"limits": {"memory": "1Gi"}},
        "priorityClassName": "",
    }
    made = render({"operator": own, "node": own})
    for kind in ("Deployment", "DaemonSet"):
        pod = made.pod(kind)
        assert {key: pod["spec"][key] for key in ("nodeSelector", "affinity", "tolerations")} == {
            key: own[key] for key in ("nodeSelector", "affinity", "tolerations")
        }
        assert pod["metadata"]["annotations"]["note"] == "yes"
        assert "priorityClassName" not in pod["spec"]
        assert made.container(kind)["resources"]["limits"]["memory"] == "1Gi"


def test_one_replica_blocks_no_drain() -> None:
    made = render({"operator": {"replicas": 1}})
    assert made.all("PodDisruptionBudget") == []
    assert made.only("Deployment")["spec"]["replicas"] == 1


def test_the_network_policy_lets_only_the_operator_to_the_csi_port(defaults: Rendering) -> None:
    assert defaults.all("NetworkPolicy") == []
    made = render({"networkPolicy": {"enabled": True}})
    policy = made.only("NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == made.only("DaemonSet")["spec"]["selector"]["matchLabels"]
    csi, metrics = policy["ingress"]
    assert csi["ports"] == [{"port": "csi"}]
    (source,) = csi["from"]
    assert source["podSelector"]["matchLabels"] == made.only("Deployment")["spec"]["selector"]["matchLabels"]
    assert metrics == {"ports": [{"port": "metrics"}]}


def test_every_class_is_tested_by_a_pod_of_its_own(with_tests: Rendering) -> None:
    pods = {pod["metadata"]["name"]: pod for pod in with_tests.all("Pod")}
    assert set(pods) == {f"moorage-test-{name}" for name in NAMES["StorageClass"]}
    for name, pod in pods.items():
        assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
        (volume,) = pod["spec"]["volumes"]
        claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]
        assert claim["storageClassName"] == name.removeprefix("moorage-test-")
        script, *words = pod["spec"]["containers"][0]["args"]
        assert script.strip() == (CHART / "files" / "volume_test.py").read_text().strip()
        assert words[1:] == [claim["storageClassName"], claim["resources"]["requests"]["storage"], words[-1]]
        assert words[-1] == ("best-effort" if "directory" in name else "required")


def _host_paths(made: Rendering) -> dict[str, dict[str, str]]:
    volumes = made.pod("DaemonSet")["spec"]["volumes"]
    return {each["name"]: each["hostPath"] for each in volumes if "hostPath" in each}
