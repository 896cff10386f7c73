"""Where a driver that changes the disk or the kernel can die, and running a program that dies at each such point.

The points are enumerated from the code: every call that changes something which outlives the process stands in ``OS``,
``SYSCALLS``, ``IOCTLS`` or ``SOMETIMES``, and every other call in a table of those that change nothing. A test reads the
driver's source and finds what stands in neither (see ``test_crash_points``).
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moorage_csi.host import (
    btrfs,
    commands,
    freezing,
    growing,
    inodes,
    loops,
    qgroups,
    quotas,
    reflink,
    syscalls,
)

if TYPE_CHECKING:
    from collections.abc import Callable

OS: Final = frozenset(
    {
        *("chmod", "chown", "copy_file_range", "fchmod", "fsync", "ftruncate", "link", "mkdir", "pwrite"),
        *("removexattr", "rename", "rmdir", "setxattr", "symlink", "unlink", "utime", "write"),
    }
)
"""Functions of ``os`` that change something; ``pathlib`` calls these very ones."""

SYSCALLS: Final = frozenset(
    {
        *("fallocate", "fsmount", "mount_setattr", "move_mount", "open_tree", "quotactl_fd", "rename_no_replace"),
        *("syncfs", "umount"),
    }
)
"""Functions of ``syscalls`` that change something, in the mount table too."""

SOMETIMES: Final = frozenset({"os.mknod", "os.open", "syscalls.fsconfig", "syscalls.ioctl", "syscalls.openat2"})
"""They change something where they make a file, a device that is not there, or a superblock, or by the number of an ioctl."""

IOCTLS: Final[dict[int, str]] = {
    getattr(module, name): f"{module.__name__.rpartition('.')[2]}.{name}"
    for module, names in (
        (btrfs, ("_SNAP_CREATE_V2", "_SNAP_DESTROY_V2", "_START_SYNC", "_SUBVOL_CREATE_V2", "_SUBVOL_SETFLAGS")),
        (freezing, ("_FIFREEZE", "_FITHAW")),
        (growing, ("_EXT4_RESIZE", "_XFS_GROW")),
        (inodes, ("_SETFLAGS",)),
        (loops, ("_LOOP_CLR_FD", "_LOOP_CONFIGURE", "_LOOP_SET_CAPACITY")),
        (qgroups, ("_QGROUP_ASSIGN", "_QGROUP_CREATE", "_QGROUP_LIMIT", "_QUOTA_CTL", "_QUOTA_RESCAN")),
        (quotas, ("_FS_IOC_FSSETXATTR",)),
        (reflink, ("_FICLONE",)),
    )
    for name in names
}
"""Numbers of the ioctls that change something, and what the driver calls them."""

_ALIKE: Final = ("before", "after fsync", "after syncfs", "after btrfs._START_SYNC")
_RUNNING: Final = 0.004
"""Seconds after which a program is in the middle of its work."""


def die_at(fatal: int, *, distinct: bool = False, told: Callable[[str], object] | None = None) -> None:
    """End this process before or after its ``fatal``-th change of the disk or the kernel, or while a program runs.

    Of a program there are four points: before it, in its middle, where it ends with the driver, as all in a container do, or
    goes on without it; and after it. ``told`` is told the name of the point when it has come.

    Since everything that changes something is watched, nothing differs between the point after one change and that before
    the next; nor does it around an fsync, for what was written to a file is there whoever dies. With ``distinct`` only the
    points count that differ.
    """
    points = _Points(fatal, distinct=distinct, told=told)
    watch = points.watch
    for module, names in ((os, OS), (syscalls, SYSCALLS)):
        for name in names:
            watch(module, name, lambda _, __, name=name: name)  # type: ignore[misc]
    watch(os, "mknod", lambda given, more: "" if not more and os.path.lexists(given[0]) else "mknod")
    watch(os, "open", lambda given, more: "os.open" if _creates(given, more, flags=1) else "")
    watch(syscalls, "openat2", lambda given, more: "openat2" if _creates(given, more, flags=2) else "")
    watch(syscalls, "fsconfig", lambda given, _: "fsconfig" if given[1] == syscalls.FSCONFIG_CMD_CREATE else "")
    for module in (fcntl, syscalls):
        watch(module, "ioctl", lambda given, _: IOCTLS.get(given[1], ""))
    points.watch_programs()


def _creates(given: tuple[Any, ...], more: dict[str, Any], *, flags: int) -> bool:
    asked = more["flags"] if "flags" in more else given[flags]
    return bool(asked & os.O_CREAT)


class _Points:
    """Counts the points as they come, and ends the process at one of them."""

    def __init__(self, fatal: int, *, distinct: bool, told: Callable[[str], object] | None) -> None:
        self._fatal = fatal
        self._distinct = distinct
        self._told = told
        self._seen = itertools.count(1)

    def point(self, name: str, last: Callable[[], None] | None = None) -> None:
        if (self._distinct and name.startswith(_ALIKE)) or next(self._seen) != self._fatal:
            return
        if last is not None:
            last()
        if self._told is not None:
            self._told(name)
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, module: Any, name: str, changes: Callable[[tuple[Any, ...], dict[str, Any]], str]) -> None:
        """Have a point before and after each call of a function that ``changes`` gives a name."""
        real: Callable[..., Any] = getattr(module, name)

        def watched(*arguments: Any, **more: Any) -> Any:
            what = changes(arguments, more)
            if not what:
                return real(*arguments, **more)
            self.point(f"before {what}")
            result = real(*arguments, **more)
            self.point(f"after {what}")
            return result

        setattr(module, name, watched)

    def watch_programs(self) -> None:
        point = self.point
        child = commands._Child
        real_started, real_run = child._started, commands.run

        def started(self: Any) -> subprocess.Popen[bytes]:
            name = self._argv[0]
            point(f"before {name}")
            process = real_started(self)

            def end() -> None:
                time.sleep(_RUNNING)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

            point(f"in {name}, which ends too", end)
            point(f"in {name}, which goes on")
            return process

        async def run(*arguments: Any, **more: Any) -> commands.Result:
            result = await real_run(*arguments, **more)
            point(f"after {arguments[0][0]}")
            return result

        setattr(child, "_started", started)  # noqa: B010 - mypy would refuse the plain assignment
        setattr(commands, "run", run)  # noqa: B010


def areas_of(*program: str) -> list[Path]:
    """Run a program that forks a child for each crash point; the areas that they leave, the last one came through."""
    done = subprocess.run(
        [sys.executable, *program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    areas = [Path(path) for path in json.loads(done.stdout)]
    assert 10 < len(areas) < 400, "the crash points were not counted"
    return areas
