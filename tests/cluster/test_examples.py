"""Every example of manifests/examples works as it is printed, and the chart's own test passes."""

from pathlib import Path

import pytest

from tests.cluster.kube import Kube

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
