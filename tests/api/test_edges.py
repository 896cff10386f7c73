"""The operator's edges against a real kube-apiserver and etcd."""

import asyncio
import itertools
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from moorage_operator.act.api import Api
from moorage_operator.act.connection import connect
from moorage_operator.act.limiter import Limiter
from moorage_operator.act.recorder import Recorder
from moorage_operator.certificates import Certificates
from moorage_operator.errors import AlreadyExistsError, ConflictError, ForbiddenError, InvalidError, NotFoundError
from moorage_operator.lease import Lease, Terms
from moorage_operator.metrics import Metrics
from moorage_operator.model.reference import Reference
from tests.harness.controlplane import ControlPlane

pytestmark = pytest.mark.api

ROOT = Path(__file__).parents[2]
NUMBERS = itertools.count()


@asynccontextmanager
async def client(plane: ControlPlane, user: str = "moorage-operator") -> AsyncIterator[Api]:
    connection = connect(kubeconfig_path=plane.access(user).kubeconfig, environ={}, home=None, version="test")
    metrics = Metrics(CollectorRegistry(), version="test")
    api = Api(connection, limiter=Limiter(qps=0, burst=0), metrics=metrics)
    try:
        yield api
    finally:
        await api.close()
        await connection.close()


@pytest.fixture
async def api(api_server: ControlPlane) -> AsyncIterator[Api]:
    async with client(api_server) as made:
        yield made


@pytest.fixture
async def namespace(api: Api) -> str:
    name = f"edges-{next(NUMBERS)}"
    await api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    return name


def volume(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "csi": {"driver": "csi.moorage.dev", "volumeHandle": "vol-1"},
        },
    }


@pytest.fixture
async def pv(api: Api) -> AsyncIterator[dict[str, Any]]:
    made = await api.create("/api/v1/persistentvolumes", volume(f"edge-{next(NUMBERS)}"))
    yield made
    path = f"/api/v1/persistentvolumes/{made['metadata']['name']}"
    await api.json_patch(
        path,
        [
            {
                "op": "test",
                "path": "/metadata/resourceVersion",
                "value": (await api.get(path))["metadata"]["resourceVersion"],
            },
            {"op": "add", "path": "/metadata/finalizers", "value": []},
        ],
    )
    await api.delete(path, uid=made["metadata"]["uid"])


def path_of(pv: dict[str, Any]) -> str:
    return f"/api/v1/persistentvolumes/{pv['metadata']['name']}"


def versioned(pv: dict[str, Any], *ops: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"op": "test", "path": "/metadata/resourceVersion", "value": pv["metadata"]["resourceVersion"]}, *ops]


