"""What people apply without Helm: rendered from the chart, and examples that need nothing else."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from moorage_csi import contract
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.rpc import ephemeral, imports, validation
from tests.harness import binaries
from tests.harness.errors import MissingError
from tests.unit.chart.rendering import EXAMPLES, MANIFEST, NAMESPACE, ROOT, Object, parse, rendered_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.controlplane import ControlPlane
    from tests.unit.chart.rendering import Rendering

NAMES = ["block", "directory", "ephemeral", "immediate", "import-pv", "rox", "rwo", "rwop", "rwx", "static-pv"]
CLASSLESS = {"static-pv", "import-pv"}
MODES = {
    "rwo": ["ReadWriteOnce"],
    "rwop": ["ReadWriteOncePod"],
    "rwx": ["ReadWriteMany"],
    "rox": ["ReadWriteMany", "ReadOnlyMany"],
}

example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def _objects(path: Path) -> tuple[Object, ...]:
    return parse(path.read_text())


def _pods(objects: tuple[Object, ...]) -> Iterator[dict[str, Any]]:
    for each in objects:
        if each["kind"] == "Pod":
            yield each["spec"]
        elif each["kind"] in ("Deployment", "Job"):
            yield each["spec"]["template"]["spec"]


def test_the_manifest_is_what_the_chart_renders() -> None:
    assert MANIFEST.read_text() == rendered_text(), (
        "render it again: helm template moorage charts/moorage --namespace moorage-system "
        "--kube-version 1.29.0 --skip-tests > manifests/moorage.yaml"
    )


def test_the_namespace_admits_the_node_plugin() -> None:
    (namespace,) = _objects(ROOT / "manifests" / "namespace.yaml")
    assert namespace["metadata"]["name"] == NAMESPACE
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"


def test_there_is_an_example_of_every_kind() -> None:
    assert [path.stem for path in EXAMPLES] == NAMES
    for name, modes in MODES.items():
        (claim,) = (each for each in _objects(EXAMPLES[NAMES.index(name)]) if each["kind"] == "PersistentVolumeClaim")
        assert claim["spec"]["accessModes"] == modes


@example
def test_an_example_stands_alone(path: Path, defaults: Rendering) -> None:
    objects = _objects(path)
    classes = {each["metadata"]["name"] for each in (*defaults.objects, *objects) if each["kind"] == "StorageClass"}
    claims = [each for each in objects if each["kind"] == "PersistentVolumeClaim"]
    assert len(claims) == (0 if path.stem == "ephemeral" else 1)
    volumes = [volume for pod in _pods(objects) for volume in pod["volumes"]]
    assert volumes
    for claim in claims:
        assert claim["spec"]["storageClassName"] in classes | ({""} if path.stem in CLASSLESS else set())
    used = {volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "csi" not in volume}
    assert used == {claim["metadata"]["name"] for claim in claims}
    assert path.read_text().startswith("# "), "an example says what it shows"


@example
def test_an_examples_pods_need_no_registry_and_stop_at_once(path: Path) -> None:
    for pod in _pods(_objects(path)):
        (container,) = pod["containers"]
        assert container["image"] == "busybox:1.37"
        assert container["imagePullPolicy"] == "IfNotPresent"
        if pod.get("restartPolicy") != "OnFailure":
            assert pod["terminationGracePeriodSeconds"] <= 5
            assert "trap 'exit 0' TERM" in container["command"][-1]


def _by_kind(name: str) -> dict[str, Object]:
    return {each["kind"]: each for each in _objects(EXAMPLES[NAMES.index(name)])}


def test_the_example_of_an_import_is_one_to_the_driver() -> None:
    volume = _by_kind("import-pv")["PersistentVolume"]["spec"]
    assert volume["csi"]["driver"] == contract.DRIVER_NAME
    handle, attributes = volume["csi"]["volumeHandle"], volume["csi"]["volumeAttributes"]
    assert imports.path_in(validation.published_id(handle), attributes) == "/srv/data/team-a"
    (place,) = volume["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"]
    assert place["key"] == contract.TOPOLOGY_KEY
    assert volume["persistentVolumeReclaimPolicy"] == "Retain"


def test_the_example_of_an_ephemeral_volume_is_one_to_the_driver() -> None:
    (volume,) = _by_kind("ephemeral")["Pod"]["spec"]["volumes"]
    assert volume["csi"]["driver"] == contract.DRIVER_NAME
    target = "/k/pods/0f2/volumes/kubernetes.io~csi/scratch/mount"
    request = csi.NodePublishVolumeRequest(
        volume_id="csi-" + "0" * 64, volume_context={**volume["csi"]["volumeAttributes"], ephemeral.EPHEMERAL: "true"}
    )
    mode = csi.VolumeCapability.AccessMode(mode=csi.VolumeCapability.AccessMode.SINGLE_NODE_WRITER)
    access = validation.access([csi.VolumeCapability(mount=csi.VolumeCapability.MountVolume(), access_mode=mode)])
    wish = ephemeral.wish_of(request, access, target=target, kubelet_dir="/k", pools=["default"])
    assert wish is not None
    assert wish.range.required == 64 << 20


def test_no_object_of_two_examples_has_the_same_name_but_the_shared_class() -> None:
    seen: dict[tuple[str, str], Object] = {}
    for path in EXAMPLES:
        for each in _objects(path):
            key = (each["kind"], each["metadata"]["name"])
            assert key not in seen or (each["kind"] == "StorageClass" and seen[key] == each), key
            seen[key] = each


@pytest.mark.api
def test_a_real_api_server_takes_everything_as_it_stands(api_server: ControlPlane) -> None:
    try:
        kubectl = [str(binaries.program("kubectl")), "--kubeconfig", str(api_server.kubeconfig)]
    except MissingError as error:
        pytest.skip(f"kubectl: {error}")

    def apply(*flags: str, path: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*kubectl, "apply", *flags, "-f", str(path)], capture_output=True, text=True, check=False, timeout=30
        )

    # What lies in a namespace can be tried only where the namespace is.
    done = apply(path=ROOT / "manifests" / "namespace.yaml")
    assert done.returncode == 0, done.stderr
    for path in (MANIFEST, *EXAMPLES):
        done = apply("--server-side", "--dry-run=server", "--validate=strict", path=path)
        assert done.returncode == 0, f"{path.name}: {done.stderr}"
        assert "Warning" not in done.stderr, f"{path.name}: {done.stderr}"
        assert len(done.stdout.splitlines()) == len(_objects(path))
