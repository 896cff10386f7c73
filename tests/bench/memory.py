"""Resident memory of our two programs, as the kernel counts it."""

from dataclasses import dataclass

from tests.cluster.kube import Kube
from tests.harness.weight import Weight


@dataclass(frozen=True, slots=True)
class Memory:
    """One process: all resident bytes, and those that it shares with nobody."""

    program: str
    resident: int
    anonymous: int


def measure(kube: Kube) -> list[Memory]:
    """Return the memory of every operator and node plugin process of a cluster."""
    found = []
    for program in ("moorage-operator", "moorage-csi"):
        for process in kube.product_processes(program):
            weight = Weight.of(process.identity.pid)
            found.append(Memory(program=program, resident=weight.resident, anonymous=weight.anonymous))
    return found
