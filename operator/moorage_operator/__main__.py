"""The operator's program: everything made once, wired together, and stopped in order.

Start: settings, the API server, metrics and health; then the tasks that last as long as the process
(events, Lease, certificates, sweeps, workers); then kopf, whose streams feed the ledger. Workers begin
once everything that exists is known and this replica leads.

Stop (SIGTERM, SIGINT, or the end of any task that should not end): no new work, what is under way is
cancelled (its writes are conditional, its driver calls are repeatable), the Lease is given back at
once so that a standby need not wait for it to run out, and kopf goes last.
"""

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import kopf
import uvloop
from prometheus_client import CollectorRegistry

from moorage_operator import logs, watch
from moorage_operator.act.api import Api
from moorage_operator.act.connection import Connection, connect
from moorage_operator.act.driver import Driver
from moorage_operator.act.limiter import Limiter
from moorage_operator.act.nodes import Nodes
from moorage_operator.act.performer import Performer
from moorage_operator.act.recorder import Recorder
from moorage_operator.act.streams import Streams
from moorage_operator.certificates import Certificates
from moorage_operator.decide.reasons import WaitsFor
from moorage_operator.errors import OperatorError, SettingsError
from moorage_operator.explanations import Explanations
from moorage_operator.health import Health
from moorage_operator.lease import Lease, Terms
from moorage_operator.ledger import Ledger
from moorage_operator.loop import Loop, Reconciler
from moorage_operator.metrics import Metrics
from moorage_operator.model.rules import Rules
from moorage_operator.settings import DEFAULT_NAMESPACE, Settings, read
from moorage_operator.unled import Unled
from moorage_operator.watch import Watch
from moorage_operator.workqueue import WorkQueue

logger = logging.getLogger("moorage_operator")

LEASE: Final = "moorage-operator"
BAD_SETTINGS: Final = 2
STOP_SECONDS: Final = 5.0
COLLECT: Final = (5_000, 20, 50)
"""Thresholds of the three generations; looking at ten thousand volumes costs a fifth less time than with the usual."""


