"""A pool on the disk, without a driver around it: volumes are one file each."""

import contextlib
import errno
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from moorage_csi.host.paths import Directory
from moorage_csi.volumes.disk import Disks
from moorage_csi.volumes.ids import VolumeId, snapshot_id_for
from moorage_csi.volumes.pool import Measure, Pool, PoolSettings
from moorage_csi.volumes.record import Claim, Mode, Record, State
from moorage_csi.volumes.snapshot import Snapshot, SnapshotState

NODE: Final = "node-1"
SIZE: Final = 1 << 20
FILE: Final = "image"


@dataclass(slots=True)
class Clock:
    """Stands still until it is set."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    size: int
    allocated: int


def measure(folder: Directory, record: Record | None) -> Taken | None:
    """Size and allocation of the file; None where there is none."""
    try:
        found = os.stat(FILE, dir_fd=folder.fd)
    except FileNotFoundError:
        return None
    return Taken(size=found.st_size, allocated=found.st_blocks * 512)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One pool in a folder of the test; opened again, it finds what was left."""

    path: Path
    settings: dict[str, Any] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)
    disks: Disks = field(default_factory=Disks)
    node: str = NODE
    measure: Measure = measure

    @contextlib.contextmanager
    def open(self, *, settle: bool = True) -> Iterator[Pool]:
        pool = Pool.open(
            PoolSettings(**({"name": "default", "path": str(self.path)} | self.settings)),
            node=self.node,
            disks=self.disks,
            measure=self.measure,
            clock=self.clock,
            token=lambda count: os.urandom(count).hex(),
        )
        try:
            if settle:
                pool.settle()
            yield pool
        finally:
            pool.close()

    def names(self, folder: str) -> list[str]:
        return sorted(path.name for path in (self.path / folder).iterdir())

    def copies_of(self, content: bytes) -> list[str]:
        """Where in the pool a file with this content lies."""
        return sorted(
            str(path.relative_to(self.path))
            for path in self.path.rglob(FILE)
            if path.is_file() and path.read_bytes() == content
        )


def a_volume(name: str = "pvc-1", **changes: Any) -> Record:
    """The record of a volume that is being made."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    values: dict[str, Any] = {
        "id": VolumeId(f"vol-{digest[:32]}"),
        "name": name,
        "uuid": "u",
        "node": NODE,
        "claim": Claim(namespace="shop", name="db"),
        "volume_name": name,
        "pool": "default",
        "size": SIZE,
        "backend": "image",
        "filesystem": "ext4",
        "mode": Mode.FILESYSTEM,
        "permissions": 0o770,
        "formatted": False,
        "state": State.CREATING,
        "quota": "enforced",
        "on_delete": "delete",
        "created": 1.0,
    }
    return Record(**(values | changes))


def a_snapshot(source: Record, name: str = "snapshot-1", **changes: Any) -> Snapshot:
    """The record of a snapshot that is being made."""
    values: dict[str, Any] = {
        "id": snapshot_id_for(name),
        "name": name,
        "uuid": source.uuid,
        "node": source.node,
        "pool": source.pool,
        "source": source.id,
        "claim": source.claim,
        "size": source.size,
        "holds": source.size,
        "backend": source.backend,
        "filesystem": source.filesystem,
        "mode": source.mode,
        "permissions": source.permissions,
        "quota": source.quota,
        "state": SnapshotState.CREATING,
        "created": 2.0,
        "shares": False,
    }
    return Snapshot(**(values | changes))


def make(pool: Pool, content: bytes = b"", **changes: Any) -> Record:
    """A volume that is ready, with this in its file, which is as long as the volume is large."""
    begun = a_volume(**changes)
    pool.begin(begun)
    with pool.folder(begun.id) as folder:
        write(folder, content, begun.size)
    ready = a_volume(**(changes | {"state": State.READY, "formatted": True}))
    pool.update(ready)
    return ready


def snap(pool: Pool, source: Record, content: bytes = b"", name: str = "snapshot-1", **changes: Any) -> Snapshot:
    """A snapshot that is ready, with this in its file."""
    begun = a_snapshot(source, name, **changes)
    pool.begin_snapshot(begun)
    with pool.snapshots.folder(begun.id) as folder:
        write(folder, content, source.size)
    return pool.complete_snapshot(begun, holds=len(content))


def write(folder: Directory, content: bytes, size: int) -> None:
    """The file with this at its begin, and a hole after it."""
    fd = folder.open_file(FILE, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.truncate(max(size, len(content)))
        file.flush()
        os.fsync(file.fileno())


def failing_syncs(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object], after: Callable[[], object]) -> int:
    """Do the work again and again, the disk failing at one sync of it after the other; returns how many there are."""
    real = os.fsync
    for fatal in itertools.count(1):
        seen = itertools.count(1)

        def fsync(fd: int, seen: Iterator[int] = seen, fatal: int = fatal) -> None:
            if next(seen) == fatal:
                raise OSError(errno.EIO, "bad disk")
            real(fd)

        try:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", fsync)
                work()
        except OSError:
            after()
        else:
            return fatal - 1
    raise AssertionError
