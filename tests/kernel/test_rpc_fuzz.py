"""Every field of every RPC with whatever anybody could put into it, sent over a socket to the driver as a process.

Whatever is sent: the answer comes, with a code that is documented for its RPC, and without a word of the secrets; what lies
beside the pool, beside the volumes that are meant and beside the targets stays as it is, to the last byte and attribute;
and at the end all that was made can be taken away again, with nothing left.

``MOORAGE_FUZZ_EXAMPLES`` is how many requests are sent, ``MOORAGE_FUZZ_SEED`` repeats a run that has failed.
"""

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from google.protobuf import message_factory, text_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from moorage_csi.host import mounts
from moorage_csi.proto import csi_pb2 as csi
from tests.harness.plugin import Plugin
from tests.kernel.fuzz_requests import IMPORTED, INLINE, OFTEN, SECRET, Requests, Scene, methods, volume_id_of
from tests.kernel.machine import names
from tests.kernel.rpc_driver import DIRECTORY, SIZE, capability

EXAMPLES = int(os.environ.get("MOORAGE_FUZZ_EXAMPLES", "4000"))
SEED = int(os.environ.get("MOORAGE_FUZZ_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(max(180, EXAMPLES // 4))]

ANSWER_SECONDS = 20.0
MOST_FAULTS = 20
ENOUGH = 4000
"""Requests of which every RPC gets one that succeeds."""

Code = grpc.StatusCode

GENERAL = {Code.OK, Code.INVALID_ARGUMENT, Code.ABORTED}
"""CSI, "Error Scheme": for every RPC. Nobody else asks here, so nothing is in flight and UNAVAILABLE is no answer."""

DOCUMENTED = {
    "CreateVolume": {Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.RESOURCE_EXHAUSTED, Code.OUT_OF_RANGE},
    "DeleteVolume": {Code.FAILED_PRECONDITION},
    "ValidateVolumeCapabilities": {Code.NOT_FOUND},
    "ControllerGetVolume": {Code.NOT_FOUND},
    "CreateSnapshot": {Code.ALREADY_EXISTS, Code.RESOURCE_EXHAUSTED},
    "DeleteSnapshot": {Code.FAILED_PRECONDITION},
    "GetSnapshot": {Code.NOT_FOUND},
    "ControllerExpandVolume": {Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.OUT_OF_RANGE},
    "ControllerModifyVolume": {Code.NOT_FOUND},
    "CreateVolumeGroupSnapshot": {
        *(Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION, Code.NOT_FOUND, Code.RESOURCE_EXHAUSTED),
    },
    "DeleteVolumeGroupSnapshot": {Code.FAILED_PRECONDITION},
    "GetVolumeGroupSnapshot": {Code.NOT_FOUND},
    "NodePublishVolume": {Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION},
    "NodeUnpublishVolume": {Code.NOT_FOUND},
    "NodeGetVolumeStats": {Code.NOT_FOUND},
    "NodeExpandVolume": {Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.OUT_OF_RANGE},
    "WipeVolume": {Code.NOT_FOUND, Code.FAILED_PRECONDITION},
    "ShrinkVolume": {Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.OUT_OF_RANGE},
    "RestoreDeleted": {
        *(Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION, Code.RESOURCE_EXHAUSTED),
    },
}
"""CSI, the "Errors" of each RPC; for the last three ``moorage.proto``."""

OURS = {
    # The class requires a limit that this host's kernel cannot hold, which is nothing in the request.
    "CreateVolume": {Code.FAILED_PRECONDITION},
    # CSI has no word for a source that is not there, and one for CreateVolume's.
    "CreateSnapshot": {Code.NOT_FOUND, Code.FAILED_PRECONDITION},
    # There is no room: a range that would be allowed elsewhere, or later.
    "ControllerExpandVolume": {Code.RESOURCE_EXHAUSTED},
    # The target is in use, and stays.
    "NodeUnpublishVolume": {Code.FAILED_PRECONDITION},
}

UNOFFERED = frozenset(
    {
        *("ControllerPublishVolume", "ControllerUnpublishVolume"),
        *("NodeStageVolume", "NodeUnstageVolume", "GetMetadataAllocated", "GetMetadataDelta"),
    }
)
"""What no capability speaks of: UNIMPLEMENTED, and INVALID_ARGUMENT for a request that cannot be read."""


@dataclass(slots=True, kw_only=True)
class World:
    """The driver, what must not change around it, and what it has answered."""

    plugin: Plugin
    channel: grpc.Channel
    scene: Scene
    sentinels: tuple[Path, ...]
    unoffered: frozenset[str]
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: dict[tuple[str, str], str] = field(default_factory=dict)

    def allowed(self, method: str) -> set[grpc.StatusCode]:
        """The codes that callers of the RPC have to expect."""
        if method in self.unoffered:
            return {Code.UNIMPLEMENTED, Code.INVALID_ARGUMENT}
        return GENERAL | DOCUMENTED.get(method, set()) | OURS.get(method, set())

    def send(self, method: MethodDescriptor, request: Message) -> tuple[grpc.StatusCode, Message | None, str]:
        """Send and wait; returns the code, the response where there is one, and what was said."""
        assert method.containing_service is not None
        response = message_factory.GetMessageClass(method.output_type)
        call: grpc.UnaryUnaryMultiCallable[Message, Message] = self.channel.unary_unary(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        try:
            answer: Message = call(request, timeout=ANSWER_SECONDS)
        except grpc.RpcError as error:
            return error.code(), None, error.details() or ""
        return Code.OK, answer, ""

    def ask(self, name: str, request: Message) -> Message:
        """The same by the RPC's name, which has to succeed."""
        method = next(one for one in methods() if one.name == name)
        code, answer, said = self.send(method, request)
        assert code is Code.OK, f"{name} {text_format.MessageToString(request, as_one_line=True)}: {code} {said}"
        assert answer is not None
        return answer


def everything(root: Path) -> dict[str, tuple[object, ...]]:
    """Every path from ``root`` on with all that can be told of it but when it was last read."""
    found: dict[str, tuple[object, ...]] = {}
    for path in (root, *root.rglob("*")):
        seen = path.lstat()
        content: object = None
        if path.is_symlink():
            content = path.readlink()
        elif path.is_file():
            content = path.read_bytes()
        attributes = [(name, os.getxattr(path, name, follow_symlinks=False)) for name in _xattrs(path)]
        kept = (seen.st_ino, seen.st_mode, seen.st_uid, seen.st_gid, seen.st_size, seen.st_nlink, seen.st_mtime_ns)
        found[str(path)] = (*kept, seen.st_ctime_ns, content, *attributes)
    return found


def _xattrs(path: Path) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


def _plant(root: Path) -> Path:
    """A tree that somebody would miss."""
    (root / "deep" / "empty").mkdir(parents=True)
    (root / "deep" / "file").write_bytes(b"untouched" * 100)
    (root / "deep" / "file").chmod(0o640)
    os.chown(root / "deep" / "file", 1234, 4321)
    os.setxattr(root / "deep" / "file", "trusted.sentinel", b"kept")
    (root / "record.json").write_text("{}")
    (root / "hollow").touch()
    (root / "link").symlink_to("deep/file")
    os.utime(root / "deep" / "file", ns=(1, 1))
    return root


@pytest.fixture
def world(area: Path) -> Iterator[World]:
    victim, kubelet, pool, second = _plant(area / "victim"), area / "kubelet", area / "pool", area / "second"
    (kubelet / "plugins").mkdir(parents=True)
    (kubelet / "config.yaml").write_text("kind: KubeletConfiguration")
    (kubelet / "plugins" / "other.sock").write_text("a socket of somebody else")
    (kubelet / "link").symlink_to(victim)
    (kubelet / "file-link").symlink_to(victim / "deep" / "file")
    for number in range(3):
        (kubelet / "pods" / f"pod-{number}" / "volumes").mkdir(parents=True)
    pools = [{"name": "default", "path": str(pool)}, {"name": "second", "path": str(second), "trashRetention": "8s"}]
    imports = _plant(area / "imports" / "old").parent
    (area / "all.json").write_text(json.dumps({"pools": pools, "imports": [str(imports)]}))
    with (
        Plugin(area, [], "--pools-file", str(area / "all.json")) as plugin,
        grpc.insecure_channel(f"unix:{plugin.socket}") as channel,
    ):
        scene = Scene(
            kubelet=kubelet,
            pool=pool,
            imports=imports,
            others=(str(victim), f"{victim}/deep", f"{victim}/hollow", str(second)),
        )
        world = World(plugin=plugin, channel=channel, scene=scene, sentinels=(), unoffered=UNOFFERED)
        world.unoffered |= _absent_services(world)
        kept = tuple(_kept(world, at) for at in (pool, second))
        world.sentinels = (victim, imports, kubelet / "config.yaml", kubelet / "plugins" / "other.sock", *kept)
        try:
            yield world
        finally:
            for mount in reversed(mounts.mounts()):
                if mount.target.startswith(f"{area}/"):
                    mounts.unmount(mount.target)


def _absent_services(world: World) -> set[str]:
    """RPCs of services that the plugin does not say it has."""
    answer = world.ask("GetPluginCapabilities", csi.GetPluginCapabilitiesRequest())
    assert isinstance(answer, csi.GetPluginCapabilitiesResponse)
    if any(one.service.type == csi.PluginCapability.Service.GROUP_CONTROLLER_SERVICE for one in answer.capabilities):
        return set()
    return {one.name for one in csi.DESCRIPTOR.services_by_name["GroupController"].methods}


def _kept(world: World, pool: Path) -> Path:
    """A volume of a name that no request has, with data in it; returns its folder."""
    answer = world.ask(
        "CreateVolume",
        _creation(f"kept-{pool.name}", parameters={**DIRECTORY, "pool": {"pool": "default"}.get(pool.name, pool.name)}),
    )
    assert isinstance(answer, csi.CreateVolumeResponse)
    folder = pool / "volumes" / answer.volume.volume_id
    _plant(folder / "data" / "tree")
    return folder


def _creation(name: str, *, parameters: dict[str, str]) -> csi.CreateVolumeRequest:
    return csi.CreateVolumeRequest(
        name=name,
        capacity_range=csi.CapacityRange(required_bytes=SIZE),
        volume_capabilities=[capability()],
        parameters=parameters,
    )


def test_whatever_is_sent_the_answer_is_documented_and_nothing_else_is_touched(world: World, area: Path) -> None:
    requests = Requests(world.scene)
    print(f"MOORAGE_FUZZ_SEED={SEED} MOORAGE_FUZZ_EXAMPLES={EXAMPLES}")  # noqa: T201 - to repeat a failure
    identities = {path: (path / "pool.json").read_bytes() for path in (area / "pool", area / "second")}
    before = [everything(sentinel) for sentinel in world.sentinels]
    outside = names(area)
    drawn = [*methods(), *(method for often in OFTEN for method in methods() if method.name == often)]

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
        deadline=None,
    )
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        method = data.draw(st.sampled_from(drawn))
        request = data.draw(requests.of(method))
        if len(world.faults) < MOST_FAULTS:
            _judge(world, method, request)
        if sum(world.answers.values()) % 10 == 0 and [everything(each) for each in world.sentinels] != before:
            pytest.fail(f"something beside was touched by one of the last requests to {_told(method, request)}")

    fuzz()
    assert world.faults == {}, "\n".join(world.faults.values())
    assert [everything(sentinel) for sentinel in world.sentinels] == before
    assert identities == {path: (path / "pool.json").read_bytes() for path in identities}
    assert names(area) == outside
    _all_was_reached(world)
    _nothing_is_left(world, area)


def _judge(world: World, method: MethodDescriptor, request: Message) -> None:
    """What is wrong becomes a fault: another try at the same request would be made in another world."""
    code, _, said = world.send(method, request)
    world.answers[method.name, code.name] += 1
    if code not in world.allowed(method.name):
        world.faults[method.name, code.name] = f"{code.name} ({said}) for {_told(method, request)}"
    if SECRET in said:
        world.faults[method.name, "secret"] = f"the secret in {said!r} for {_told(method, request)}"
    kubelet = f"{world.scene.kubelet}/"
    area = str(world.scene.kubelet.parent)
    beside = [
        each.target for each in mounts.mounts() if each.target.startswith(area) and not each.target.startswith(kubelet)
    ]
    if beside:
        world.faults[method.name, "mounts"] = f"mounts at {beside} for {_told(method, request)}"


def _told(method: MethodDescriptor, request: Message) -> str:
    return f"{method.name} {text_format.MessageToString(request, as_one_line=True)} (MOORAGE_FUZZ_SEED={SEED})"


def _all_was_reached(world: World) -> None:
    """Nothing is shown by requests that are all refused at the door."""
    called = {method for method, _ in world.answers}
    for method in sorted(called):
        print(method, {code: count for (name, code), count in sorted(world.answers.items()) if name == method})  # noqa: T201
    succeeded = {method for method, code in world.answers if code == "OK"}
    known = {method.name for method in methods()}
    assert called == known
    if EXAMPLES >= ENOUGH:
        assert known - world.unoffered - succeeded == set()


def _nothing_is_left(world: World, area: Path) -> None:
    """All that was made goes the way that its callers have for it."""
    listed = world.ask("ListVolumes", csi.ListVolumesRequest())
    taken = world.ask("ListSnapshots", csi.ListSnapshotsRequest())
    assert isinstance(listed, csi.ListVolumesResponse)
    assert isinstance(taken, csi.ListSnapshotsResponse)
    kept = {volume_id_of("kept-pool"), volume_id_of("kept-second")}
    made = {entry.volume.volume_id for entry in listed.entries} - kept
    while targets := [each.target for each in mounts.mounts() if each.target.startswith(f"{world.scene.kubelet}/")]:
        for volume in (*made, INLINE, IMPORTED):
            world.ask("NodeUnpublishVolume", csi.NodeUnpublishVolumeRequest(volume_id=volume, target_path=targets[-1]))
    for volume in made:
        world.ask("DeleteVolume", csi.DeleteVolumeRequest(volume_id=volume))
    groups = {one.snapshot.group_snapshot_id for one in taken.entries} - {""}
    for group in groups:
        members = [one.snapshot.snapshot_id for one in taken.entries if one.snapshot.group_snapshot_id == group]
        request = csi.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=group, snapshot_ids=members)
        world.ask("DeleteVolumeGroupSnapshot", request)
    for one in taken.entries:
        if not one.snapshot.group_snapshot_id:
            world.ask("DeleteSnapshot", csi.DeleteSnapshotRequest(snapshot_id=one.snapshot.snapshot_id))
    _emptied(area)
    for pool in (area / "pool", area / "second"):
        assert set(names(pool / "volumes")) <= kept
        assert names(pool / "snapshots") == names(pool / "making") == []


def _emptied(area: Path) -> None:
    deadline = time.monotonic() + 60
    while left := [*names(area / "pool" / "trash"), *names(area / "second" / "trash")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
