"""Holding a mounted filesystem still, for the moment in which its image is copied.

A frozen filesystem has everything on its disk and takes no writes: whoever writes waits, unkillably, until it is
thawed. So it is never frozen for longer than a bound, and what is done meanwhile must not write to it: freeze the
filesystem in an image, never the one that the image's copy is written to.

The kernel does not tie a freeze to who made it. After a SIGKILL (and when the container ends, which kills all that is in
it) the filesystem stays frozen; those who write to it cannot even be killed; it can still be opened, read and unmounted.
Unmounting does not thaw it either: it lives on without a mount, and keeps its device attached, until the device is mounted again
and thawed there. Only a reboot ends it by itself. So whoever uses ``frozen`` writes down before which filesystem it
will be (a snapshot's record that says `creating` and names its source will do), and calls ``thaw`` for those at the next start,
before anything else.

Needs CAP_SYS_ADMIN. xfs, ext4 and btrfs can; EOPNOTSUPP says that another cannot.
"""

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from moorage_csi.host import syscalls

_FIFREEZE: Final = 0xC0045877
_FITHAW: Final = 0xC0045878


@contextmanager
def frozen(fd: int, *, seconds: float) -> Iterator[None]:
    """Freeze the filesystem that ``fd`` (not O_PATH) lies on for the length of a block, and for ``seconds`` at most.

    What is dirty is written before the freeze, so that others wait little. However the block ends, the filesystem is
    thawed; and when the time is over it is thawed while the block still runs, which then fails at its end.

    Raises:
        TimeoutError: the filesystem was thawed before the block had ended: what was copied in it is not of one moment.
        OSError: EBUSY where it is frozen already, by somebody else or by one who crashed; it stays so.
    """
    syscalls.syncfs(fd)
    freeze = _Freeze(fd, seconds)
    try:
        freeze.begin()
        yield
    finally:
        held = freeze.end()
    if not held:
        raise TimeoutError(
            errno.ETIMEDOUT, f"the filesystem was thawed before the copy was done: {seconds} s were allowed"
        )


def thaw(fd: int) -> bool:
    """Thaw the filesystem that ``fd`` (not O_PATH) lies on, whoever froze it; False where it was not frozen."""
    try:
        fcntl.ioctl(fd, _FITHAW, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


class _Freeze:
    """One freeze, which the block's end and the watchdog both want to end, and exactly one of them does.

    The watchdog is there before the freeze is. It is a thread that the interpreter waits for, so that a normal exit
    thaws too. The descriptor is its own: it works when the caller's is closed.
    """

    def __init__(self, fd: int, seconds: float) -> None:
        self._fd = os.dup(fd)
        self._seconds = seconds
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._ours = False
        """Whether it is for us to thaw: from right before the freeze on, so that no interruption can slip in between."""
        self._complete = False
        self._expired = False
        self._watchdog = threading.Thread(target=self._watch, name="thaw", daemon=False)

    def begin(self) -> None:
        self._watchdog.start()
        self._ours = True
        try:
            fcntl.ioctl(self._fd, _FIFREEZE, 0)
        except OSError:
            self._ours = False
            raise
        with self._lock:
            self._complete = True
            if self._expired:
                raise TimeoutError(errno.ETIMEDOUT, f"the filesystem was not frozen within {self._seconds} s")

    def end(self) -> bool:
        """Thaw, if nobody has; whether the filesystem was frozen until now."""
        try:
            with self._lock:
                return self._thawed()
        finally:
            self._over.set()
            if self._watchdog.ident is not None:
                self._watchdog.join()
            os.close(self._fd)

    def _watch(self) -> None:
        if not self._over.wait(self._seconds):
            with self._lock:
                self._expired = True
                if self._complete:
                    self._thawed()

    def _thawed(self) -> bool:
        ours, self._ours = self._ours, False
        return ours and thaw(self._fd)
