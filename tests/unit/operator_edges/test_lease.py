"""Leadership: never two at once, whatever the API server does, and never nobody for long."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from moorage_operator.errors import ForbiddenError, ServerError, UnreachableError
from moorage_operator.lease import Lease, Terms
from moorage_operator.metrics import Metrics
from moorage_operator.unled import Unled
from tests.unit.operator_edges import virtual
from tests.unit.operator_edges.memory import MemoryStore, World, no_fault

PATH = "/apis/coordination.k8s.io/v1/namespaces/ns/leases/moorage-operator"


def make(world: World, identity: str, *, jitter: float = 0.0, on_lost: Callable[[], None] | None = None) -> Lease:
    return Lease(
        MemoryStore(world),
        namespace="ns",
        name="moorage-operator",
        identity=identity,
        metrics=Metrics(CollectorRegistry(), version="0"),
        on_lost=on_lost,
        clock=virtual.clock,
        jitter=lambda: jitter,
    )


def store(lease: Lease) -> MemoryStore:
    assert isinstance(lease._store, MemoryStore)
    return lease._store


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_one_replica_leads_and_renews_with_one_write_a_period() -> None:
    async def main() -> None:
        world = World()
        lease = make(world, "a")
        task = asyncio.create_task(lease.run())
        await lease.wait()
        assert lease.is_leader
        assert lease.problem is None
        before = len(world.writes)
        await asyncio.sleep(61)
        assert lease.is_leader
        assert len(world.writes) - before == 30
        assert world.objects[PATH]["spec"]["holderIdentity"] == "a"
        await stop(task)

    virtual.run(main())


def test_a_clean_stop_hands_over_within_three_seconds() -> None:
    async def main() -> None:
        world = World()
        lost: list[float] = []
        first = make(world, "a", on_lost=lambda: lost.append(virtual.clock()))
        task = asyncio.create_task(first.run())
        await first.wait()
        second = make(world, "b", jitter=0.99)
        other = asyncio.create_task(second.run())
        await asyncio.sleep(31)
        assert not second.is_leader
        assert second.problem is None
        assert second.holder == "a"
        stopped = virtual.clock()
        await stop(task)
        assert lost == [stopped]
        assert world.objects[PATH]["spec"]["holderIdentity"] == ""
        await second.wait()
        assert virtual.clock() - stopped <= 3
        assert world.objects[PATH]["spec"]["leaseTransitions"] == 1
        await stop(other)

    virtual.run(main())


def test_a_holder_that_vanishes_is_replaced_after_the_duration() -> None:
    async def main() -> None:
        world = World()
        first, second = make(world, "a"), make(world, "b")
        one = asyncio.create_task(first.run())
        await first.wait()
        two = asyncio.create_task(second.run())
        await asyncio.sleep(5)

        async def gone(verb: str, path: str, done: bool) -> None:
            await asyncio.sleep(10_000)

        store(first).fault = gone
        died = virtual.clock()
        await second.wait()
        assert 13 <= virtual.clock() - died <= 18
        assert not first.is_leader
        await stop(one)
        await stop(two)

    virtual.run(main())


def test_a_holder_whose_requests_hang_stops_itself_before_another_may_begin() -> None:
    async def main() -> None:
        world = World()
        lease = make(world, "a")
        task = asyncio.create_task(lease.run())
        await lease.wait()

        async def hang(verb: str, path: str, done: bool) -> None:
            await asyncio.sleep(10_000)

        store(lease).fault = hang
        begun = virtual.clock()
        await lease.wait_lost()
        assert virtual.clock() - begun <= 13.5
        assert not lease.is_leader
        store(lease).fault = no_fault
        await lease.wait()  # a slow API server is a pause, not an end
        await stop(task)

    virtual.run(main())


def test_an_answer_that_came_late_gives_no_more_time_than_the_others_were_given() -> None:
    """Stored at once, answered nine seconds later: others may begin fifteen seconds after the storing."""

    async def main() -> None:
        world = World()
        lease = make(world, "a")
        stored_at: list[float] = []

        async def late_then_silent(verb: str, path: str, done: bool) -> None:
            if stored_at:
                await asyncio.sleep(10_000)
            if done and verb == "create":
                stored_at.append(virtual.clock())
                await asyncio.sleep(9)

        store(lease).fault = late_then_silent
        task = asyncio.create_task(lease.run())
        await lease.wait()
        await lease.wait_lost()
        assert virtual.clock() - stored_at[0] == pytest.approx(13.5)
        await stop(task)

    virtual.run(main())


def test_a_process_that_was_stopped_is_no_leader_from_its_first_instruction() -> None:
    async def main() -> None:
        skipped = 0.0
        lost: list[bool] = []
        world = World()
        lease = Lease(
            MemoryStore(world),
            namespace="ns",
            name="moorage-operator",
            identity="a",
            metrics=Metrics(CollectorRegistry(), version="0"),
            on_lost=lambda: lost.append(True),
            clock=lambda: virtual.clock() + skipped,
        )
        task = asyncio.create_task(lease.run())
        await lease.wait()
        assert lease.is_leader
        skipped = 11.0  # SIGSTOP, eleven seconds, SIGCONT: the task has not run yet
        assert not lease.is_leader
        await lease.wait_lost()
        assert lost == [True]
        await lease.wait()
        assert lease.is_leader
        await stop(task)

    virtual.run(main())


def test_five_seconds_of_latency_lose_nothing() -> None:
    async def main() -> None:
        world = World()
        lost: list[float] = []
        lease = make(world, "a", on_lost=lambda: lost.append(virtual.clock()))

        async def slow(verb: str, path: str, done: bool) -> None:
            await asyncio.sleep(2.5)

        store(lease).fault = slow
        task = asyncio.create_task(lease.run())
        await lease.wait()
        await asyncio.sleep(600)
        assert lease.is_leader
        assert lost == []
        await stop(task)

    virtual.run(main())


def test_a_lost_answer_and_a_strangers_label_do_not_end_leadership() -> None:
    async def main() -> None:
        world = World()
        lost: list[float] = []
        lease = make(world, "a", on_lost=lambda: lost.append(virtual.clock()))
        task = asyncio.create_task(lease.run())
        await lease.wait()

        async def swallow(verb: str, path: str, done: bool) -> None:
            if done and verb == "replace":
                store(lease).fault = no_fault
                raise UnreachableError("connection reset")

        store(lease).fault = swallow
        await asyncio.sleep(10)
        world.objects[PATH]["metadata"] |= {"labels": {"who": "someone"}, "resourceVersion": world.version()}
        await asyncio.sleep(10)
        assert lease.is_leader
        assert lost == []
        assert world.objects[PATH]["metadata"]["labels"] == {"who": "someone"}
        await stop(task)

    virtual.run(main())


def test_a_deleted_lease_is_made_again() -> None:
    async def main() -> None:
        world = World()
        lease = make(world, "a")
        task = asyncio.create_task(lease.run())
        await lease.wait()
        del world.objects[PATH]
        await asyncio.sleep(10)
        assert lease.is_leader
        assert world.objects[PATH]["spec"]["holderIdentity"] == "a"
        await stop(task)

    virtual.run(main())


def test_what_stands_in_the_way_is_told() -> None:
    async def main() -> None:
        lease = make(World(), "a")

        async def forbidden(verb: str, path: str, done: bool) -> None:
            raise ForbiddenError("get leases: 403 Forbidden", status=403, reason="Forbidden")

        store(lease).fault = forbidden
        task = asyncio.create_task(lease.run())
        await asyncio.sleep(5)
        assert not lease.is_leader
        assert lease.problem is not None
        assert "403 Forbidden" in lease.problem
        await stop(task)

    virtual.run(main())


@pytest.mark.parametrize("terms", [(10, 10, 2), (15, 2, 2), (15, 10, 0)])
def test_terms_that_let_two_lead_are_refused(terms: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="duration > renew > retry > 0"):
        Terms(duration=terms[0], renew=terms[1], retry=terms[2])


def test_without_an_election_every_replica_acts_from_its_start_to_its_end(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        alone = Unled(metrics=metrics)
        assert alone.is_leader
        await alone.wait()
        task = asyncio.create_task(alone.run())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await alone.wait_lost()
        assert not task.done()
        assert alone.is_leader
        assert alone.problem is None
        assert metrics.registry.get_sample_value("moorage_leader") == 1
        await stop(task)
        assert metrics.registry.get_sample_value("moorage_leader") == 0

    virtual.run(main())
    (said,) = (record for record in caplog.records if record.name == "moorage_operator.unled")
    assert said.levelname == "WARNING"
    assert "--leader-election is false" in said.getMessage()


def unruly(seed: random.Random) -> Callable[[str, str, bool], Awaitable[None]]:
    """Answers late, fails before or after doing what was asked, and hangs now and then."""

    async def fault(verb: str, path: str, done: bool) -> None:
        await asyncio.sleep(seed.choice([0, 0.01, 0.5, 3, 7, 9, 12, 14]))
        if seed.random() < 0.2:
            raise seed.choice([UnreachableError("reset"), ServerError("etcd", status=500)])

    return fault


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32))
def test_never_two_leaders_under_an_unruly_api_server(seed: int) -> None:
    async def main() -> None:
        dice = random.Random(seed)  # noqa: S311
        world = World()
        leases = [make(world, name, jitter=dice.random()) for name in "abc"]
        for lease in leases:
            store(lease).fault = unruly(dice)
        tasks = [asyncio.create_task(lease.run()) for lease in leases]
        for moment in range(1500):
            leaders = [lease._identity for lease in leases if lease.is_leader]
            assert len(leaders) <= 1, f"two leaders {leaders} at {moment / 5} s, seed {seed}"
            if dice.random() < 0.002:
                victim = dice.randrange(3)
                await stop(tasks[victim])
                tasks[victim] = asyncio.create_task(leases[victim].run())
            await asyncio.sleep(0.2)
        for task in tasks:
            await stop(task)

    virtual.run(main())
