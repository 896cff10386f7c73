"""A name that only one process holds at a time; the kernel lets go of it when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def hold(file: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock file for as long as the block runs, and remove it afterwards.

    Yields:
        Whether it is held; always true with `wait`.
    """
    descriptor = _locked(file, wait=wait)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(file: Path, *, wait: bool) -> int | None:
    """Return the descriptor of the locked file, None where somebody else holds it.

    The holder removes the file while it still holds it, so what was locked may not be what lies there any more.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == file.stat().st_ino:
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        os.close(descriptor)
