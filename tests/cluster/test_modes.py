"""What a cluster's binder does for everybody, whoever it is: the in-tree one, or Moorage in its place."""

import pytest

from tests.cluster.kube import Kube
from tests.cluster.manifests import claim, pod, static_volume, storage_class

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

OTHER = "other.example.com"
ANNOUNCED = ("volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner")


def _phase(kube: Kube, volume: str) -> str:
    return str(kube.get("pv", volume)["status"]["phase"])


@pytest.mark.parametrize("class_name", ["moorage", "moorage-immediate"])
def test_a_claim_of_ours_is_mounted_and_deleted_without_a_trace(kube_of_mode: Kube, class_name: str) -> None:
    kube = kube_of_mode
    kube.apply(claim("data", class_name=class_name), pod("first", claim_name="data"))
    kube.running("first")
    kube.run("first", "sh", "-c", "echo hello > /data/word; sync")
    volume = kube.bound("data")
    kube.delete("pod", "first")
    kube.delete("pvc", "data")
    kube.gone(volume)


def test_a_volume_by_hand_is_bound_where_the_scheduler_puts_the_pod(kube_of_mode: Kube) -> None:
    kube, name = kube_of_mode, kube_of_mode.namespace
    late = storage_class(name, mode="WaitForFirstConsumer") | {"provisioner": "kubernetes.io/no-provisioner"}
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-1"]}
    kube.apply(
        late,
        static_volume(
            name,
            test=kube.namespace,
            class_name=name,
            size="8Mi",
            hostPath={"path": f"/tmp/{name}", "type": "DirectoryOrCreate"},  # noqa: S108 - on a node of the test's own
            nodeAffinity={"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        ),
        claim("data", class_name=name, size="4Mi"),
    )
    kube.until("Available", lambda: _phase(kube, name) == "Available")
    assert kube.get("pvc", "data")["status"]["phase"] == "Pending"
    kube.apply(pod("first", claim_name="data"))
    kube.running("first")
    assert kube.bound("data")["metadata"]["name"] == name
    kube.delete("pod", "first")
    kube.cluster.kubectl("delete", "storageclass", name)


def test_another_provisioner_is_told_to_begin_and_what_it_made_is_bound(kube_of_mode: Kube) -> None:
    kube, name = kube_of_mode, kube_of_mode.namespace
    kube.apply(storage_class(name) | {"provisioner": OTHER}, claim("data", class_name=name, size="8Mi"))
    kube.until(
        "both annotations name the provisioner",
        lambda: (
            [kube.get("pvc", "data")["metadata"].get("annotations", {}).get(key) for key in ANNOUNCED] == [OTHER, OTHER]
        ),
    )
    held = kube.get("pvc", "data")
    holder = {"kind": "PersistentVolumeClaim", "apiVersion": "v1"}
    holder |= {key: held["metadata"][key] for key in ("namespace", "name", "uid")}
    made = static_volume(
        f"pvc-{held['metadata']['uid']}",
        test=kube.namespace,
        class_name=name,
        size="8Mi",
        claimRef=holder,
        hostPath=None,
        csi={"driver": OTHER, "volumeHandle": name},
    )
    made["metadata"]["annotations"] = {"pv.kubernetes.io/provisioned-by": OTHER}
    kube.apply(made)
    assert kube.bound("data")["metadata"]["name"] == made["metadata"]["name"]
    kube.until("the volume is Bound too", lambda: _phase(kube, made["metadata"]["name"]) == "Bound")
    kube.cluster.kubectl("delete", "storageclass", name)


def test_a_claim_without_a_class_gets_the_default_that_is_made_later(kube_of_mode: Kube) -> None:
    kube, name = kube_of_mode, kube_of_mode.namespace
    unnamed = claim("data", class_name="")
    del unnamed["spec"]["storageClassName"]
    kube.apply(unnamed)
    later = storage_class(name, backend="directory", quota="best-effort")
    later["metadata"]["annotations"] = {"storageclass.kubernetes.io/is-default-class": "true"}
    kube.apply(later)
    try:
        kube.bound("data")
        assert kube.get("pvc", "data")["spec"]["storageClassName"] == name
    finally:
        kube.cluster.kubectl("delete", "storageclass", name)


def test_a_retained_volume_is_released_and_free_again_once_nobody_is_named_on_it(kube_of_mode: Kube) -> None:
    kube, name = kube_of_mode, kube_of_mode.namespace
    kube.apply(static_volume(name, test=kube.namespace, class_name=name, size="8Mi"))
    kube.apply(claim("first", class_name=name, size="8Mi"))
    kube.bound("first")
    kube.delete("pvc", "first")
    kube.until("Released", lambda: _phase(kube, name) == "Released")
    kube.apply(claim("second", class_name=name, size="8Mi"))
    kube.kubectl("patch", "pv", name, "--type=json", '--patch=[{"op":"remove","path":"/spec/claimRef"}]')
    assert kube.bound("second")["metadata"]["name"] == name


def test_a_claim_whose_volume_is_gone_is_lost_and_says_so(kube_of_mode: Kube) -> None:
    kube, name = kube_of_mode, kube_of_mode.namespace
    kube.apply(
        static_volume(name, test=kube.namespace, class_name=name, size="8Mi"),
        claim("data", class_name=name, size="8Mi"),
    )
    kube.bound("data")
    kube.delete("pv", name, wait=False)
    kube.kubectl("patch", "pv", name, "--type=merge", '--patch={"metadata":{"finalizers":null}}')
    kube.until("Lost", lambda: kube.get("pvc", "data")["status"]["phase"] == "Lost")
    kube.message("data", saying=f"Volume {name}, which the claim was bound to, does not exist any more")
