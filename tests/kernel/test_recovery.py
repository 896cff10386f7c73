"""What was deleted is listed, and comes back by one command, as it was; against a driver process on its socket."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from moorage_csi.contract import Metadata
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.proto import csi_pb2_grpc
from tests.harness.places import ROOT
from tests.harness.plugin import Plugin
from tests.kernel.rpc_driver import MIB, capability

pytestmark = pytest.mark.kernel

CLAIM = {Metadata.CLAIM_NAMESPACE: "shop", Metadata.CLAIM_NAME: "data", Metadata.VOLUME_NAME: "pvc-1"}


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Plugin]:
    pool = {"name": "default", "path": str(tmp_path / "pool"), "trashRetention": "1h"}
    with Plugin(tmp_path, [pool]) as running:
        yield running


def asked(plugin: Plugin, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "moorage_csi", *words, f"--endpoint=unix://{plugin.socket}"],
        env={"PYTHONPATH": str(ROOT / "csi")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Client:
    """Volumes made, written, read and deleted by the driver's RPCs."""

    def __init__(self, plugin: Plugin) -> None:
        channel = grpc.insecure_channel(f"unix://{plugin.socket}")
        self._controller = csi_pb2_grpc.ControllerStub(channel)
        self._node = csi_pb2_grpc.NodeStub(channel)
        self._target = plugin.kubelet / "pod" / "mount"
        self._target.parent.mkdir()

    def create(self, name: str) -> str:
        request = csi.CreateVolumeRequest(
            name=name,
            capacity_range=csi.CapacityRange(required_bytes=64 * MIB),
            volume_capabilities=[capability()],
            parameters={"backend": "image", **CLAIM},
        )
        volume: str = self._controller.CreateVolume(request).volume.volume_id
        return volume

    def delete(self, volume: str) -> None:
        self._controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id=volume))

    def visit(self, volume: str, *, write: str | None = None) -> str:
        target = str(self._target)
        self._node.NodePublishVolume(
            csi.NodePublishVolumeRequest(volume_id=volume, target_path=target, volume_capability=capability())
        )
        file = self._target / "file"
        if write is not None:
            file.write_text(write)
        said = file.read_text()
        self._node.NodeUnpublishVolume(csi.NodeUnpublishVolumeRequest(volume_id=volume, target_path=target))
        return said

    def snapshot(self, volume: str) -> str:
        request = csi.CreateSnapshotRequest(name="snap", source_volume_id=volume)
        snapshot: str = self._controller.CreateSnapshot(request).snapshot.snapshot_id
        self._controller.DeleteSnapshot(csi.DeleteSnapshotRequest(snapshot_id=snapshot))
        return snapshot

    def exists(self, volume: str) -> bool:
        listed = self._controller.ListVolumes(csi.ListVolumesRequest()).entries
        return volume in [entry.volume.volume_id for entry in listed]


def test_a_deleted_volume_comes_back_with_its_data_and_a_persistent_volume_for_its_claim(plugin: Plugin) -> None:
    client = Client(plugin)
    volume = client.create("pvc-1")
    client.visit(volume, write="kept")
    client.delete(volume)
    assert not client.exists(volume)

    listed = asked(plugin, "deleted")
    assert listed.returncode == 0, listed.stderr
    header, row = listed.stdout.splitlines()
    assert header.split() == ["ID", "POOL", "IN", "DELETED", "(UTC)", "SIZE", "CLAIM", "NAME"]
    assert row.split()[:3] == [volume, "default", "trash"]
    assert row.split()[5:] == ["64Mi", "shop/data", "pvc-1"]
    (item,) = json.loads(asked(plugin, "deleted", "-o", "json").stdout)["items"]
    assert (item["id"], item["sizeBytes"], item["where"]) == (volume, 64 * MIB, "trash")

    restored = asked(plugin, "restore", volume, "--storage-class=fast", "-o", "json")
    assert restored.returncode == 0, restored.stderr
    document = json.loads(restored.stdout)
    spec = document["spec"]
    assert (spec["csi"]["volumeHandle"], spec["csi"]["fsType"]) == (volume, "ext4")
    assert (spec["storageClassName"], spec["persistentVolumeReclaimPolicy"]) == ("fast", "Retain")
    assert (spec["claimRef"]["namespace"], spec["claimRef"]["name"]) == ("shop", "data")
    assert client.visit(volume) == "kept"
    again = asked(plugin, "restore", volume)
    assert again.returncode == 0
    assert again.stdout.startswith(f"# Volume {volume} is back.")
    assert asked(plugin, "deleted").stdout.startswith("nothing that was deleted can be had back")


def test_of_an_id_deleted_twice_the_last_comes_back_and_never_over_what_is_there(plugin: Plugin) -> None:
    client = Client(plugin)
    for text in ("first", "second"):
        volume = client.create("pvc-1")
        client.visit(volume, write=text)
        client.delete(volume)
    assert len(json.loads(asked(plugin, "deleted", "-o", "json").stdout)["items"]) == 2
    assert asked(plugin, "restore", volume).returncode == 0
    assert client.visit(volume) == "second"
    refused = asked(plugin, "restore", volume)
    assert refused.returncode == 1
    assert "made anew since" in refused.stderr
    assert client.visit(volume) == "second"
    client.delete(volume)
    assert len(json.loads(asked(plugin, "deleted", "-o", "json").stdout)["items"]) == 2


def test_a_snapshot_comes_back_too(plugin: Plugin) -> None:
    client = Client(plugin)
    snapshot = client.snapshot(client.create("pvc-1"))
    restored = asked(plugin, "restore", snapshot)
    assert restored.returncode == 0, restored.stderr
    assert f"snapshotHandle: {snapshot}" in restored.stdout


@pytest.mark.parametrize("wanted", ["vol-00000000000000000000000000000000", "../trash", "/etc", "x" * 200])
def test_what_was_never_deleted_is_refused_in_words(plugin: Plugin, wanted: str) -> None:
    refused = asked(plugin, "restore", wanted)
    assert refused.returncode == 1
    assert refused.stderr.startswith("moorage-csi restore: ")
    assert refused.stdout == ""


def test_no_driver_is_said_in_words(plugin: Plugin) -> None:
    plugin.stop()
    refused = asked(plugin, "deleted")
    assert refused.returncode == 1
    assert "moorage-csi deleted: " in refused.stderr
