"""A frozen filesystem is thawed, whatever happens."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moorage_csi.host import freezing
from tests.kernel.loop_filesystem import filesystem
from tests.kernel.machine import descriptors, opened, tool

pytestmark = pytest.mark.kernel

BOUND = 20.0
"""Seconds that are never reached."""
REACHED = 1.5
"""Seconds that are reached, and long enough to freeze in on a busy machine."""
SHORT = 0.3


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def mount(area: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    with filesystem(area, request.param) as target:
        (target / "file").write_text("old")
        try:
            yield target
        finally:
            left = thawed(target)
        assert not left, "the test left a frozen filesystem"
    assert not [thread for thread in threading.enumerate() if thread.name == "thaw"]


def thawed(target: Path) -> bool:
    with opened(target, os.O_RDONLY) as fd:
        return freezing.thaw(fd)


WAITING: list["subprocess.Popen[str]"] = []
WRITER = "import sys; print('now', flush=True); open(sys.argv[1], 'w').write('new')"


def writer(target: Path) -> "subprocess.Popen[str]":
    """A process that is about to write."""
    started = subprocess.Popen(
        [sys.executable, "-S", "-c", WRITER, str(target / "written")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None
    with started.stdout as said:
        assert said.readline() == "now\n"
    return started


def writes(target: Path) -> bool:
    """Whether another process can write, sooner or later."""
    return writer(target).wait(timeout=BOUND) == 0


def waits(target: Path) -> bool:
    """Whether a process that writes has to wait; it is left waiting, because nothing ends it before the thaw."""
    started = writer(target)
    try:
        started.wait(timeout=SHORT)
    except subprocess.TimeoutExpired:
        WAITING.append(started)
        return True
    return False


def written_at_last() -> None:
    while WAITING:
        assert WAITING.pop().wait(timeout=BOUND) == 0


def frozen_by_one_who_is_killed(target: Path, seconds: float = BOUND) -> None:
    script = (
        "import os, signal, sys\n"
        "from moorage_csi.host import freezing\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "with freezing.frozen(fd, seconds=float(sys.argv[2])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    packages = str(Path(freezing.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script, str(target), str(seconds)],
        env={"PYTHONPATH": packages},
        check=False,
        timeout=BOUND,
    )
    assert done.returncode == -signal.SIGKILL


def test_nothing_is_written_within_the_block_and_everything_after_it(mount: Path) -> None:
    with opened(mount, os.O_RDONLY) as fd, freezing.frozen(fd, seconds=BOUND):
        assert waits(mount)
        assert (mount / "file").read_text() == "old"
    written_at_last()
    assert writes(mount)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_it_is_thawed_when_the_block_raises(mount: Path, error: type[BaseException]) -> None:
    before = descriptors()
    with opened(mount, os.O_RDONLY) as fd, pytest.raises(error), freezing.frozen(fd, seconds=BOUND):
        raise error
    assert not thawed(mount)
    assert descriptors() == before


def test_it_is_thawed_when_the_block_returns_or_closes_the_descriptor(mount: Path) -> None:
    def leave(fd: int) -> str:
        with freezing.frozen(fd, seconds=BOUND):
            os.close(fd)
            return "left"

    assert leave(os.open(mount, os.O_RDONLY)) == "left"
    assert not thawed(mount)


def test_a_block_that_hangs_on_the_frozen_filesystem_itself_is_freed_and_fails(mount: Path) -> None:
    began = time.monotonic()
    with (
        opened(mount, os.O_RDONLY) as fd,
        pytest.raises(TimeoutError, match="thawed before the copy was done"),
        freezing.frozen(fd, seconds=REACHED),
    ):
        (mount / "written").write_text("hangs until the watchdog thaws")
    assert REACHED <= time.monotonic() - began < BOUND / 2
    assert not thawed(mount)


def test_a_block_that_lasts_too_long_is_told_so(mount: Path) -> None:
    with opened(mount, os.O_RDONLY) as fd:
        with pytest.raises(TimeoutError), freezing.frozen(fd, seconds=REACHED):
            assert writes(mount), "it was written when the bound was reached, and the block went on"
        with freezing.frozen(fd, seconds=BOUND):
            assert waits(mount)
    written_at_last()


def test_its_own_error_goes_before_that_of_the_bound(mount: Path) -> None:
    def fail() -> None:
        (mount / "written").write_text("hangs until the watchdog thaws")
        raise ValueError("mine")

    with (
        opened(mount, os.O_RDONLY) as fd,
        pytest.raises(ValueError, match="mine"),
        freezing.frozen(fd, seconds=REACHED),
    ):
        fail()
    assert not thawed(mount)


def test_one_that_somebody_else_froze_stays_frozen(mount: Path) -> None:
    with opened(mount, os.O_RDONLY) as fd:
        fcntl.ioctl(fd, freezing._FIFREEZE, 0)
        before = descriptors()
        with pytest.raises(OSError) as caught, freezing.frozen(fd, seconds=BOUND):  # noqa: PT011
            pytest.fail("it was frozen twice")
        assert caught.value.errno == errno.EBUSY
        assert descriptors() == before
        assert waits(mount)
        assert freezing.thaw(fd)
    written_at_last()


def test_one_that_somebody_else_thawed_is_told_and_not_thawed_for_another(mount: Path) -> None:
    def by_another(fd: int) -> None:
        (mount / "written").write_text("hangs until the watchdog thaws")
        fcntl.ioctl(fd, freezing._FIFREEZE, 0)

    with opened(mount, os.O_RDONLY) as fd:
        with pytest.raises(TimeoutError), freezing.frozen(fd, seconds=BOUND):
            assert freezing.thaw(fd)
        with pytest.raises(TimeoutError), freezing.frozen(fd, seconds=REACHED):
            by_another(fd)
        assert freezing.thaw(fd), "the end of the block thawed what another had frozen"


@pytest.mark.parametrize("waits", ["before", "after"])
def test_a_freeze_that_takes_longer_than_the_bound_is_given_up(
    mount: Path, monkeypatch: pytest.MonkeyPatch, waits: str
) -> None:
    real = fcntl.ioctl

    def slow(fd: int, command: int, argument: int) -> int:
        freezes = command == freezing._FIFREEZE
        if freezes and waits == "before":
            time.sleep(SHORT)
        result = real(fd, command, argument)
        if freezes and waits == "after":
            time.sleep(SHORT)
        return result

    monkeypatch.setattr(fcntl, "ioctl", slow)
    with (
        opened(mount, os.O_RDONLY) as fd,
        pytest.raises(TimeoutError, match="was not frozen within"),
        freezing.frozen(fd, seconds=SHORT / 10),
    ):
        pytest.fail("the block was entered")
    assert not thawed(mount)


def test_an_interruption_right_after_the_freeze_is_thawed(mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.ioctl

    def interrupted(fd: int, command: int, argument: int) -> int:
        result = real(fd, command, argument)
        if command == freezing._FIFREEZE:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(fcntl, "ioctl", interrupted)
    with opened(mount, os.O_RDONLY) as fd, pytest.raises(KeyboardInterrupt), freezing.frozen(fd, seconds=BOUND):
        pytest.fail("the block was entered")
    assert not thawed(mount)


def test_without_a_watchdog_nothing_is_frozen(mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with opened(mount, os.O_RDONLY) as fd:
        before = descriptors()
        with pytest.raises(RuntimeError, match="new thread"), freezing.frozen(fd, seconds=BOUND):
            pytest.fail("the block was entered")
        assert descriptors() == before
    assert not thawed(mount)


def test_a_freeze_outlives_a_kill_and_the_next_start_ends_it(mount: Path) -> None:
    frozen_by_one_who_is_killed(mount)
    assert waits(mount)
    for one in WAITING:
        one.kill()
    assert waits(mount), "a writer was killed, and nothing was thawed by it"
    with opened(mount, os.O_RDONLY) as fd:
        assert freezing.thaw(fd)
        assert not freezing.thaw(fd)
    assert {one.wait(timeout=BOUND) for one in WAITING} == {-signal.SIGKILL, 0}
    WAITING.clear()
    assert writes(mount)


def test_a_freeze_outlives_the_mount_and_is_ended_through_another_one(mount: Path) -> None:
    device = tool("findmnt", "-n", "-o", "SOURCE", mount).stdout.strip()
    frozen_by_one_who_is_killed(mount)
    tool("umount", mount)
    assert tool("losetup", device, check=False).returncode == 0, "the device is still attached"
    tool("mount", device, mount)
    with opened(mount, os.O_RDONLY) as fd:
        assert freezing.thaw(fd)
    assert writes(mount)


def test_a_process_that_ends_while_another_thread_is_in_the_block_thaws_first(mount: Path) -> None:
    script = (
        "import os, sys, threading\n"
        "from moorage_csi.host import freezing\n"
        "entered, never = threading.Event(), threading.Event()\n"
        "def hang():\n"
        "    fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "    with freezing.frozen(fd, seconds=0.3):\n"
        "        entered.set()\n"
        "        never.wait()\n"
        "threading.Thread(target=hang, daemon=True).start()\n"
        "entered.wait()\n"
    )
    packages = str(Path(freezing.__file__).parents[2])
    subprocess.run([sys.executable, "-c", script, str(mount)], env={"PYTHONPATH": packages}, check=True, timeout=BOUND)
    assert not thawed(mount)


def test_many_at_once_freeze_one_filesystem_one_after_the_other(mount: Path) -> None:
    results: list[str] = []

    def attempt() -> None:
        with opened(mount, os.O_RDONLY) as fd:
            try:
                with freezing.frozen(fd, seconds=BOUND):
                    results.append("frozen")
            except OSError as error:
                results.append(errno.errorcode[error.errno or 0])

    started: list[Callable[[], None]] = []
    for _ in range(8):
        thread = threading.Thread(target=attempt)
        thread.start()
        started.append(thread.join)
    for join in started:
        join()
    assert set(results) <= {"frozen", "EBUSY"}
    assert "frozen" in results


def test_a_filesystem_that_cannot_be_frozen_says_so(area: Path) -> None:
    with opened(Path("/proc"), os.O_RDONLY) as fd:
        with pytest.raises(OSError) as caught, freezing.frozen(fd, seconds=BOUND):  # noqa: PT011
            pytest.fail("the block was entered")
        assert caught.value.errno == errno.EOPNOTSUPP
        assert not freezing.thaw(fd)
