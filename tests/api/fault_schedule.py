"""A schedule: which volumes and claims come and go while things go wrong, and when an operator is killed.

Everything follows from the seed, except for what the machine's own speed decides. What the claims may expect in the end is
worked out here from the objects as they are stored, by the rules of binding and without any code of the operator.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any, Self

from tests.harness.faulty_proxy_faults import Faults

ONCE, MANY, READ = "ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany"
VOLUME_MODES = ((ONCE,), (ONCE,), (ONCE, READ), (MANY,), (ONCE, MANY))
CLAIM_MODES = ((ONCE,), (ONCE,), (ONCE,), (READ,), (MANY,))
STATIC, CROWD, DYNAMIC, LATE = "static", "crowd", "dynamic", "late"
"""Kinds of classes: two without an object, ours and immediate, ours and late."""

STORM_SECONDS = 3.0
LARGEST = 6
"""GiB."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AddVolume:
    """A static volume appears; `holder` is the name of the claim that it is reserved for."""

    name: str
    kind: str
    size: int
    modes: tuple[str, ...]
    block: bool
    holder: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AddClaim:
    """A claim appears; `volume` is the name of the static volume that it names, `node` where the scheduler wants it."""

    name: str
    kind: str
    size: int
    modes: tuple[str, ...]
    block: bool
    volume: str = ""
    node: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeleteClaim:
    """A claim goes; with `bound`, only if it is Bound by then."""

    name: str
    bound: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One replica is killed and started again."""

    number: int


Step = AddVolume | AddClaim | DeleteClaim | Kill


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What happens in one run.

    Attributes:
        seed: all of it follows from this.
        mode: of the binder.
        replicas: the flags of each operator.
        first: what exists before the operators start.
        steps: what happens while they run, in order, and after how many seconds.
        faults: what goes wrong.
    """

    seed: int
    mode: str
    replicas: tuple[tuple[str, ...], ...]
    first: tuple[Step, ...]
    steps: tuple[tuple[float, Step], ...]
    faults: Faults

    @classmethod
    def of(cls, seed: int) -> Self:
        """Return the schedule of a seed; odd ones are beside the in-tree binder."""
        chance = random.Random(seed)  # noqa: S311 (a schedule, not a secret)
        mode = "beside" if seed % 2 else "instead"
        elected = chance.random() < 0.25
        count = chance.choice((1, 2, 2))
        flags = (f"--binder-mode={mode}", f"--leader-election={'true' if elected else 'false'}")
        kills = [Kill(number=chance.randrange(2)) for _ in range(chance.choice((0, 0, 1, 2)))]
        objects = _objects(chance)
        # Whoever is killed, or loses the Lease, may forget storage that it was having made for a claim that goes.
        deletions = _deletions(chance, objects, bound=bool(kills) or elected)
        early = chance.randrange(len(objects))
        later: list[tuple[float, Step]] = [
            (chance.uniform(0, STORM_SECONDS), step) for step in [*objects[early:], *kills]
        ]
        later += [(chance.uniform(0.3 * STORM_SECONDS, STORM_SECONDS), step) for step in deletions]
        volumes, claims = _crowd(chance)
        rush = chance.uniform(0, 0.6 * STORM_SECONDS)
        later += [(rush, step) for step in claims]
        later += [(STORM_SECONDS, again) for again in _again(chance, objects, deletions)]
        return cls(
            seed=seed,
            mode=mode,
            replicas=(flags,) * count,
            first=(*volumes, *objects[:early]),
            steps=tuple(sorted(later, key=lambda entry: entry[0])),
            faults=_storm(chance.uniform(0.5, 2.0)),
        )

    def id(self) -> str:
        """Return what names it among tests."""
        return f"{self.mode}-{self.seed}"

    def __str__(self) -> str:
        steps = [*self.first, *(step for _, step in self.steps)]
        counts = {
            kind: sum(isinstance(step, kind) for step in steps) for kind in (AddVolume, AddClaim, DeleteClaim, Kill)
        }
        elected = "elected" if "--leader-election=true" in self.replicas[0] else "all acting"
        return (
            f"seed {self.seed} {self.mode}, {len(self.replicas)} {elected}: {counts[AddVolume]} volumes, "
            f"{counts[AddClaim]} claims, {counts[DeleteClaim]} deletions, {counts[Kill]} kills"
        )


def _storm(strength: float) -> Faults:
    return Faults(
        conflict=0.06 * strength,
        overtaken=0.08 * strength,
        busy=0.02 * strength,
        error=0.03 * strength,
        lost=0.05 * strength,
        reset=0.03 * strength,
        cut=0.05 * strength,
        gone=0.1 * strength,
        expired=0.2 * strength,
        failed=0.1 * strength,
        gap=0.02 * strength,
        deletion_gap=0.5 * strength,
        twice=0.1 * strength,
        late=0.15 * strength,
        end=0.05 * strength,
    )


