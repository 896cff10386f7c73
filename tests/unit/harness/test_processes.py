"""Processes are known for certain, and what went wrong is said with its reason."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import processes
from tests.harness.errors import CommandError, StartError
from tests.harness.processes import ProcessIdentity


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_process_that_only_has_the_pid_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    identity = ProcessIdentity.of(sleeper.pid)
    assert identity is not None
    stranger = ProcessIdentity(sleeper.pid, identity.started - 1)
    assert not stranger.alive()
    stranger.end()
    assert sleeper.poll() is None


def test_ending_waits_for_the_end_and_can_be_repeated(sleeper: subprocess.Popen[bytes]) -> None:
    identity = ProcessIdentity.of(sleeper.pid)
    assert identity is not None
    identity.end()
    assert not identity.alive()
    identity.end()
    assert sleeper.wait() == -signal.SIGKILL


def test_one_that_ignores_the_signal_is_reported(sleeper: subprocess.Popen[bytes]) -> None:
    identity = ProcessIdentity.of(sleeper.pid)
    assert identity is not None
    with pytest.raises(CommandError, match=r"lives on 0.1 s"):
        identity.end(with_signal=signal.SIGCONT, seconds=0.1)


def test_there_is_no_identity_of_a_process_that_is_not_there() -> None:
    assert ProcessIdentity.of(2**22 + 1) is None


def test_running_processes_show_their_words(sleeper: subprocess.Popen[bytes]) -> None:
    found = [each for each in processes.running() if each.identity.pid == sleeper.pid]
    assert [(each.program, each.argv[1:]) for each in found] == [("sleep", ("60",))]
    assert found[0].pid_namespace == Path("/proc/self/ns/pid").stat().st_ino
    assert not found[0].first_of_namespace()


def _program(identity: ProcessIdentity) -> str:
    return next((each.program for each in processes.running() if each.identity == identity), "")


def test_what_dies_with_its_parent_dies_with_it(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.harness import processes;"
        "child = processes.spawn(['sleep', '60'], log=Path(sys.argv[1]), dies_with_parent=True);"
        "print(child.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "log"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    ) as parent:
        assert parent.stdout is not None
        child = ProcessIdentity.of(int(parent.stdout.readline()))
        assert child is not None
        # Until the child runs its program, the kernel has not been asked yet to kill it with its parent.
        processes.wait_until(lambda: _program(child) == "sleep", what="the start of the child", seconds=20)
        parent.kill()
    processes.wait_until(lambda: not child.alive(), what="the end of the child", seconds=5)


def test_a_failed_command_tells_its_words_its_code_and_what_it_said() -> None:
    with pytest.raises(CommandError, match=r"`sh -c echo no >&2; exit 7` failed with exit code 7: no"):
        processes.run(["sh", "-c", "echo no >&2; exit 7"])
    assert processes.run(["sh", "-c", "exit 7"], check=False).returncode == 7
    assert processes.run(["cat"], stdin="fed").stdout == "fed"


def test_a_command_that_hangs_is_ended() -> None:
    with pytest.raises(CommandError, match=r"did not end within 0.1 s"):
        processes.run(["sleep", "60"], seconds=0.1)


def test_waiting_ends_at_its_deadline_or_when_it_is_pointless() -> None:
    with pytest.raises(StartError, match=r"the moon: not within 0.1 s"):
        processes.wait_until(lambda: False, what="the moon", seconds=0.1)
    with pytest.raises(StartError, match=r"the moon: it fell"):
        processes.wait_until(lambda: False, what="the moon", seconds=60, broken=lambda: "it fell")


def test_a_visible_command_returns_its_code() -> None:
    assert processes.run_visibly(["sh", "-c", "exit 3"], cwd=Path("/"), environment=os.environ) == 3
