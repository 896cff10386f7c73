"""One call at a time for one volume, for as long as its work runs."""

import asyncio

import pytest

from moorage_csi.errors import InFlightError
from moorage_csi.rpc.guard import Guard


async def test_a_second_call_for_the_same_volume_is_refused_and_for_another_is_not() -> None:
    guard, may_end = Guard(), asyncio.Event()

    async def work() -> str:
        await may_end.wait()
        return "done"

    first = asyncio.create_task(guard.run("a", work))
    await asyncio.sleep(0)
    with pytest.raises(InFlightError, match="a has not ended"):
        await guard.run("a", work)
    other = asyncio.create_task(guard.run("b", work))
    may_end.set()
    assert await first == await other == "done"
    assert await guard.run("a", work) == "done"


async def test_a_caller_that_goes_leaves_the_work_and_the_key() -> None:
    guard, may_end, ended = Guard(), asyncio.Event(), []

    async def work() -> None:
        await may_end.wait()
        ended.append(True)

    call = asyncio.create_task(guard.run("a", work))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    with pytest.raises(InFlightError):
        await guard.run("a", work)
    assert not await guard.drain(0.01)
    may_end.set()
    assert await guard.drain(5)
    assert ended == [True]
    await guard.run("a", work)


async def test_a_failure_frees_the_key_and_is_silent_where_nobody_waits() -> None:
    guard, may_end = Guard(), asyncio.Event()
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def fail() -> None:
        await may_end.wait()
        raise ValueError("broken")

    call = asyncio.create_task(guard.run("a", fail))
    await asyncio.sleep(0)
    call.cancel()
    may_end.set()
    assert await guard.drain(5)
    with pytest.raises(ValueError, match="broken"):
        await guard.run("a", fail)
    assert await guard.drain(0)
    del call
    assert complaints == []


async def test_what_is_read_is_used_meanwhile_and_not_taken_away() -> None:
    guard = Guard()

    async def work() -> str:
        return "done"

    with guard.reading("a"), guard.reading("a"):
        assert await guard.run("a", work) == "done"
        with pytest.raises(InFlightError, match="a is being copied"):
            await guard.run("a", work, takes_away=True)
        assert await guard.run("b", work, takes_away=True) == "done"
    assert await guard.run("a", work, takes_away=True) == "done"


async def test_what_is_being_taken_away_is_not_read() -> None:
    guard, may_end = Guard(), asyncio.Event()
    taking = asyncio.create_task(guard.run("a", may_end.wait, takes_away=True))
    await asyncio.sleep(0)
    assert guard.runs("a")
    with pytest.raises(InFlightError, match="being taken away"), guard.reading("a"):
        pytest.fail("it was read")
    may_end.set()
    await taking
    assert not guard.runs("a")
    with guard.reading("a"):
        assert await guard.run("a", may_end.wait)
