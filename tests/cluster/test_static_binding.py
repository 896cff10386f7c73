"""Volumes made by hand and claims that find them: one to one, the smallest that fits, in both modes of the binder.

Beside the in-tree binder the choice is its own, and the proof is that Moorage does not disturb it. Instead of it the
choice is Moorage's. The rules are the same, so the tests are.
"""

import graphlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.cluster import crowd
from tests.cluster.journal import Journal
from tests.cluster.kube import Kube
from tests.cluster.manifests import claim, static_volume

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

CLAIMS = 200
SPARE = 20
IN_TURN = 40
MADE = 60
SEED = 4


@dataclass(frozen=True, slots=True)
class Offer:
    """A free volume in figures: MiB, and how many access modes it has."""

    name: str
    size: int
    modes: int = 1


def _offers(kube: Kube, count: int, *, dice: random.Random) -> list[Offer]:
    """Return volumes of 1 to 200 MiB, every fourth of the size of another one."""
    sizes = [dice.randint(1, 200) for _ in range(count)]
    for number in range(0, count, 4):
        sizes[number] = sizes[number - 1]
    return [Offer(f"{kube.namespace}-{number}", size) for number, size in enumerate(sizes)]


def _volumes(kube: Kube, offers: Sequence[Offer]) -> Iterator[dict[str, Any]]:
    for offer in offers:
        modes = ("ReadWriteOnce", "ReadWriteMany")[: offer.modes]
        yield static_volume(
            offer.name, test=kube.namespace, class_name=kube.namespace, size=f"{offer.size}Mi", modes=modes
        )


def _prepare(kube: Kube, journal: Journal, offers: Sequence[Offer]) -> None:
    crowd.create(kube.cluster.kubeconfig, _volumes(kube, offers), namespace=kube.namespace)
    journal.until(
        "all volumes Available",
        lambda: (
            {offer.name for offer in offers}
            <= {name for name, volume in journal.volumes().items() if _phase(volume) == "Available"}
        ),
    )


def _phase(body: dict[str, Any]) -> str:
    return str(body.get("status", {}).get("phase", ""))


def _bound(journal: Journal, kube: Kube) -> int:
    return sum(each["status"]["phase"] == "Bound" for each in journal.claims(kube.namespace).values())


def _chosen(kube: Kube, journal: Journal) -> dict[str, str]:
    """Return each claim's volume; every pair must agree from both sides, and no volume may have two claims."""
    claims, volumes = journal.claims(kube.namespace), journal.volumes()
    chosen = {name: each["spec"]["volumeName"] for name, each in claims.items()}
    assert len(set(chosen.values())) == len(chosen)
    for name, volume_name in chosen.items():
        held, volume = claims[name], volumes[volume_name]
        assert volume["spec"]["claimRef"]["uid"] == held["metadata"]["uid"]
        assert volume["status"]["phase"] == held["status"]["phase"] == "Bound"
        assert held["status"]["capacity"] == volume["spec"]["capacity"]
    taken = [
        name
        for name, volume in volumes.items()
        if volume["spec"].get("claimRef", {}).get("namespace") == kube.namespace
    ]
    assert sorted(taken) == sorted(chosen.values())
    return chosen


def _turns(wanted: Mapping[str, int], chosen: Mapping[str, str], offers: Sequence[Offer]) -> list[str]:
    """Return an order of the claims in which each of them took the smallest volume that was left.

    Such an order exists if and only if the claims that hold smaller fitting volumes can all come first.

    Raises:
        CycleError: there is none.
    """
    sizes = {offer.name: offer.size for offer in offers}
    holders = {volume: name for name, volume in chosen.items()}
    before = {
        name: {
            holders.get(offer.name, f"nobody took {offer.name}")
            for offer in offers
            if wanted[name] <= offer.size < sizes[volume]
        }
        for name, volume in chosen.items()
    }
    free = {each for earlier in before.values() for each in earlier if each not in chosen}
    assert not free, f"smaller volumes that fitted stayed free: {sorted(free)}"
    return list(graphlib.TopologicalSorter(before).static_order())


