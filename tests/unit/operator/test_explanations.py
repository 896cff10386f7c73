"""The answers to programs: why one claim waits, and all that do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from moorage_operator.explanations import MOST_LISTED, Explanations, explain
from moorage_operator.ledger import Ledger
from moorage_operator.model.claim import Claim
from moorage_operator.model.rules import Rules
from moorage_operator.model.storage_class import Class
from tests.unit.operator.objects import claim, claim_body, class_body, volume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

import pytest


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(Rules(instead=True))


@pytest.fixture
async def ask(ledger: Ledger) -> AsyncIterator[Callable[[str], Awaitable[tuple[int, Any]]]]:
    app = web.Application()
    Explanations(ledger).add_to(app.router)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]

    async def get(path: str) -> tuple[int, Any]:
        async with aiohttp.ClientSession() as session, session.get(f"http://{host}:{port}{path}") as response:
            assert response.content_type == "application/json"
            return response.status, await response.json()

    try:
        yield get
    finally:
        await runner.cleanup()


async def test_a_claim_that_waits_is_explained_with_its_figures(
    ledger: Ledger, ask: Callable[[str], Awaitable[tuple[int, Any]]]
) -> None:
    ledger.apply(claim(class_name="", size="10Gi"))
    ledger.apply(volume(name="v", claim=None, phase="Available", class_name="", size="5Gi"))
    status, answer = await ask("/claims/ns/data")
    assert status == 200
    assert answer == {
        "namespace": "ns",
        "name": "data",
        "uid": "u1",
        "phase": "Pending",
        "volume": None,
        "bound": False,
        "case": "none fits",
        "waitsFor": "volume",
        "reason": "FailedBinding",
        "message": "No volume fits, and the claim asks for no storage class: 1 volume was looked at: 1 too small (largest "
        "free 5Gi, 10Gi asked for). Make a volume of at least 10Gi, or ask for 5Gi or less",
        "volumes": {
            "looked": 1,
            "failed": {"too small": 1},
            "nearest": {"reason": "too small", "volume": "v"},
            "largestFreeBytes": 5 * 2**30,
        },
    }


async def test_of_a_claim_that_is_bound_it_says_to_what(
    ledger: Ledger, ask: Callable[[str], Awaitable[tuple[int, Any]]]
) -> None:
    ledger.apply(claim(volumeName="pvc-u1", marks={"pv.kubernetes.io/bind-completed": "yes"}, phase="Bound"))
    ledger.apply(volume(phase="Bound"))
    status, answer = await ask("/claims/ns/data")
    assert (status, answer["bound"], answer["volume"], answer["case"]) == (200, True, "pvc-u1", "keep")
    assert "message" not in answer


async def test_a_claim_that_is_not_there_is_an_error_that_names_it(
    ask: Callable[[str], Awaitable[tuple[int, Any]]],
) -> None:
    assert await ask("/claims/ns/nobody") == (404, {"error": "there is no claim ns/nobody"})


async def test_all_that_wait_are_listed_in_order_and_those_that_are_bound_are_not(
    ledger: Ledger, ask: Callable[[str], Awaitable[tuple[int, Any]]]
) -> None:
    for name in ("b", "a"):
        ledger.apply(Claim.from_api(claim_body(name, uid=f"uid-{name}")))
    bound = claim_body("c", uid="u3", volumeName="v", marks={"pv.kubernetes.io/bind-completed": "yes"}, phase="Bound")
    ledger.apply(Claim.from_api(bound))
    _, answer = await ask("/claims")
    assert answer["waiting"] == 2
    assert [each["name"] for each in answer["claims"]] == ["a", "b"]
    assert all(each["waitsFor"] == "class" for each in answer["claims"])


async def test_of_very_many_some_are_listed_and_all_are_counted(
    ledger: Ledger, ask: Callable[[str], Awaitable[tuple[int, Any]]]
) -> None:
    for number in range(MOST_LISTED + 20):
        ledger.apply(Claim.from_api(claim_body(f"c{number}", uid=f"u{number}")))
    _, answer = await ask("/claims")
    assert (answer["waiting"], len(answer["claims"])) == (MOST_LISTED + 20, MOST_LISTED)


def test_asking_changes_nothing_and_the_answer_is_of_that_moment(ledger: Ledger) -> None:
    asks = claim()
    ledger.apply(asks)
    first = explain(ledger, asks)
    assert explain(ledger, asks) == first
    assert ledger.notes.wait(asks.uid) is None
    ledger.apply(Class.from_api(class_body(late=True)))
    assert explain(ledger, asks)["waitsFor"] == "consumer"
    assert json.dumps(explain(ledger, asks))
