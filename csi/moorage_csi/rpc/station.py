"""One pool at work: open or not yet, its backends, its threads, and the removal of its trash.

Everything that touches the pool's disk runs in the pool's own threads (see ``Lane``). Opening is tried at
the start and again by every request, because a disk may be mounted late.
"""

import asyncio
import errno
import itertools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

from moorage_csi import contract
from moorage_csi.backends import choice, subvolume
from moorage_csi.backends.backend import Backend, Footprint
from moorage_csi.backends.directory import DirectoryBackend
from moorage_csi.backends.image import Image
from moorage_csi.backends.layered import Layered
from moorage_csi.backends.subvolume import Subvolumes
from moorage_csi.errors import DriverError, UnavailableError
from moorage_csi.host import mounts, overlay, qgroups, quotas, reflink, syscalls
from moorage_csi.host.paths import Directory
from moorage_csi.rpc.openpool import OpenPool, booked, retire
from moorage_csi.volumes.disk import Disks
from moorage_csi.volumes.ids import VolumeId
from moorage_csi.volumes.lane import Lane
from moorage_csi.volumes.pool import Pool, PoolSettings, Problem
from moorage_csi.volumes.record import Record, State
from moorage_csi.volumes.snapshot import SnapshotState

Answer = TypeVar("Answer")

_log = logging.getLogger(__name__)

FORMATS: Final = 4
"""Programs that make filesystems in one pool at a time; more would only wait for the same disk."""

COPIES: Final = 2
"""Copies that are being made in one pool at a time; where data is shared each takes milliseconds."""

REMOVALS_PER_SECOND: Final = 2000
"""Entries of deleted volumes that are removed, at most: deleting must not starve what is in use."""

OPEN_PATIENCE: Final = 5.0
"""Seconds that a caller waits for a pool to open."""

_REST_EVERY: Final = 100
_RETRY_REMOVAL: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReport:
    """What is known of a pool without asking its disk; sizes in bytes, ``trouble`` empty where it is open."""

    name: str
    opened: bool
    trouble: str
    volumes: int
    snapshots: int
    promised_bytes: int
    trash: int
    backend: str
    backend_reason: str
    problems: tuple[Problem, ...]


