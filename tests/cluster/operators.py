"""What the operator's pods answer on their own port, asked through the API server."""

import json
import re
from typing import Any

from tests.harness import product
from tests.harness.cluster import Cluster

SELECTOR = "app.kubernetes.io/name=moorage,app.kubernetes.io/component=operator"
PORT = 9742


def pods(cluster: Cluster) -> list[str]:
    """Return the names of the operator's pods that are there to stay."""
    found = cluster.get("-n", product.NAMESPACE, "pod", "-l", SELECTOR)["items"]
    return [pod["metadata"]["name"] for pod in found if not pod["metadata"].get("deletionTimestamp")]


def page(cluster: Cluster, pod: str, path: str) -> str:
    """Return a page of one of them."""
    place = f"/api/v1/namespaces/{product.NAMESPACE}/pods/{pod}:{PORT}/proxy{path}"
    return cluster.kubectl("get", "--raw", place).stdout


def metric(cluster: Cluster, name: str) -> list[float]:
    """Return a metric of each of them, summed over its labels."""
    row = re.compile(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", flags=re.MULTILINE)
    return [sum(map(float, row.findall(page(cluster, pod, "/metrics")))) for pod in pods(cluster)]


def lease(cluster: Cluster) -> Any:
    """Return the Lease."""
    return cluster.get("-n", product.NAMESPACE, "lease", "moorage-operator")


def waiting_claims(cluster: Cluster, namespace: str) -> dict[str, dict[str, Any]]:
    """Return what the leader says about the waiting claims of a namespace, by name."""
    leader = lease(cluster)["spec"]["holderIdentity"].rpartition("_")[0]
    answers = json.loads(page(cluster, leader, "/claims"))["claims"]
    return {answer["name"]: answer for answer in answers if answer["namespace"] == namespace}