LABEL = {"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}


async def test_an_outdated_put_and_an_outdated_patch_are_conflicts_and_change_nothing(
    api: Api, pv: dict[str, Any]
) -> None:
    newer = await api.json_patch(path_of(pv), versioned(pv, LABEL))
    assert newer["metadata"]["labels"] == {"a": "b"}
    with pytest.raises(ConflictError) as put:
        await api.replace(path_of(pv), {**pv, "spec": {**pv["spec"], "capacity": {"storage": "2Gi"}}})
    assert (put.value.status, put.value.reason) == (409, "Conflict")
    with pytest.raises(ConflictError) as patched:
        await api.json_patch(path_of(pv), versioned(pv, {**LABEL, "value": {"a": "c"}}))
    assert (patched.value.status, patched.value.reason) == (422, "Invalid")
    with pytest.raises(ConflictError):
        await api.replace(f"{path_of(pv)}/status", {**pv, "status": {"phase": "Bound"}})
    assert await api.get(path_of(pv)) == newer


async def test_of_fifty_claims_for_one_volume_exactly_one_wins(api: Api, pv: dict[str, Any]) -> None:
    async def claim(number: int) -> bool:
        wanted = {"namespace": "default", "name": f"claim-{number}", "uid": f"uid-{number}"}
        try:
            if number % 2:
                await api.replace(path_of(pv), {**pv, "spec": {**pv["spec"], "claimRef": wanted}})
            else:
                await api.json_patch(
                    path_of(pv), versioned(pv, {"op": "add", "path": "/spec/claimRef", "value": wanted})
                )
        except ConflictError:
            return False
        return True

    won = [number for number, mine in enumerate(await asyncio.gather(*map(claim, range(50)))) if mine]
    assert len(won) == 1
    assert (await api.get(path_of(pv)))["spec"]["claimRef"]["name"] == f"claim-{won[0]}"


async def test_a_patch_that_is_not_valid_is_no_conflict(api: Api, pv: dict[str, Any]) -> None:
    bad = {"op": "add", "path": "/metadata/labels", "value": {"a": "not a label value!"}}
    with pytest.raises(InvalidError, match="not a label value"):
        await api.json_patch(path_of(pv), versioned(pv, bad))


async def test_deletes_are_for_one_uid_and_version(api: Api, namespace: str) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    made = await api.create(maps, {"metadata": {"name": "x"}})
    with pytest.raises(AlreadyExistsError):
        await api.create(maps, {"metadata": {"name": "x"}})
    uid = made["metadata"]["uid"]
    with pytest.raises(ConflictError):
        await api.delete(f"{maps}/x", uid="00000000-0000-0000-0000-000000000000")
    with pytest.raises(ConflictError):
        await api.delete(f"{maps}/x", uid=uid, resource_version="1")
    assert await api.delete(f"{maps}/x", uid=uid, resource_version=made["metadata"]["resourceVersion"])
    assert not await api.delete(f"{maps}/x", uid=uid)
    with pytest.raises(NotFoundError):
        await api.get(f"{maps}/x")
    with pytest.raises(NotFoundError):
        await api.replace(f"{maps}/x", made)


async def test_lists_are_whole_beyond_a_page_and_uids_are_the_same(api: Api, namespace: str) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    many = (api.create(maps, {"metadata": {"name": f"m-{n}", "labels": {"odd": str(n % 2)}}}) for n in range(620))
    await asyncio.gather(*many)
    items = await api.list(maps)
    assert len({item["metadata"]["name"] for item in items}) == 620
    assert await api.list_uids(maps) == {item["metadata"]["uid"] for item in items}
    assert len(await api.list(maps, labels="odd=1")) == 310
    assert [item["metadata"]["name"] for item in await api.list(maps, fields="metadata.name=m-7")] == ["m-7"]


async def test_what_is_not_allowed_is_forbidden(api_server: ControlPlane, tmp_path: Path) -> None:
    text = api_server.kubeconfig.read_text().replace(api_server.token, "nobody")
    (tmp_path / "config").write_text(text)
    connection = connect(kubeconfig_path=tmp_path / "config", environ={}, home=None, version="test")
    api = Api(connection, limiter=Limiter(qps=0, burst=0), metrics=Metrics(CollectorRegistry(), version="test"))
    with pytest.raises(ForbiddenError):
        await api.get("/api/v1/namespaces/default")
    await api.close()
    await connection.close()


async def test_secrets_made_twice_at_once_are_one_authority(api_server: ControlPlane, api: Api, namespace: str) -> None:
    async with client(api_server, "somebody") as other:
        both = [Certificates(one, namespace=namespace) for one in (api, other)]
        await asyncio.gather(*(one.ensure() for one in both))
        assert both[0].client is not None
        assert both[0].client == both[1].client
        secrets = f"/api/v1/namespaces/{namespace}/secrets"
        authority, node = await api.get(f"{secrets}/moorage-ca"), await api.get(f"{secrets}/moorage-node-tls")
        assert authority["data"]["ca.crt"] == node["data"]["ca.crt"]
        assert (authority["type"], node["type"]) == ("Opaque", "kubernetes.io/tls")
        await both[1].ensure()
        again = await api.get(f"{secrets}/moorage-ca"), await api.get(f"{secrets}/moorage-node-tls")
        assert again == (authority, node)


async def test_a_node_secret_of_the_wrong_type_is_made_anew(api: Api, namespace: str) -> None:
    secrets = f"/api/v1/namespaces/{namespace}/secrets"
    await api.create(secrets, {"metadata": {"name": "moorage-node-tls"}, "immutable": True})
    await Certificates(api, namespace=namespace).ensure()
    assert (await api.get(f"{secrets}/moorage-node-tls"))["type"] == "kubernetes.io/tls"


async def test_events_are_seen_counted_by_who_lists_them(api: Api, namespace: str) -> None:
    now = 0.0
    recorder = Recorder(
        api, metrics=Metrics(CollectorRegistry(), version="test"), instance="moorage-operator-0", clock=lambda: now
    )
    claim = Reference(api_version="v1", kind="PersistentVolumeClaim", namespace=namespace, name="data", uid="u-1")

    async def seen() -> list[tuple[str, str, int]]:
        events = await api.list(f"/api/v1/namespaces/{namespace}/events", fields="involvedObject.uid=u-1")
        return [(event["type"], event["reason"], event["count"]) for event in events]

    for _ in range(3):
        recorder.event(claim, type="Warning", reason="ProvisioningFailed", message="x" * 2000)
        now += 61
        await recorder.stop()
    assert await seen() == [("Warning", "ProvisioningFailed", 3)]
    modern = await api.list(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")
    assert modern[0]["reportingController"] == "moorage-operator"
    assert modern[0]["deprecatedCount"] == 3
    recorder.event(
        Reference(api_version="v1", kind="Node", name="node-a", uid="node-a"),
        type="Normal",
        reason="PluginReturned",
        message="it is back",
    )
    await recorder.stop()
    assert await api.list("/api/v1/namespaces/default/events", fields="involvedObject.kind=Node")


TERMS = Terms(duration=2, renew=1.2, retry=0.2)


async def test_two_leases_race_and_hand_over(api_server: ControlPlane, api: Api, namespace: str) -> None:
    async with client(api_server, "somebody") as other:
        leases = [
            Lease(
                store,
                namespace=namespace,
                name="moorage-operator",
                identity=name,
                metrics=Metrics(CollectorRegistry(), version="test"),
                terms=TERMS,
            )
            for store, name in ((api, "a"), (other, "b"))
        ]
        tasks = [asyncio.create_task(lease.run()) for lease in leases]
        await asyncio.wait([asyncio.create_task(lease.wait()) for lease in leases], return_when=asyncio.FIRST_COMPLETED)
        for _ in range(40):
            assert sum(lease.is_leader for lease in leases) == 1
            await asyncio.sleep(0.05)
        first = next(index for index, lease in enumerate(leases) if lease.is_leader)
        tasks[first].cancel()
        await asyncio.gather(tasks[first], return_exceptions=True)
        stopped = time.monotonic()
        await asyncio.wait_for(leases[1 - first].wait(), 3)
        assert time.monotonic() - stopped < 1
        assert not leases[first].is_leader
        tasks[1 - first].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


REPLICA = """
import asyncio, pathlib, sys, time
from prometheus_client import CollectorRegistry
from moorage_operator.act.api import Api
from moorage_operator.act.connection import connect
from moorage_operator.act.limiter import Limiter
from moorage_operator.lease import Lease, Terms
from moorage_operator.metrics import Metrics

async def main(kubeconfig, namespace, identity, log):
    connection = connect(kubeconfig_path=pathlib.Path(kubeconfig), environ={}, home=None, version="test")
    metrics = Metrics(CollectorRegistry(), version="test")
    api = Api(connection, limiter=Limiter(qps=0, burst=0), metrics=metrics)
    lease = Lease(api, namespace=namespace, name="moorage-operator", identity=identity, metrics=metrics,
                  terms=Terms(duration=2, renew=1.2, retry=0.2))
    running = asyncio.create_task(lease.run())
    with open(log, "a", buffering=1) as file:
        while True:
            if lease.is_leader:
                file.write(f"{time.monotonic()} {identity}\\n")
            await asyncio.sleep(0.01)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_stopped_process_is_replaced_and_does_not_lead_when_it_goes_on(
    api_server: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    """SIGSTOP the holder, wait for the other, SIGCONT: the two never lead at the same moment."""
    log = tmp_path / "leaders"
    log.touch()
    kubeconfig = api_server.access("moorage-operator").kubeconfig
    replicas = {
        name: subprocess.Popen(  # noqa: ASYNC220 (starting takes milliseconds)
            [sys.executable, "-c", REPLICA, str(kubeconfig), namespace, name, str(log)],
            env={"PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'csi'}"},
        )
        for name in "ab"
    }

    def led() -> list[tuple[float, str]]:
        pairs = (line.split() for line in log.read_text().splitlines())
        return [(float(pair[0]), pair[1]) for pair in pairs if len(pair) == 2]

    async def leader(*, other_than: str = "", within: float = 15) -> str:
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if led() and led()[-1][1] != other_than:
                return led()[-1][1]
            await asyncio.sleep(0.05)
        raise AssertionError(f"no leader other than {other_than!r} within {within} s")

    try:
        first = await leader()
        replicas[first].send_signal(signal.SIGSTOP)
        second = await leader(other_than=first)
        replicas[first].send_signal(signal.SIGCONT)
        await asyncio.sleep(2)
        assert {name for _, name in led()[-20:]} == {second}
        order = [name for name, _ in itertools.groupby(name for _, name in led())]
        assert order == [first, second]
        replicas[second].send_signal(signal.SIGKILL)
        assert await leader(other_than=second) == first
    finally:
        for replica in replicas.values():
            replica.send_signal(signal.SIGCONT)
            replica.kill()
            replica.wait()