class Station:
    """One configured pool: opened when it can be, with its own threads for everything that touches it."""

    def __init__(
        self,
        settings: PoolSettings,
        *,
        node: str,
        disks: Disks,
        siblings: bool = False,
        clock: Callable[[], float] = time.time,
        token: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        """``siblings`` says whether the node has other pools, into which volumes of this one may be copied."""
        self.settings = settings
        self._siblings = siblings
        self.lane = Lane(f"pool-{settings.name}")
        self._formatting = Lane(f"formats-{settings.name}", threads=FORMATS)
        self.copying = Lane(f"copies-{settings.name}", threads=COPIES)
        self._node = node
        self._disks = disks
        self._clock = clock
        self._token = token
        self._opening = threading.Lock()
        self._openings_ended = 0
        self._late: int | None = None
        self._open: OpenPool | None = None
        self._closed = threading.Event()
        self._trouble = "it has not been opened yet"
        self._trash_lane = Lane(f"trash-{settings.name}", threads=1)
        self._trash_count = 0
        self._booked = False
        self._uncleared = True
        """Whether the kernel may keep something for subvolumes that are gone, now or a while after they were removed."""
        self._discarded = asyncio.Event()

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.settings.name

    def opened(self) -> OpenPool:
        """The open pool; opens it where that has not succeeded so far. Blocks.

        Raises:
            UnavailableError, PreconditionError: it cannot be opened; the next call tries again.
        """
        if self._open is not None:
            return self._open
        with self._opening:
            if self._open is None:
                try:
                    self._open = self._begin()
                except DriverError as error:
                    self._say(str(error))
                    raise
                except OSError as error:
                    self._say(str(error))
                    raise UnavailableError(f"pool {self.name} cannot be opened: {error}") from error
                finally:
                    self._openings_ended += 1
                self._trouble = ""
        return self._open

    @property
    def ready(self) -> OpenPool | None:
        """The open pool, if it is; never blocks."""
        return self._open

    async def open(self) -> OpenPool:
        """Like ``opened``, for the event loop: blocks a thread of the pool's own if at all.

        Where the disk hangs the first callers wait for a while, and all others are told at once: the pools beside it are
        asked for too.
        """
        opened = self._open
        if opened is not None:
            return opened
        ended = self._openings_ended
        try:
            if self._late != ended:
                async with asyncio.timeout(OPEN_PATIENCE):
                    return await self.lane.run(self.opened)
        except TimeoutError:
            self._late = ended
        raise UnavailableError(
            f"pool {self.name} is being opened since more than {OPEN_PATIENCE:g} s, its disk may hang: look at "
            f"{self.settings.path} on the node; the pool opens by itself when that ends"
        )

    async def run_program(self, work: Callable[[], Coroutine[None, None, Answer]]) -> Answer:
        """Run ``work``, which makes or grows a filesystem by a program, in a thread and an event loop of its own.

        What it does to the pool's disk beside waiting for the program may hang with that disk. Cancelling the caller leaves
        it at work.
        """
        return await self._formatting.run(lambda: asyncio.run(work()))

    def discarded(self) -> None:
        """Say, in the event loop, that something came into the trash."""
        self._discarded.set()

    async def remove_trash(self) -> None:
        """Remove what is deleted, as it comes or when its time is over, at a bounded rate; runs until it is cancelled.

        What cannot be removed stays, is logged, and is tried again a minute later.
        """
        while True:
            self._discarded.clear()
            try:
                rest = await self._trash_lane.run(self._remove_all)
            except (OSError, DriverError) as error:
                _log.warning("trash cannot be read", extra={"pool": self.name, "reason": str(error)})
                rest = _RETRY_REMOVAL
            with suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._discarded.wait()

    def report(self) -> PoolReport:
        """What is known without asking the disk."""
        opened = self._open
        records = opened.pool.records if opened else {}
        snapshots = opened.pool.snapshots.records if opened else {}
        return PoolReport(
            name=self.name,
            opened=opened is not None,
            trouble=self._trouble,
            volumes=len(records),
            snapshots=len(snapshots),
            promised_bytes=sum(
                (
                    *(max(record.size, record.growing_to or 0) for record in records.values()),
                    *(snapshot.holds for snapshot in snapshots.values()),
                )
            ),
            trash=self._trash_count,
            backend=opened.chosen.backend if opened else "",
            backend_reason=opened.chosen.reason if opened else "",
            problems=opened.pool.problems if opened else (),
        )

    @property
    def idle(self) -> bool:
        """Whether none of the pool's threads is at work."""
        return all(lane.idle for lane in (self.lane, self.copying, self._formatting, self._trash_lane))

    def close(self) -> None:
        """Begin nothing more. What runs in a thread goes on until the process ends."""
        self._closed.set()
        self.lane.close()
        self.copying.close()
        self._formatting.close()
        self._trash_lane.close()

    def release(self) -> None:
        """Let go of the pool's folder; for a process that lives on, as tests do."""
        if self._open is not None:
            self._open.pool.close()
            self._open = None

    def pace(self) -> None:
        """Called by a copy every now and then: ends it where the driver is stopping; what it made is thrown away."""
        if self._closed.is_set():
            raise InterruptedError(errno.EINTR, "the driver is stopping; the next call begins the copy anew")

    def _begin(self) -> OpenPool:
        backends: dict[str, Backend] = {}

        def measure(folder: Directory, record: Record | None) -> Footprint | None:
            if record is not None:
                backend = backends.get(record.backend)
                return backend.footprint(folder) if backend is not None else None
            return next(filter(None, (backend.footprint(folder) for backend in backends.values())), None)

        pool = Pool.open(
            self.settings,
            node=self._node,
            disks=self._disks,
            measure=measure,
            clock=self._clock,
            token=self._token,
        )
        try:
            facts = _facts(pool)
            image, directory = Image(), DirectoryBackend(filesystem=facts.filesystem, no_quota=facts.no_quota)
            if not pool.settings.shared:
                # Before the others, since to it alone the folders of both kinds are told apart.
                layered = Layered(no_overlay=overlay.overlay_supported())
                backends[layered.name] = layered
            backends |= {image.name: image, directory.name: directory}
            if facts.filesystem == subvolume.FILESYSTEM and not pool.settings.shared:
                subvolumes = Subvolumes(no_quota=facts.no_subvolume_quota)
                backends[subvolumes.name] = subvolumes
            chosen = choice.choose(facts)
            no_reflink = reflink.reflink_supported(pool.root)
            _resume_sources(pool, backends, every=self._siblings)
            pool.settle(retire=lambda what, folder: retire(backends.get(what.backend), folder))
            if pool.identity.backend is None:
                pool.keep_backend(chosen.backend)
        except BaseException:
            pool.close()
            raise
        _log.info(
            "pool opened",
            extra={
                "pool": self.name,
                "path": self.settings.path,
                "uuid": pool.identity.uuid,
                "volumes": len(pool.records),
                "problems": len(pool.problems),
                "auto": chosen.backend,
                "reason": chosen.reason,
            },
        )
        return OpenPool(pool, backends, chosen, no_reflink=no_reflink)

    def _say(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            _log.error(
                "pool cannot be opened", extra={"pool": self.name, "path": self.settings.path, "reason": trouble}
            )

    def _remove_all(self) -> float | None:
        """Remove every folder in the trash that can be, and whose time is over.

        Returns seconds until it is to be done again; None where nothing waits for that. A pool that is not open may be later.
        """
        if self._open is None:
            return _RETRY_REMOVAL
        opened = self._open
        due = opened.pool.exits.sweep()
        trash = opened.pool.trash
        left = self._trash_count = len(names := trash.names())
        for name in names:
            try:
                trash.remove(name, batch=self._pace())
                left -= 1
            except InterruptedError:
                return None
            except OSError as error:
                _log.warning(
                    "deleted volume cannot be removed yet",
                    extra={"pool": self.name, "folder": name, "reason": str(error)},
                )
            self._trash_count = left
        self._booked = (self._booked and not names) or booked(opened)
        removed = left < len(names)
        if (removed or self._uncleared) and contract.BACKEND_BTRFS in opened.backends:
            self._clear_stale(opened)
        self._uncleared = removed
        done = self._booked and not left and not removed
        return due if done else min(_RETRY_REMOVAL, due or _RETRY_REMOVAL)

    def _clear_stale(self, opened: OpenPool) -> None:
        """Remove what the kernel still keeps for limits of subvolumes that are gone, which it does not do by itself."""
        try:
            cleared = qgroups.clear_stale(opened.pool.root.fd)
        except OSError as error:
            _log.warning("stale limits cannot be removed", extra={"pool": self.name, "reason": str(error)})
            return
        if cleared:
            _log.info("stale limits removed", extra={"pool": self.name, "groups": cleared})

    def _pace(self) -> Callable[[], None]:
        """Rests after every so many entries, and stops at closing."""
        steps = itertools.count(1)

        def step() -> None:
            if next(steps) % _REST_EVERY == 0 and self._closed.wait(_REST_EVERY / REMOVALS_PER_SECOND):
                raise InterruptedError(errno.EINTR, "the driver is stopping; the next start goes on")

        return step


def _resume_sources(pool: Pool, backends: dict[str, Backend], *, every: bool) -> None:
    """Let those go on whose volumes a copy has stopped that died in the middle.

    With ``every`` it may have been one into another pool, whose record says so there: then all are let go on.
    """
    begun: list[str | None] = [
        *(each.source for each in pool.snapshots.records.values() if each.state is SnapshotState.CREATING),
        *(each.source for each in pool.records.values() if each.state is State.CREATING),
    ]
    for source in pool.records if every else filter(None, begun):
        record = pool.records.get(VolumeId(source))
        backend = None if record is None else backends.get(record.backend)
        if record is not None and backend is not None:
            with suppress(FileNotFoundError), pool.folder(record.id) as folder:
                backend.resume(folder)


def _facts(pool: Pool) -> choice.Facts:
    """What the pool's filesystem is and can do."""
    mount_id = syscalls.statx(pool.root.fd, "").mount_id
    return choice.Facts(
        filesystem=next((mount.filesystem for mount in mounts.mounts() if mount.mount_id == mount_id), "filesystem"),
        shared=pool.settings.shared,
        no_quota=quotas.project_quota_supported(pool.settings.path),
        no_subvolume_quota=qgroups.subvolume_quota_supported(pool.settings.path),
        kept=pool.identity.backend,
    )
