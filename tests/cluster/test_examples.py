"""Every example of manifests/examples works as it is printed, and the chart's own test passes."""

from pathlib import Path

import pytest

from tests.cluster.kube import Kube
from tests.cluster.manifests import claim
from tests.harness import product

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).resolve().parents[2] / "manifests" / "examples"
ON_ONE_NODE = ["rwo", "rwop", "block", "immediate", "directory"]


@pytest.mark.parametrize("name", ON_ONE_NODE)
def test_an_example_binds_and_its_pods_run(kube: Kube, name: str) -> None:
    kube.kubectl("apply", "-f", str(EXAMPLES / f"{name}.yaml"))
    for held in kube.get("pvc")["items"]:
        kube.bound(held["metadata"]["name"])
    kube.running(*(each["metadata"]["name"] for each in kube.get("pod")["items"]))
    kube.delete("pod", *(each["metadata"]["name"] for each in kube.get("pod")["items"]))


def test_the_example_of_many_writers_has_them_write_into_one_volume(kube: Kube) -> None:
    kube.kubectl("apply", "-f", str(EXAMPLES / "rwx.yaml"))
    kube.kubectl("rollout", "status", "deployment/together", "--timeout=90s")
    writers = {each["metadata"]["name"] for each in kube.get("pod")["items"]}
    assert len(writers) == 2
    kube.until(
        "each pod sees what both write",
        lambda: all(
            {line.split()[0] for line in kube.run(pod, "cat", "/data/log").splitlines()} >= writers for pod in writers
        ),
    )
    assert "nodeAffinity" not in kube.bound("together")["spec"]
    kube.delete("deployment", "together")


def test_the_example_of_many_readers_lets_none_of_them_write(kube: Kube) -> None:
    kube.kubectl("apply", "-f", str(EXAMPLES / "rox.yaml"))
    kube.kubectl("rollout", "status", "deployment/readers", "--timeout=90s")
    readers = [each["metadata"]["name"] for each in kube.get("pod", "-l", "app=readers")["items"]]
    assert len(readers) == 2
    for pod in readers:
        kube.until("the book is read", lambda pod=pod: "read-only, as it should be" in kube.kubectl("logs", pod))  # type: ignore[misc]
        assert "read me" in kube.kubectl("logs", pod).splitlines()
    kube.delete("deployment", "readers")


def test_a_claim_for_many_nodes_in_a_pool_of_one_is_refused_with_the_reason(kube: Kube) -> None:
    kube.apply(claim("many", class_name="moorage-directory-immediate", modes=("ReadWriteMany",)))
    assert "share" in kube.message("many", saying="INVALID_ARGUMENT")


def test_the_charts_own_test_passes_for_every_class(kube: Kube) -> None:
    said = product.helm(
        "test", product.RELEASE, f"--namespace={product.NAMESPACE}", kubeconfig=kube.cluster.kubeconfig, seconds=240
    )
    assert said.count("Phase:          Succeeded") == 4
