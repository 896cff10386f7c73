"""The token bucket: burst, rate, order, and a token given back."""

import asyncio

import pytest

from moorage_operator.act.limiter import Limiter
from tests.unit.operator_edges import virtual


def test_a_burst_goes_at_once_and_the_rest_at_the_rate_in_order() -> None:
    async def main() -> list[tuple[int, float]]:
        limiter = Limiter(qps=10, burst=5, clock=virtual.clock)
        begun = virtual.clock()
        gone: list[tuple[int, float]] = []

        async def one(number: int) -> None:
            await limiter.take()
            gone.append((number, round(virtual.clock() - begun, 6)))

        await asyncio.gather(*(one(number) for number in range(8)))
        return gone

    assert virtual.run(main()) == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (5, 0.1), (6, 0.2), (7, 0.3)]


def test_rest_fills_the_bucket_but_never_beyond_the_burst() -> None:
    async def main() -> list[float]:
        limiter = Limiter(qps=10, burst=2, clock=virtual.clock)
        await asyncio.sleep(3600)
        begun = virtual.clock()
        waits = []
        for _ in range(3):
            await limiter.take()
            waits.append(round(virtual.clock() - begun, 6))
        return waits

    assert virtual.run(main()) == [0, 0, 0.1]


def test_who_is_cancelled_gives_its_token_back() -> None:
    async def main() -> float:
        limiter = Limiter(qps=1, burst=1, clock=virtual.clock)
        await limiter.take()
        waiting = asyncio.create_task(limiter.take())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        begun = virtual.clock()
        await limiter.take()
        return virtual.clock() - begun

    assert virtual.run(main()) == pytest.approx(1.0)


def test_no_limit_never_waits() -> None:
    async def main() -> float:
        limiter = Limiter(qps=0, burst=0, clock=virtual.clock)
        begun = virtual.clock()
        for _ in range(10_000):
            await limiter.take()
        return virtual.clock() - begun

    assert virtual.run(main()) == 0


@pytest.mark.parametrize(("qps", "burst"), [(-1, 1), (5, 0)])
def test_limits_that_could_never_let_anything_through_are_refused(qps: float, burst: int) -> None:
    with pytest.raises(ValueError, match="has to be"):
        Limiter(qps=qps, burst=burst)
