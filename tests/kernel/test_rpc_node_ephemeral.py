"""Volumes that stand in a pod itself: made with it, gone with it, and nothing else ever is."""

import asyncio
import dataclasses
import hashlib
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import grpc
import pytest

from moorage_csi.errors import InvalidArgumentError
from moorage_csi.host import mounts
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.rpc import ephemeral, validation
from moorage_csi.rpc.ephemeral import Ephemeral
from moorage_csi.rpc.provisioning import Provisioner
from moorage_csi.rpc.shapes import shape_of
from moorage_csi.volumes.ids import VolumeId
from moorage_csi.volumes.lane import Lane
from moorage_csi.volumes.pool import PoolSettings
from moorage_csi.volumes.record import RECORD_NAME, Record, parse, serialise
from tests.kernel.rpc_driver import (
    DIRECTORY,
    MIB,
    NODE,
    Driver,
    Modes,
    capability,
    mounted_below,
    refused,
    running,
)

pytestmark = pytest.mark.kernel

KUBELETS = {
    "csi.storage.k8s.io/ephemeral": "true",
    "csi.storage.k8s.io/pod.name": "web-0",
    "csi.storage.k8s.io/pod.namespace": "shop",
    "csi.storage.k8s.io/pod.uid": "0f2",
    "csi.storage.k8s.io/serviceAccount.name": "default",
}
SMALL = {"size": "16Mi", "backend": "directory", "quota": "none"}


def handle(pod: str, name: str = "scratch") -> str:
    """What the kubelet calls the volume ``name`` of a pod."""
    return f"csi-{hashlib.sha256(f'{pod}{name}'.encode()).hexdigest()}"


async def appear(
    driver: Driver,
    pod: str = "one",
    attributes: Mapping[str, str] = SMALL,
    *,
    wanted: csi.VolumeCapability | None = None,
    readonly: bool = False,
) -> Path:
    target = driver.target(pod)
    await driver.publish(handle(pod), target, wanted=wanted, readonly=readonly, context={**attributes, **KUBELETS})
    return target


def records(driver: Driver) -> list[Record]:
    return [parse((each / RECORD_NAME).read_bytes()) for each in sorted((driver.pool / "volumes").iterdir())]


async def swept(driver: Driver, *, left: int) -> None:
    """The driver has started: what its first look deletes is deleted in a moment."""
    deadline = time.monotonic() + 20
    while len(records(driver)) != left:
        assert time.monotonic() < deadline, records(driver)
        await asyncio.sleep(0.02)


def remove_pod(driver: Driver, pod: str) -> None:
    shutil.rmtree(driver.kubelet / "pods" / pod)


# What must never happen.


async def test_a_claims_volume_never_becomes_a_pods_own_by_what_its_attributes_say(driver: Driver) -> None:
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    for attributes in (KUBELETS, {"csi.storage.k8s.io/ephemeral": "true"}):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "csi.storage.k8s.io/ephemeral", "kubelet"):
            await driver.publish(volume, driver.target("one"), context=attributes)
    await driver.publish(volume, driver.target("one"), context={"csi.storage.k8s.io/ephemeral": "false"})
    (driver.target("one") / "file").write_text("kept")
    await driver.unpublish(volume, driver.target("one"))
    remove_pod(driver, "one")
    assert [(record.id, record.ephemeral) for record in records(driver)] == [(volume, False)]
    assert (driver.volume_folder(volume) / "data" / "file").read_text() == "kept"


async def test_an_id_of_the_kubelets_deletes_nothing_that_its_record_does_not_say_so_of(area: Path) -> None:
    """A record under the id to which the kubelet's leads, and it is a claim's: whoever wrote it, it stays."""
    async with running(area) as driver:
        await appear(driver)
        await driver.unpublish(handle("one"), driver.target("one"))
        volume = validation.published_id(handle("one"))
        made = await driver.create(parameters=DIRECTORY)
        (driver.volume_folder(made.volume_id) / "data" / "file").write_text("kept")
    folder = area / "pool" / "volumes" / made.volume_id
    record = parse((folder / RECORD_NAME).read_bytes())
    (folder / RECORD_NAME).write_bytes(serialise(dataclasses.replace(record, id=volume)))
    folder.rename(folder.with_name(volume))
    async with running(area) as driver:
        with refused(grpc.StatusCode.ALREADY_EXISTS):
            await appear(driver)
        await driver.unpublish(handle("one"), driver.target("one"))
        assert (driver.volume_folder(volume) / "data" / "file").read_text() == "kept"


