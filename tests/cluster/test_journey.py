"""A claim's whole life, for both backends and both binding modes."""

import hashlib
from pathlib import Path

import pytest

from tests.cluster.kube import Kube
from tests.cluster.manifests import claim, pod, storage_class

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

CLASSES = ["moorage", "moorage-immediate", "moorage-directory", "moorage-directory-immediate"]


@pytest.mark.parametrize("class_name", CLASSES)
def test_what_one_pod_writes_the_next_pod_reads_and_deletion_leaves_nothing(kube: Kube, class_name: str) -> None:
    kube.apply(claim("data", class_name=class_name), pod("first", claim_name="data"))
    kube.running("first")
    kube.run("first", "sh", "-c", "head -c 3000000 /dev/urandom > /data/blob; sync")
    written = kube.run("first", "sha256sum", "/data/blob").split()[0]
    kube.delete("pod", "first")

    kube.apply(pod("second", claim_name="data"))
    kube.running("second")
    assert kube.run("second", "sha256sum", "/data/blob").split()[0] == written

    volume = kube.bound("data")
    assert kube.storage_of(volume)
    kube.delete("pod", "second")
    kube.delete("pvc", "data")
    kube.gone(volume)


def test_a_bound_pair_agrees_and_says_what_it_is(kube: Kube) -> None:
    kube.apply(claim("data", class_name="moorage-immediate"))
    volume = kube.bound("data")
    held = kube.get("pvc", "data")
    assert volume["metadata"]["name"] == f"pvc-{held['metadata']['uid']}" == held["spec"]["volumeName"]
    assert volume["spec"]["claimRef"]["uid"] == held["metadata"]["uid"]
    assert volume["status"]["phase"] == "Bound"
    assert held["status"]["capacity"] == volume["spec"]["capacity"] == {"storage": "64Mi"}
    assert volume["spec"]["csi"]["volumeAttributes"]["backend"] == "image"
    assert volume["spec"]["csi"]["volumeAttributes"]["quota"] == "enforced"
    node = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]
    assert (node["key"], node["values"]) == ("topology.moorage.dev/node", ["node-1"])
    reasons = [
        event["reason"]
        for event in kube.events("data")
        if event["source"].get("component") != "persistentvolume-controller"
    ]
    assert reasons == ["ProvisioningSucceeded"]


def test_an_image_ends_at_its_size_and_df_shows_it(kube: Kube) -> None:
    kube.apply(claim("small", class_name="moorage-immediate", size="64Mi"), pod("writer", claim_name="small"))
    kube.running("writer")
    size_kib = int(kube.run("writer", "df", "-k", "/data").splitlines()[-1].split()[1])
    assert 0.85 * 64 * 1024 <= size_kib <= 64 * 1024
    answer = kube.attempt("writer", "sh", "-c", "dd if=/dev/zero of=/data/full bs=1M count=80")
    assert answer.returncode != 0
    assert "No space left on device" in answer.stderr
    written = int(kube.run("writer", "stat", "-c", "%s", "/data/full"))
    assert 0.85 * 64 * 2**20 <= written <= 64 * 2**20


def test_an_xfs_volume_is_xfs(kube: Kube) -> None:
    kube.cluster.kubectl("delete", "storageclass", "t-xfs", "--ignore-not-found")
    kube.apply(
        storage_class("t-xfs", backend="image", **{"csi.storage.k8s.io/fstype": "xfs"}),
        claim("data", class_name="t-xfs", size="320Mi"),
        pod("reader", claim_name="data"),
    )
    kube.running("reader")
    assert " /data xfs " in kube.run("reader", "cat", "/proc/mounts")
    assert kube.bound("data")["spec"]["csi"]["fsType"] == "xfs"


def test_a_best_effort_directory_says_so_on_the_volume(kube: Kube) -> None:
    kube.apply(claim("data", class_name="moorage-directory-immediate"))
    attributes = kube.bound("data")["spec"]["csi"]["volumeAttributes"]
    assert (attributes["backend"], attributes["quota"]) == ("directory", "best-effort")


def test_a_block_volume_keeps_its_bytes_across_pods(kube: Kube) -> None:
    kube.apply(
        claim("disk", class_name="moorage", size="16Mi", volume_mode="Block"),
        pod("first", claim_name="disk", block=True),
    )
    kube.running("first")
    kube.run("first", "sh", "-c", "yes moorage | head -c 1048576 | dd of=/dev/data bs=64k conv=fsync 2>/dev/null")
    kube.delete("pod", "first")
    kube.apply(pod("second", claim_name="disk", block=True))
    kube.running("second")
    read = kube.run("second", "sh", "-c", "head -c 1048576 /dev/data | sha256sum").split()[0]
    assert read == hashlib.sha256((b"moorage\n" * 131072)[:1048576]).hexdigest()


def test_two_pods_of_one_node_share_a_volume_and_one_of_them_may_only_read(kube: Kube) -> None:
    kube.apply(
        claim("data", class_name="moorage"),
        pod("writer", claim_name="data"),
        pod("reader", claim_name="data", read_only=True),
    )
    kube.running("writer", "reader")
    kube.run("writer", "sh", "-c", "echo hello > /data/word")
    assert kube.run("reader", "cat", "/data/word") == "hello\n"
    assert "Read-only file system" in kube.attempt("reader", "touch", "/data/more").stderr
    kube.delete("pod", "writer")
    assert kube.run("reader", "cat", "/data/word") == "hello\n"


def test_a_retained_volume_keeps_its_data_after_its_claim(kube: Kube) -> None:
    kube.cluster.kubectl("delete", "storageclass", "t-retain", "--ignore-not-found")
    kube.apply(
        storage_class("t-retain", backend="directory", quota="best-effort") | {"reclaimPolicy": "Retain"},
        claim("data", class_name="t-retain"),
        pod("writer", claim_name="data", script="echo kept > /data/word; sync; sleep 1000"),
    )
    kube.running("writer")
    volume = kube.bound("data")
    kube.until("the word is written", lambda: kube.attempt("writer", "cat", "/data/word").stdout == "kept\n")
    kube.delete("pod", "writer")
    kube.delete("pvc", "data")
    kube.until("Released", lambda: kube.get("pv", volume["metadata"]["name"])["status"]["phase"] == "Released")
    (folder,) = kube.storage_of(volume)
    assert list(Path(folder).rglob("word"))
    kube.cluster.kubectl(
        "patch", "pv", volume["metadata"]["name"], "-p", '{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}'
    )
    kube.until("storage gone once the policy is Delete", lambda: not kube.storage_of(volume))


def test_fifty_claims_at_once_are_all_bound_one_to_one(kube: Kube) -> None:
    kube.apply(*(claim(f"burst-{number}", class_name="moorage-directory-immediate") for number in range(50)))
    kube.until(
        "all 50 claims Bound",
        lambda: all(each["status"]["phase"] == "Bound" for each in kube.get("pvc")["items"]),
        seconds=120,
    )
    held = kube.get("pvc")["items"]
    volumes = {volume["metadata"]["name"]: volume for volume in kube.get("pv")["items"]}
    names = {each["spec"]["volumeName"] for each in held}
    assert len(names) == 50
    for each in held:
        assert volumes[each["spec"]["volumeName"]]["spec"]["claimRef"]["uid"] == each["metadata"]["uid"]
