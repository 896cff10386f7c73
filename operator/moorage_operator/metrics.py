"""What the operator counts, in a registry of its own.

Every metric is made here, once, so that a dashboard or an alert can be checked against one file.
Nothing is global: whoever counts is handed the one ``Metrics``, and a test makes its own.
"""

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

SECONDS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Buckets of calls: an API write takes 2 ms, a mkfs seconds, a deadline is 30 s."""

BOUND_SECONDS: Final = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Buckets of a claim's way from created to Bound; the budget on an idle cluster is 0.1 s."""


class Metrics:
    """All metrics of the operator.

    Args:
        registry: where they are registered; each may hold one ``Metrics`` only.
        version: of this operator, for ``moorage_build_info``.
    """

    def __init__(self, registry: CollectorRegistry, *, version: str) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        build = Gauge("moorage_build_info", "Always 1; the version is in the label.", ["version"], registry=registry)
        build.labels(version).set(1)

        self.leader = Gauge("moorage_leader", "1 while this replica acts.", registry=registry)
        self.leader.set(0)
        self.records = Gauge(
            "moorage_ledger_records", "Objects the operator knows, by kind.", ["kind"], registry=registry
        )

        self.claims_waiting = Gauge(
            "moorage_claims_waiting",
            "Claims that have to wait for somebody, by whose move it is.",
            ["waits_for"],
            registry=registry,
        )

        self.decisions = Counter(
            "moorage_decisions", "Decided keys, by kind of object and outcome.", ["kind", "outcome"], registry=registry
        )
        self.decision_seconds = Histogram(
            "moorage_decision_seconds",
            "From taking a key off the queue to the end of its plan.",
            ["kind"],
            buckets=SECONDS,
            registry=registry,
        )
        self.queue_depth = Gauge("moorage_queue_depth", "Keys that wait to be decided.", registry=registry)
        self.queue_retries = Counter(
            "moorage_queue_retries", "Keys put back to be decided anew, by why.", ["why"], registry=registry
        )
        self.claim_bound_seconds = Histogram(
            "moorage_claim_bound_seconds",
            "From a claim's creation to its being Bound, for claims bound by this operator.",
            buckets=BOUND_SECONDS,
            registry=registry,
        )

        self.api_writes = Counter(
            "moorage_api_writes", "Writes the API server carried out.", ["verb", "resource"], registry=registry
        )
        self.api_conflicts = Counter(
            "moorage_api_conflicts",
            "Conditional writes refused because the object had changed.",
            ["verb", "resource"],
            registry=registry,
        )
        self.api_retries = Counter(
            "moorage_api_retries",
            "Requests sent again: reads after a failure, any request after a 429.",
            ["verb", "why"],
            registry=registry,
        )
        self.api_seconds = Histogram(
            "moorage_api_request_seconds",
            "API requests by verb and answer (0: none came), without our own pacing.",
            ["verb", "code"],
            buckets=SECONDS,
            registry=registry,
        )

        self.driver_seconds = Histogram(
            "moorage_driver_call_seconds",
            "Calls to node plugins by method and gRPC code (UNREACHABLE: nothing was sent).",
            ["method", "code"],
            buckets=SECONDS,
            registry=registry,
        )
        self.driver_channels = Gauge("moorage_driver_channels", "Open connections to node plugins.", registry=registry)

        self.events = Counter(
            "moorage_events", "Events written: new ones and repeat counts.", ["verb"], registry=registry
        )
        self.events_dropped = Counter(
            "moorage_events_dropped", "Events not written, by why.", ["why"], registry=registry
        )

    def watch_queue(self, depth: Callable[[], float]) -> None:
        """Let ``moorage_queue_depth`` be asked from the queue when it is scraped."""
        self.queue_depth.set_function(depth)