async def test_a_volume_stays_while_its_pods_folder_is_there_or_it_is_mounted(area: Path) -> None:
    async with running(area) as driver:
        (await appear(driver, "mounted") / "file").write_text("in use")
        target = await appear(driver, "stopped")
        (target / "file").write_text("wanted when the pod starts again")
        # As a reboot leaves it: not mounted, and the pod is still to run here.
        mounts.unmount(str(target))
    async with running(area) as driver:
        await _looked(driver)
        assert len(records(driver)) == 2
        # A pod's folder that is gone, and its volume mounted all the same.
        volume = validation.published_id(handle("mounted"))
        folder = driver.volume_folder(volume)
        record = parse((folder / RECORD_NAME).read_bytes())
        gone = dataclasses.replace(record, ephemeral_at=f"{driver.kubelet}/pods/gone/volumes/mount")
    (folder / RECORD_NAME).write_bytes(serialise(gone))
    async with running(area) as driver:
        await _looked(driver)
        assert len(records(driver)) == 2
        assert (driver.target("mounted") / "file").read_text() == "in use"
        await appear(driver, "stopped")
        assert (driver.target("stopped") / "file").read_text() == "wanted when the pod starts again"
        for pod in ("stopped", "mounted"):
            await driver.unpublish(handle(pod), driver.target(pod))
        assert records(driver) == []


async def _looked(driver: Driver, *, node: str = NODE, kubelet: Path | None = None) -> None:
    """A whole look more than the one of the start."""
    lane = Lane("look")
    try:
        looker = Ephemeral(
            pools=driver.pools,
            provisioner=Provisioner(node_name=node, clock=time.time),
            node_name=node,
            kubelet_dir=str(kubelet or driver.kubelet),
            guard=driver.guard,
            lane=lane,
        )
        await looker.sweep()
    finally:
        lane.close()


async def test_without_the_kubelets_folder_of_pods_no_pod_is_gone(area: Path) -> None:
    async with running(area) as driver:
        await driver.unpublish(handle("other"), driver.target("other"))
        target = await appear(driver)
        mounts.unmount(str(target))
    (area / "kubelet" / "pods").rename(area / "aside")
    async with running(area) as driver:
        await _looked(driver)
        assert len(records(driver)) == 1
    (area / "kubelet" / "pods").symlink_to(area / "empty")
    (area / "empty").mkdir()
    async with running(area) as driver:
        await _looked(driver)
        assert len(records(driver)) == 1


async def test_what_cannot_be_trusted_is_left_alone(area: Path) -> None:
    async with running(area) as driver:
        target = await appear(driver)
        (target / "file").write_text("kept")
        folder = driver.volume_folder(validation.published_id(handle("one")))
        (folder / RECORD_NAME).write_bytes(b"{")
        mounts.unmount(str(target))
    shutil.rmtree(area / "kubelet" / "pods")
    (area / "kubelet" / "pods").mkdir()
    async with running(area) as driver:
        await _looked(driver)
        await driver.unpublish(handle("one"), driver.target("one"))
        assert (folder / "data" / "file").read_text() == "kept"


async def test_in_a_shared_pool_each_node_ends_the_volumes_of_its_own_pods(area: Path) -> None:
    settings = [PoolSettings(name="nfs", path=str(area / "pool"), shared=True)]
    (area / "a").mkdir()
    (area / "b").mkdir()
    async with running(area / "a", settings, node="a") as one:
        # The nodes of this test have one kernel: what one has mounted the other would see.
        mounts.unmount(str(await appear(one)))
        async with running(area / "b", settings, node="b") as two:
            # The same kubelet id on another node is the same volume, and not this node's to have.
            with refused(grpc.StatusCode.ALREADY_EXISTS):
                await appear(two)
            # On the other node, where the kubelet's folder has the same name, there never was such a pod.
            remove_pod(one, "one")
            next(iter(two.pools)).opened().pool.load()
            await _looked(two, node="b", kubelet=one.kubelet)
            assert len(records(one)) == 1
        await _looked(one, node="a")
        assert records(one) == []


# What it does.


