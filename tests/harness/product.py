"""Moorage itself on a cluster: the chart installed with Helm, and what to show when it does not come up."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.harness import binaries, processes
from tests.harness.places import ROOT, cache_dir

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

RELEASE = "moorage"
NAMESPACE = "moorage-system"
CHART = ROOT / "charts" / "moorage"
OLDEST_KUBERNETES = "1.29.0"
"""What the chart says it supports; Helm built from its bare source believes that it speaks to 1.20."""
WAIT_SECONDS = 120


def helm(*arguments: str | Path, kubeconfig: Path | None = None, seconds: float = 60) -> str:
    """Run Helm with folders of its own, so that nothing of the user's is read or written; return its output.

    Raises:
        CommandError: it failed.
    """
    home = cache_dir() / "helm"
    folders = {f"HELM_{kind}_HOME": str(home / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
    argv = [binaries.program("helm"), *arguments]
    if kubeconfig is not None:
        argv += ["--kubeconfig", kubeconfig]
    return processes.run(argv, environment=os.environ | folders, seconds=seconds).stdout


def install(kubeconfig: Path, *, image: str, values: Sequence[str] = ()) -> None:
    """Install or upgrade the chart and return when its pods are ready.

    Args:
        kubeconfig: an administrator's.
        image: the image of both programs, `repository:tag` with or without a registry.
        values: further `key=value` settings of the chart.

    Raises:
        CommandError: Helm failed or the pods were not ready in time.
    """
    repository, _, tag = image.rpartition(":")
    settings = [f"image.repository={repository}", f"image.tag={tag}", *values]
    _upgrade(kubeconfig, "--install", "--create-namespace", settings=settings)


def change(kubeconfig: Path, *settings: str) -> None:
    """Upgrade the installed chart to these `key=value` settings over those it has, and return when its pods are ready.

    Raises:
        CommandError: it is not installed, Helm failed, or the pods were not ready in time.
    """
    _upgrade(kubeconfig, "--reuse-values", settings=settings)


def _upgrade(kubeconfig: Path, *flags: str, settings: Sequence[str]) -> None:
    helm(
        "upgrade",
        RELEASE,
        CHART,
        f"--namespace={NAMESPACE}",
        *flags,
        "--wait",
        f"--timeout={WAIT_SECONDS}s",
        *(f"--set={setting}" for setting in settings),
        kubeconfig=kubeconfig,
        seconds=WAIT_SECONDS + 30,
    )


def rendered() -> str:
    """Return the manifests that the chart makes with its default values."""
    return helm(
        "template",
        RELEASE,
        CHART,
        f"--namespace={NAMESPACE}",
        f"--kube-version={OLDEST_KUBERNETES}",
        "--skip-tests",
    )


def symptoms(kubeconfig: Path, *, namespaces: Sequence[str]) -> str:
    """Return what a person would look at after a failure: pods, events, and the log of every pod that is not well."""
    kubectl = [str(binaries.program("kubectl")), f"--kubeconfig={kubeconfig}"]
    told: list[str] = []

    def look(*arguments: str) -> str:
        done = processes.run([*kubectl, *arguments], check=False, seconds=30)
        return (done.stdout + done.stderr).strip()

    for namespace in namespaces:
        within = f"--namespace={namespace}"
        told += [f"--- {namespace}", look("get", within, "pods,pvc", "--output=wide")]
        told.append(look("get", within, "events", "--sort-by=.metadata.creationTimestamp"))
        states = "{range .items[*]}{.metadata.name} {.status.phase} {.status.containerStatuses[*].ready}{'\\n'}{end}"
        for line in look("get", within, "pods", f"--output=jsonpath={states}").splitlines():
            pod, _, state = line.partition(" ")
            if "Running" not in state or "false" in state:
                told += [f"--- pod {pod}", look("describe", within, f"pod/{pod}")]
                told.append(look("logs", within, pod, "--all-containers", "--tail=40", "--prefix"))
    return "\n".join(told)
