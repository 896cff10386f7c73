"""Many objects made at once, as a controller of somebody else's makes them; kubectl makes one after the other."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.bench.client import connect, gather_bounded

IN_FLIGHT = 64
COLLECTIONS = {"PersistentVolume": "persistentvolumes", "PersistentVolumeClaim": "persistentvolumeclaims"}


def create(kubeconfig: Path, objects: Iterable[dict[str, Any]], *, namespace: str, in_flight: int = IN_FLIGHT) -> None:
    """Create claims in a namespace, and volumes, with so many requests under way at a time; 1 keeps their order."""

    async def run() -> None:
        async with connect(kubeconfig) as client:
            jobs = [client.request("POST", _collection(each, namespace), each) for each in objects]
            await gather_bounded(limit=in_flight, jobs=jobs)

    asyncio.run(run())


def _collection(body: dict[str, Any], namespace: str) -> str:
    kind = body["kind"]
    scope = "" if kind == "PersistentVolume" else f"/namespaces/{namespace}"
    return f"/api/v1{scope}/{COLLECTIONS[kind]}"
