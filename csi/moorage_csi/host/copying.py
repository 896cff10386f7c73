"""A plain copy of one sparse file: what is not written in the source takes no space in the copy.

The kernel copies (``copy_file_range``), where it can within the filesystem; where it cannot, the bytes pass through here.
"""

import errno
import os
from collections.abc import Callable, Iterator
from typing import Final

_CHUNK: Final = 8 << 20
"""Bytes between two calls of ``progress``: a tenth of a second on a slow disk."""
_BUFFER: Final = 1 << 20
_KERNEL_CANNOT: Final = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM)


def copy_data(source_fd: int, target_fd: int, *, progress: Callable[[int], None] | None = None) -> int:
    """Make the target hold what the source holds, with holes where it has holes; returns the bytes that were copied.

    What the target held is lost. The caller brings it to the disk (fsync). ``progress`` is told after every few MiB up to which offset the target is done; it may
    sleep to hold a rate, or raise to stop. There is nothing to resume: after that, an error or a crash the target is
    a torso, and the next call starts over. A source that is written to meanwhile gives a mix of old and new; one that
    grows is copied up to the size it had, and one that shrinks leaves zeros.
    """
    size = os.fstat(source_fd).st_size
    os.ftruncate(target_fd, 0)
    os.ftruncate(target_fd, size)
    copier = _Copier(source_fd, target_fd)
    written = 0
    for start, end in data_ranges(source_fd, size):
        offset = start
        while offset < end:
            count = copier.copy(offset, min(_CHUNK, end - offset))
            if count == 0:
                break
            offset += count
            written += count
            if progress is not None:
                progress(offset)
    return written


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file has data in its first ``size`` bytes: first and one past the last of each range; the rest are holes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, end


class _Copier:
    """Copies ranges, by the kernel until it says that it cannot."""

    def __init__(self, source_fd: int, target_fd: int) -> None:
        self._source_fd = source_fd
        self._target_fd = target_fd
        self._by_kernel = True

    def copy(self, offset: int, count: int) -> int:
        """Copy at most ``count`` bytes, and say how many; 0 where the source ends before ``offset``."""
        if self._by_kernel:
            try:
                copied = os.copy_file_range(self._source_fd, self._target_fd, count, offset, offset)
            except OSError as error:
                if error.errno not in _KERNEL_CANNOT:
                    raise
                self._by_kernel = False
            else:
                if copied:
                    return copied
        # Nothing copied is the end, or a filesystem that takes the call and does not do it: reading tells.
        return self._by_hand(offset, min(count, _BUFFER))

    def _by_hand(self, offset: int, count: int) -> int:
        content = memoryview(os.pread(self._source_fd, count, offset))
        done = 0
        while done < len(content):
            done += os.pwrite(self._target_fd, content[done:], offset + done)
        return done
