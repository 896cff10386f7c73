"""What /metrics shows of a real driver's pools and volumes."""

import json
from pathlib import Path

import pytest

from moorage_csi import settings
from moorage_csi.assembly import Driver
from moorage_csi.contract import Metadata
from moorage_csi.metrics import Metrics
from moorage_csi.proto import csi_pb2 as csi
from tests.kernel.rpc_driver import DIRECTORY, MIB, capability

pytestmark = pytest.mark.kernel


def _shown(metrics: Metrics, name: str) -> dict[str, float]:
    """The values of one metric, by all that stands between the braces."""
    lines = metrics.exposition().decode().splitlines()
    pairs = [line.rpartition(" ") for line in lines if line.startswith(f"{name}{{")]
    return {labels.partition("{")[2].rstrip("}"): float(value) for labels, _, value in pairs}


async def _made(driver: Driver, name: str, parameters: dict[str, str]) -> str:
    response = await driver.controller.CreateVolume(
        csi.CreateVolumeRequest(
            name=name,
            capacity_range=csi.CapacityRange(required_bytes=64 * MIB),
            volume_capabilities=[capability()],
            parameters=parameters,
        ),
        None,
    )
    return response.volume.volume_id


async def test_each_volume_is_shown_with_its_claim_and_what_it_takes_until_it_is_gone(tmp_path: Path) -> None:
    (tmp_path / "pools.json").write_text(json.dumps({"pools": [{"name": "fast", "path": str(tmp_path / "pool")}]}))
    flags = {"node-name": "node-1", "pools-file": tmp_path / "pools.json", "kubelet-dir": tmp_path}
    driver = await Driver.open(settings.load([f"--{key}={value}" for key, value in flags.items()], {}))
    metrics = Metrics(version="1", node="node-1")
    try:
        metadata = {Metadata.CLAIM_NAMESPACE: "shop", Metadata.CLAIM_NAME: "data", Metadata.VOLUME_NAME: "pvc-1"}
        claimed = await _made(driver, "pvc-1", {"backend": "image", **metadata})
        uncounted = await _made(driver, "other", DIRECTORY)
        snapshot = csi.CreateSnapshotRequest(name="snap", source_volume_id=claimed)
        await driver.controller.CreateSnapshot(snapshot, None)

        metrics.show(await driver.figures())
        of_claim = (
            f'namespace="shop",persistentvolume="pvc-1",persistentvolumeclaim="data",pool="fast",volume="{claimed}"'
        )
        of_other = f'namespace="",persistentvolume="",persistentvolumeclaim="",pool="fast",volume="{uncounted}"'
        assert _shown(metrics, "moorage_volume_size_bytes") == {of_claim: 64 * MIB, of_other: 64 * MIB}
        on_disk = (tmp_path / "pool/volumes" / claimed / "image").stat().st_blocks * 512
        assert _shown(metrics, "moorage_volume_allocated_bytes") == {of_claim: on_disk}
        assert _shown(metrics, "moorage_pool_snapshots") == {'pool="fast"': 1}
        held = _shown(metrics, "moorage_pool_promised_bytes")['pool="fast"'] - 128 * MIB
        assert 0 < held <= on_disk

        await driver.controller.DeleteVolume(csi.DeleteVolumeRequest(volume_id=claimed), None)
        metrics.show(await driver.figures())
        assert _shown(metrics, "moorage_volume_size_bytes") == {of_other: 64 * MIB}
        assert _shown(metrics, "moorage_volume_allocated_bytes") == {}
    finally:
        await driver.drain(20)
        await driver.close()
