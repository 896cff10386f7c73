"""The rules of matching and counting once more, by brute force: every volume is looked at, one after the other.

Written from Kubernetes' rules as they are told (binding.md 1.3), on objects as the API server has them, without a
shelf, an index or a record: what the operator decides is compared with it.
"""

from __future__ import annotations

from typing import Any

from tests.unit.operator.generated import BETA_CLASS, RESERVED_FOR, SIZES, ZONE

Body = dict[str, Any]


def allowed(
    claim: Body,
    volumes: list[Body],
    *,
    late: bool = False,
    excluded: frozenset[str] = frozenset(),
    attributes: bool = True,
) -> set[str | None]:
    """The names of the volumes that the binder may give to the claim; None for no volume at all.

    More than one where the order is nobody's: volumes of one size, sets of as many modes, several that are kept.
    """
    groups = _groups(claim, volumes)
    for number in sorted({len(modes) for modes in groups}):
        found: set[str | None] = set()
        for modes, members in groups.items():
            if len(modes) == number:
                found |= _of_group(claim, members, late=late, excluded=excluded, attributes=attributes)
        if found:
            return found
    if not late:
        # What is kept for the claim's whole namespace is Moorage's own addition: after everything that is for everybody.
        for number in sorted({len(modes) for modes in groups}):
            kept = [each for modes, members in groups.items() if len(modes) == number for each in members]
            found = _smallest(
                [
                    each
                    for each in kept
                    if _name(each) not in excluded
                    and _kept_for(each) == claim["metadata"]["namespace"]
                    and _fits(claim, each, attributes=attributes)
                ],
                by_group=True,
            )
            if found:
                return found
    return {None}


def allowed_on(
    claim: Body,
    volumes: list[Body],
    zone: str,
    *,
    excluded: frozenset[str] = frozenset(),
    attributes: bool = True,
) -> set[str | None]:
    """The names of the volumes that the scheduler may choose for a node of that zone."""
    listed = [each for each in volumes if _class(each) == _class(claim) and _name(each) not in excluded]
    own = [each for each in listed if _is_for(each, claim) and _large(each, claim) and _same(each, claim, attributes)]
    if own:
        return {_name(each) if _usable(each, zone) else None for each in own}
    modes = set(claim["spec"]["accessModes"])
    fitting = [
        each
        for each in listed
        if _fits(claim, each, attributes=attributes)
        and _usable(each, zone)
        and modes <= set(each["spec"]["accessModes"])
    ]
    for whom in ("", claim["metadata"]["namespace"]):
        found = _smallest([each for each in fitting if _kept_for(each) == whom])
        if found:
            return found
    return {None}


def shortcoming(claim: Body, volume: Body) -> str:
    """The first thing that rules a volume out; empty when nothing does. The words are those of the census."""
    status, meta = volume["status"], volume["metadata"]
    if "deletionTimestamp" in meta:
        return "deleting"
    if status["phase"] in {"Released", "Failed"}:
        return str(status["phase"]).lower()
    reference = volume["spec"].get("claimRef")
    if reference is not None and reference["name"] != "*":
        return "bound" if status["phase"] == "Bound" else "reserved"
    if status["phase"] != "Available":
        return "pending"
    if reference is None and "/" in meta.get("annotations", {}).get(RESERVED_FOR, ""):
        return "reserved"
    checks = (
        ("class", _class(volume) == _class(claim)),
        ("volume mode", _mode(volume) == _mode(claim)),
        ("attributes class", _attributes(volume) == _attributes(claim)),
        ("access modes", set(claim["spec"]["accessModes"]) <= set(volume["spec"]["accessModes"])),
        ("namespace", _kept_for(volume) in {"", claim["metadata"]["namespace"]}),
        ("too small", _large(volume, claim)),
        ("selector", _selected(claim, volume)),
    )
    return next((what for what, holds in checks if not holds), "")


def would_fit(claim: Body, volume: Body) -> bool:
    """Whether nothing but its state keeps a volume from the claim."""
    return (
        _class(volume) == _class(claim)
        and _mode(volume) == _mode(claim)
        and _attributes(volume) == _attributes(claim)
        and set(claim["spec"]["accessModes"]) <= set(volume["spec"]["accessModes"])
        and _large(volume, claim)
        and _selected(claim, volume)
    )


