"""What every suite shares: markers by folder, an API server with etcd, whole clusters with Moorage installed."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.harness import debian, product, product_image
from tests.harness.cluster import Cluster
from tests.harness.controlplane import ControlPlane
from tests.harness.places import ROOT
from tests.harness.progress import Silent

TESTS = Path(__file__).resolve().parent
MARKED_FOLDERS = {"api", "kernel", "sanity", "cluster"}
CLUSTER_SECONDS = 300
"""A cluster test's time, which for the first one includes the start of the cluster and maybe the image's build."""
USERS = {"moorage-operator": "system:masters", "somebody": "system:masters"}
"""Users with a token of their own, so that the audit log tells whose writes are whose."""
POOLS = (
    "pools[0].name=default",
    "pools[0].path=/var/lib/moorage/default",
    "pools[0].reserve=5%",
    "pools[1].name=shared",
    "pools[1].path=/var/lib/moorage/shared",
    "pools[1].shared=true",
)
"""The chart's own pool and one that is declared shared, as the examples for several nodes ask for."""

IMPORTS = "/var/lib/moorage/imports"
"""Where a node's existing directories lie that may be imported."""

OFFERS = ("ephemeralVolumes.enabled=true", f"imports={{{IMPORTS}}}")
"""What an installation has to allow."""

# A change is judged by the same examples each time; every other run looks for new ones and prints how to repeat them.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by the folder it lies in, so that no test can be forgotten by the selection of suites."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in MARKED_FOLDERS:
            item.add_marker(folder)
        if folder == "cluster" and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(CLUSTER_SECONDS))


@pytest.fixture(scope="session")
def api_server() -> Iterator[ControlPlane]:
    """A real kube-apiserver and etcd, no controllers; `.access("moorage-operator")` is a user of its own."""
    with ControlPlane(f"pytest-{os.getpid()}", users=USERS) as plane:
        yield plane


@pytest.fixture(scope="session")
def api_server_with_controllers() -> Iterator[ControlPlane]:
    """A real kube-apiserver and etcd with every in-tree controller, the persistent-volume binder among them."""
    with ControlPlane(f"pytest-{os.getpid()}-controllers", controllers=True, users=USERS) as plane:
        yield plane


@pytest.fixture(scope="session")
def api_server_without_binder() -> Iterator[ControlPlane]:
    """The same without the persistent-volume binder, whose place the operator takes."""
    with ControlPlane(f"pytest-{os.getpid()}-instead", controllers=True, binder=False, users=USERS) as plane:
        yield plane


@pytest.fixture(scope="session")
def bare_machine() -> None:
    """Skips where no virtual node can run, naming what is missing."""
    if os.geteuid() != 0:
        pytest.skip("a virtual node needs root")
    lacking = debian.missing_packages()
    if lacking:
        pytest.skip(f"a virtual node needs {', '.join(lacking)}")


@pytest.fixture(scope="session")
def cluster(bare_machine: None, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A whole Kubernetes with one node and the chart installed; a failed run leaves its logs in build/."""
    with _installed(request, mode="beside") as started:
        yield started


@pytest.fixture(scope="session")
def cluster_without_binder(bare_machine: None, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The same without the in-tree persistent-volume binder, and Moorage in its place."""
    with _installed(request, mode="instead") as started:
        yield started


@contextlib.contextmanager
def _installed(request: pytest.FixtureRequest, *, mode: str) -> Iterator[Cluster]:
    image = product_image.build(progress=Silent())
    with Cluster(f"pytest-{os.getpid()}-{mode}", binder=mode == "beside", users=USERS) as started:
        started.load_images(image.archive)
        product.install(started.kubeconfig, image=image.name, values=(*POOLS, *OFFERS, f"binder.mode={mode}"))
        yield started
        if request.session.testsfailed:
            kept = ROOT / "build" / "cluster-logs" / mode
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(started.node_dir() / "log", kept, ignore_dangling_symlinks=True)