@pytest.mark.parametrize("backend", ["directory", "image"])
async def test_a_volume_comes_with_its_pod_and_goes_with_it(driver: Driver, backend: str) -> None:
    attributes = {"size": "64Mi", "backend": backend, "quota": "best-effort"}
    for _ in range(2):
        target = await appear(driver, attributes=attributes)
    (record,) = records(driver)
    assert (record.name, record.size, record.backend) == (handle("one"), 64 * MIB, backend)
    assert (record.ephemeral_at, record.on_delete) == (str(target), "delete")
    (target / "file").write_text("x")
    usage = await driver.stats(handle("one"), target)
    assert usage["BYTES"].total > 0
    for _ in range(2):
        await driver.unpublish(handle("one"), target)
        assert not target.exists()
    await driver.emptied()
    assert driver.left() == []


async def test_two_volumes_of_a_pod_and_of_two_pods_are_different_ones(driver: Driver) -> None:
    for pod in ("one", "two"):
        await appear(driver, pod)
    (driver.target("one") / "file").write_text("x")
    assert list(driver.target("two").iterdir()) == []
    await driver.unpublish(handle("two"), driver.target("two"))
    assert (driver.target("one") / "file").read_text() == "x"
    await driver.unpublish(handle("one"), driver.target("one"))


async def test_the_default_size_is_one_gibibyte_and_the_limit_is_held(driver: Driver) -> None:
    await appear(driver, attributes={})
    (record,) = records(driver)
    assert (record.size, record.quota) == (1 << 30, "enforced")
    await driver.unpublish(handle("one"), driver.target("one"))


async def test_a_pool_without_room_says_so_and_keeps_nothing(driver: Driver) -> None:
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "default"):
        await appear(driver, attributes={"size": "1Ei"})
    assert driver.left() == []


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"path": "/"}, "'path' is not known"),
        ({"onDelete": "retain"}, "'onDelete' is not known"),
        ({"csi.storage.k8s.io/pvc/name": "data"}, "is not known"),
        ({"csi.storage.k8s.io/serviceAccount.tokens": "secret-token"}, "is not known"),
        ({"size": "much"}, "size"),
        ({"size": "0"}, "more than nothing"),
        ({"size": "-1Gi"}, "more than nothing"),
        ({"backend": "cloud"}, "backend"),
        ({"pool": "other"}, "pool"),
    ],
)
async def test_attributes_that_make_no_sense_are_refused(driver: Driver, attributes: dict[str, str], said: str) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, said):
        await appear(driver, attributes=attributes)
    assert driver.left() == []
    assert mounted_below(driver.kubelet) == []


async def test_a_volume_of_a_pod_takes_no_secrets_and_is_no_device(driver: Driver) -> None:
    request = csi.NodePublishVolumeRequest(
        volume_id=handle("one"),
        target_path=str(driver.target("one")),
        volume_capability=capability(),
        volume_context=KUBELETS,
        secrets={"password": "hunter2"},
    )
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "secrets"):
        await driver.node.NodePublishVolume(request)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "claim"):
        await appear(driver, wanted=capability(block=True))
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await appear(driver, wanted=capability(mode=Modes.MULTI_NODE_MULTI_WRITER))
    assert driver.left() == []


async def test_only_the_kubelet_may_say_that_a_volume_is_a_pods_own(driver: Driver) -> None:
    for context in ({}, {"csi.storage.k8s.io/ephemeral": "false"}, {"path": "/etc"}):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "kubelet"):
            await driver.publish(handle("one"), driver.target("one"), context=context)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "kubelet"):
        await driver.publish("scratch", driver.target("one"), context=KUBELETS)
    for wrong in (driver.kubelet / "elsewhere" / "one" / "mount", driver.kubelet / "pods" / "one"):
        wrong.parent.mkdir(parents=True, exist_ok=True)
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "pods/<uid>"):
            await driver.publish(handle("one"), wrong, context=KUBELETS)
    assert driver.left() == []


async def test_nobody_else_gets_a_pods_volume(driver: Driver) -> None:
    await appear(driver)
    volume = validation.published_id(handle("one"))
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "belongs to the pod"):
        await driver.publish(volume, driver.target("two"))
    with refused(grpc.StatusCode.ALREADY_EXISTS, "ends with the pod"):
        await driver.publish(handle("one"), driver.target("two"), context={**SMALL, **KUBELETS})
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "in use"):
        await driver.delete(volume)
    await driver.unpublish(volume, driver.target("two"))
    assert len(records(driver)) == 1
    await driver.unpublish(handle("one"), driver.target("one"))
    assert records(driver) == []


