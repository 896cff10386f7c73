"""Resident memory of our two programs, as the kernel counts it."""

from dataclasses import dataclass
from pathlib import Path

from tests.cluster.kube import Kube

KIB = 1024


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
            status = Path(f"/proc/{process.identity.pid}/status").read_text()
            figures = dict(line.split(":", 1) for line in status.splitlines())
            found.append(
                Memory(
                    program=program,
                    resident=int(figures["VmRSS"].split()[0]) * KIB,
                    anonymous=int(figures["RssAnon"].split()[0]) * KIB,
                )
            )
    return found
