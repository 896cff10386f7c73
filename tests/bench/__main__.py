"""`make bench`: bursts of claims on a real cluster next to the raw floor, writes per claim, and memory."""

import argparse
import asyncio
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tests.bench import audit, burst, memory
from tests.bench.client import Client, connect, gather_bounded
from tests.cluster.kube import Kube
from tests.harness import product, product_image
from tests.harness.cluster import Cluster
from tests.harness.progress import Progress

if TYPE_CHECKING:
    from collections import Counter

OPERATOR = f"system:serviceaccount:{product.NAMESPACE}:moorage-operator"
FLOOR_CLASS = "bench-floor"
SIZE = "64Mi"
SINGLES = 10
"""How many claims are made one by one, each after the last is Bound."""
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Row:
    """One burst in figures: seconds, and our writes for each claim by verb and resource."""

    name: str
    claims: int
    seconds: float
    rate: float
    p50: float
    p95: float
    of_floor: float
    writes: dict[str, float]

    @property
    def objects(self) -> float:
        """Writes of claims and volumes for each claim, those answered with a conflict included."""
        return sum(number for key, number in self.writes.items() if "persistentvolume" in key)


def main() -> int:
    """Run everything in a cluster that ends with this process, and print a table or JSON."""
    options = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    options.add_argument("--claims", type=int, default=50, help="claims in each burst (default: 50)")
    options.add_argument("-o", "--output", choices=("table", "json"), default="table")
    chosen = options.parse_args()
    progress = Progress()
    image = product_image.build(progress=progress)
    with Cluster("bench", progress=progress) as cluster:
        cluster.load_images(image.archive)
        with progress.step("helm install moorage charts/moorage", usually="10 s"):
            product.install(cluster.kubeconfig, image=image.name)
        result = asyncio.run(_run(cluster, claims=chosen.claims, progress=progress))
    sys.stdout.write(json.dumps(result, indent=2) + "\n" if chosen.output == "json" else _table(result))
    return 0


async def _run(cluster: Cluster, *, claims: int, progress: Progress) -> dict[str, Any]:
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
        await _burst(client, cluster, name="warm-up", class_name="moorage-directory-immediate", claims=5, floor=None)
        rows: list[Row] = []
        for name, class_name in (
            ("floor", FLOOR_CLASS),
            ("directory", "moorage-directory-immediate"),
            ("image ext4", "moorage-immediate"),
        ):
            with progress.step(f"{claims} claims at once: {name}"):
                floor = rows[0] if rows else None
                rows.append(await _burst(client, cluster, name=name, class_name=class_name, claims=claims, floor=floor))
        with progress.step(f"{SINGLES} claims one by one"):
            singles = [
                (
                    await burst.burst(
                        client, count=1, class_name="moorage-directory-immediate", size=SIZE, prefix=f"one-{n}"
                    )
                )
                for n in range(SINGLES)
            ]
        busy = memory.measure(kube)
        await _clean(client, prefix="one-")
    return {
        "bursts": [asdict(row) | {"objects": row.objects} for row in rows],
        "single_p50_seconds": statistics.median(single.seconds for single in singles),
        "memory_idle": [asdict(each) for each in idle],
        "memory_after": [asdict(each) for each in busy],
    }


async def _burst(
    client: Client, cluster: Cluster, *, name: str, class_name: str, claims: int, floor: Row | None
) -> Row:
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
    return Row(
        name=name,
        claims=claims,
        seconds=measured.seconds,
        rate=measured.rate,
        p50=measured.percentile(0.5),
        p95=measured.percentile(0.95),
        of_floor=1.0 if floor is None else measured.rate / floor.rate,
        writes={key: number / claims for key, number in sorted(counted.items())},
    )


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


def _table(result: dict[str, Any]) -> str:
    header = (
        f"{'burst':12} {'claims':>6} {'claims/s':>9} {'of floor':>9} {'p50 s':>7} {'p95 s':>7} {'writes/claim':>13}"
    )
    bursts = [
        f"{row['name']:12} {row['claims']:6} {row['rate']:9.1f} {row['of_floor']:9.2f} {row['p50']:7.2f}"
        f" {row['p95']:7.2f} {row['objects']:13.2f}"
        for row in result["bursts"]
    ]
    writes = [
        f"{row['name']}: " + ", ".join(f"{key} {number:.2f}" for key, number in row["writes"].items())
        for row in result["bursts"]
    ]
    single = f"one claim on an idle cluster, created to Bound: p50 {result['single_p50_seconds'] * 1000:.0f} ms"
    processes = [
        f"{each['program']} {when}: {each['resident'] / MIB:.0f} MiB resident,"
        f" {each['anonymous'] / MIB:.0f} MiB of it its own"
        for when in ("idle", "after")
        for each in result[f"memory_{when}"]
    ]
    return "\n".join([header, *bursts, *writes, single, *processes]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
