"""What becomes of a volume when it is deleted can change while it lives, and nothing else of it does."""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import grpc
import pytest

from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.rpc.validation import published_id, volume_id_for
from moorage_csi.volumes.pool import PoolSettings
from tests.kernel.crash_points import areas_of
from tests.kernel.rpc_driver import DIRECTORY, IMAGE, SIZE, Driver, capability, refused, running

pytestmark = pytest.mark.kernel

WORDS = ("delete", "retain", "archive")
NOWHERE = "vol-" + "0" * 32
METADATA = {
    "csi.storage.k8s.io/pvc/name": "data",
    "csi.storage.k8s.io/pvc/namespace": "shop",
    "csi.storage.k8s.io/pv/name": "pvc-1",
}


async def modify(driver: Driver, volume: str, parameters: Mapping[str, str]) -> None:
    await driver.controller.ControllerModifyVolume(
        csi.ControllerModifyVolumeRequest(volume_id=volume, mutable_parameters=parameters)
    )


def wish(
    parameters: Mapping[str, str] = DIRECTORY, *, mutable: Mapping[str, str] | None = None
) -> csi.CreateVolumeRequest:
    return csi.CreateVolumeRequest(
        name="pvc-1",
        capacity_range=csi.CapacityRange(required_bytes=SIZE),
        volume_capabilities=[capability()],
        parameters=parameters,
        mutable_parameters=mutable or {},
    )


async def validated(
    driver: Driver,
    volume: str,
    *,
    context: Mapping[str, str] | None = None,
    mutable: Mapping[str, str] | None = None,
) -> csi.ValidateVolumeCapabilitiesResponse:
    return await driver.controller.ValidateVolumeCapabilities(
        csi.ValidateVolumeCapabilitiesRequest(
            volume_id=volume,
            volume_context=context or {},
            volume_capabilities=[capability()],
            mutable_parameters=mutable or {},
        )
    )


def record_of(driver: Driver, volume: str) -> dict[str, object]:
    document: dict[str, object] = json.loads((driver.volume_folder(volume) / "record.json").read_bytes())
    return document


def place_of(driver: Driver, volume: str) -> str:
    """In which folder of the pool the deleted volume lies; nobody empties the trash meanwhile."""
    [found] = [
        each.parent.name
        for folder in ("trash", "retained", "archived")
        for each in (driver.pool / folder).iterdir()
        if volume in each.name or (each / "data" / "mark").exists()
    ]
    return found


# What it does.


@pytest.mark.parametrize("before", WORDS)
@pytest.mark.parametrize("after", WORDS)
async def test_a_volume_is_deleted_in_the_way_that_it_was_modified_to(area: Path, before: str, after: str) -> None:
    # The trash keeps what is in it, so that it can be seen which way the volume went.
    async with running(area, [PoolSettings(name="default", path=str(area / "pool"), trash_retention=3600)]) as driver:
        volume = (await driver.create(parameters={**DIRECTORY, "onDelete": before})).volume_id
        (driver.volume_folder(volume) / "data" / "mark").touch()
        await modify(driver, volume, {"onDelete": after})
        await driver.delete(volume)
        assert place_of(driver, volume) == {"delete": "trash", "retain": "retained", "archive": "archived"}[after]


@pytest.mark.parametrize("parameters", [IMAGE, DIRECTORY], ids=["image", "directory"])
async def test_nothing_else_of_the_volume_changes_and_a_pod_goes_on(
    driver: Driver, parameters: Mapping[str, str]
) -> None:
    volume = (await driver.create(parameters=parameters)).volume_id
    target = driver.target("pod")
    await driver.publish(volume, target)
    (target / "file").write_bytes(b"before")
    before = record_of(driver, volume)
    await modify(driver, volume, {"onDelete": "archive"})
    after = record_of(driver, volume)
    assert after.pop("firstOnDelete") == "delete"
    # What the first version said of the source in ``parent`` stands in the fields of a later one.
    assert {key: after[key] for key in before if key != "parent"} == {
        **{key: value for key, value in before.items() if key != "parent"},
        "onDelete": "archive",
        "version": 5,
    }
    (target / "file").write_bytes(b"after")
    await driver.unpublish(volume, target)
    await driver.publish(volume, target)
    assert (target / "file").read_bytes() == b"after"
    await driver.unpublish(volume, target)


