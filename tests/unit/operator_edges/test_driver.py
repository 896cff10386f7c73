"""Calls to node plugins over real TLS: who is called, with what, and what may be believed afterwards."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from moorage_csi.contract import TOPOLOGY_KEY
from moorage_csi.proto import csi_pb2
from moorage_operator.act import driver as subject
from moorage_operator.act.driver import Driver
from moorage_operator.authority import Contents
from moorage_operator.errors import (
    DriverCallError,
    DriverExhaustedError,
    DriverFinalError,
    DriverInfeasibleError,
    DriverRunningError,
    DriverUnreachableError,
)
from moorage_operator.metrics import Metrics
from moorage_operator.model.provisioning import Created, CreateRequest
from tests.unit.operator_edges import plugin as plugins
from tests.unit.operator_edges.plugin import Directory, Keeper, Plugin, client_tls, serve

NODE = "node-a"
GIB = 1 << 30


@pytest.fixture(scope="module")
def held() -> Contents:
    return plugins.certificates()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        return int(reserved.getsockname()[1])


class Site:
    """A driver, and what it was given."""

    def __init__(self, metrics: Metrics, held: Contents, *, patience: float = 5.0) -> None:
        self.directory = Directory()
        self.keeper = Keeper(client_tls(held))
        self.now = 0.0
        self.driver = Driver(
            nodes=self.directory,
            identity=self.keeper,
            timeout=patience,
            metrics=metrics,
            clock=lambda: self.now,
        )


@asynccontextmanager
async def site(metrics: Metrics, held: Contents, *, patience: float = 5.0) -> AsyncIterator[Site]:
    made = Site(metrics, held, patience=patience)
    try:
        yield made
    finally:
        await made.driver.close()


def request(**more: Any) -> CreateRequest:
    return CreateRequest(
        name="pvc-1",
        required_bytes=GIB,
        **{"access_modes": ("ReadWriteOnce",), "topology": {TOPOLOGY_KEY: NODE}, **more},
    )


async def test_create_delete_and_capacity_over_one_greeted_connection(metrics: Metrics, held: Contents) -> None:
    plugin = Plugin()
    async with site(metrics, held) as at, serve(plugin, held) as port:
        at.directory.addresses[NODE] = f"127.0.0.1:{port}"
        created = await at.driver.create_volume(NODE, request(parameters={"backend": "image"}))
        assert created == Created(
            volume_id="vol-1",
            capacity_bytes=GIB,
            context={"backend": "image"},
            topology=({TOPOLOGY_KEY: NODE},),
        )
        await at.driver.delete_volume(NODE, "vol-1")
        assert await at.driver.capacity(NODE, {"pool": "fast"}) == 1 << 40
        assert (at.directory.asked, plugin.greetings) == (1, 1)
    create, delete, capacity = plugin.heard
    assert create.name == "pvc-1"
    assert create.capacity_range.required_bytes == GIB
    assert create.capacity_range.limit_bytes == 0
    assert dict(create.parameters) == {"backend": "image"}
    assert dict(create.accessibility_requirements.requisite[0].segments) == {TOPOLOGY_KEY: NODE}
    assert dict(create.accessibility_requirements.preferred[0].segments) == {TOPOLOGY_KEY: NODE}
    assert delete.volume_id == "vol-1"
    assert dict(capacity.parameters) == {"pool": "fast"}
    value = metrics.registry.get_sample_value(
        "moorage_driver_call_seconds_count", {"method": "CreateVolume", "code": "OK"}
    )
    assert value == 1


@pytest.mark.parametrize(
    ("mode", "csi"),
    [
        ("ReadWriteOnce", "SINGLE_NODE_MULTI_WRITER"),
        ("ReadWriteOncePod", "SINGLE_NODE_SINGLE_WRITER"),
        ("ReadOnlyMany", "MULTI_NODE_READER_ONLY"),
        ("ReadWriteMany", "MULTI_NODE_MULTI_WRITER"),
    ],
)
async def test_access_modes_in_the_drivers_words(metrics: Metrics, held: Contents, mode: str, csi: str) -> None:
    plugin = Plugin()
    async with site(metrics, held) as at, serve(plugin, held) as port:
        at.directory.addresses[NODE] = f"127.0.0.1:{port}"
        asked = request(access_modes=(mode, "ReadWriteOnce"), filesystem="xfs", mount_options=("noatime",))
        await at.driver.create_volume(NODE, asked)
        await at.driver.create_volume(NODE, request(volume_mode="Block"))
    first, second = plugin.heard[0].volume_capabilities
    assert csi_pb2.VolumeCapability.AccessMode.Mode.Name(first.access_mode.mode) == csi
    assert (first.mount.fs_type, list(first.mount.mount_flags)) == ("xfs", ["noatime"])
    assert second.WhichOneof("access_type") == "mount"
    assert plugin.heard[1].volume_capabilities[0].WhichOneof("access_type") == "block"


async def test_an_unknown_access_mode_is_infeasible_and_not_sent(metrics: Metrics, held: Contents) -> None:
    async with site(metrics, held) as at:
        with pytest.raises(DriverInfeasibleError, match="ReadWriteTwice"):
            await at.driver.create_volume(NODE, request(access_modes=("ReadWriteTwice",)))


CLASSES = {
    grpc.StatusCode.CANCELLED: DriverRunningError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DriverRunningError,
    grpc.StatusCode.UNAVAILABLE: DriverRunningError,
    grpc.StatusCode.ABORTED: DriverRunningError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: DriverExhaustedError,
    grpc.StatusCode.INVALID_ARGUMENT: DriverInfeasibleError,
    grpc.StatusCode.OUT_OF_RANGE: DriverInfeasibleError,
}


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_each_code_of_the_handler_has_its_class(metrics: Metrics, held: Contents, code: grpc.StatusCode) -> None:
    plugin = Plugin()

    async def refuse(_: Any, context: Any) -> None:
        await context.abort(code, "the pool is full")

    plugin.reply = refuse
    async with site(metrics, held) as at, serve(plugin, held) as port:
        at.directory.addresses[NODE] = f"127.0.0.1:{port}"
        with pytest.raises(DriverCallError) as caught:
            await at.driver.create_volume(NODE, request())
        assert len(plugin.heard) == 1
    assert type(caught.value) is CLASSES.get(code, DriverFinalError)
    assert (caught.value.node, caught.value.code) == (NODE, code.name)
    assert "the pool is full" in str(caught.value)


async def test_a_wipe_names_the_volume_and_the_claim_that_was_released(metrics: Metrics, held: Contents) -> None:
    plugin = Plugin()
    async with site(metrics, held) as at, serve(plugin, held) as port:
        at.directory.addresses[NODE] = f"127.0.0.1:{port}"
        await at.driver.wipe_volume(NODE, "vol-1", released_uid="uid-1")
        await at.driver.wipe_volume(NODE, "vol-1", released_uid="uid-2")
        assert (at.directory.asked, plugin.greetings) == (1, 1)
    assert [(wipe.volume_id, wipe.released_uid) for wipe in plugin.heard] == [("vol-1", "uid-1"), ("vol-1", "uid-2")]
    value = metrics.registry.get_sample_value(
        "moorage_driver_call_seconds_count", {"method": "WipeVolume", "code": "OK"}
    )
    assert value == 2


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_each_code_of_a_wipe_has_its_class(metrics: Metrics, held: Contents, code: grpc.StatusCode) -> None:
    plugin = Plugin()

    async def refuse(_: Any, context: Any) -> None:
        await context.abort(code, "the volume is in use")

    plugin.reply = refuse
    async with site(metrics, held) as at, serve(plugin, held) as port:
        at.directory.addresses[NODE] = f"127.0.0.1:{port}"
        with pytest.raises(DriverCallError, match=r"WipeVolume on node node-a: .*the volume is in use") as caught:
            await at.driver.wipe_volume(NODE, "vol-1", released_uid="uid-1")
        assert len(plugin.heard) == 1
    assert type(caught.value) is CLASSES.get(code, DriverFinalError)
    assert (caught.value.node, caught.value.code) == (NODE, code.name)


async def test_a_wipe_of_a_node_that_cannot_be_reached_was_never_heard(
    metrics: Metrics, held: Contents, free_port: int
) -> None:
    async with site(metrics, held) as at:
        at.directory.addresses[NODE] = f"127.0.0.1:{free_port}"
        with pytest.raises(DriverUnreachableError):
            await at.driver.wipe_volume(NODE, "vol-1", released_uid="uid-1")


async def test_a_call_that_takes_too_long_may_still_be_running(metrics: Metrics, held: Contents) -> None:
    plugin = Plugin()

    async def linger(_: Any, __: Any) -> None:
        await asyncio.sleep(30)

    plugin.reply = linger
    async with site(metrics, held, patience=0.3) as at, serve(plugin, held) as port:
        at.directory.addresses[NODE] = f"127.0.0.1:{port}"
        with pytest.raises(DriverRunningError, match="DEADLINE_EXCEEDED"):
            await at.driver.create_volume(NODE, request())


async def test_a_connection_that_breaks_under_a_call_may_still_be_running(metrics: Metrics, held: Contents) -> None:
    plugin = Plugin()
    begun = asyncio.Event()

    async def linger(_: Any, __: Any) -> None:
        begun.set()
        await asyncio.sleep(30)

    plugin.reply = linger
    async with site(metrics, held) as at:
        async with serve(plugin, held) as port:
            at.directory.addresses[NODE] = f"127.0.0.1:{port}"
            call = asyncio.create_task(at.driver.create_volume(NODE, request()))
            await begun.wait()
        with pytest.raises(DriverRunningError):
            await call


async def test_nobody_listening_is_unreachable(metrics: Metrics, held: Contents, free_port: int) -> None:
    async with site(metrics, held) as at:
        at.directory.addresses[NODE] = f"127.0.0.1:{free_port}"
        with pytest.raises(
            DriverUnreachableError, match=r"node-a cannot be reached at 127.*(r|R)efused.*pod is running"
        ):
            await at.driver.create_volume(NODE, request())


async def test_silence_is_unreachable_within_the_bound(
    metrics: Metrics, held: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "CONNECT_SECONDS", 0.3)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        async with site(metrics, held) as at:
            port = deaf.getsockname()[1]
            at.directory.addresses[NODE] = f"127.0.0.1:{port}"
            with pytest.raises(DriverUnreachableError, match="network policy"):
                await at.driver.create_volume(NODE, request())


async def test_no_pod_is_unreachable_with_the_finders_sentence(metrics: Metrics, held: Contents) -> None:
    async with site(metrics, held) as at:
        with pytest.raises(DriverUnreachableError, match="there is no node plugin on node node-a"):
            await at.driver.create_volume(NODE, request())


async def test_no_certificate_yet_is_unreachable(metrics: Metrics, held: Contents) -> None:
    async with site(metrics, held) as at:
        at.keeper.client, at.keeper.problem = None, "it has not been made yet"
        with pytest.raises(DriverUnreachableError, match="has not been made yet"):
            await at.driver.create_volume(NODE, request())
    assert at.directory.asked == 0


@pytest.mark.parametrize(
    ("side", "says"),
    [
        ("both", "TLS handshake failed"),
        ("operator trusts another authority", "TLS handshake failed"),
        ("plugin trusts another authority", "closed the connection"),
    ],
)
async def test_a_failed_handshake_is_unreachable_and_nothing_is_heard(
    metrics: Metrics, held: Contents, side: str, says: str
) -> None:
    other = plugins.certificates()
    server = {
        "both": other,
        "operator trusts another authority": Contents(node={**other.node, "ca.crt": held.node["ca.crt"]}),
        "plugin trusts another authority": Contents(node={**held.node, "ca.crt": other.node["ca.crt"]}),
    }[side]
    plugin = Plugin()
    async with site(metrics, held) as at, serve(plugin, server) as port:
        at.directory.addresses[NODE] = f"127.0.0.1:{port}"
        with pytest.raises(DriverUnreachableError, match=says):
            await at.driver.create_volume(NODE, request())
    assert (plugin.heard, plugin.greetings) == ([], 0)


async def test_a_leaf_of_our_authority_for_another_role_does_not_serve(metrics: Metrics, held: Contents) -> None:
    swapped = {**held.node, "tls.crt": held.authority["client.crt"], "tls.key": held.authority["client.key"]}
    plugin = Plugin()
    async with site(metrics, held) as at, serve(plugin, Contents(authority=held.authority, node=swapped)) as port:
        at.directory.addresses[NODE] = f"127.0.0.1:{port}"
        with pytest.raises(DriverUnreachableError):
            await at.driver.create_volume(NODE, request())
    assert plugin.heard == []


@pytest.mark.parametrize(
    ("plugin", "says"),
    [(Plugin(name="csi.other.dev"), "not csi.moorage.dev"), (Plugin(node="node-b"), "is the plugin of node node-b")],
)
async def test_the_wrong_one_at_the_address_is_never_asked_for_a_volume(
    metrics: Metrics, held: Contents, plugin: Plugin, says: str
) -> None:
    async with site(metrics, held) as at, serve(plugin, held) as port:
        at.directory.addresses[NODE] = f"127.0.0.1:{port}"
        with pytest.raises(DriverUnreachableError, match=says):
            await at.driver.create_volume(NODE, request())
    assert plugin.heard == []


async def test_a_plugin_that_does_not_say_its_node_is_taken_at_its_address(metrics: Metrics, held: Contents) -> None:
    plugin = Plugin(node=None)
    async with site(metrics, held) as at, serve(plugin, held) as port:
        at.directory.addresses[NODE] = f"127.0.0.1:{port}"
        assert (await at.driver.create_volume(NODE, request())).volume_id == "vol-1"


async def test_a_burst_shares_one_look_and_one_connection(metrics: Metrics, held: Contents) -> None:
    plugin = Plugin()
    async with site(metrics, held) as at, serve(plugin, held) as port:
        at.directory.addresses[NODE] = f"127.0.0.1:{port}"
        await asyncio.gather(*(at.driver.create_volume(NODE, request()) for _ in range(50)))
    assert (at.directory.asked, plugin.greetings, len(plugin.heard)) == (1, 1, 50)


async def test_unreachable_is_believed_for_a_second_and_then_looked_at_again(metrics: Metrics, held: Contents) -> None:
    plugin = Plugin()
    async with site(metrics, held) as at, serve(plugin, held) as port:
        outcomes = await asyncio.gather(
            *(at.driver.create_volume(NODE, request()) for _ in range(50)), return_exceptions=True
        )
        assert {type(outcome) for outcome in outcomes} == {DriverUnreachableError}
        assert at.directory.asked == 1
        at.directory.addresses[NODE] = f"127.0.0.1:{port}"
        at.now = 0.9
        with pytest.raises(DriverUnreachableError):
            await at.driver.create_volume(NODE, request())
        assert at.directory.asked == 1
        at.now = 1.1
        assert (await at.driver.create_volume(NODE, request())).volume_id == "vol-1"


async def test_a_plugin_that_returns_elsewhere_is_found(metrics: Metrics, held: Contents) -> None:
    async with site(metrics, held) as at:
        async with serve(Plugin(), held) as port:
            at.directory.addresses[NODE] = f"127.0.0.1:{port}"
            await at.driver.create_volume(NODE, request())
        async with serve(Plugin(), held) as port:
            at.directory.addresses[NODE] = f"127.0.0.1:{port}"
            for _ in range(20):
                at.now += 2
                try:
                    await at.driver.create_volume(NODE, request())
                    break
                except (DriverRunningError, DriverUnreachableError):
                    await asyncio.sleep(0.05)
            else:
                pytest.fail("the plugin was not found again")


async def test_a_renewed_certificate_is_used_for_the_next_call_and_calls_under_way_end(
    metrics: Metrics, held: Contents
) -> None:
    plugin = Plugin()
    waiting = asyncio.Event()
    go_on = asyncio.Event()

    async def linger(_: Any, __: Any) -> csi_pb2.CreateVolumeResponse:
        waiting.set()
        await go_on.wait()
        return csi_pb2.CreateVolumeResponse(volume=csi_pb2.Volume(volume_id="vol-slow"))

    plugin.reply = linger
    async with site(metrics, held) as at, serve(plugin, held) as port:
        at.directory.addresses[NODE] = f"127.0.0.1:{port}"
        slow = asyncio.create_task(at.driver.create_volume(NODE, request()))
        await waiting.wait()
        at.keeper.client = client_tls(held)
        await at.driver.delete_volume(NODE, "vol-1")
        assert plugin.greetings == 2
        go_on.set()
        assert (await slow).volume_id == "vol-slow"


async def test_a_caller_that_gives_up_does_not_take_the_others_along(metrics: Metrics, held: Contents) -> None:
    plugin = Plugin()
    async with site(metrics, held) as at, serve(plugin, held) as port:
        at.directory.addresses[NODE] = f"127.0.0.1:{port}"
        first = asyncio.create_task(at.driver.create_volume(NODE, request()))
        second = asyncio.create_task(at.driver.create_volume(NODE, request()))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).volume_id == "vol-1"


async def test_connections_are_bounded_and_idle_ones_closed(
    metrics: Metrics, held: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "MAX_CONNECTIONS", 2)
    async with site(metrics, held) as at, serve(Plugin(node=None), held) as port:
        for number in range(4):
            at.directory.addresses[f"node-{number}"] = f"127.0.0.1:{port}"
            at.now += 1
            await at.driver.delete_volume(f"node-{number}", "vol-1")
        assert set(at.driver._connections) == {"node-2", "node-3"}
        assert metrics.registry.get_sample_value("moorage_driver_channels") == 2
        at.now += 601
        await at.driver.delete_volume("node-0", "vol-1")
        assert set(at.driver._connections) == {"node-0"}


async def test_an_answer_without_an_id_may_still_be_running(metrics: Metrics, held: Contents) -> None:
    plugin = Plugin()

    async def nothing(_: Any, __: Any) -> csi_pb2.CreateVolumeResponse:
        return csi_pb2.CreateVolumeResponse()

    plugin.reply = nothing
    async with site(metrics, held) as at, serve(plugin, held) as port:
        at.directory.addresses[NODE] = f"127.0.0.1:{port}"
        with pytest.raises(DriverRunningError, match="no volume id"):
            await at.driver.create_volume(NODE, request())
