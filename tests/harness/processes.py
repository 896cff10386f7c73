"""Processes that belong to a cluster: started with a log, known by pid and start time, ended for certain.

A pid alone names nothing: it is given to another process after its owner died. Every process is therefore remembered
with its start time, and a signal goes through a pidfd after that time was compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.harness.errors import CommandError, StartError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

LOG_TAIL = 3000
"""How many bytes of a log an error shows."""


@dataclasses.dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process for certain: its pid and its start time in clock ticks since boot."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the identity of the process that has this pid now, or None where there is none."""
        fields = _stat_fields(pid)
        return None if fields is None else cls(pid, int(fields[19]))

    def alive(self) -> bool:
        """Tell whether this very process runs; one that ended and was not yet waited for does not."""
        fields = _stat_fields(self.pid)
        return fields is not None and int(fields[19]) == self.started and fields[0] not in {"Z", "X"}

    def end(self, *, with_signal: int = signal.SIGKILL, seconds: float = 10) -> None:
        """Send a signal and wait until the process is gone. Nothing happens where it is gone already.

        Raises:
            CommandError: it lives on after the deadline.
        """
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                if not self.alive():
                    return
                signal.pidfd_send_signal(descriptor, with_signal)
                ready, _, _ = select.select([descriptor], [], [], seconds)
                if not ready:
                    raise CommandError(f"process {self.pid} lives on {seconds:g} s after signal {with_signal}")
            finally:
                os.close(descriptor)


def _stat_fields(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state on, or None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()


@dataclasses.dataclass(frozen=True, slots=True)
class Running:
    """A process as it was found in /proc."""

    identity: ProcessIdentity
    argv: tuple[str, ...]

    @property
    def program(self) -> str:
        """Return the name of the program it runs."""
        return Path(self.argv[0]).name

    @property
    def pid_namespace(self) -> int:
        """Return the inode of its pid namespace, 0 where it is gone."""
        try:
            return Path(f"/proc/{self.identity.pid}/ns/pid").stat().st_ino
        except (FileNotFoundError, ProcessLookupError):
            return 0

    def first_of_namespace(self) -> bool:
        """Tell whether it is the first process of a pid namespace of its own."""
        try:
            status = Path(f"/proc/{self.identity.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        pids = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
        return len(pids) > 1 and pids[-1] == "1"


def running() -> Iterator[Running]:
    """Yield every process of the machine that has a command line."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            identity = ProcessIdentity.of(int(entry.name))
            words = (entry / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            if identity is not None and words[0]:
                yield Running(identity, tuple(os.fsdecode(word) for word in words))


def spawn(
    argv: Sequence[str | Path],
    *,
    log: Path,
    cwd: Path | None = None,
    dies_with_parent: bool,
    environment: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, its output appended to a log.

    With `dies_with_parent` the kernel kills it when the thread that called this ends, however that happens.
    """
    prefix = ["setpriv", "--pdeathsig", "KILL"] if dies_with_parent else []
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [*prefix, *map(str, argv)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=environment,
            start_new_session=True,
        )


def run(
    argv: Sequence[str | Path],
    *,
    check: bool = True,
    seconds: float = 120,
    stdin: str | None = None,
    environment: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return what it wrote.

    Raises:
        CommandError: it failed (unless `check` is false) or did not end in time.
    """
    words = [str(word) for word in argv]
    feed: dict[str, object] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            words, capture_output=True, text=True, check=False, timeout=seconds, env=environment, cwd=cwd, **feed
        )
    except subprocess.TimeoutExpired as expired:
        raise CommandError(f"`{' '.join(words)}` did not end within {seconds:g} s") from expired
    result: subprocess.CompletedProcess[str] = done
    if check and result.returncode != 0:
        said = (result.stderr.strip() or result.stdout.strip())[-LOG_TAIL:]
        raise CommandError(f"`{' '.join(words)}` failed with exit code {result.returncode}: {said}")
    return result


def run_visibly(argv: Sequence[str | Path], *, cwd: Path, environment: Mapping[str, str]) -> int:
    """Run a command whose output goes where ours goes, and return its exit code; it dies with this process."""
    words = ["setpriv", "--pdeathsig", "KILL", *map(str, argv)]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, cwd=cwd, env=environment) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            raise


def tail(log: Path) -> str:
    """Return the end of a log, or an empty text where there is none."""
    try:
        return log.read_bytes()[-LOG_TAIL:].decode(errors="replace")
    except FileNotFoundError:
        return ""


def wait_until(
    happened: Callable[[], bool],
    *,
    what: str,
    seconds: float,
    every: float = 0.05,
    broken: Callable[[], str] | None = None,
) -> None:
    """Wait until something happened.

    Args:
        happened: asked again and again; must be quick.
        what: names the awaited thing in the error.
        seconds: the deadline.
        every: the pause between two questions.
        broken: returns a text when waiting has become pointless, else an empty one.

    Raises:
        StartError: the deadline passed, or `broken` said so.
    """
    deadline = time.monotonic() + seconds
    while not happened():
        reason = broken() if broken is not None else ""
        if reason:
            raise StartError(f"{what}: {reason}")
        if time.monotonic() > deadline:
            raise StartError(f"{what}: not within {seconds:g} s")
        time.sleep(every)
