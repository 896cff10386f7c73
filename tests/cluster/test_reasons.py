"""`kubectl describe pvc` says why a claim waits and what would help: one sentence for each reason, told once."""

import json
from collections.abc import Iterator

import pytest

from tests.cluster import operators
from tests.cluster.kube import Kube
from tests.cluster.manifests import claim, pod
from tests.cluster.waits import CASES, Wait, Waits

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

US = "moorage-operator"
TOLD_SECONDS = 30


@pytest.fixture(scope="module")
def waits(kube_of_module: Kube) -> Iterator[dict[str, Wait]]:
    """Every claim, waiting since a moment ago."""
    kube = kube_of_module
    found = Waits.of(kube.namespace).found
    kube.apply(*(each for wait in found.values() for each in wait.around))
    leaving = [wait.deleted for wait in found.values() if wait.deleted]
    kube.delete("pv", *leaving, wait=False)
    kube.apply(*(wait.claim for wait in found.values()), *(wait.pod for wait in found.values() if wait.pod))
    yield found
    kube.delete("pod", "--all")
    kube.kubectl("patch", "pv", *leaving, "--type=merge", '--patch={"metadata":{"finalizers":null}}')
    kube.kubectl("delete", "storageclass", f"--selector=test={kube.namespace}")


@pytest.mark.parametrize("case", CASES)
def test_a_waiting_claim_says_why(case: str, waits: dict[str, Wait], kube_of_module: Kube) -> None:
    kube, wait = kube_of_module, waits[case]

    def told() -> str:
        lines = kube.kubectl("describe", "pvc", case).splitlines()
        return next((line for line in lines if US in line and all(part in line for part in wait.says)), "")

    line = kube.until(f"{case} says {wait.says}", told, seconds=TOLD_SECONDS)
    assert not [part for part in wait.never if part in line], line
    assert kube.get("pvc", case)["status"]["phase"] == "Pending"


def test_programs_are_answered_in_the_same_words(waits: dict[str, Wait], kube_of_module: Kube) -> None:
    answers = operators.waiting_claims(kube_of_module.cluster, kube_of_module.namespace)
    assert answers.keys() == waits.keys()
    for case, wait in waits.items():
        assert all(part in answers[case]["message"] for part in wait.says), answers[case]
    nearest = answers["too-small"]["volumes"]
    assert nearest["largestFreeBytes"] == 3 * 2**20
    assert nearest["nearest"] == {"reason": "too small", "volume": f"{kube_of_module.namespace}-too-small-3"}


def test_each_claim_was_told_about_once(waits: dict[str, Wait], kube_of_module: Kube) -> None:
    told: dict[str, list[str]] = {case: [] for case in waits}
    for event in kube_of_module.get("events")["items"]:
        about = event["involvedObject"]
        if event["source"].get("component") == US and about["kind"] == "PersistentVolumeClaim":
            told[about["name"]] += [event["message"]] * (event.get("count") or 1)
    assert {case: messages for case, messages in told.items() if len(messages) != 1} == {}


def test_a_pod_that_names_its_node_gets_a_volume_of_ours_there(kube_of_mode: Kube) -> None:
    kube = kube_of_mode
    placed = pod("placed", claim_name="data")
    placed["spec"]["nodeName"] = "node-1"
    kube.apply(claim("data", class_name="moorage-directory"), placed)
    kube.running("placed")
    assert json.dumps(kube.bound("data")["spec"]["nodeAffinity"]).count("node-1") == 1
