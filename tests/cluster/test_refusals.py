"""What bad input gets: a sentence on the claim that names it and what is allowed, no storm, and nothing left behind."""

import time

import pytest

from tests.bench import audit
from tests.cluster.kube import Kube
from tests.cluster.manifests import claim, pod, storage_class

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

OPERATOR = "system:serviceaccount:moorage-system:moorage-operator"


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"backend": "zfs"}, ("backend", "zfs", "auto", "image", "directory")),
        ({"pool": "nvme"}, ("pool", "nvme", "default")),
        ({"csi.storage.k8s.io/fstype": "ntfs"}, ("ntfs", "ext4", "xfs")),
        ({"replicas": "3"}, ("replicas", "backend", "pool")),
        ({"backend": "directory", "quota": "always"}, ("quota", "always", "required", "best-effort", "none")),
        ({"backend": "directory"}, ("quota", "best-effort")),
    ],
    ids=["backend", "pool", "filesystem", "unknown", "quota", "no-project-quota"],
)
def test_a_class_that_cannot_be_served_is_named_on_the_claim_once(
    kube: Kube, parameters: dict[str, str], words: tuple[str, ...]
) -> None:
    name = f"{kube.namespace}-bad"
    kube.apply(storage_class(name, **parameters), claim("data", class_name=name))
    message = kube.message("data", saying=words[0])
    assert all(word in message for word in words), message
    start = audit.position(kube.cluster.audit_log)
    time.sleep(10)
    assert not list(audit.writes(kube.cluster.audit_log, since=start, user=OPERATOR))
    assert kube.get("pvc", "data")["status"]["phase"] == "Pending"
    kube.cluster.kubectl("delete", "storageclass", name)


@pytest.mark.parametrize(("size", "minimum"), [("4Mi", "300Mi"), ("1", "300Mi")])
def test_a_size_too_small_for_the_filesystem_is_refused_with_the_minimum(kube: Kube, size: str, minimum: str) -> None:
    name = f"{kube.namespace}-xfs"
    kube.apply(
        storage_class(name, backend="image", **{"csi.storage.k8s.io/fstype": "xfs"}),
        claim("data", class_name=name, size=size),
    )
    assert minimum in kube.message("data", saying="xfs")
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
    found = audit.tally(
        write
        for write in audit.writes(kube.cluster.audit_log, since=start, user=OPERATOR)
        if not write.resource.startswith("leases")
    )
    assert not found


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
