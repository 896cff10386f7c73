"""Two operators that both act, beside the in-tree binder that acts too: slower, and never wrong."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster import crowd, operators
from tests.cluster.journal import Journal
from tests.cluster.kube import POOL, Kube
from tests.cluster.manifests import claim, static_volume
from tests.harness import product
from tests.harness.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

MADE, FREE, RESERVED, NAMED = 40, 40, 20, 20
"""Claims that are provisioned, that find a free volume, whose volume names them, and that name their volume."""
ALL = MADE + FREE + RESERVED + NAMED


@pytest.fixture(scope="module", autouse=True)
def two_leaders(cluster: Cluster) -> Iterator[None]:
    """The chart's two operators without an election, for the time of this module."""
    product.change(cluster.kubeconfig, "operator.leaderElection=false")
    try:
        yield
    finally:
        product.change(cluster.kubeconfig, "operator.leaderElection=true")


def _objects(kube: Kube) -> Iterator[dict[str, Any]]:
    """Return volumes and claims mixed, so that either may be seen first."""
    test = kube.namespace
    for number in range(ALL):
        if number < MADE:
            yield claim(f"made-{number}", class_name="moorage-directory-immediate", size="16Mi")
        if number < FREE:
            # All of one size, because the first to come may take any.
            yield static_volume(f"{test}-free-{number}", test=test, class_name=test, size="1Mi")
            yield claim(f"free-{number}", class_name=test, size="1Mi")
        if number < RESERVED:
            wanted = {"namespace": test, "name": f"reserved-{number}"}
            yield static_volume(f"{test}-reserved-{number}", test=test, class_name=test, size="50Mi", claimRef=wanted)
            yield claim(f"reserved-{number}", class_name=test, size="50Mi")
        if number < NAMED:
            # In a class of its own, so that only its name leads to it.
            name, class_name = f"{test}-named-{number}", f"{test}-named"
            yield static_volume(name, test=test, class_name=class_name, size="1Mi")
            yield claim(f"named-{number}", class_name=class_name, size="1Mi", volumeName=name)


def _bound(kube: Kube, journal: Journal) -> int:
    """Return how many pairs are Bound on both sides."""
    volumes = journal.volumes()
    pairs = (
        (each, volumes.get(each["spec"].get("volumeName", ""))) for each in journal.claims(kube.namespace).values()
    )
    return sum(volume is not None and _phase(each) == _phase(volume) == "Bound" for each, volume in pairs)


def _phase(body: dict[str, Any]) -> str:
    return str(body["status"].get("phase", ""))


def _free_lease(kube: Kube) -> dict[str, Any] | None:
    lease: dict[str, Any] = operators.lease(kube.cluster)
    return None if lease["spec"].get("holderIdentity") else lease


def test_every_claim_is_bound_once_and_nothing_changes_back_and_forth(kube: Kube) -> None:
    assert operators.metric(kube.cluster, "moorage_leader") == [1, 1]
    lease = kube.until("those before have given the Lease back", lambda: _free_lease(kube))
    with Journal(kube.cluster.kubeconfig) as journal:
        crowd.create(kube.cluster.kubeconfig, _objects(kube), namespace=kube.namespace)
        journal.until(f"{ALL} pairs Bound", lambda: _bound(kube, journal) == ALL, seconds=120)
    assert journal.turned_back() == []

    claims = journal.claims(kube.namespace)
    held = {
        name: volume
        for name, volume in journal.volumes().items()
        if volume["spec"].get("claimRef", {}).get("namespace") == kube.namespace
    }
    assert {each["spec"]["volumeName"] for each in claims.values()} == set(held)
    assert len(held) == len(claims) == ALL
    for name, each in claims.items():
        volume = held[each["spec"]["volumeName"]]
        assert volume["spec"]["claimRef"]["uid"] == each["metadata"]["uid"]
        kind, _, number = name.partition("-")
        if kind in {"reserved", "named"}:
            assert volume["metadata"]["name"] == f"{kube.namespace}-{kind}-{number}"
    made = {volume["spec"]["csi"]["volumeHandle"] for volume in held.values() if "csi" in volume["spec"]}
    folders = {path.name for path in (kube.cluster.node_dir() / POOL / "volumes").iterdir()}
    assert len(made) == MADE
    assert made <= folders
    assert sum(operators.metric(kube.cluster, "moorage_api_conflicts_total")) > 0
    assert _free_lease(kube) == lease


def test_what_both_delete_at_the_same_time_is_gone_with_its_storage(kube: Kube) -> None:
    names = [f"made-{number}" for number in range(10)]
    claims = (claim(name, class_name="moorage-directory-immediate", size="16Mi") for name in names)
    crowd.create(kube.cluster.kubeconfig, claims, namespace=kube.namespace)
    volumes = [kube.bound(name) for name in names]
    kube.delete("pvc", *names)
    kube.gone(*volumes)
