"""Filesystems and the pools on them: two pools on one disk promise from the same room.

Without this, each of two folders on one filesystem would count the other's promises as free space until
they are written.
"""

import threading
from typing import Protocol


class Tenant(Protocol):
    """A pool, as far as its neighbours on the disk need to know it."""

    def claims(self) -> tuple[int, int]:
        """Bytes promised to its volumes, and bytes of them that are not written yet."""


class Disk:
    """One filesystem. Whoever promises holds ``lock``, over all the pools on it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._tenants: list[Tenant] = []

    @property
    def tenants(self) -> int:
        """How many pools lie on it."""
        return len(self._tenants)

    def join(self, tenant: Tenant) -> None:
        """Count the pool's promises from now on."""
        self._tenants.append(tenant)

    def leave(self, tenant: Tenant) -> None:
        """Count them no more."""
        if tenant in self._tenants:
            self._tenants.remove(tenant)

    def claims(self) -> tuple[int, int]:
        """The sum over all pools of what ``Tenant.claims`` tells."""
        each = [tenant.claims() for tenant in tuple(self._tenants)]
        return sum(promised for promised, _ in each), sum(unwritten for _, unwritten in each)


class Disks:
    """The filesystems that pools lie on, by device number."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._disks: dict[int, Disk] = {}

    def of(self, device: int) -> Disk:
        """The filesystem with this ``st_dev``."""
        with self._lock:
            return self._disks.setdefault(device, Disk())
