"""What people see: the summary, the progress, and what is missing when a target cannot be used."""

import io
from pathlib import Path

import pytest

from tests.harness import binaries, demo, suites, targets
from tests.harness.errors import HarnessError, MissingError
from tests.harness.progress import Progress, Silent


def test_the_summary_tells_volume_node_backend_sizes_and_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "program", lambda name: Path("/bin/of") / name)
    text = demo.summary(
        demo.Outcome(
            claim={"status": {"phase": "Bound"}, "spec": {"resources": {"requests": {"storage": "256Mi"}}}},
            volume={
                "metadata": {"name": "pvc-1"},
                "spec": {
                    "capacity": {"storage": "256Mi"},
                    "csi": {
                        "volumeAttributes": {
                            "backend": "image",
                            "filesystem": "ext4",
                            "pool": "default",
                            "quota": "enforced",
                        }
                    },
                },
            },
            pod={"spec": {"nodeName": "node-1"}},
            usage="Filesystem Size\n/dev/loop0 231M\n",
            bound_after=1.234,
            running_after=2.345,
            kubeconfig=Path("/run/kubeconfig"),
        )
    )
    for told in (
        "data, Bound",
        "pvc-1",
        "node-1",
        "image, ext4, pool default",
        "asked 256Mi, made 256Mi, enforced",
        "1.23 s from apply to Bound, 2.35 s to Running",
        "    /dev/loop0 231M",
        "export KUBECONFIG=/run/kubeconfig PATH=/bin/of:$PATH",
        "make down",
    ):
        assert told in text


def test_progress_shows_the_time_and_how_long_a_step_took() -> None:
    now = iter([0.0, 1.0, 1.0, 4.5, 4.5])
    stream = io.StringIO()
    with Progress(stream, clock=lambda: next(now)).step("work", usually="3 s"):
        pass
    assert stream.getvalue() == "[   1.0s] work (usually 3 s)\n[   4.5s]   done in 3.5 s: work\n"


def test_kind_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="needs docker and kind on PATH"):
        targets.chosen("kind", image="", progress=Silent()).start()


def test_the_current_cluster_needs_an_image_and_a_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match="IMAGE="):
        targets.chosen("current", image="", progress=Silent()).start()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(MissingError, match="none does not exist"):
        targets.chosen("current", image="registry.example/moorage:1", progress=Silent()).start()
    (tmp_path / "none").touch()
    current = targets.chosen("current", image="registry.example/moorage:1", progress=Silent())
    assert current.start() == tmp_path / "none"
    assert current.image() == "registry.example/moorage:1"


def test_an_unknown_cluster_or_suite_is_refused_with_the_known_ones() -> None:
    with pytest.raises(HarnessError, match="CLUSTER=moon is unknown: embedded, kind or current"):
        targets.chosen("moon", image="", progress=Silent())
    with pytest.raises(HarnessError, match="no suite moon: unit, api, kernel, sanity, cluster"):
        suites.run(["moon"], progress=Silent())
