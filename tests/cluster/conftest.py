"""A namespace for each test, in a cluster with the chart installed: beside the in-tree binder, or instead of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cluster.kube import Kube
from tests.harness.cluster import Cluster

CLUSTERS = {"beside": "cluster", "instead": "cluster_without_binder"}


@pytest.fixture
def kube(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Kube]:
    """A namespace of the test's own; afterwards it is deleted and nothing of its volumes may be left on the node."""
    with _namespace(cluster, request.node.nodeid) as seen:
        yield seen


@pytest.fixture(scope="module", params=["beside", "instead"])
def binder_mode(request: pytest.FixtureRequest) -> str:
    """Each mode of the binder."""
    mode: str = request.param
    return mode


@pytest.fixture
def kube_of_mode(binder_mode: str, request: pytest.FixtureRequest) -> Iterator[Kube]:
    """A namespace as above, in a cluster of each mode."""
    with _namespace(request.getfixturevalue(CLUSTERS[binder_mode]), request.node.nodeid) as seen:
        yield seen


@pytest.fixture(scope="module")
def kube_of_module(binder_mode: str, request: pytest.FixtureRequest) -> Iterator[Kube]:
    """A namespace for all tests of a module, in a cluster of each mode."""
    with _namespace(request.getfixturevalue(CLUSTERS[binder_mode]), f"{request.node.nodeid} {binder_mode}") as seen:
        yield seen


@contextmanager
def _namespace(cluster: Cluster, test: str) -> Iterator[Kube]:
    name = f"t-{abs(hash(test)) % 10**8}"
    seen = Kube(cluster=cluster, namespace=name)
    cluster.kubectl("create", "namespace", name)
    yield seen
    volumes = [
        volume
        for volume in cluster.get("pv")["items"]
        if volume["spec"].get("claimRef", {}).get("namespace") == name
        and volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
    ]
    # Without volumes to look for there is nothing to wait for.
    cluster.kubectl("delete", "namespace", name, "--timeout=120s", f"--wait={str(bool(volumes)).lower()}")
    seen.gone(*volumes)
    cluster.kubectl("delete", "pv", f"--selector=test={name}", "--wait=false", "--ignore-not-found")
