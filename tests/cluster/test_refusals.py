"""What bad input gets: a sentence on the claim that names it and what is allowed, no storm, and nothing left behind."""

import time

import pytest

from tests.bench import audit
from tests.cluster.kube import Kube
from tests.cluster.manifests import claim, pod, storage_class

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

OPERATOR = "system:serviceaccount:moorage-system:moorage-operator"


BAD_CLASSES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "backend": ({"backend": "zfs"}, ("backend", "zfs", "auto", "image", "directory")),
    "pool": ({"pool": "nvme"}, ("pool", "nvme", "default")),
    "filesystem": ({"csi.storage.k8s.io/fstype": "ntfs"}, ("ntfs", "ext4", "xfs")),
    "unknown": ({"replicas": "3"}, ("replicas", "backend", "pool")),
    "quota": ({"backend": "directory", "quota": "always"}, ("always", "required", "best-effort", "none")),
    "no-quota-here": ({"backend": "directory"}, ("quota", "best-effort")),
}


def test_classes_that_cannot_be_served_are_each_named_on_their_claim_and_asked_for_once(kube: Kube) -> None:
    names = {case: f"{kube.namespace}-{case}" for case in BAD_CLASSES}
    kube.apply(*(storage_class(names[case], **parameters) for case, (parameters, _) in BAD_CLASSES.items()))
    kube.apply(*(claim(case, class_name=names[case]) for case in BAD_CLASSES))
    for case, (_, words) in BAD_CLASSES.items():
        message = kube.message(case, saying="CreateVolume")
        assert all(word in message for word in words), message
    start = audit.position(kube.cluster.audit_log)
    time.sleep(10)
    assert not list(audit.writes(kube.cluster.audit_log, since=start, user=OPERATOR))
    assert all(kube.get("pvc", case)["status"]["phase"] == "Pending" for case in BAD_CLASSES)
    kube.cluster.kubectl("delete", "storageclass", *names.values())


def test_a_size_too_small_for_the_filesystem_is_refused_with_the_minimum(kube: Kube) -> None:
    name = f"{kube.namespace}-xfs"
    kube.apply(storage_class(name, backend="image", **{"csi.storage.k8s.io/fstype": "xfs"}))
    kube.apply(claim("small", class_name=name, size="4Mi"), claim("one-byte", class_name=name, size="1"))
    assert "300Mi" in kube.message("small", saying="OUT_OF_RANGE")
    assert "300Mi" in kube.message("one-byte", saying="OUT_OF_RANGE")
    kube.cluster.kubectl("delete", "storageclass", name)


@pytest.mark.parametrize("size", ["0", "-1Gi", "10%"])
def test_a_size_that_is_no_size_never_gets_past_the_api_server(kube: Kube, size: str) -> None:
    answer = kube.kubectl("create", "--dry-run=server", "-f", "-", check=False, stdin=_yaml(size))
    assert "created" not in answer


def test_a_full_pool_is_said_with_its_figures_and_leaves_nothing(kube: Kube) -> None:
    pool = kube.cluster.node_dir() / "moorage/default"
    before = sorted(path.name for path in (pool / "volumes").iterdir())
    kube.apply(claim("huge", class_name="moorage-immediate", size="900Ti"))
    message = kube.message("huge", saying="pool")
    assert "default" in message
    assert sorted(path.name for path in (pool / "volumes").iterdir()) == before
    kube.apply(claim("huge-late", class_name="moorage", size="900Ti"), pod("huge-late", claim_name="huge-late"))
    kube.message("huge-late", saying="pool")
    assert sorted(path.name for path in (pool / "volumes").iterdir()) == before


def test_nothing_is_written_while_nothing_changes(kube: Kube) -> None:
    kube.apply(*(claim(f"idle-{number}", class_name="moorage-directory-immediate") for number in range(5)))
    for number in range(5):
        kube.bound(f"idle-{number}")
    time.sleep(3)
    start = audit.position(kube.cluster.audit_log)
    time.sleep(20)
    assert not audit.tally(audit.writes(kube.cluster.audit_log, since=start, user=OPERATOR))


def _yaml(size: str) -> str:
    return f"""
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: no-size, namespace: default}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: moorage
  resources: {{requests: {{storage: "{size}"}}}}
"""
