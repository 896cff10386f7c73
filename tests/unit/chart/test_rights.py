"""What the two programs may do: this much and no more. A right that is added has to be added here as well."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.chart.rendering import NAMESPACE, Rendering, Values, render

READ = {"get", "list", "watch"}
ANYWHERE = {
    ("", "persistentvolumeclaims", ""): READ | {"patch"},
    ("", "persistentvolumeclaims/status", ""): {"patch"},
    ("", "persistentvolumes", ""): READ | {"create", "patch", "delete"},
    ("", "persistentvolumes/status", ""): {"patch"},
    ("", "nodes", ""): READ,
    ("", "pods", ""): {"list", "watch"},
    ("", "events", ""): {"create", "get", "patch"},
    ("storage.k8s.io", "storageclasses", ""): READ,
    ("storage.k8s.io", "csinodes", ""): READ,
}
IN_ITS_NAMESPACE = {
    ("coordination.k8s.io", "leases", ""): {"create"},
    ("coordination.k8s.io", "leases", "moorage-operator"): {"get", "update"},
    ("", "secrets", ""): {"create"},
    ("", "secrets", "moorage-ca"): {"get", "update", "delete"},
    ("", "secrets", "moorage-node-tls"): {"get", "update", "delete"},
}


def _rights(role: dict[str, Any]) -> dict[tuple[str, str, str], set[str]]:
    """Return verbs by (group, resource, name); the name is empty where any will do."""
    found: dict[tuple[str, str, str], set[str]] = {}
    for rule in role["rules"]:
        assert set(rule) <= {"apiGroups", "resources", "resourceNames", "verbs"}
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for name in rule.get("resourceNames", [""]):
                    found.setdefault((group, resource, name), set()).update(rule["verbs"])
    return found


def test_the_operator_has_these_rights_anywhere(defaults: Rendering) -> None:
    assert _rights(defaults.only("ClusterRole")) == ANYWHERE


def test_the_operator_has_these_rights_in_its_namespace(defaults: Rendering) -> None:
    role = defaults.only("Role")
    assert role["metadata"]["namespace"] == NAMESPACE
    assert _rights(role) == IN_ITS_NAMESPACE


@pytest.mark.parametrize("values", [{"binder": {"mode": "instead"}}, {"operator": {"leaderElection": False}}])
def test_neither_the_binders_place_nor_the_election_changes_the_rights(values: Values, defaults: Rendering) -> None:
    made = render(values)
    for kind in ("ClusterRole", "Role"):
        assert made.only(kind) == defaults.only(kind)


def test_nobody_reads_secrets_of_others_or_writes_pods_and_nothing_is_a_wildcard(defaults: Rendering) -> None:
    anywhere = _rights(defaults.only("ClusterRole"))
    assert not [key for key in anywhere if key[1].split("/")[0] in ("secrets", "configmaps", "serviceaccounts")]
    assert all(verbs <= READ for key, verbs in anywhere.items() if key[1].split("/")[0] in ("pods", "nodes"))
    for role in (*defaults.all("ClusterRole"), *defaults.all("Role")):
        for (group, resource, _), verbs in _rights(role).items():
            assert "*" not in (group, resource, *verbs)
            assert not verbs & {"deletecollection", "escalate", "bind", "impersonate"}


def test_only_the_operators_account_is_given_rights(defaults: Rendering) -> None:
    for binding in (*defaults.all("ClusterRoleBinding"), *defaults.all("RoleBinding")):
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "moorage-operator", "namespace": NAMESPACE}]
        assert binding["roleRef"]["name"] == "moorage-operator"


def test_the_node_plugin_has_an_account_without_a_token(defaults: Rendering) -> None:
    assert defaults.only("ServiceAccount", "moorage-node")["automountServiceAccountToken"] is False
    pod = defaults.pod("DaemonSet")["spec"]
    assert pod["serviceAccountName"] == "moorage-node"
    assert pod["automountServiceAccountToken"] is False
    assert not [volume for volume in pod["volumes"] if "projected" in volume]


def test_the_operator_runs_as_the_restricted_level_demands(with_tests: Rendering) -> None:
    for pod in (with_tests.pod("Deployment")["spec"], *(each["spec"] for each in with_tests.all("Pod"))):
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & set(pod)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 65532
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not [volume for volume in pod.get("volumes", []) if "hostPath" in volume]
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_one_container_of_the_node_plugin_is_privileged_and_it_joins_no_host_namespace(defaults: Rendering) -> None:
    pod = defaults.pod("DaemonSet")["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
    context = defaults.container("DaemonSet")["securityContext"]
    assert context["privileged"] is True
    assert context["runAsUser"] == 0
    assert context["readOnlyRootFilesystem"] is True


def test_the_node_plugin_sees_of_the_host_only_what_it_needs(defaults: Rendering) -> None:
    paths = {each["hostPath"]["path"] for each in defaults.pod("DaemonSet")["spec"]["volumes"] if "hostPath" in each}
    assert paths == {
        "/dev",
        "/var/lib/kubelet",
        "/var/lib/kubelet/plugins/csi.moorage.dev",
        "/var/lib/kubelet/plugins_registry",
        "/var/lib/moorage/default",
    }


def test_the_certificates_are_waited_for_and_read_by_root_alone(defaults: Rendering) -> None:
    (tls,) = (each for each in defaults.pod("DaemonSet")["spec"]["volumes"] if each["name"] == "tls")
    assert tls["secret"] == {"secretName": "moorage-node-tls", "defaultMode": 0o400}


@pytest.mark.parametrize("kind", ["Deployment", "DaemonSet"])
def test_no_service_can_set_a_variable_that_reads_like_a_setting(kind: str, defaults: Rendering) -> None:
    assert defaults.pod(kind)["spec"]["enableServiceLinks"] is False