async def test_a_group_is_given_to_a_pods_volume_too(driver: Driver) -> None:
    target = await appear(driver, wanted=capability(group=4711))
    assert target.stat().st_gid == 4711
    await driver.unpublish(handle("one"), target)


# What a driver that was away finds.


async def test_volumes_of_pods_that_went_meanwhile_are_deleted_at_the_start(area: Path) -> None:
    async with running(area) as driver:
        for pod in ("stays", "goes"):
            mounts.unmount(str(await appear(driver, pod)))
        kept = (await driver.create(parameters=DIRECTORY)).volume_id
    shutil.rmtree(area / "kubelet" / "pods" / "goes")
    async with running(area) as driver:
        await swept(driver, left=2)
        assert {record.id for record in records(driver)} == {kept, validation.published_id(handle("stays"))}
        remove_pod(driver, "stays")
        await _looked(driver)
        assert [record.id for record in records(driver)] == [kept]
        await driver.emptied()


async def test_one_that_a_person_takes_back_does_not_go_again(area: Path) -> None:
    settings = [PoolSettings(name="default", path=str(area / "pool"), trash_retention=3600)]
    async with running(area, settings) as driver:
        (await appear(driver) / "file").write_text("wanted after all")
        await driver.unpublish(handle("one"), driver.target("one"))
        assert records(driver) == []
        remove_pod(driver, "one")
        pool = next(iter(driver.pools)).opened().pool
        (left,) = pool.exits.restorable()
        pool.restore(left)
        await _looked(driver)
        (record,) = records(driver)
        assert not record.ephemeral
        await driver.publish(record.id, driver.target("two"))
        assert (driver.target("two") / "file").read_text() == "wanted after all"
        await driver.unpublish(record.id, driver.target("two"))


@pytest.mark.parametrize("step", ["begun", "made", "ready"])
async def test_a_driver_that_dies_while_it_makes_one_leaves_nothing(area: Path, step: str) -> None:
    async with running(area) as driver:
        station = next(iter(driver.pools))
        opened = station.opened()
        wish = ephemeral.wish_of(
            csi.NodePublishVolumeRequest(volume_id=handle("one"), volume_context={**SMALL, **KUBELETS}),
            validation.access([capability()]),
            target=str(driver.target("one")),
            kubelet_dir=str(driver.kubelet),
            pools=["default"],
        )
        assert wish is not None
        record = Provisioner(node_name=NODE, clock=time.time)._plan(opened, wish)
        opened.pool.begin(record)
        if step != "begun":
            with opened.pool.folder(record.id) as folder:
                opened.backend_of(record).make(folder, shape_of(record))
        if step == "ready":
            opened.pool.update(dataclasses.replace(record, state=type(record.state).READY))
    async with running(area) as driver:
        if step == "ready":
            # Made and never published: the kubelet asks again, or the pod goes.
            await appear(driver)
            await driver.unpublish(handle("one"), driver.target("one"))
        await swept(driver, left=0)
        await driver.emptied()
        assert driver.left() == []


def test_a_name_of_a_create_request_never_leads_to_a_pods_volume() -> None:
    name = handle("one")
    assert validation.volume_id_for(name) != validation.published_id(name)
    with pytest.raises(InvalidArgumentError, match="control characters"):
        validation.creation(
            csi.CreateVolumeRequest(name=f"inline\0{name}", volume_capabilities=[capability()]), pools=["default"]
        )
    assert validation.published_id("vol-" + "0" * 32) == VolumeId("vol-" + "0" * 32)


@pytest.mark.parametrize(
    ("target", "folder"),
    [
        ("/k/pods/0f2/volumes/kubernetes.io~csi/x/mount", "/k/pods/0f2"),
        ("/k/pods/0f2/mount", "/k/pods/0f2"),
        ("/k/pods/0f2", None),
        ("/k/plugins/0f2/mount", None),
        ("/kk/pods/0f2/mount", None),
        ("/pods/0f2/mount", None),
    ],
)
def test_a_pods_folder_is_told_by_its_target(target: str, folder: str | None) -> None:
    assert ephemeral.pod_folder(target, "/k") == folder