def size_of(body: Body) -> int:
    """Bytes that a volume has or a claim asks for."""
    spec = body["spec"]
    return SIZES[spec["capacity"]["storage"] if "capacity" in spec else spec["resources"]["requests"]["storage"]]


def _groups(claim: Body, volumes: list[Body]) -> dict[frozenset[str], list[Body]]:
    groups: dict[frozenset[str], list[Body]] = {}
    for volume in volumes:
        modes = frozenset(volume["spec"]["accessModes"])
        if set(claim["spec"]["accessModes"]) <= modes:
            groups.setdefault(modes, []).append(volume)
    return groups


def _of_group(
    claim: Body, members: list[Body], *, late: bool, excluded: frozenset[str], attributes: bool
) -> set[str | None]:
    able = [each for each in members if _name(each) not in excluded]
    own: set[str | None] = {
        _name(each) for each in able if _is_for(each, claim) and _large(each, claim) and _same(each, claim, attributes)
    }
    if own or late:
        return own
    return _smallest([each for each in able if not _kept_for(each) and _fits(claim, each, attributes=attributes)])


def _fits(claim: Body, volume: Body, *, attributes: bool) -> bool:
    """Whether a volume is free, and all but modes and node are right."""
    reference = volume["spec"].get("claimRef")
    return (
        (reference is None or reference["name"] == "*")
        and "/" not in _kept_for(volume)
        and volume["status"]["phase"] == "Available"
        and _large(volume, claim)
        and _same(volume, claim, attributes)
        and _selected(claim, volume)
        and _class(volume) == _class(claim)
    )


def _same(volume: Body, claim: Body, attributes: bool) -> bool:
    """What must be right of a volume even if it is kept for the claim."""
    return (
        _mode(volume) == _mode(claim)
        and _attributes(volume) == _attributes(claim)
        and (attributes or not _attributes(volume))
        and "deletionTimestamp" not in volume["metadata"]
    )


def _smallest(volumes: list[Body], *, by_group: bool = False) -> set[str | None]:
    """The smallest; where groups have no order among themselves, the smallest of each."""
    if by_group:
        modes = {frozenset(each["spec"]["accessModes"]) for each in volumes}
        members = [[each for each in volumes if frozenset(each["spec"]["accessModes"]) == one] for one in modes]
        return {name for each in members for name in _smallest(each)}
    least = min(map(size_of, volumes), default=0)
    return {_name(each) for each in volumes if size_of(each) == least}


def _is_for(volume: Body, claim: Body) -> bool:
    reference = volume["spec"].get("claimRef") or {}
    meta = claim["metadata"]
    named = (reference.get("namespace"), reference.get("name")) == (meta["namespace"], meta["name"])
    return named and reference.get("uid", "") in {"", meta["uid"]}


def _kept_for(volume: Body) -> str:
    reference = volume["spec"].get("claimRef") or {}
    if reference.get("name") == "*":
        return str(reference["namespace"])
    return str(volume["metadata"].get("annotations", {}).get(RESERVED_FOR, ""))


def _selected(claim: Body, volume: Body) -> bool:
    chosen, labels = claim["spec"].get("selector") or {}, volume["metadata"]["labels"]
    for key, value in (chosen.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for one in chosen.get("matchExpressions") or ():
        value = labels.get(one["key"])
        holds = {
            "In": value in one.get("values", ()),
            "NotIn": value not in one.get("values", ()),
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not holds[one["operator"]]:
            return False
    return True


def _usable(volume: Body, zone: str) -> bool:
    required = (volume["spec"].get("nodeAffinity") or {}).get("required")
    if required is None:
        return True
    terms = [term["matchExpressions"] for term in required["nodeSelectorTerms"] if term]
    return any(all(one["key"] == ZONE and zone in one["values"] for one in term) for term in terms)


def _large(volume: Body, claim: Body) -> bool:
    return size_of(volume) >= size_of(claim)


def _class(body: Body) -> str:
    marks = body["metadata"].get("annotations", {})
    return marks[BETA_CLASS] if BETA_CLASS in marks else body["spec"].get("storageClassName") or ""


def _mode(body: Body) -> str:
    return str(body["spec"].get("volumeMode") or "Filesystem")


def _attributes(body: Body) -> str:
    return str(body["spec"].get("volumeAttributesClassName") or "")


def _name(body: Body) -> str:
    return str(body["metadata"]["name"])
