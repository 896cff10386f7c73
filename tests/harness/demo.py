"""`make demo`: a claim becomes a mounted volume on a real cluster, and a newcomer sees how."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from tests.harness import binaries, processes, product, targets
from tests.harness.errors import CommandError, HarnessError
from tests.harness.places import ROOT, run_dir

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from tests.harness.progress import Progress

EXAMPLE = ROOT / "manifests" / "examples" / "rwo.yaml"
CLAIM = "data"
POD = "writer"
NAMESPACE = "default"
MOUNTED_AT = "/data"
PATIENCE_SECONDS = 120


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What the demonstration shows at its end; times are seconds from the `kubectl apply` on."""

    claim: dict[str, Any]
    volume: dict[str, Any]
    pod: dict[str, Any]
    usage: str
    bound_after: float
    running_after: float
    kubeconfig: Path


def run(*, cluster: str, image: str, progress: Progress) -> int:
    """Show it on the chosen cluster; a failure shows why and leaves the cluster for a look.

    Returns:
        The exit code: 0 when the claim is Bound and its pod runs.
    """
    target = targets.chosen(cluster, image=image, progress=progress)
    kubeconfig = None
    try:
        kubeconfig = target.start()
        name = target.image()
        with progress.step("helm install moorage charts/moorage", usually="10 s"):
            product.install(kubeconfig, image=name)
        outcome = _claim_to_mount(kubeconfig, progress=progress)
    except HarnessError as error:
        progress.say(f"failed: {error}")
        if kubeconfig is not None and kubeconfig.exists():
            sys.stderr.write(product.symptoms(kubeconfig, namespaces=[product.NAMESPACE, NAMESPACE]) + "\n")
            progress.say(f"the cluster is left for a look: export KUBECONFIG={kubeconfig}; `make down` removes it")
        return 1
    sys.stdout.write(summary(outcome))
    return 0


def _claim_to_mount(kubeconfig: Path, *, progress: Progress) -> Outcome:
    """Apply the example and wait for it.

    Raises:
        CommandError: the claim was not Bound or the pod not Running in time.
    """
    kubectl = [str(binaries.program("kubectl")), f"--kubeconfig={kubeconfig}", f"--namespace={NAMESPACE}"]
    processes.run([*kubectl, "delete", f"--filename={EXAMPLE}", "--ignore-not-found"])
    progress.say(f"kubectl apply -f {EXAMPLE.relative_to(ROOT)}")
    began = time.monotonic()
    processes.run([*kubectl, "apply", f"--filename={EXAMPLE}"])
    bound = _waiter(kubectl, f"pvc/{CLAIM}", "Bound")
    running = _waiter(kubectl, f"pod/{POD}", "Running")
    _wait_for(bound, f"claim {CLAIM} Bound")
    bound_after = time.monotonic() - began
    progress.say(f"  claim {CLAIM} is Bound")
    _wait_for(running, f"pod {POD} Running")
    running_after = time.monotonic() - began
    progress.say(f"  pod {POD} is Running")

    def get(*what: str) -> Any:
        return json.loads(processes.run([*kubectl, "get", *what, "--output=json"]).stdout)

    claim = get("pvc", CLAIM)
    return Outcome(
        claim=claim,
        volume=get("pv", claim["spec"]["volumeName"]),
        pod=get("pod", POD),
        usage=processes.run([*kubectl, "exec", POD, "--", "df", "-h", MOUNTED_AT]).stdout,
        bound_after=bound_after,
        running_after=running_after,
        kubeconfig=kubeconfig,
    )


def _waiter(kubectl: list[str], what: str, phase: str) -> subprocess.Popen[bytes]:
    """Start waiting for a phase with a watch, so that the time measured is not that of a poll."""
    argv = [*kubectl, "wait", what, f"--for=jsonpath={{.status.phase}}={phase}", f"--timeout={PATIENCE_SECONDS}s"]
    return processes.spawn(argv, log=run_dir() / "demo.log", dies_with_parent=True)


def _wait_for(waiter: subprocess.Popen[bytes], what: str) -> None:
    if waiter.wait() != 0:
        raise CommandError(f"not within {PATIENCE_SECONDS} s: {what}")


def summary(outcome: Outcome) -> str:
    """Return what a newcomer wants to see."""
    context = outcome.volume["spec"]["csi"]["volumeAttributes"]
    capacity = outcome.volume["spec"]["capacity"]["storage"]
    asked = outcome.claim["spec"]["resources"]["requests"]["storage"]
    quota = context.get("quota", "")
    usage = "\n".join(f"    {line}" for line in outcome.usage.rstrip().splitlines())
    return f"""
  claim      {CLAIM}, {outcome.claim["status"]["phase"]}
  volume     {outcome.volume["metadata"]["name"]}
  node       {outcome.pod["spec"]["nodeName"]}
  backend    {context.get("backend", "?")}, {context.get("filesystem", "no filesystem")}, pool {context.get("pool", "?")}
  size       asked {asked}, made {capacity}{f", {quota}" if quota else ""}
  times      {outcome.bound_after:.2f} s from apply to Bound, {outcome.running_after:.2f} s to Running

  What the pod sees ({POD}, df -h {MOUNTED_AT}):
{usage}

  Look further:
    export KUBECONFIG={outcome.kubeconfig} PATH={binaries.program("kubectl").parent}:$PATH
    kubectl get pvc,pv,pods -A
    kubectl describe pvc {CLAIM}
    kubectl logs {POD}
    kubectl -n {product.NAMESPACE} logs deployment/moorage-operator
    kubectl delete -f {EXAMPLE.relative_to(ROOT)}     # and all of its storage goes
    make down                                     # removes the cluster
"""