async def test_it_is_written_once_and_a_volume_that_is_as_it_was_has_the_record_that_it_had(driver: Driver) -> None:
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    file = driver.volume_folder(volume) / "record.json"
    made, inode = file.read_bytes(), file.stat().st_ino
    await modify(driver, volume, {"onDelete": "delete"})
    assert (file.read_bytes(), file.stat().st_ino) == (made, inode), "written without a change"
    await modify(driver, volume, {"onDelete": "retain"})
    modified, inode = file.read_bytes(), file.stat().st_ino
    await modify(driver, volume, {"onDelete": "retain"})
    assert (file.read_bytes(), file.stat().st_ino) == (modified, inode), "written without a change"
    for word in ("archive", "delete"):
        await modify(driver, volume, {"onDelete": word})
    assert file.read_bytes() == made


async def test_a_modified_volume_is_so_after_a_restart(area: Path) -> None:
    async with running(area) as driver:
        volume = (await driver.create(parameters=DIRECTORY)).volume_id
        (driver.volume_folder(volume) / "data" / "mark").touch()
        await modify(driver, volume, {"onDelete": "retain"})
    async with running(area) as driver:
        await driver.delete(volume)
        assert place_of(driver, volume) == "retained"


async def test_who_asks_with_the_metadata_of_the_claim_gets_the_same(driver: Driver) -> None:
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    before = record_of(driver, volume)
    await modify(driver, volume, {**METADATA, "onDelete": "retain"})
    after = record_of(driver, volume)
    assert (after["onDelete"], after["claim"], after["volumeName"]) == ("retain", before["claim"], before["volumeName"])


async def test_nodes_of_a_shared_pool_find_what_another_one_modified(area: Path) -> None:
    settings = [PoolSettings(name="default", path=str(area / "pool"), shared=True)]
    (area / "second").mkdir()
    async with running(area, settings) as first, running(area / "second", settings, node="node-2") as second:
        volume = (await first.create(parameters=DIRECTORY)).volume_id
        await modify(second, volume, {"onDelete": "retain"})
        await asyncio.gather(
            modify(first, volume, {"onDelete": "archive"}), modify(second, volume, {"onDelete": "archive"})
        )
        (first.volume_folder(volume) / "data" / "mark").touch()
        await first.delete(volume)
        assert place_of(first, volume) == "archived"
        with refused(grpc.StatusCode.NOT_FOUND, volume):
            await modify(second, volume, {"onDelete": "retain"})


# What the volume says of itself, and what it is asked for again.


async def test_the_context_that_a_persistent_volume_keeps_stays_the_volumes_own(driver: Driver) -> None:
    made = (await driver.controller.CreateVolume(wish(mutable={"onDelete": "archive"}))).volume
    context = dict(made.volume_context)
    assert context["onDelete"] == "archive"
    await modify(driver, made.volume_id, {"onDelete": "retain"})
    found = await driver.controller.ControllerGetVolume(csi.ControllerGetVolumeRequest(volume_id=made.volume_id))
    listed = await driver.controller.ListVolumes(csi.ListVolumesRequest())
    assert dict(found.volume.volume_context) == context
    assert [dict(entry.volume.volume_context) for entry in listed.entries] == [context]
    answer = await validated(driver, made.volume_id, context=context)
    assert answer.HasField("confirmed"), answer.message
    assert dict(answer.confirmed.volume_context) == context
    other = await validated(driver, made.volume_id, context={**context, "onDelete": "delete"})
    assert not other.HasField("confirmed")
    assert "onDelete" in other.message


@pytest.mark.parametrize(
    "request_again",
    [wish({**DIRECTORY, "onDelete": "archive"}), wish(mutable={"onDelete": "archive"})],
    ids=["class", "attributes class"],
)
async def test_the_request_that_made_a_volume_is_answered_with_it_as_it_is_now(
    driver: Driver, request_again: csi.CreateVolumeRequest
) -> None:
    made = (await driver.controller.CreateVolume(request_again)).volume
    for word in ("retain", "delete"):
        await modify(driver, made.volume_id, {"onDelete": word})
        for _ in range(2):
            assert (await driver.controller.CreateVolume(request_again)).volume == made
            assert record_of(driver, made.volume_id)["onDelete"] == word, "the retry undid the modification"


