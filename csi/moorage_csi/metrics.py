"""What the program counts, in a registry of its own.

The names are a contract with people's dashboards: ``moorage_csi_*`` for calls, ``moorage_pool_*`` for
room, ``moorage_volume_*`` for volumes, ``process_*`` as every Prometheus client has them. No label takes a value that
a caller can make up without making a volume.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

_SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 120)


_VOLUME_LABELS: Final = ("volume", "pool", "persistentvolume", "namespace", "persistentvolumeclaim")
"""Of a volume; the last three as the kubelet's own volume metrics have them, empty where nobody said them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VolumeFigures:
    """One volume at one moment, in bytes: its size, and what it takes of the pool, ``None`` where that is not counted."""

    volume: str
    persistent_volume: str
    namespace: str
    claim: str
    size: int
    allocated: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PoolFigures:
    """One pool at one moment, sizes in bytes. ``None`` is what could not be read, or not in time.

    ``backend`` is what ``auto`` means in the pool and ``reason`` why; empty until the pool was open.
    """

    name: str
    backend: str = ""
    reason: str = ""
    capacity: int | None = None
    available: int | None = None
    promised: int | None = None
    volumes: int | None = None
    snapshots: int | None = None
    trash: int | None = None
    problems: int | None = None
    each: tuple[VolumeFigures, ...] = ()


class _Volumes:
    """Of every volume what was shown last; one that is gone is gone from here too."""

    def __init__(self) -> None:
        self.pools: tuple[PoolFigures, ...] = ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        sizes = GaugeMetricFamily("moorage_volume_size_bytes", "The volume's size.", labels=_VOLUME_LABELS)
        allocated = GaugeMetricFamily(
            "moorage_volume_allocated_bytes",
            "What the volume takes of its pool, by its quota or its file; absent where that is not counted.",
            labels=_VOLUME_LABELS,
        )
        for pool in self.pools:
            for one in pool.each:
                labels = (one.volume, pool.name, one.persistent_volume, one.namespace, one.claim)
                sizes.add_metric(labels, one.size)
                if one.allocated is not None:
                    allocated.add_metric(labels, one.allocated)
        yield sizes
        yield allocated


class Metrics:
    """The registry and everything in it; also the ``Meter`` of the edge."""

    def __init__(self, *, version: str, node: str) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        Info("moorage_build", "What is running.", registry=self._registry).info({"version": version, "node": node})
        self._calls = Counter(
            "moorage_csi_rpcs", "RPCs answered, by code.", ("method", "code"), registry=self._registry
        )
        self._seconds = Histogram(
            "moorage_csi_rpc_seconds",
            "Time from the request to its answer.",
            ("method",),
            registry=self._registry,
            buckets=_SECONDS,
        )
        self._inside = Gauge("moorage_csi_rpcs_in_flight", "RPCs being answered.", ("method",), registry=self._registry)
        self._pool_up = Gauge(
            "moorage_pool_up", "1 if the pool's figures could be read in time.", ("pool",), registry=self._registry
        )
        self._pool_backend = Gauge(
            "moorage_pool_backend_info",
            "What the backend auto means in the pool, and why.",
            ("pool", "backend", "reason"),
            registry=self._registry,
        )
        self._pool_figures = {
            key: Gauge(f"moorage_pool_{name}", meaning, ("pool",), registry=self._registry)
            for key, name, meaning in (
                ("capacity", "capacity_bytes", "What the pool's filesystem holds."),
                ("available", "available_bytes", "What can still be promised to new volumes."),
                ("promised", "promised_bytes", "What all volumes may take, and what all snapshots hold."),
                ("volumes", "volumes", "Volumes in the pool."),
                ("snapshots", "snapshots", "Snapshots in the pool."),
                ("trash", "trash", "Deleted volumes whose data is still being removed."),
                ("problems", "problems", "Folders that were found and left alone, because they cannot be trusted."),
            )
        }
        self._volumes = _Volumes()
        self._registry.register(self._volumes)

    def began(self, method: str) -> None:
        """Count a call that has begun."""
        self._inside.labels(method).inc()

    def ended(self, method: str, code: str, seconds: float) -> None:
        """Count and time a call that has been answered."""
        self._inside.labels(method).dec()
        self._calls.labels(method, code).inc()
        self._seconds.labels(method).observe(seconds)

    def show(self, figures: Iterable[PoolFigures]) -> None:
        """Take over the pools' figures; one that is unknown is not shown, rather than shown as it once was."""
        self._volumes.pools = shown = tuple(figures)
        for pool in shown:
            self._pool_up.labels(pool.name).set(0 if pool.capacity is None else 1)
            if pool.backend:
                self._pool_backend.labels(pool.name, pool.backend, pool.reason).set(1)
            for key, gauge in self._pool_figures.items():
                value: int | None = getattr(pool, key)
                if value is None:
                    gauge.remove_by_labels({"pool": pool.name})
                else:
                    gauge.labels(pool.name).set(value)

    def exposition(self) -> bytes:
        """Render everything in Prometheus' text format."""
        return generate_latest(self._registry)
