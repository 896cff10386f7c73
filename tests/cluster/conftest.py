"""A namespace for each test, in one cluster with the chart installed."""

from collections.abc import Iterator

import pytest

from tests.cluster.kube import Kube
from tests.harness.cluster import Cluster


@pytest.fixture
def kube(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Kube]:
    """A namespace of the test's own; afterwards it is deleted and nothing of its volumes may be left on the node."""
    name = f"t-{abs(hash(request.node.nodeid)) % 10**8}"
    seen = Kube(cluster=cluster, namespace=name)
    cluster.kubectl("create", "namespace", name)
    yield seen
    volumes = [
        volume
        for volume in cluster.get("pv")["items"]
        if volume["spec"].get("claimRef", {}).get("namespace") == name
        and volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
    ]
    cluster.kubectl("delete", "namespace", name, "--timeout=120s")
    seen.gone(*volumes)
