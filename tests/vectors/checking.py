"""Running one vector, and what differs from what was recorded."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from moorage_operator.act.performer import Verdict
from moorage_operator.decide import matching
from moorage_operator.errors import DecisionError
from moorage_operator.model.claim import Claim
from moorage_operator.model.ids import claim_key, volume_key
from moorage_operator.model.node import Node
from moorage_operator.model.volume import Volume
from tests.vectors import predicates, shapes
from tests.vectors.world import World, claim_path, key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.vectors.shapes import Row


def differences(vector: Row, sets: Row) -> list[str]:
    """What differs; nothing when the vector passes.

    Args:
        vector: of any section.
        sets: the volume sets that vectors refer to by name.
    """
    if "predicate" in vector:
        found = predicates.decide(vector["predicate"], vector["args"], sets)
        return _unequal("result", vector["expect"], found)
    if "match" in vector["when"]:
        return _match(vector, sets)
    return asyncio.run(_sync(vector))


def _match(vector: Row, sets: Row) -> list[str]:
    given = dict(vector["given"])
    if "volumeSet" in given:
        given["volumes"] = sets[given["volumeSet"]]
    world = World({**vector, "given": given})
    row = next(row for row in given["claims"] if row["name"] == vector["when"]["match"])
    claim = world.ledger.claim(claim_key(row.get("namespace", shapes.NAMESPACE), row["name"]))
    assert claim is not None
    node = Node.from_api(shapes.node_body(given["node"]["labels"])) if vector["when"]["path"] == "scheduler" else None
    late = vector["when"].get("delayBinding", False)
    volume, then, failed = None, vector["then"], False
    try:
        volume = matching.match(world.ledger, claim, late=late, node=node, excluded=given.get("excluded", ()))
    except DecisionError:
        failed = True
    found = None if volume is None else volume.name
    return [
        *_unequal("picked", then.get("match"), found),
        *_unequal("error", bool(then.get("error")), failed),
    ]


async def _sync(vector: Row) -> list[str]:
    world, when, then = World(vector), vector["when"], vector["then"]
    failed = False
    if "run" in when:
        await _act(world, vector)
    elif when["mode"] == "once":
        outcome = await world.once(key_of(when))
        failed = outcome is not None and outcome.verdict is Verdict.RETRY
    else:
        await world.until_stable(key_of(when))
    found = [
        *_objects("volume", then["volumes"], world.api.volumes.values(), shapes.volume_body, shapes.volume_row),
        *_objects("claim", then["claims"], world.api.claims.values(), shapes.claim_body, shapes.claim_row),
    ]
    if "events" in then:
        found += _unequal("events", [(one["type"], one["reason"]) for one in then["events"]], world.events)
    if "eventsAtLeast" in then:
        wanted = {(one["type"], one["reason"]) for one in then["eventsAtLeast"]}
        found += _unequal("distinct events", sorted(wanted), sorted(set(world.events)))
    if "writes" in then:
        found += _unequal("writes", then["writes"], world.api.writes)
    if then.get("error") and not failed:
        found.append("error: the sync was to fail, and did not")
    return found


async def _act(world: World, vector: Row) -> None:
    """The vectors that run a whole controller while somebody adds and deletes objects."""
    given, then, do = vector["given"], vector["then"], vector["when"]["do"]
    known = {row["name"] for kind in ("claims", "volumes") for row in given.get(kind, ())}
    await _settle(world)
    for step in [part.strip() for part in do.replace(", then", ",").split(",") if "(" not in part and ")" not in part]:
        if step.startswith("delete the volume") or step == "the volume":
            name = given["volumes"][0]["name"]
            world.remove(Volume, f"/api/v1/persistentvolumes/{name}")
        elif step.startswith("delete the claim"):
            world.remove(Claim, claim_path(shapes.NAMESPACE, given["claims"][0]["name"]))
        await _settle(world)
    if do.startswith("add the volume"):
        for row in then["volumes"]:
            if row["name"] not in known:
                world.add_volume(_fresh(row, do))
    if do.startswith("add the claim"):
        for row in then["claims"]:
            if row["name"] not in known:
                world.add_claim(_fresh(row, do))
    await _settle(world)


def _fresh(row: Row, do: str) -> Row:
    """An object that is to be bound, before anybody has done anything about it."""
    done = {"volumeName", "claimRef", "marks", "statusCapacity", "message"}
    kept = {key: value for key, value in row.items() if key not in done}
    if "status.capacity" in do:
        kept["statusCapacity"] = do.partition("status.capacity ")[2].rstrip(")")
    return kept | {"phase": "Pending"}


async def _settle(world: World) -> None:
    for body in [*world.api.volumes.values()]:
        await world.until_stable(volume_key(body["metadata"]["name"]))
    for body in [*world.api.claims.values()]:
        await world.until_stable(claim_key(shapes.NAMESPACE, body["metadata"]["name"]))


def _objects(
    kind: str,
    wanted: Iterable[Row],
    bodies: Iterable[Any],
    build: Callable[[Row], Any],
    shorten: Callable[[Any], Row],
) -> list[str]:
    expected = {row["name"]: shorten(build(row)) for row in wanted}
    found = {body["metadata"]["name"]: shorten(body) for body in bodies}
    problems = [f"{kind} {name}: is missing" for name in expected.keys() - found.keys()]
    problems += [f"{kind} {name}: ought to be gone" for name in found.keys() - expected.keys()]
    for name in sorted(expected.keys() & found.keys()):
        for field, value in expected[name].items():
            if field != "statusModes":
                problems += _unequal(f"{kind} {name}: {field}", value, found[name][field])
    return problems


def _unequal(what: str, expected: Any, found: Any) -> list[str]:
    return [] if expected == found else [f"{what}: expected {expected!r}, found {found!r}"]
