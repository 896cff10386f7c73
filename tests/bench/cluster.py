"""Bursts of claims that our own driver provisions on a real cluster, beside the raw floor; writes, and memory."""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.bench import audit, burst, memory
from tests.bench.client import Client, connect, gather_bounded
from tests.bench.figures import MIB, Figure
from tests.cluster.kube import Kube
from tests.harness import product, product_image
from tests.harness.cluster import Cluster

if TYPE_CHECKING:
    from collections import Counter

    from tests.harness.progress import Progress

PART = "claims at once on a cluster, provisioned beside the in-tree binder"
OPERATOR = f"system:serviceaccount:{product.NAMESPACE}:moorage-operator"
FLOOR_CLASS = "bench-floor"
QUICK_CLASS = "moorage-directory-immediate"
SIZE = "64Mi"
SINGLES = 10
"""How many claims are made one by one, each after the last is Bound."""
OF_FLOOR = 0.6
OBJECT_WRITES = 5
EVENTS = 1
SINGLE_MILLISECONDS = 100


@dataclass(frozen=True, slots=True)
class Row:
    """One burst, and the writes of whoever bound it: for each claim, by verb and resource."""

    name: str
    burst: burst.Burst
    writes: dict[str, float]

    def of(self, word: str) -> float:
        """Writes for each claim whose resource is called like that, those answered with a conflict included."""
        return sum(count for key, count in self.writes.items() if word in key)


def measure(claims: int, *, progress: Progress) -> list[Figure]:
    """Run everything in a cluster that ends with this process."""
    image = product_image.build(progress=progress)
    with Cluster("bench", progress=progress) as cluster:
        cluster.load_images(image.archive)
        with progress.step("helm install moorage charts/moorage", usually="10 s"):
            product.install(cluster.kubeconfig, image=image.name)
        return asyncio.run(_run(cluster, claims=claims, progress=progress))


async def _run(cluster: Cluster, *, claims: int, progress: Progress) -> list[Figure]:
    kube = Kube(cluster=cluster, namespace=burst.NAMESPACE)
    cluster.kubectl("create", "namespace", burst.NAMESPACE)
    kube.apply(
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": FLOOR_CLASS},
            "provisioner": "floor.bench.moorage.dev",
        }
    )
    async with connect(cluster.kubeconfig) as client:
        idle = memory.measure(kube)
        await _burst(client, cluster, name="warm-up", class_name=QUICK_CLASS, claims=5)
        rows: list[Row] = []
        for name, class_name in (
            ("floor", FLOOR_CLASS),
            ("directory", QUICK_CLASS),
            ("image ext4", "moorage-immediate"),
        ):
            with progress.step(f"{claims} claims at once: {name}"):
                rows.append(await _burst(client, cluster, name=name, class_name=class_name, claims=claims))
        with progress.step(f"{SINGLES} claims one by one"):
            singles = [
                await burst.burst(client, count=1, class_name=QUICK_CLASS, size=SIZE, prefix=f"one-{number}")
                for number in range(SINGLES)
            ]
        busy = memory.measure(kube)
        await _clean(client, prefix="one-")
    single = statistics.median(each.seconds for each in singles) * 1000
    return [
        *(figure for row in rows for figure in _figures(row, rows[0])),
        Figure(part=PART, name="one claim, idle: p50", value=single, unit="ms", most=SINGLE_MILLISECONDS),
        *_weights(idle, "idle"),
        *_weights(busy, "after"),
    ]


def _figures(row: Row, floor: Row) -> list[Figure]:
    ours = row is not floor
    detail = ", ".join(f"{key} {count:.2f}" for key, count in row.writes.items())
    figures = [
        Figure(part=PART, name=f"{row.name}: {row.burst.claims} claims", value=row.burst.rate, unit="claims/s"),
        Figure(part=PART, name=f"{row.name}: created to Bound, p50", value=row.burst.percentile(0.5), unit="s"),
        Figure(part=PART, name=f"{row.name}: created to Bound, p95", value=row.burst.percentile(0.95), unit="s"),
        Figure(
            part=PART,
            name=f"{row.name}: writes of objects",
            value=row.of("persistentvolume"),
            unit="a claim",
            most=OBJECT_WRITES if ours else None,
            detail=detail,
        ),
    ]
    if ours:
        ratio = row.burst.rate / floor.burst.rate
        figures.insert(1, Figure(part=PART, name=f"{row.name}: of the floor", value=ratio, least=OF_FLOOR))
        events = row.of(" events")
        figures.append(Figure(part=PART, name=f"{row.name}: events", value=events, unit="a claim", most=EVENTS))
    return figures


def _weights(found: list[memory.Memory], when: str) -> list[Figure]:
    return [
        Figure(
            part=PART,
            name=f"{each.program} {when}: resident",
            value=each.resident / MIB,
            unit="MiB",
            detail=f"{each.anonymous / MIB:.0f} MiB of it its own",
        )
        for each in found
    ]


async def _burst(client: Client, cluster: Cluster, *, name: str, class_name: str, claims: int) -> Row:
    blind = class_name == FLOOR_CLASS
    start = audit.position(cluster.audit_log)
    prefix = name.replace(" ", "-")
    measured = await burst.burst(
        client,
        count=claims,
        class_name=class_name,
        size=SIZE,
        prefix=prefix,
        created=(lambda stored: burst.bind_blindly(client, stored)) if blind else None,
    )
    await asyncio.sleep(2)  # events and late status writes belong to the burst that caused them
    user = "admin" if blind else OPERATOR
    counted: Counter[str] = audit.tally(
        write
        for write in audit.writes(cluster.audit_log, since=start, user=user)
        if not (blind and write.resource == "persistentvolumeclaims" and write.verb == "create")
    )
    await _clean(client, prefix=prefix)
    return Row(name=name, burst=measured, writes={key: number / claims for key, number in sorted(counted.items())})


async def _clean(client: Client, *, prefix: str) -> None:
    """Delete the claims of a burst, and the floor's volumes, and wait until no volume is left."""
    claims = (await client.request("GET", burst.CLAIMS))["items"]
    names = [each["metadata"]["name"] for each in claims if each["metadata"]["name"].startswith(prefix)]
    await gather_bounded(limit=16, jobs=[client.request("DELETE", f"{burst.CLAIMS}/{name}") for name in names])
    volumes = (await client.request("GET", f"{burst.VOLUMES}?labelSelector=bench%3Dfloor"))["items"]
    await gather_bounded(
        limit=16,
        jobs=[client.request("DELETE", f"{burst.VOLUMES}/{each['metadata']['name']}") for each in volumes],
    )
    async with asyncio.timeout(180):
        while (await client.request("GET", burst.VOLUMES))["items"]:  # noqa: ASYNC110 - nothing here could set an event
            await asyncio.sleep(0.5)