def _objects(chance: random.Random) -> list[Step]:
    kinds = [DYNAMIC if chance.random() < 0.15 else STATIC for _ in range(chance.randint(3, 8))]
    found: list[Step] = [_volume(chance, f"free-{number}", kind=kind) for number, kind in enumerate(kinds)]
    for kind, least, most in ((STATIC, 3, 8), (DYNAMIC, 1, 4), (LATE, 0, 2)):
        found += [_claim(chance, f"{kind}-{number}", kind=kind) for number in range(chance.randint(least, most))]
    for number in range(chance.randint(1, 3)):
        found += _pair(chance, f"pair-{number}")
    chance.shuffle(found)
    return found


def _crowd(chance: random.Random) -> tuple[list[Step], list[Step]]:
    """Make equal volumes, and claims that all want one of them at the same moment: any two may get in each other's way."""
    volumes: list[Step] = [
        AddVolume(name=f"crowd-{number}", kind=CROWD, size=1, modes=(ONCE,), block=False)
        for number in range(chance.choice((0, 8, 16)))
    ]
    claims: list[Step] = [
        AddClaim(name=f"crowd-{number}", kind=CROWD, size=1, modes=(ONCE,), block=False)
        for number in range(len(volumes))
    ]
    return volumes, claims[chance.randrange(3) :]


def _volume(chance: random.Random, name: str, *, kind: str = STATIC) -> AddVolume:
    return AddVolume(
        name=name,
        kind=kind,
        size=chance.randint(1, LARGEST),
        modes=chance.choice(VOLUME_MODES),
        block=chance.random() < 0.15,
    )


def _claim(chance: random.Random, name: str, *, kind: str) -> AddClaim:
    modes = (ONCE,) if kind in {DYNAMIC, LATE} else chance.choice(CLAIM_MODES)
    return AddClaim(
        name=name,
        kind=kind,
        size=chance.randint(1, LARGEST),
        modes=modes,
        block=chance.random() < 0.15,
        node=chance.randrange(2),
    )


def _pair(chance: random.Random, name: str) -> list[Step]:
    """Make a volume and a claim of which one names the other, or both do."""
    volume, claim = _volume(chance, name), _claim(chance, name, kind=STATIC)
    volume = dataclasses.replace(volume, size=max(volume.size, claim.size), modes=(ONCE, READ, MANY), block=claim.block)
    which = chance.choice(("volume", "claim", "both"))
    return [
        dataclasses.replace(volume, holder="" if which == "claim" else name),
        dataclasses.replace(claim, volume="" if which == "volume" else name),
    ]


def _deletions(chance: random.Random, objects: list[Step], *, bound: bool) -> list[DeleteClaim]:
    return [
        DeleteClaim(name=step.name, bound=bound and step.kind != STATIC)
        for step in objects
        if isinstance(step, AddClaim) and chance.random() < 0.3
    ]


def _again(chance: random.Random, objects: list[Step], deletions: list[DeleteClaim]) -> list[Step]:
    """Make some of the deleted claims anew, under the same name."""
    gone = {deletion.name for deletion in deletions}
    return [step for step in objects if isinstance(step, AddClaim) and step.name in gone and chance.random() < 0.5]


def starved(claims: list[Any], volumes: list[Any], *, ours: frozenset[str]) -> list[str]:
    """The claims that wait although they could be bound, a sentence each.

    Args:
        claims: as they are stored.
        volumes: likewise.
        ours: the classes of which the driver makes volumes, and has room.
    """
    wrong = []
    for claim in claims:
        if claim["status"]["phase"] == "Bound":
            continue
        fits = [volume["metadata"]["name"] for volume in volumes if _could_have(claim, volume)]
        if fits or (claim["spec"]["storageClassName"] in ours and not claim["spec"].get("volumeName")):
            wrong.append(
                f"claim {claim['metadata']['name']} is {claim['status']['phase']} although it could have "
                f"{', '.join(fits) or 'a new volume'}"
            )
    return wrong


def _could_have(claim: Any, volume: Any) -> bool:
    wanted, spec = claim["spec"], volume["spec"]
    holder = spec.get("claimRef")
    name = wanted.get("volumeName")
    if "deletionTimestamp" in volume["metadata"] or name not in {None, volume["metadata"]["name"]}:
        return False
    if holder is not None:
        meta = claim["metadata"]
        mine = (holder["namespace"], holder["name"]) == (meta["namespace"], meta["name"])
        mine = mine and holder.get("uid") in {None, "", meta["uid"]}
        return mine and (name is not None or _is_enough(wanted, spec))
    same_class = spec.get("storageClassName", "") == wanted["storageClassName"]
    return same_class and volume["status"]["phase"] == "Available" and _is_enough(wanted, spec)


def _is_enough(wanted: Any, spec: Any) -> bool:
    return (
        _gib(spec["capacity"]["storage"]) >= _gib(wanted["resources"]["requests"]["storage"])
        and set(spec["accessModes"]) >= set(wanted["accessModes"])
        and spec["volumeMode"] == wanted["volumeMode"]
    )


def _gib(text: str) -> int:
    return int(text.removesuffix("Gi"))