async def test_a_repeated_creation_may_ask_for_what_the_volume_was_or_is_and_for_nothing_else(driver: Driver) -> None:
    made = (await driver.controller.CreateVolume(wish())).volume
    with refused(grpc.StatusCode.ALREADY_EXISTS, "onDelete is delete"):
        await driver.controller.CreateVolume(wish(mutable={"onDelete": "retain"}))
    await modify(driver, made.volume_id, {"onDelete": "retain"})
    assert (await driver.controller.CreateVolume(wish(mutable={"onDelete": "retain"}))).volume == made
    for other in (wish(mutable={"onDelete": "archive"}), wish({**DIRECTORY, "onDelete": "archive"})):
        with refused(grpc.StatusCode.ALREADY_EXISTS, "onDelete is retain"):
            await driver.controller.CreateVolume(other)
    assert record_of(driver, made.volume_id)["onDelete"] == "retain"


async def test_what_may_change_takes_precedence_over_the_class(driver: Driver) -> None:
    made = (
        await driver.controller.CreateVolume(
            wish({**DIRECTORY, "onDelete": "delete"}, mutable={**METADATA, "onDelete": "retain"})
        )
    ).volume
    record = record_of(driver, made.volume_id)
    assert (record["onDelete"], record["version"]) == ("retain", 1)
    assert (await driver.controller.CreateVolume(wish({**DIRECTORY, "onDelete": "retain"}))).volume == made


# What is refused.


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, ["onDelete", "missing", "delete, retain, archive"]),
        (METADATA, ["onDelete", "missing"]),
        ({"onDelete": ""}, ["onDelete", "''", "delete, retain, archive"]),
        ({"onDelete": "keep"}, ["onDelete", "'keep'", "delete, retain, archive"]),
        ({"onDelete": "retain", "quota": "none"}, ["'quota'", "onDelete"]),
        ({"onDelete": "retain", "ondelete": "retain"}, ["'ondelete'", "onDelete"]),
        ({"onDelete": "retain", "csi.storage.k8s.io/pv/name": "a\nb"}, ["csi.storage.k8s.io/pv/name", "control"]),
    ],
)
async def test_what_cannot_change_is_refused_and_nothing_changes(
    driver: Driver, parameters: dict[str, str], words: list[str]
) -> None:
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    before = record_of(driver, volume)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, *words):
        await modify(driver, volume, parameters)
    assert record_of(driver, volume) == before
    if parameters.keys() - METADATA.keys():
        with refused(grpc.StatusCode.INVALID_ARGUMENT, *words):
            await driver.controller.CreateVolume(wish(mutable=parameters))
        answer = await validated(driver, volume, mutable=parameters)
        assert not answer.HasField("confirmed")
        assert all(word in answer.message for word in words)


async def test_whether_a_volume_could_be_modified_can_be_asked(driver: Driver) -> None:
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    answer = await validated(driver, volume, mutable={"onDelete": "retain"})
    assert dict(answer.confirmed.mutable_parameters) == {"onDelete": "retain"}
    assert record_of(driver, volume)["onDelete"] == "delete"


@pytest.mark.parametrize("volume", [NOWHERE, "vol-1", "somebody-elses"])
async def test_a_volume_that_is_not_there_is_not_found(driver: Driver, volume: str) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, volume):
        await modify(driver, volume, {"onDelete": "retain"})


@pytest.mark.parametrize("volume", ["", "../pvc-1", "a\nb", "x" * 129])
async def test_an_id_that_is_none_is_refused(driver: Driver, volume: str) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "volume_id"):
        await modify(driver, volume, {"onDelete": "retain"})


