"""A command ends as it was told to, and its child with it."""

import asyncio
import gc
import os
import sys
import time
from pathlib import Path

import pytest

from moorage_csi.host import commands
from tests.kernel.machine import children, opened

pytestmark = pytest.mark.kernel


async def started(path: Path) -> None:
    """Wait until the child has said that it lives."""
    deadline = asyncio.get_running_loop().time() + 20
    while not await asyncio.to_thread(path.exists):
        assert asyncio.get_running_loop().time() < deadline, f"{path} was not made"
        await asyncio.sleep(0.005)


async def test_it_returns_what_was_said() -> None:
    result = await commands.run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=20, expected=[3])
    assert result == commands.Result(exit_code=3, stdout="out\n", stderr="err\n")


async def test_arguments_are_never_read_by_a_shell(area: Path) -> None:
    result = await commands.run(["echo", "$(touch pwned)", ";", "*"], timeout=20)
    assert result.stdout == "$(touch pwned) ; *\n"


async def test_the_environment_is_fixed_and_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "value")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    result = await commands.run(["sh", "-c", "env; cat"], timeout=20)
    shown = dict(line.split("=", 1) for line in result.stdout.splitlines())
    assert shown["LC_ALL"] == "C"
    assert {"/usr/sbin", "/sbin"} <= set(shown["PATH"].split(":"))
    assert "SECRET" not in shown


async def test_a_program_is_found_whatever_the_path_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert (await commands.run(["mkfs.ext4", "-V"], timeout=20)).exit_code == 0


async def test_standard_input_is_nobodys() -> None:
    reading, writing = os.pipe()
    before = os.dup(0)
    os.dup2(reading, 0)
    try:
        assert (await commands.run(["readlink", "/proc/self/fd/0"], timeout=20)).stdout == "/dev/null\n"
    finally:
        os.dup2(before, 0)
        for fd in (reading, writing, before):
            os.close(fd)


async def test_a_failure_names_command_code_and_words() -> None:
    with pytest.raises(commands.CommandError) as caught:
        await commands.run(["sh", "-c", "echo 'no room' >&2; exit 7"], timeout=20, advice="free some space")
    assert caught.value.exit_code == 7
    assert str(caught.value) == (
        "sh ended with exit code 7: no room (command: sh -c 'echo '\"'\"'no room'\"'\"' >&2; exit 7'); free some space"
    )


async def test_a_killed_command_says_by_what() -> None:
    with pytest.raises(commands.CommandError, match="killed by signal 15"):
        await commands.run(["sh", "-c", "kill -TERM $$"], timeout=20)


async def test_a_program_that_is_not_there() -> None:
    with pytest.raises(commands.CommandNotFoundError, match=r"could not be started.*install"):
        await commands.run(["no-such-program-here"], timeout=20)


async def test_output_is_bounded_and_keeps_the_end() -> None:
    script = "import sys; sys.stdout.write('x' * 3_000_000 + 'end'); sys.stderr.write('y' * 3_000_000)"
    result = await commands.run([sys.executable, "-c", script], timeout=30)
    assert len(result.stdout) == 64 * 1024
    assert result.stdout.endswith("end")
    assert len(result.stderr) == 64 * 1024


@pytest.mark.parametrize("shielded", [False, True])
async def test_a_timeout_kills_the_whole_group(area: Path, shielded: bool) -> None:
    began = time.monotonic()
    with pytest.raises(commands.CommandTimeoutError, match=r"did not end within 0\.2 s"):
        await commands.run(["sh", "-c", "sleep 50 & sleep 50"], timeout=0.2, shielded=shielded)
    assert time.monotonic() - began < 10
    assert children() == []


async def test_cancelling_kills_and_reaps(area: Path) -> None:
    running = asyncio.ensure_future(
        commands.run(["sh", "-c", f"touch {area}/up; sleep 50; touch {area}/end"], timeout=None)
    )
    await started(area / "up")
    began = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - began < 10
    assert children() == []
    assert not (area / "end").exists()


async def test_cancelling_before_the_child_is_up_leaves_none() -> None:
    for step in range(20):
        running = asyncio.ensure_future(commands.run(["sleep", "50"], timeout=None))
        for _ in range(step):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert children() == []


async def test_a_shielded_child_is_waited_for_through_every_cancellation(area: Path) -> None:
    script = f"touch {area}/up; sleep 0.5; touch {area}/end"
    running = asyncio.ensure_future(commands.run(["sh", "-c", script], timeout=None, shielded=True))
    await started(area / "up")
    for _ in range(5):
        running.cancel()
        await asyncio.sleep(0.02)
        assert not running.done()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (area / "end").exists()
    assert children() == []


async def test_a_guard_is_held_while_a_shielded_child_lives(area: Path) -> None:
    guard = asyncio.Lock()

    async def call() -> None:
        async with guard:
            await commands.run(
                ["sh", "-c", f"touch {area}/up; sleep 0.3; touch {area}/end"], timeout=None, shielded=True
            )

    running = asyncio.ensure_future(call())
    await started(area / "up")
    running.cancel()
    async with guard:
        assert (area / "end").exists()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_deadline_around_a_shielded_command_comes_late_and_not_early(area: Path) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await commands.run(["sh", "-c", f"sleep 0.5; touch {area}/end"], timeout=None, shielded=True)
    assert (area / "end").exists()


async def test_the_failure_of_a_cancelled_command_is_not_reported_as_unretrieved(area: Path) -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    running = asyncio.ensure_future(
        commands.run(["sh", "-c", f"touch {area}/up; sleep 50"], timeout=0.3, shielded=True)
    )
    await started(area / "up")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    del running
    await asyncio.sleep(0.02)
    gc.collect()
    assert reported == []


async def test_steps_that_belong_together_are_finished_together() -> None:
    done: list[int] = []

    async def steps() -> int:
        for step in range(3):
            await asyncio.sleep(0.02)
            done.append(step)
        return len(done)

    running = asyncio.ensure_future(commands.finish(steps()))
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert done == [0, 1, 2]
    assert await commands.finish(steps()) == 6


async def test_a_descriptor_is_kept_only_when_asked(area: Path) -> None:
    with opened(area, os.O_RDONLY) as fd:
        kept = await commands.run(["readlink", f"/proc/self/fd/{fd}"], timeout=20, keep_fds=[fd])
        assert kept.stdout.strip() == str(area)
        with pytest.raises(commands.CommandError):
            await commands.run(["readlink", f"/proc/self/fd/{fd}"], timeout=20)
