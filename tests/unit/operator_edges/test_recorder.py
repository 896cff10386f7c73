"""Events: one POST for a new one, at most a PATCH a minute for the same one, and never a wait."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from moorage_operator.act.recorder import MESSAGE_LIMIT, QUEUE_LIMIT, Recorder
from moorage_operator.errors import ForbiddenError
from moorage_operator.metrics import Metrics
from moorage_operator.model.reference import Reference
from tests.unit.operator_edges import virtual
from tests.unit.operator_edges.memory import MemoryStore, World, no_fault


def claim(name: str = "data", uid: str = "uid-data") -> Reference:
    return Reference(api_version="v1", kind="PersistentVolumeClaim", namespace="shop", name=name, uid=uid)


class Desk:
    """A recorder at work in a world."""

    def __init__(self, metrics: Metrics) -> None:
        self.world = World()
        self.store = MemoryStore(self.world)
        self.recorder = Recorder(
            self.store,
            metrics=metrics,
            instance="moorage-operator-abc",
            clock=virtual.clock,
            now=lambda: datetime.fromtimestamp(virtual.clock(), UTC),
        )

    def say(self, message: str = "waiting for a pod", regarding: Reference | None = None) -> None:
        self.recorder.event(regarding or claim(), type="Normal", reason="Waiting", message=message)

    def events(self) -> list[dict[str, Any]]:
        return list(self.world.objects.values())


def dropped(metrics: Metrics, why: str) -> float:
    return metrics.registry.get_sample_value("moorage_events_dropped_total", {"why": why}) or 0.0


def test_a_new_event_is_one_post_that_says_who_what_when(metrics: Metrics) -> None:
    async def main() -> None:
        desk = Desk(metrics)
        running = asyncio.create_task(desk.recorder.run())
        desk.say()
        await asyncio.sleep(1)
        (event,) = desk.events()
        assert desk.world.writes == [("create", f"/api/v1/namespaces/shop/events/{event['metadata']['name']}")]
        assert event["metadata"]["name"].startswith("data.")
        assert event["involvedObject"] == {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "namespace": "shop",
            "name": "data",
            "uid": "uid-data",
        }
        assert (event["type"], event["reason"], event["message"]) == ("Normal", "Waiting", "waiting for a pod")
        assert (event["count"], event["firstTimestamp"]) == (1, "1970-01-01T00:16:40Z")
        assert (event["reportingComponent"], event["reportingInstance"]) == ("moorage-operator", "moorage-operator-abc")
        running.cancel()

    virtual.run(main())


def test_the_same_again_is_counted_by_at_most_one_patch_a_minute(metrics: Metrics) -> None:
    async def main() -> None:
        desk = Desk(metrics)
        running = asyncio.create_task(desk.recorder.run())
        for _ in range(300):  # every second for five minutes
            desk.say()
            await asyncio.sleep(1)
        verbs = [verb for verb, _ in desk.world.writes]
        assert verbs == ["create", *["patch"] * 4]
        (event,) = desk.events()
        assert event["count"] == 241
        assert event["firstTimestamp"] < event["lastTimestamp"]
        running.cancel()

    virtual.run(main())


def test_after_ten_quiet_minutes_it_is_found_again_and_counted_on(metrics: Metrics) -> None:
    async def main() -> None:
        desk = Desk(metrics)
        running = asyncio.create_task(desk.recorder.run())
        desk.say()
        await asyncio.sleep(601)
        desk.say()
        await asyncio.sleep(1)
        assert [event["count"] for event in desk.events()] == [2]
        running.cancel()

    virtual.run(main())


def test_another_operator_counts_on_what_is_there_and_what_differs_is_another_event(metrics: Metrics) -> None:
    async def main() -> None:
        desk = Desk(metrics)
        desk.say()
        await desk.recorder.stop()
        second = Recorder(desk.store, metrics=metrics, instance="another", clock=virtual.clock)
        second.event(claim(), type="Normal", reason="Waiting", message="waiting for a pod")
        second.event(claim(), type="Normal", reason="Waiting", message="waiting for a node")
        second.event(claim(uid="made-anew"), type="Normal", reason="Waiting", message="waiting for a pod")
        await second.stop()
        assert sorted(event["count"] for event in desk.events()) == [1, 1, 2]

    virtual.run(main())


def test_an_event_that_expired_is_posted_anew_and_a_changed_one_taken_up_with_its_count(metrics: Metrics) -> None:
    async def main() -> None:
        desk = Desk(metrics)
        running = asyncio.create_task(desk.recorder.run())
        desk.say()
        await asyncio.sleep(61)
        desk.world.objects.clear()
        desk.say()
        await asyncio.sleep(61)
        assert [event["count"] for event in desk.events()] == [2]
        desk.events()[0]["metadata"]["resourceVersion"] = "else"
        desk.say()
        await asyncio.sleep(1)
        assert [event["count"] for event in desk.events()] == [3]
        running.cancel()

    virtual.run(main())


def test_one_object_has_25_events_and_then_one_in_five_minutes(metrics: Metrics) -> None:
    async def main() -> None:
        desk = Desk(metrics)
        running = asyncio.create_task(desk.recorder.run())
        for number in range(40):
            desk.say(f"message {number}")
        desk.say(regarding=claim("other", "uid-other"))
        await asyncio.sleep(1)
        assert len(desk.events()) == 26
        assert dropped(metrics, "object limit") == 15
        await asyncio.sleep(300)
        desk.say("one more")
        desk.say("and one too many")
        await asyncio.sleep(1)
        assert len(desk.events()) == 27
        running.cancel()

    virtual.run(main())


def test_a_full_queue_drops_its_oldest_and_never_waits(metrics: Metrics) -> None:
    async def main() -> None:
        desk = Desk(metrics)
        for number in range(QUEUE_LIMIT + 10):
            desk.say(regarding=claim(f"claim-{number}", f"uid-{number}"))
        assert dropped(metrics, "queue full") == 10
        await desk.recorder.stop()
        named = {event["involvedObject"]["name"] for event in desk.events()}
        assert len(named) == QUEUE_LIMIT
        assert "claim-9" not in named
        assert f"claim-{QUEUE_LIMIT + 9}" in named

    virtual.run(main())


def test_stopping_writes_the_rest_within_its_bound(metrics: Metrics) -> None:
    async def main() -> None:
        desk = Desk(metrics)

        async def slow(verb: str, path: str, done: bool) -> None:
            await asyncio.sleep(0.5)

        desk.store.fault = slow
        running = asyncio.create_task(desk.recorder.run())
        for number in range(10):
            desk.say(f"message {number}")
        await asyncio.sleep(0.1)
        running.cancel()
        begun = virtual.clock()
        await desk.recorder.stop(within=2.2)
        assert virtual.clock() - begun <= 2.3
        assert len(desk.events()) == 2
        assert dropped(metrics, "stopped") == 6

    virtual.run(main())


def test_what_the_server_refuses_is_counted_and_tried_again_by_a_repetition(metrics: Metrics) -> None:
    async def main() -> None:
        desk = Desk(metrics)
        running = asyncio.create_task(desk.recorder.run())

        async def refuse(verb: str, path: str, done: bool) -> None:
            raise ForbiddenError("create events: 403", status=403, reason="Forbidden")

        desk.store.fault = refuse
        desk.say()
        await asyncio.sleep(1)
        assert dropped(metrics, "refused") == 1
        desk.store.fault = no_fault
        desk.say()
        await asyncio.sleep(61)
        desk.say()
        await asyncio.sleep(1)
        assert [event["count"] for event in desk.events()] == [3]
        running.cancel()

    virtual.run(main())


def test_long_messages_and_names_are_cut_to_what_the_server_takes(metrics: Metrics) -> None:
    async def main() -> None:
        desk = Desk(metrics)
        desk.say("x" * 5000, regarding=claim("n" * 253))
        await desk.recorder.stop()
        (event,) = desk.events()
        assert len(event["message"]) == MESSAGE_LIMIT
        assert len(event["metadata"]["name"]) == 253

    virtual.run(main())


@pytest.mark.parametrize("kind", ["PersistentVolume", "Node"])
def test_objects_without_a_namespace_have_their_events_in_default(metrics: Metrics, kind: str) -> None:
    async def main() -> None:
        desk = Desk(metrics)
        desk.say(regarding=Reference(api_version="v1", kind=kind, name="thing", uid="u"))
        await desk.recorder.stop()
        (event,) = desk.events()
        assert event["metadata"]["namespace"] == "default"
        assert "namespace" not in event["involvedObject"]

    virtual.run(main())