def test_two_hundred_claims_at_once_get_one_volume_each_and_the_smallest_that_was_left(kube_of_mode: Kube) -> None:
    kube, dice = kube_of_mode, random.Random(SEED)  # noqa: S311 - no secret
    offers = _offers(kube, CLAIMS + SPARE, dice=dice)
    # Each claim fits at least one volume of its own, so that with the smallest for each of them all are served.
    wanted = {
        f"c-{number}": max(1, offer.size - dice.randint(0, 8))
        for number, offer in enumerate(dice.sample(offers, CLAIMS))
    }
    with Journal(kube.cluster.kubeconfig) as journal:
        _prepare(kube, journal, offers)
        claims = (claim(name, class_name=kube.namespace, size=f"{size}Mi") for name, size in wanted.items())
        crowd.create(kube.cluster.kubeconfig, claims, namespace=kube.namespace)
        journal.until(f"{CLAIMS} claims Bound", lambda: _bound(journal, kube) == CLAIMS, seconds=120)
        journal.until(
            f"{CLAIMS} volumes Bound",
            lambda: (
                sum(
                    volume["status"]["phase"] == "Bound"
                    for volume in journal.volumes().values()
                    if volume["spec"].get("claimRef", {}).get("namespace") == kube.namespace
                )
                == CLAIMS
            ),
        )
    assert journal.turned_back() == []
    chosen = _chosen(kube, journal)
    assert len(_turns(wanted, chosen, offers)) == CLAIMS


def test_no_claim_is_called_lost_while_many_volumes_are_new(kube_of_mode: Kube) -> None:
    """The in-tree binder looks at volumes one by one: of a claim that is bound it must know the volume already."""
    kube = kube_of_mode
    made = [claim(f"c-{number}", class_name="moorage-directory-immediate", size="16Mi") for number in range(MADE)]
    others = list(_volumes(kube, _offers(kube, CLAIMS, dice=random.Random(SEED))))  # noqa: S311 - no secret
    mixed = [each for number, volume in enumerate(others) for each in (volume, *made[number : number + 1])]
    with Journal(kube.cluster.kubeconfig) as journal:
        crowd.create(kube.cluster.kubeconfig, mixed, namespace=kube.namespace)
        journal.until(f"{MADE} claims Bound", lambda: _bound(journal, kube) == MADE, seconds=120)
        journal.until("no volume is new", lambda: all(_phase(each) != "Pending" for each in journal.volumes().values()))
    assert journal.turned_back() == []
    _chosen(kube, journal)


def test_claims_made_one_after_another_get_exactly_what_the_rule_says(kube_of_mode: Kube) -> None:
    """Of those that fit: the volumes with the fewest access modes, and of these the smallest."""
    kube, dice = kube_of_mode, random.Random(SEED)  # noqa: S311 - no secret
    offers = [
        Offer(offer.name, offer.size, modes=1 + number % 2)
        for number, offer in enumerate(_offers(kube, IN_TURN, dice=dice))
    ]
    left = list(offers)
    with Journal(kube.cluster.kubeconfig) as journal:
        _prepare(kube, journal, offers)
        for number in range(IN_TURN // 2):
            size = dice.randint(1, 120)
            best = min((offer for offer in left if offer.size >= size), key=lambda offer: (offer.modes, offer.size))
            wanted = claim(f"c-{number}", class_name=kube.namespace, size=f"{size}Mi")
            crowd.create(kube.cluster.kubeconfig, [wanted], namespace=kube.namespace)
            journal.until(f"claim {number} Bound", lambda number=number: _bound(journal, kube) == number + 1)  # type: ignore[misc]
            got = journal.claims(kube.namespace)[f"c-{number}"]["spec"]["volumeName"]
            (taken,) = (offer for offer in left if offer.name == got)
            assert (taken.modes, taken.size) == (best.modes, best.size)
            left.remove(taken)
    assert journal.turned_back() == []
    _chosen(kube, journal)
