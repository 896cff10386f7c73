"""Why claims wait, as JSON: what the command line and scripts ask the operator for.

``/claims`` lists every claim that is not bound, ``/claims/<namespace>/<name>`` answers for one. Nothing is stored for it:
each answer is decided at the moment of asking, from the same judgement that decides what is done.
"""

from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from moorage_operator.decide import judging, reasons
from moorage_operator.decide.census import Census
from moorage_operator.ledger import Ledger
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import claim_key

MOST_LISTED: Final = 500
"""Claims in one answer; the rest is only counted, so that asking never stops the work for long."""


class Explanations:
    """The pages.

    Args:
        ledger: what is known.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def add_to(self, router: web.UrlDispatcher) -> None:
        """Serve the pages."""
        router.add_get("/claims", self._list)
        router.add_get("/claims/{namespace}/{name}", self._one)

    async def _list(self, _: web.Request) -> web.Response:
        keys = sorted(self._ledger.waiting(), key=lambda key: (key.namespace, key.name))
        claims = [claim for key in keys[:MOST_LISTED] if (claim := self._ledger.claim(key)) is not None]
        return web.json_response({"waiting": len(keys), "claims": [explain(self._ledger, claim) for claim in claims]})

    async def _one(self, request: web.Request) -> web.Response:
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        claim = self._ledger.claim(claim_key(namespace, name))
        if claim is None:
            return web.json_response({"error": f"there is no claim {namespace}/{name}"}, status=404)
        return web.json_response(explain(self._ledger, claim))


def explain(ledger: Ledger, claim: Claim) -> Mapping[str, Any]:
    """What is the matter with one claim; of one that is bound, to what."""
    found: dict[str, Any] = {
        "namespace": claim.namespace,
        "name": claim.name,
        "uid": claim.uid,
        "phase": claim.phase,
        "volume": claim.volume_name or None,
        "bound": claim.bound,
    }
    judgement = judging.judge(ledger, claim)
    answer = reasons.answer(ledger, claim, judgement)
    found["case"] = judgement.case.value
    if answer is None:
        return found
    found |= {"waitsFor": answer.waits_for.value, "reason": answer.reason, "message": answer.message}
    if answer.census is not None:
        found["volumes"] = _volumes(answer.census)
    return found


def _volumes(census: Census) -> Mapping[str, Any]:
    return {
        "looked": census.looked,
        "failed": {miss.value: count for miss, count in census.failed.items()},
        "nearest": {"reason": census.nearest.value, "volume": census.example or None} if census.nearest else None,
        "largestFreeBytes": census.largest or None,
    }
