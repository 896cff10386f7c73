"""What people apply without Helm: rendered from the chart, and examples that need nothing else."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import binaries
from tests.harness.errors import MissingError
from tests.unit.chart.rendering import EXAMPLES, MANIFEST, NAMESPACE, ROOT, Object, parse, rendered_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.controlplane import ControlPlane
    from tests.unit.chart.rendering import Rendering

NAMES = ["block", "directory", "immediate", "rox", "rwo", "rwop", "rwx", "static-pv"]
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
    assert len(claims) == 1
    assert claims[0]["spec"]["storageClassName"] in classes | ({""} if path.stem == "static-pv" else set())
    used = {volume["persistentVolumeClaim"]["claimName"] for pod in _pods(objects) for volume in pod.get("volumes", [])}
    assert used == {claims[0]["metadata"]["name"]}
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
