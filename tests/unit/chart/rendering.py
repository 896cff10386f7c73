"""Helm as the tests use it: the chart with some values in, Kubernetes objects or a refusal out."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest
import yaml

from tests.harness import binaries
from tests.harness.errors import MissingError

ROOT: Final = Path(__file__).resolve().parents[3]
CHART: Final = ROOT / "charts" / "moorage"
MANIFEST: Final = ROOT / "manifests" / "moorage.yaml"
EXAMPLES: Final = tuple(sorted((ROOT / "manifests" / "examples").glob("*.yaml")))
NAMESPACE: Final = "moorage-system"
KUBERNETES: Final = "1.29.0"
"""The oldest Kubernetes that Chart.yaml allows; a helm built from source would assume 1.20."""

Values: TypeAlias = dict[str, Any]
Object: TypeAlias = dict[str, Any]


class RefusedError(Exception):
    """Helm refused; the text is what the person reads."""


@functools.cache
def helm() -> str:
    """Return the helm to use: $HELM, the one of the toolchain, or one on PATH; else skip the test."""
    if chosen := os.environ.get("HELM"):
        return chosen
    try:
        return str(binaries.program("helm"))
    except MissingError as error:
        if found := shutil.which("helm"):
            return found
        pytest.skip(f"helm: {error}")


@dataclass(frozen=True, slots=True)
class Rendering:
    """The objects of one rendering."""

    objects: tuple[Object, ...]

    def only(self, kind: str, name: str | None = None) -> Object:
        """Return the one object of that kind, and of that name where there are several."""
        found = [each for each in self.all(kind) if name in (None, each["metadata"]["name"])]
        assert len(found) == 1, f"{len(found)} objects {kind} {name or ''}"
        return found[0]

    def all(self, kind: str) -> list[Object]:
        """Return every object of that kind."""
        return [each for each in self.objects if each["kind"] == kind]

    def pod(self, kind: str) -> Object:
        """Return the pod template of the one workload of that kind."""
        template: Object = self.only(kind)["spec"]["template"]
        return template

    def container(self, kind: str) -> Object:
        """Return the one container of that workload."""
        containers = self.pod(kind)["spec"]["containers"]
        assert len(containers) == 1
        container: Object = containers[0]
        return container


def run_helm(*arguments: str, values: Values | None = None) -> str:
    """Run helm without a cluster.

    Raises:
        RefusedError: it ended with an error.
    """
    done = subprocess.run(
        [helm(), *arguments, *(("--values", "-") if values else ())],
        input=yaml.safe_dump(values) if values else "",
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        env=os.environ | {"KUBECONFIG": "/dev/null"},
    )
    if done.returncode != 0:
        raise RefusedError(done.stdout + done.stderr)
    return done.stdout


def rendered_text(values: Values | None = None, *, chart: Path = CHART, tests: bool = False) -> str:
    """Return what `helm template` prints; with ``tests`` also the pods of `helm test`."""
    skipped = () if tests else ("--skip-tests",)
    arguments = ("template", "moorage", str(chart), "--namespace", NAMESPACE, "--kube-version", KUBERNETES, *skipped)
    return run_helm(*arguments, values=values)


def parse(text: str) -> tuple[Object, ...]:
    """Return the objects of a YAML stream."""
    return tuple(each for each in yaml.safe_load_all(text) if each is not None)


def render(values: Values | None = None, *, chart: Path = CHART, tests: bool = False) -> Rendering:
    """Render the chart with these values over its defaults."""
    return Rendering(parse(rendered_text(values, chart=chart, tests=tests)))


def default_values() -> Values:
    """Return values.yaml."""
    values: Values = yaml.safe_load((CHART / "values.yaml").read_text())
    return values
