"""The two Secrets as the leader keeps them: made once, mended, and read by the standby."""

import asyncio
import base64
from datetime import UTC, datetime
from typing import Any

import pytest

from moorage_operator.act.recorder import Recorder
from moorage_operator.certificates import Certificates
from moorage_operator.errors import ConflictError, ForbiddenError
from moorage_operator.metrics import Metrics
from tests.unit.operator_edges import virtual
from tests.unit.operator_edges.memory import MemoryStore, World, no_fault, yielding

CA = "/api/v1/namespaces/ns/secrets/moorage-ca"
NODE = "/api/v1/namespaces/ns/secrets/moorage-node-tls"


class Leader:
    """Leadership that a test gives and takes."""

    def __init__(self, *, leads: bool) -> None:
        self._leads = asyncio.Event()
        self._lost = asyncio.Event()
        (self._leads if leads else self._lost).set()

    @property
    def is_leader(self) -> bool:
        return self._leads.is_set()

    async def wait(self) -> None:
        await self._leads.wait()

    async def wait_lost(self) -> None:
        await self._lost.wait()

    def promote(self) -> None:
        self._lost.clear()
        self._leads.set()


def make(world: World) -> Certificates:
    return Certificates(MemoryStore(world), namespace="ns", now=lambda: datetime.fromtimestamp(virtual.clock(), UTC))


def decoded(world: World, path: str) -> dict[str, bytes]:
    return {key: base64.b64decode(value) for key, value in world.objects[path]["data"].items()}


def test_made_once_and_then_left_alone() -> None:
    async def main() -> None:
        world = World()
        certificates = make(world)
        assert certificates.client is None
        await certificates.ensure()
        assert world.writes == [("create", CA), ("create", NODE)]
        assert world.objects[NODE]["type"] == "kubernetes.io/tls"
        assert certificates.client is not None
        assert certificates.client.authorities == decoded(world, NODE)["ca.crt"]
        assert certificates.problem is None
        client = certificates.client
        await certificates.ensure()
        assert len(world.writes) == 2
        assert certificates.client is client

    virtual.run(main())


def test_two_that_both_think_they_lead_end_with_one_authority() -> None:
    async def main() -> None:
        world = World()
        both = [make(world) for _ in range(2)]
        for one in both:
            one._store = MemoryStore(world, fault=yielding)
        await asyncio.gather(*(one.ensure() for one in both))
        assert both[0].client == both[1].client
        assert both[0].client is not None
        assert decoded(world, CA)["ca.crt"] == decoded(world, NODE)["ca.crt"] == both[0].client.authorities

    virtual.run(main())


@pytest.mark.parametrize("dies", [CA, NODE])
@pytest.mark.parametrize("done", [True, False])
def test_dying_at_either_write_is_mended_by_the_next(dies: str, done: bool) -> None:
    async def main() -> None:
        world = World()
        first = make(world)
        writes = 0

        async def die(verb: str, path: str, carried_out: bool) -> None:
            nonlocal writes
            if verb == "create" and carried_out is done:
                writes += 1
                if writes == (1 if dies == CA else 2):
                    raise SystemError("killed")

        first._store = MemoryStore(world, fault=die)
        with pytest.raises(SystemError):
            await first.ensure()
        made = decoded(world, CA)["ca.crt"] if CA in world.objects else None
        second = make(world)
        await second.ensure()
        assert made in {None, decoded(world, CA)["ca.crt"]}
        assert decoded(world, NODE)["ca.crt"] == decoded(world, CA)["ca.crt"]
        count = len(world.writes)
        await second.ensure()
        assert len(world.writes) == count

    virtual.run(main())


@pytest.mark.parametrize("change", [{"type": "Opaque"}, {"immutable": True, "data": {}}])
def test_a_secret_that_cannot_be_changed_is_made_anew(change: dict[str, Any]) -> None:
    async def main() -> None:
        world = World()
        certificates = make(world)
        await certificates.ensure()
        world.objects[NODE] |= change
        await certificates.ensure()
        assert world.writes[2:] == [("delete", NODE), ("create", NODE)]
        assert world.objects[NODE]["type"] == "kubernetes.io/tls"

    virtual.run(main())


def test_damage_is_mended_keeps_strangers_labels_and_is_told(metrics: Metrics) -> None:
    async def main() -> None:
        world = World()
        recorder = Recorder(MemoryStore(world), metrics=metrics, instance="pod", clock=virtual.clock)
        certificates = Certificates(MemoryStore(world), namespace="ns", recorder=recorder)
        await certificates.ensure()
        world.objects[NODE]["metadata"]["labels"] = {"backup": "no"}
        world.objects[NODE]["data"]["tls.key"] = base64.b64encode(b"rubbish").decode()
        await certificates.ensure()
        await recorder.stop()
        assert world.objects[NODE]["metadata"]["labels"] == {"backup": "no"}
        events = [body for path, body in world.objects.items() if "/events/" in path]
        assert [event["reason"] for event in events] == ["CertificatesMade", "CertificatesRenewed"]
        assert "and its key do not belong together" in events[1]["message"]
        assert "PRIVATE" not in str(events)

    virtual.run(main())


def test_a_standby_reads_and_never_writes_and_the_new_leader_makes_them() -> None:
    async def main() -> None:
        world = World()
        leadership = Leader(leads=False)
        certificates = make(world)
        task = asyncio.create_task(certificates.run(leadership))
        await asyncio.sleep(120)
        assert world.writes == []
        assert certificates.client is None
        assert certificates.problem is not None
        assert "the leader makes it" in certificates.problem
        leadership.promote()
        await asyncio.sleep(1)
        assert certificates.client is not None
        task.cancel()

    virtual.run(main())


def test_the_leader_looks_every_hour_and_renews_in_time() -> None:
    async def main() -> None:
        world = World()
        certificates = make(world)
        task = asyncio.create_task(certificates.run(Leader(leads=True)))
        await asyncio.sleep(1)
        client = certificates.client
        for path in (CA, NODE):
            del world.objects[path]
        await asyncio.sleep(3601)
        assert NODE in world.objects
        assert certificates.client != client
        task.cancel()

    virtual.run(main())


def test_trouble_is_told_and_tried_again() -> None:
    async def main() -> None:
        certificates = make(World())
        store = certificates._store
        assert isinstance(store, MemoryStore)

        async def refuse(verb: str, path: str, done: bool) -> None:
            raise ForbiddenError("get secrets: 403 Forbidden", status=403)

        store.fault = refuse
        task = asyncio.create_task(certificates.run(Leader(leads=True)))
        await asyncio.sleep(5)
        assert certificates.problem is not None
        assert "403 Forbidden" in certificates.problem
        store.fault = no_fault
        await asyncio.sleep(10)
        assert certificates.problem is None
        task.cancel()

    virtual.run(main())


def test_endless_conflicts_end_with_the_last_reason() -> None:
    async def main() -> None:
        certificates = make(World())

        async def conflict(verb: str, path: str, done: bool) -> None:
            if verb == "create":
                raise ConflictError("changed again", status=409)

        certificates._store = MemoryStore(World(), fault=conflict)
        with pytest.raises(ConflictError, match="changed again"):
            await certificates.ensure()

    virtual.run(main())
