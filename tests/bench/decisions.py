"""How the time of one decision grows with the number of volumes: the pure core, in this process, with no API server.

The same claims are decided beside 1,000, 10,000 and 100,000 volumes, in clusters of several shapes. What is
compared is the time of the largest against the smallest of one shape.
"""

from __future__ import annotations

import gc
import itertools
import random
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moorage_csi.contract import TOPOLOGY_KEY
from moorage_operator import explanations
from moorage_operator.decide import matching
from moorage_operator.ledger import Ledger
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import Uid
from moorage_operator.model.node import Node
from moorage_operator.model.requirement import IN, NOT_IN, Requirement
from moorage_operator.model.rules import Rules
from moorage_operator.model.volume import AVAILABLE, BOUND, RELEASED, ClaimRef, Volume
from tests.bench.figures import Figure, rounded

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.progress import Progress

PART = "one decision, by the number of volumes"
SIZES = (1_000, 10_000, 100_000)
GROWTH = 2.5
CLAIMS = 500
ROUNDS = 15
ROUND_SECONDS = 0.05
GIB = 2**30
MODE_SETS = (("ReadWriteOnce",), ("ReadWriteOnce", "ReadOnlyMany"), ("ReadWriteMany",))
ZONES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One kind of cluster, and what is asked of it.

    Attributes:
        vary: a volume by its number.
        ask: a claim.
        decide: what is timed.
        finds: whether the decision is to find a volume.
        most: how many times longer it may take beside the most volumes; None where no index can hold it to any.
        why: that it has no budget.
    """

    name: str
    vary: Callable[[Volume, int], Volume]
    ask: Callable[[Claim, random.Random], Claim]
    decide: Callable[[Ledger, Claim], object] = matching.match
    finds: bool = True
    most: float | None = GROWTH
    why: str = ""


def measure(*, progress: Progress) -> list[Figure]:
    """Time every shape at every size."""
    figures: list[Figure] = []
    for shape in SHAPES:
        with progress.step(f"decisions: {shape.name}"):
            seconds = {size: _seconds(shape, size) for size in SIZES}
        detail = ", ".join(f"{rounded(each * 1e6)} µs at {size:,}" for size, each in seconds.items())
        detail = f"{detail}; {shape.why}" if shape.why else detail
        growth = seconds[SIZES[-1]] / seconds[SIZES[0]]
        figures.append(Figure(part=PART, name=shape.name, value=growth, unit="times", most=shape.most, detail=detail))
    return figures


def _seconds(shape: Shape, size: int) -> float:
    """The time of one decision: that of the best round, for other processes only ever add to it."""
    ledger = Ledger(Rules(instead=True))
    order = random.Random(1)  # noqa: S311 - the same cluster in every run
    for number in order.sample(range(size), size):
        ledger.apply(shape.vary(VOLUME, number))
    claims = [shape.ask(CLAIM, order) for _ in range(CLAIMS)]
    for claim in claims[:20]:
        found = shape.decide(ledger, claim)
        assert isinstance(found, Volume) == shape.finds, f"{shape.name}: {found}"
    gc.collect()
    gc.disable()
    try:
        return min(_round(shape, ledger, claims) for _ in range(ROUNDS))
    finally:
        gc.enable()


def _round(shape: Shape, ledger: Ledger, claims: list[Claim]) -> float:
    """The time of one decision, of as many as there is time for."""
    decide = shape.decide
    began = time.perf_counter()
    for done, claim in enumerate(claims, 1):
        decide(ledger, claim)
        if (passed := time.perf_counter() - began) > ROUND_SECONDS:
            return passed / done
    return (time.perf_counter() - began) / len(claims)


def _free(volume: Volume, number: int) -> Volume:
    """One class, one set of modes, a hundred sizes, everything Available."""
    return replace(
        volume, name=f"v{number}", uid=Uid(f"v{number}"), capacity=(number % 100 + 1) * GIB, labels=_labels(number)
    )


def _mixed(volume: Volume, number: int) -> Volume:
    """Ten classes, three sets of modes, and of each three volumes one Available, one Bound, one Released."""
    made = replace(
        _free(volume, number),
        class_name=f"class-{number // 3 % 10}",
        access_modes=MODE_SETS[number // 30 % len(MODE_SETS)],
    )
    return made if number % 3 == 0 else _held(made, number, BOUND if number % 3 == 1 else RELEASED)


def _used(volume: Volume, number: int) -> Volume:
    """Hardly anything is Available: of a hundred volumes one, and the others are Bound or Released."""
    made = replace(_free(volume, number), capacity=(number // 100 % 100 + 1) * GIB)
    return made if number % 100 == 0 else _held(made, number, BOUND if number % 2 else RELEASED)


def _held(volume: Volume, number: int, phase: str) -> Volume:
    holder = ClaimRef(namespace="held", name=f"c{number}", uid=Uid(f"c{number}"))
    return replace(volume, phase=phase, claim=holder)


def _local(volume: Volume, number: int) -> Volume:
    """Everything Available, each on one of a hundred nodes."""
    at = Requirement(key=TOPOLOGY_KEY, operator=IN, values=(f"node-{number % 100}",))
    made = replace(_free(volume, number), capacity=(number // 100 % 100 + 1) * GIB)
    return replace(made, affinity=(((at,), ()),))


def _labels(number: int) -> dict[str, str]:
    return {"zone": f"zone-{number % ZONES}", "media": "ssd" if number % 2 else "disk"}


def _any(claim: Claim, order: random.Random) -> Claim:
    return replace(claim, requested=order.randint(1, 90) * GIB)


def _any_class(claim: Claim, order: random.Random) -> Claim:
    return replace(_any(claim, order), class_name=f"class-{order.randrange(10)}", requested=order.randint(1, 10) * GIB)


def _small(claim: Claim, order: random.Random) -> Claim:
    return replace(claim, requested=order.randint(1, 5) * GIB)


def _too_large(claim: Claim, order: random.Random) -> Claim:
    return replace(claim, requested=order.randint(200, 300) * GIB)


def _on(name: str) -> Callable[[Ledger, Claim], Volume | None]:
    """What a pod that names its node needs: a volume that this node can use."""
    node = Node.from_api(
        {"metadata": {"name": name, "uid": name, "resourceVersion": "1", "labels": {TOPOLOGY_KEY: name}}}
    )

    def decide(ledger: Ledger, claim: Claim) -> Volume | None:
        return matching.match(ledger, claim, late=True, node=node)

    return decide


def _take_and_give_back(ledger: Ledger, claim: Claim) -> None:
    """Not a decision, but what each one costs afterwards: a volume leaves the shelf, here to come back to it."""
    volume = ledger.volume(f"v{claim.requested // GIB}")
    assert volume is not None
    ledger.apply(_held(volume, 0, BOUND))
    ledger.apply(volume)


def _selecting(**spec: Any) -> Callable[[Claim, random.Random], Claim]:
    """A claim that only its selector keeps from binding."""
    selector = _claim({"selector": spec}).selector

    def ask(claim: Claim, order: random.Random) -> Claim:
        return replace(_any(claim, order), selector=selector)

    return ask


def _asked_anew() -> Callable[[Ledger, Claim], Volume | None]:
    """Every claim has a selector that no other one has had, so that nothing that is remembered can help."""
    numbers = itertools.count()

    def decide(ledger: Ledger, claim: Claim) -> Volume | None:
        other = Requirement(key="rack", operator=NOT_IN, values=(f"rack-{next(numbers)}",))
        return matching.match(ledger, replace(claim, selector=(*(claim.selector or ()), other)))

    return decide


def _claim(spec: dict[str, Any]) -> Claim:
    return Claim.from_api(
        {
            "metadata": {"name": "data", "namespace": "ns", "uid": "c", "resourceVersion": "1"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "static", **spec},
            "status": {"phase": "Pending"},
        }
    )


CLAIM = _claim({})
VOLUME = Volume.from_api(
    {
        "metadata": {"name": "v", "uid": "v", "resourceVersion": "1"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "static",
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": "/srv/v"},
        },
        "status": {"phase": AVAILABLE},
    }
)
SHAPES = (
    Shape(name="all Available, one class", vary=_free, ask=_any),
    Shape(name="ten classes, a third Available", vary=_mixed, ask=_any_class),
    Shape(name="99 of 100 Bound or Released", vary=_used, ask=_small),
    Shape(name="nothing is large enough", vary=_free, ask=_too_large, finds=False),
    Shape(name="a label nobody has", vary=_free, ask=_selecting(matchLabels={"zone": "moon"}), finds=False),
    Shape(
        name="a key nobody has",
        vary=_free,
        ask=_selecting(matchExpressions=[{"key": "rack", "operator": "Exists"}]),
        finds=False,
    ),
    Shape(
        name="labels nobody has together",
        vary=_free,
        ask=_selecting(matchLabels={"zone": "zone-0", "media": "ssd"}),
        finds=False,
    ),
    Shape(
        name="the same, by selectors never asked before",
        vary=_free,
        ask=_selecting(matchLabels={"zone": "zone-0", "media": "ssd"}),
        decide=_asked_anew(),
        finds=False,
        most=None,
        why="what two sets have in common has to be counted once",
    ),
    Shape(name="on one of a hundred nodes", vary=_local, ask=_small, decide=_on("node-7")),
    Shape(name="on a node that has none", vary=_local, ask=_small, decide=_on("node-moon"), finds=False),
    Shape(
        name="explained: too small",
        vary=_mixed,
        ask=lambda claim, order: replace(_too_large(claim, order), class_name="class-1"),
        decide=explanations.explain,
        finds=False,
    ),
    Shape(
        name="explained: a label nobody has",
        vary=_free,
        ask=_selecting(matchLabels={"zone": "moon"}),
        decide=explanations.explain,
        finds=False,
    ),
    Shape(
        name="taken off the shelf and put back",
        vary=_free,
        ask=_any,
        decide=_take_and_give_back,
        finds=False,
        most=None,
    ),
)
