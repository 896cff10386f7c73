"""Every kind of volume that the driver makes, each with the pool that it needs: what a cell of the table is tested on."""

import errno
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from moorage_csi.host import mounts, qgroups
from moorage_csi.proto import csi_pb2 as csi
from moorage_csi.volumes.pool import PoolSettings
from tests.kernel.loop_filesystem import MIB, filesystem
from tests.kernel.rpc_driver import IMAGE, Driver, capability, mounted_below, running

DISK = 3072 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of volume.

    ``disk`` is the filesystem of its pool's own, none where it does not matter; ``filesystem`` the one inside of an
    image. ``full`` is the error that ends who writes more than ``size`` bytes, 0 where nothing does.
    """

    name: str
    parameters: Mapping[str, str]
    disk: str = ""
    filesystem: str = ""
    block: bool = False
    size: int = 64 * MIB
    full: int = errno.ENOSPC

    @property
    def wanted(self) -> csi.VolumeCapability:
        """The capability to ask for it."""
        return capability(block=self.block, filesystem=self.filesystem)

    @property
    def piece(self) -> str:
        """What lies in a volume's folder beside its record."""
        return "image" if self.parameters["backend"] == "image" else "data"

    @asynccontextmanager
    async def driver(self, area: Path) -> AsyncIterator[Driver]:
        """The driver, whose pool is such that it can make the kind; the test is skipped where the kernel cannot."""
        with self.pool(area) as path:
            async with self.started(area, path) as driver:
                try:
                    yield driver
                finally:
                    for target in reversed(mounted_below(driver.kubelet)):
                        mounts.unmount(target)

    @staticmethod
    def settings(pool: Path) -> PoolSettings:
        """Those of the pool there, which is the only one."""
        return PoolSettings(name="default", path=str(pool))

    @classmethod
    def started(cls, area: Path, pool: Path) -> AbstractAsyncContextManager[Driver]:
        """A driver on this pool."""
        return running(area, [cls.settings(pool)])

    @contextmanager
    def pool(self, area: Path) -> Iterator[Path]:
        """Where the pool is to be, for a test that starts drivers itself."""
        if not self.disk:
            yield area / "pool"
            return
        with filesystem(area, self.disk, size=DISK) as disk:
            if self.disk == "btrfs":
                counting(disk, simple=True)
            yield disk / "pool"

    async def create(
        self, driver: Driver, name: str = "pvc-1", *, size: int = 0, parameters: Mapping[str, str] | None = None
    ) -> str:
        """Make a volume of the kind; returns its id."""
        asked = {**self.parameters, **(parameters or {})}
        made = await driver.create(name, size=size or self.size, parameters=asked, wanted=self.wanted)
        return made.volume_id


EXT4 = Kind(name="image-ext4", parameters=IMAGE, filesystem="ext4", size=320 * MIB)
XFS = Kind(name="image-xfs", parameters=IMAGE, filesystem="xfs", size=320 * MIB)
XFS_SHARED = Kind(name="image-xfs-on-xfs", parameters=IMAGE, filesystem="xfs", size=320 * MIB, disk="xfs")
BLOCK = Kind(name="image-block", parameters=IMAGE, block=True)
DIRECTORY = Kind(name="directory", parameters={"backend": "directory", "quota": "best-effort"}, full=0)
DIRECTORY_SHARED = Kind(name="directory-on-xfs", parameters=DIRECTORY.parameters, disk="xfs", full=0)
DIRECTORY_XFS = Kind(name="directory-quota-xfs", parameters={"backend": "directory"}, disk="xfs-quota")
DIRECTORY_EXT4 = Kind(
    name="directory-quota-ext4", parameters={"backend": "directory"}, disk="ext4-quota", full=errno.EDQUOT
)
BTRFS = Kind(name="btrfs", parameters={"backend": "btrfs"}, disk="btrfs", full=errno.EDQUOT)

QUOTAS = (DIRECTORY_XFS, DIRECTORY_EXT4)
"""Directories whose size the kernel holds."""
IMAGES = (EXT4, XFS, BLOCK)
EACH = (EXT4, BLOCK, DIRECTORY, BTRFS)
"""One for each way in which a volume comes to a target."""
TREES = (DIRECTORY, DIRECTORY_SHARED, *QUOTAS, BTRFS)
"""Those whose files lie in the pool's filesystem, where the driver meets what a tenant made."""


def each(*kinds: Kind) -> pytest.MarkDecorator:
    """Run a test for each of these kinds."""
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.name)


def counting(disk: Path, *, simple: bool) -> qgroups.Quota:
    """Have a btrfs count, as asked for or in the way that the kernel knows."""
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return qgroups.enable(fd, simple=simple, pause=lambda: time.sleep(0.05))
    finally:
        os.close(fd)
