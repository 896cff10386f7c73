"""Running the few programs that have no system call for what they do: mkfs, fsck, growing.

An argument list, never a shell; a fixed environment, so that messages can be read; no standard input. What a
cancelled call means for its child is said by the caller, because a half-made filesystem is worse than a late answer:

- *shielded*: the child runs to its end. The caller, cancelled meanwhile, gets its CancelledError after that, so
  whatever it guards is guarded while the child writes.
- otherwise: the child is killed, and waited for.

In both cases, ``run`` never returns or raises while its child lives, and leaves no zombie. A thread of its own attends
to each child, because a thread cannot be cancelled: not by the caller's deadline, and not by an event loop that shuts down.
"""

import asyncio
import contextlib
import os
import selectors
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

_ENVIRONMENT: Final = {
    "LC_ALL": "C",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
_OUTPUT_LIMIT: Final = 64 * 1024
"""Bytes kept of each stream; the end is kept, where programs say what went wrong."""

_CHUNK: Final = 16 * 1024
T = TypeVar("T")

_ADVICE: Final = "run the command by hand on the node to see more"


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str


class CommandError(Exception):
    """A command ended with a code that was not expected; a negative one is the signal that ended it."""

    def __init__(
        self, argv: Sequence[str], *, exit_code: int | None, stderr: str, reason: str, advice: str = _ADVICE
    ) -> None:
        """``reason`` completes "``argv[0]`` ...", as in "ended with exit code 1"."""
        said = stderr.strip() or "it said nothing"
        super().__init__(f"{argv[0]} {reason}: {said} (command: {shlex.join(argv)}); {advice}")
        self.argv = tuple(argv)
        self.exit_code = exit_code
        self.stderr = stderr


class CommandTimeoutError(CommandError):
    """A command did not end in time and was killed."""


class CommandNotFoundError(CommandError):
    """The program is not installed."""


async def run(
    argv: Sequence[str],
    *,
    timeout: float | None,  # noqa: ASYNC109  (a thread keeps it, and kills a process at its end)
    shielded: bool = False,
    expected: Sequence[int] = (0,),
    keep_fds: Sequence[int] = (),
    advice: str = _ADVICE,
) -> Result:
    """Run a command to its end and return what it said.

    ``timeout`` is in seconds; after it the child is killed, shielded or not, so a shielded command gets a long one or
    None. ``keep_fds`` stay open in the child, which may name them as /proc/self/fd/N.

    Raises CommandError for an exit code not in ``expected``, CommandTimeoutError, CommandNotFoundError, and
    CancelledError as the module's text says.
    """
    child = _Child(argv, keep_fds=keep_fds, timeout=timeout)
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"command-{argv[0]}")
    try:
        attended = asyncio.get_running_loop().run_in_executor(thread, child.attend)
        result = await _outlive(attended, at_cancel=None if shielded else child.stop)
    finally:
        thread.shutdown(wait=False)
        child.close()
    if result.exit_code not in expected:
        raise CommandError(
            argv,
            exit_code=result.exit_code,
            stderr=result.stderr or result.stdout,
            reason=_how(result.exit_code),
            advice=advice,
        )
    return result


def _how(exit_code: int) -> str:
    return f"ended with exit code {exit_code}" if exit_code >= 0 else f"was killed by signal {-exit_code}"


async def finish(work: Coroutine[None, None, T]) -> T:
    """Await ``work`` to its end even if the caller is cancelled meanwhile; the cancellation is raised after that.

    For several steps that belong together, commands or threads: what the caller guards is guarded until they are over.
    """
    return await _outlive(asyncio.ensure_future(work), at_cancel=None)


async def _outlive(future: asyncio.Future[T], *, at_cancel: Callable[[], None] | None) -> T:
    """Never return before ``future`` is done; tell of a cancellation when it comes, and raise it at the end."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
            if at_cancel is not None:
                at_cancel()
    if cancelled is None:
        return future.result()
    if not future.cancelled():
        future.exception()
    raise cancelled


class _Child:
    """One child process and all that is done to it, from one thread; ``stop`` alone is called from another."""

    def __init__(self, argv: Sequence[str], *, keep_fds: Sequence[int], timeout: float | None) -> None:
        self._argv = argv
        self._keep_fds = keep_fds
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._timeout = timeout
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def stop(self) -> None:
        """Ask the thread to kill the child; before it was started, too."""
        os.eventfd_write(self._stop_fd, 1)

    def close(self) -> None:
        os.close(self._stop_fd)

    def attend(self) -> Result:
        """Start the child, read what it says, and return when it is dead and reaped, in whatever way."""
        with self._started() as process:
            try:
                stdout, stderr = self._listen(process)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return Result(exit_code=process.returncode, stdout=stdout, stderr=stderr)

    def _started(self) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=_ENVIRONMENT,
                pass_fds=tuple(self._keep_fds),
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise CommandNotFoundError(
                self._argv,
                exit_code=None,
                stderr=str(error),
                reason="could not be started",
                advice="install the package that has it into the node plugin's image",
            ) from error

    def _listen(self, process: subprocess.Popen[bytes]) -> tuple[str, str]:
        """Read both streams until the child ends or is stopped; its own children may keep them open longer."""
        ended = os.pidfd_open(process.pid)
        try:
            with selectors.DefaultSelector() as selector:
                tails = [_Tail(stream.fileno()) for stream in (process.stdout, process.stderr) if stream]
                for tail in tails:
                    selector.register(tail.fd, selectors.EVENT_READ, tail)
                selector.register(ended, selectors.EVENT_READ)
                selector.register(self._stop_fd, selectors.EVENT_READ)
                self._read(selector)
        finally:
            os.close(ended)
        stdout, stderr = (tail.text for tail in tails)
        return stdout, stderr

    def _read(self, selector: selectors.BaseSelector) -> None:
        while True:
            remaining = None if self._deadline is None else max(self._deadline - time.monotonic(), 0)
            keys = [key for key, _ in selector.select(remaining)]
            if not keys:
                raise CommandTimeoutError(
                    self._argv, exit_code=None, stderr="", reason=f"did not end within {self._timeout} s and was killed"
                )
            tails = [key.data for key in keys if isinstance(key.data, _Tail)]
            if not tails or self._stop_fd in (key.fd for key in keys):
                return
            for tail in tails:
                if not tail.read():
                    selector.unregister(tail.fd)


class _Tail:
    """The end of a stream, where programs say what went wrong."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._kept = bytearray()

    def read(self) -> bool:
        """Take what is there; False at the stream's end."""
        chunk = os.read(self.fd, _CHUNK)
        self._kept += chunk
        del self._kept[:-_OUTPUT_LIMIT]
        return bool(chunk)

    @property
    def text(self) -> str:
        return self._kept.decode(errors="replace")