async def test_a_volume_that_is_worked_on_is_modified_later(driver: Driver) -> None:
    volume = (await driver.create(parameters=DIRECTORY)).volume_id
    may_end = asyncio.Event()
    work = asyncio.create_task(driver.guard.run(volume, may_end.wait))
    await asyncio.sleep(0)
    try:
        with refused(grpc.StatusCode.ABORTED, volume):
            await modify(driver, volume, {"onDelete": "retain"})
    finally:
        may_end.set()
        await work
    await modify(driver, volume, {"onDelete": "retain"})
    assert record_of(driver, volume)["onDelete"] == "retain"


@pytest.mark.parametrize("state", ["creating", "wiping", "deleting"])
async def test_a_volume_that_is_not_ready_is_left_as_it_is(area: Path, state: str) -> None:
    async with running(area) as driver:
        volume = (await driver.create(parameters=DIRECTORY)).volume_id
        station = next(iter(driver.pools))
        pool = station.opened().pool
        document = record_of(driver, volume) | {"version": 2, "state": state, "wipedFor": ["uid-1"]}
        file = driver.volume_folder(volume) / "record.json"
        file.write_text(json.dumps(document))
        pool.load()
        with refused(grpc.StatusCode.UNAVAILABLE, state):
            await modify(driver, volume, {"onDelete": "retain"})
        assert json.loads(file.read_bytes()) == document


async def test_a_volume_that_goes_with_its_pod_goes(driver: Driver) -> None:
    handle = f"csi-{hashlib.sha256(b'pod').hexdigest()}"
    target = driver.target("pod")
    await driver.publish(
        handle,
        target,
        context={
            "csi.storage.k8s.io/ephemeral": "true",
            "csi.storage.k8s.io/pod.uid": "pod",
            "size": "16Mi",
            "backend": "directory",
            "quota": "none",
        },
    )
    volume = published_id(handle)
    for word in WORDS:
        with refused(grpc.StatusCode.INVALID_ARGUMENT, volume, "pod"):
            await modify(driver, volume, {"onDelete": word})
        answer = await validated(driver, volume, mutable={"onDelete": word})
        assert not answer.HasField("confirmed")
    assert (await validated(driver, volume)).HasField("confirmed")
    await driver.unpublish(handle, target)
    await driver.emptied()
    assert driver.left() == []


# Crashes.

_VICTIM = """
import asyncio, json, os, sys, time
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.rpc import validation
from moorage_csi.rpc.modifying import Modifier
from moorage_csi.rpc.provisioning import Provisioner
from moorage_csi.rpc.station import Station
from moorage_csi.volumes.disk import Disks
from moorage_csi.volumes.pool import PoolSettings
from tests.kernel.crash_points import die_at
from tests.kernel.rpc_driver import DIRECTORY
from tests.kernel.test_rpc_modifying import wish

async def scenario(path, fatal):
    os.mkdir(path)
    station = Station(PoolSettings(name="default", path=path + "/pool"), node="node-1", disks=Disks())
    record = await Provisioner(node_name="node-1", clock=time.time).create(
        station, validation.creation(wish(), pools=["default"]))
    die_at(fatal)
    for word in ("retain", "archive"):
        await Modifier().modify(station, record.id, on_delete=word)

areas = []
for fatal in range(1, 100):
    path = f"{sys.argv[1]}/{fatal}"
    areas.append(path)
    child = os.fork()
    if child == 0:
        asyncio.run(scenario(path, fatal))
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(json.dumps(areas))
"""


async def test_a_driver_killed_at_any_point_leaves_the_old_record_or_the_new_one(area: Path) -> None:
    volume = volume_id_for("pvc-1")
    found = set()
    for crashed in areas_of("-c", _VICTIM, str(area)):
        async with running(crashed) as driver:
            record = record_of(driver, volume)
            found.add((record["onDelete"], record.get("firstOnDelete")))
            made = (await driver.controller.CreateVolume(wish())).volume
            assert made.volume_context["onDelete"] == "delete"
            assert record_of(driver, volume) == record, crashed
            await modify(driver, volume, {"onDelete": "archive"})
            (driver.volume_folder(volume) / "data" / "mark").touch()
            await driver.delete(volume)
            assert place_of(driver, volume) == "archived"
            await driver.emptied()
            assert [path for path in driver.left() if not path.startswith("archived/")] == []
    assert found == {("delete", None), ("retain", "delete"), ("archive", "delete")}
