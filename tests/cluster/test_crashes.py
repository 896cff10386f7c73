"""Both programs die while people work: nobody's pod notices, and all of it converges after their return."""

import time

import pytest

from tests.cluster.kube import Kube
from tests.cluster.manifests import claim, pod

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

COUNTING = "i=0; while true; do i=$((i+1)); echo $i >> /data/count || exit 1; sync; sleep 0.05; done"
SYSTEM = "moorage-system"


def test_a_pod_goes_on_writing_while_operator_and_node_plugin_are_killed(kube: Kube) -> None:
    kube.apply(
        claim("image", class_name="moorage"),
        claim("folder", class_name="moorage-directory"),
        pod("image", claim_name="image", script=COUNTING),
        pod("folder", claim_name="folder", script=COUNTING),
    )
    kube.running("image", "folder")

    assert kube.kill_product("moorage-csi") == 1
    assert kube.kill_product("moorage-operator") == 2
    before = {name: int(kube.run(name, "tail", "-n", "1", "/data/count")) for name in ("image", "folder")}
    time.sleep(1)
    for name, count in before.items():
        assert int(kube.run(name, "tail", "-n", "1", "/data/count")) > count
        lines = kube.run(name, "cat", "/data/count").split()
        assert lines == [str(number) for number in range(1, len(lines) + 1)]

    kube.apply(claim("late", class_name="moorage"), pod("late", claim_name="late"))
    kube.running("late", seconds=120)
    kube.delete("pod", "image", "folder", "late")
    volumes = [kube.bound(name) for name in ("image", "folder", "late")]
    kube.delete("pvc", "image", "folder", "late")
    kube.gone(*volumes)


def test_claims_made_while_everything_is_killed_again_and_again_are_bound_once_and_leak_nothing(kube: Kube) -> None:
    pool = kube.cluster.node_dir() / "moorage/default/volumes"
    kept = set(pool.iterdir())
    for part in range(3):
        kube.apply(*(claim(f"c{part}-{number}", class_name="moorage-immediate", size="64Mi") for number in range(8)))
        kube.kill_product(("moorage-csi", "moorage-operator", "moorage-csi")[part])
    kube.until(
        "all 24 claims Bound",
        lambda: [each["status"]["phase"] for each in kube.get("pvc")["items"]] == ["Bound"] * 24,
        seconds=180,
    )
    names = [each["spec"]["volumeName"] for each in kube.get("pvc")["items"]]
    assert len(set(names)) == 24
    ours = [v for v in kube.get("pv")["items"] if v["spec"]["claimRef"]["namespace"] == kube.namespace]
    assert sorted(v["metadata"]["name"] for v in ours) == sorted(names)
    made = {path.name for path in set(pool.iterdir()) - kept}
    assert made == {v["spec"]["csi"]["volumeHandle"] for v in ours}


def test_a_node_plugin_that_is_down_is_the_reason_given_and_its_return_binds_within_seconds(kube: Kube) -> None:
    patch = '{"spec":{"template":{"spec":{"nodeSelector":{"moorage.dev/never":"true"}}}}}'
    kube.cluster.kubectl("-n", SYSTEM, "patch", "daemonset", "moorage-node", "-p", patch)
    try:
        kube.until("the node plugin ended", lambda: not kube.product_processes("moorage-csi"))
        kube.apply(claim("waiting", class_name="moorage-immediate"))
        kube.message("waiting", saying="node plugin", seconds=90)
        time.sleep(8)
        said = [event for event in kube.events("waiting") if event["source"]["component"] == "moorage-operator"]
        assert {event.get("count", 1) for event in said} == {1}
        assert len({event["message"] for event in said}) == len(said) <= 2
        assert kube.get("pvc", "waiting")["status"]["phase"] == "Pending"
    finally:
        undo = '[{"op":"remove","path":"/spec/template/spec/nodeSelector/moorage.dev~1never"}]'
        kube.cluster.kubectl("-n", SYSTEM, "patch", "daemonset", "moorage-node", "--type=json", "-p", undo)
        kube.cluster.kubectl("-n", SYSTEM, "rollout", "status", "daemonset/moorage-node", "--timeout=120s")
    kube.bound("waiting", seconds=10)


def test_the_kubelet_may_restart_between_a_mount_and_its_end(kube: Kube) -> None:
    kube.apply(claim("data", class_name="moorage"), pod("first", claim_name="data"))
    kube.running("first")
    kube.cluster.restart("kubelet")
    kube.cluster.wait_ready()
    volume = kube.bound("data")
    kube.delete("pod", "first")
    kube.delete("pvc", "data")
    kube.gone(volume)
