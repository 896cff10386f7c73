"""What pods get without a claim being made for them: a volume of their own, a directory that was there, and their group."""

import functools
import json
from pathlib import Path

import pytest

from tests.cluster.kube import POOL, Kube
from tests.cluster.manifests import claim, pod
from tests.conftest import IMPORTS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).resolve().parents[2] / "manifests" / "examples"


def own_volumes(kube: Kube) -> list[str]:
    """The ids of the volumes in the default pool that stand in pods."""
    records = (kube.cluster.node_dir() / POOL / "volumes").glob("*/record.json")
    return [path.parent.name for path in records if json.loads(path.read_text()).get("ephemeralAt")]


def test_a_volume_that_stands_in_a_pod_is_of_its_size_and_group_and_goes_with_it(kube: Kube) -> None:
    kube.kubectl("apply", "-f", str(EXAMPLES / "ephemeral.yaml"))
    kube.running("scratch")
    assert len(own_volumes(kube)) == 1
    assert kube.run("scratch", "stat", "-c", "%g %a", "/scratch").split()[0] == "1000"
    kilobytes = int(kube.run("scratch", "df", "-k", "/scratch").splitlines()[-1].split()[1])
    assert 0.8 * 65536 <= kilobytes <= 65536
    kube.until("the pod writes as user 1000", lambda: kube.run("scratch", "cat", "/scratch/log"))
    kube.delete("pod", "scratch")
    kube.until("its volume is gone", lambda: not own_volumes(kube))


def test_a_directory_that_was_there_is_written_to_and_stays_as_it_was(kube: Kube) -> None:
    directory = kube.cluster.node_dir() / "moorage" / Path(IMPORTS).name / kube.namespace
    directory.mkdir(parents=True)
    directory.chmod(0o2750)
    (directory / "before").write_text("here before\n")
    kube.kubectl("apply", "-f", "-", stdin=_at(f"{IMPORTS}/{kube.namespace}", kube))
    kube.bound("team-a")
    kube.running("team-a")
    assert kube.run("team-a", "cat", "/data/before") == "here before\n"
    kube.until("the pod writes", (directory / "log").exists)
    kube.delete("pod", "team-a")
    kube.delete("pvc", "team-a")
    kube.delete("pv", "team-a")
    assert {path.name for path in directory.iterdir()} == {"before", "log"}
    assert directory.stat().st_mode & 0o7777 == 0o2750


def test_a_directory_outside_of_what_is_listed_is_refused_with_what_is_allowed(kube: Kube) -> None:
    kube.kubectl("apply", "-f", "-", stdin=_at("/etc", kube))
    kube.bound("team-a")
    assert IMPORTS in kube.message("team-a", saying="imports")
    kube.delete("pod", "team-a")
    kube.delete("pvc", "team-a")
    kube.delete("pv", "team-a")


def test_pods_of_different_groups_take_turns_with_one_volume(kube: Kube) -> None:
    kube.apply(claim("data", class_name="moorage"))
    for group in (2000, 3000):
        name = f"of-{group}"
        made = pod(name, claim_name="data", script=f"echo {group} >> /data/file; sleep 3600")
        made["spec"]["securityContext"] = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": group}
        kube.apply(made)
        kube.running(name)
        kube.until(f"group {group} writes", functools.partial(_reads, kube, name, str(group)))
        assert kube.run(name, "stat", "-c", "%g", "/data/file").strip() == str(group)
        kube.delete("pod", name)


def _reads(kube: Kube, pod_name: str, text: str) -> bool:
    return text in kube.run(pod_name, "cat", "/data/file")


def _at(path: str, kube: Kube) -> str:
    """The printed example, for another directory."""
    printed = (EXAMPLES / "import-pv.yaml").read_text()
    node = kube.cluster.get("node")["items"][0]["metadata"]["name"]
    for old, new in (
        ("/srv/data/team-a", path),
        ("namespace: default", f"namespace: {kube.namespace}"),
        ("the-node", node),
    ):
        assert old in printed
        printed = printed.replace(old, new)
    return printed