class Operator:
    """One replica: all parts, wired.

    Needs a running event loop from construction on.

    Args:
        settings: what was said.
        connection: the API server.
        version: of this program.
    """

    def __init__(self, settings: Settings, connection: Connection, *, version: str) -> None:
        self._settings = settings
        self._connection = connection
        namespace = settings.namespace or connection.namespace or DEFAULT_NAMESPACE
        self._registry = CollectorRegistry()
        self._metrics = Metrics(self._registry, version=version)
        self._health = Health(registry=self._registry)
        limiter = Limiter(qps=settings.api_qps, burst=settings.api_burst)
        self._api = Api(connection, limiter=limiter, metrics=self._metrics)
        # Renewing the Lease and telling people must not wait behind a burst of writes.
        self._side_api = Api(connection, limiter=Limiter(qps=50, burst=100), metrics=self._metrics)
        self._recorder = Recorder(self._side_api, metrics=self._metrics, instance=socket.gethostname())
        self._lease = self._elect(namespace) if settings.leader_election else Unled(metrics=self._metrics)
        self._certificates = Certificates(self._side_api, namespace=namespace, recorder=self._recorder)
        self._driver = Driver(
            nodes=Nodes(self._side_api, namespace=namespace, selector=settings.node_selector, port=settings.node_port),
            identity=self._certificates,
            timeout=settings.csi_timeout,
            metrics=self._metrics,
        )
        ledger = Ledger(Rules(instead=settings.binder_mode == "instead"))
        queue = WorkQueue()
        self._watch = Watch(ledger=ledger, queue=queue, lists=self._api)
        performer = Performer(
            ledger=ledger,
            objects=self._api,
            plugins=self._driver,
            tellers=self._recorder,
            wake=queue.add_all,
            bound=self._metrics.claim_bound_seconds.observe,
        )
        self._loop = Loop(
            queue=queue,
            reconciler=Reconciler(ledger=ledger, performer=performer),
            leadership=self._lease,
            metrics=self._metrics,
            workers=settings.workers,
        )
        self._observe(ledger, queue)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            OperatorError: a part that should last for ever has ended; says which.
        """
        stop = asyncio.Event()
        failures: list[str] = []
        lasting = [
            self._start("events", self._recorder.run, stop, failures),
            self._start("certificates", lambda: self._certificates.run(self._lease), stop, failures),
            self._start("sweeps", self._watch.run, stop, failures),
        ]
        working = self._start("workers", self._work, stop, failures)
        leading = self._start("lease", self._lease.run, stop, failures)
        await self._health.start(self._settings.listen)
        stop_kopf = asyncio.Event()
        streams = await self._streams(stop, stop_kopf, failures)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        try:
            await stop.wait()
        finally:
            logger.info("Stopping")
            await _end(working)
            await _end(leading)
            stop_kopf.set()
            await _end(*lasting)
            await self._recorder.stop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await asyncio.shield(streams)
            await self._close()
        if failures:
            raise OperatorError("; ".join(failures))

    def _elect(self, namespace: str) -> Lease:
        terms = Terms(
            duration=self._settings.lease_duration, renew=self._settings.lease_renew, retry=self._settings.lease_retry
        )
        return Lease(
            self._side_api,
            namespace=namespace,
            name=LEASE,
            identity=f"{socket.gethostname()}_{secrets.token_hex(8)}",
            metrics=self._metrics,
            terms=terms,
        )

    async def _work(self) -> None:
        await self._watch.wait_synced()
        await self._loop.run()

    async def _streams(self, stop: asyncio.Event, stop_kopf: asyncio.Event, failures: list[str]) -> asyncio.Task[None]:
        """Start kopf; it must never stop what it has not started, so it is told what there was before."""
        before = asyncio.all_tasks()
        settings = kopf.OperatorSettings()
        watch.configure(settings)
        registry = self._watch.registry()

        streams = Streams(listed=self._watch.listed)

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.AiohttpSession:
            return kopf.AiohttpSession(**self._connection.kopf_credentials(streams))

        # Left to itself, kopf asks for the user's name, which a container's user need not have.
        identity: Any = socket.gethostname()
        tasks = await kopf.spawn_tasks(
            registry=registry,
            settings=settings,
            identity=identity,
            standalone=True,
            clusterwide=True,
            stop_flag=stop_kopf,
        )
        return self._start("watch", lambda: kopf.run_tasks(tasks, ignored=before), stop, failures)

    def _start(
        self, name: str, part: Callable[[], Coroutine[Any, Any, None]], stop: asyncio.Event, failures: list[str]
    ) -> asyncio.Task[None]:
        """Run a part that should never end by itself: if it does, so does the program."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("Part has failed part=%s", name, exc_info=error)
            if not stop.is_set():
                failures.append(f"{name} has ended")
                stop.set()

        task = asyncio.create_task(part(), name=name)
        task.add_done_callback(ended)
        return task

    def _observe(self, ledger: Ledger, queue: WorkQueue) -> None:
        self._metrics.watch_queue(lambda: len(queue))
        for kind in ledger.counts():
            self._metrics.records.labels(kind).set_function(lambda kind=kind: ledger.counts()[kind])  # type: ignore[misc]
        for waits_for in WaitsFor:
            waiting = self._metrics.claims_waiting.labels(waits_for.value)
            waiting.set_function(lambda waits_for=waits_for: ledger.notes.waiting_for(waits_for))  # type: ignore[misc]
        self._health.serve(Explanations(ledger))
        self._health.condition("watch", lambda: self._watch.missing)
        self._health.condition("lease", lambda: self._lease.problem)
        self._health.condition("certificates", lambda: self._certificates.problem if self._lease.is_leader else None)

    async def _close(self) -> None:
        await self._driver.close()
        await self._health.stop()
        await self._api.close()
        await self._side_api.close()
        await self._connection.close()


async def _end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _version() -> str:
    try:
        return metadata.version("moorage")
    except metadata.PackageNotFoundError:
        return "unknown"


async def _run(settings: Settings) -> None:
    version = _version()
    home = Path.home() if "HOME" in os.environ else None
    connection = connect(kubeconfig_path=settings.kubeconfig, environ=os.environ, home=home, version=version)
    logger.info("Starting version=%s server=%s", version, connection.base_url)
    await Operator(settings, connection, version=version).run()


def _collect_rarely() -> None:
    """Look for cycles of garbage less often: nearly all that is made here is records that stay."""
    gc.freeze()
    gc.set_threshold(*COLLECT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the operator.

    Returns:
        The exit code: 0 after a clean stop, 1 after a failure, 2 for settings that cannot be used.
    """
    try:
        settings = read(sys.argv[1:] if arguments is None else arguments, os.environ)
        logs.configure(level=settings.log_level, style=settings.log_format)
        _collect_rarely()
        uvloop.run(_run(settings))
    except SettingsError as error:
        sys.stderr.write(f"moorage-operator: {error}\n")
        return BAD_SETTINGS
    except OperatorError as error:
        sys.stderr.write(f"moorage-operator: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
