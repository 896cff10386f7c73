"""The small rules: each by its name in the vectors, decided by the function that our decisions use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moorage_operator.decide import marks, matching
from moorage_operator.errors import DecisionError
from moorage_operator.ledger import Ledger
from moorage_operator.model.affinity import affinity, fits
from moorage_operator.model.claim import MIGRATED_TO, Claim
from moorage_operator.model.node import Node
from moorage_operator.model.rules import Rules
from moorage_operator.model.storage_class import Class
from moorage_operator.model.volume import Volume
from tests.vectors import shapes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.vectors.shapes import Row

RULES = Rules(migrated={"kubernetes.io/migrated": "migrated.csi.example"})
PROVISIONERS = {
    "csi": "csi.example",
    "in-tree": "kubernetes.io/mock",
    "migrated": "kubernetes.io/migrated",
    "static": "",
}


def decide(predicate: str, args: Row, sets: Row) -> Any:
    """The answer to one of them."""
    if "volumeSet" in args:
        return _GROUPS[predicate](_stocked(sets[args["volumeSet"]]), args)
    return _RULES[predicate](args)


def _modes_differ(args: Row) -> bool:
    volume = _volume({"capacity": "1Gi", "volumeMode": args["volumeMode"], "phase": "Available"})
    claim = _claim({"request": "1Gi", "volumeMode": args["claimMode"]})
    return matching.mismatch(Ledger(), volume, claim) is matching.Mismatch.VOLUME_MODE


def _satisfied(args: Row) -> bool:
    volume = _volume({"capacity": "1Gi", "accessModes": args["volumeModes"]})
    return matching.satisfies(volume, _claim({"request": "1Gi", "accessModes": args["claimModes"]}))


def _named(args: Row) -> bool:
    return matching.mismatch(Ledger(), _volume(args["volume"]), _claim(args["claim"])) is None


def _late(args: Row) -> bool | str:
    said = args["claim"]
    claim = _claim({"request": "1Gi"} | ({} if said == "no class" else {"class": "any"}))
    cls = None
    if said not in {"no class", "class not found"}:
        mode = said.removeprefix("class ") if said != "class without bindingMode" else None
        cls = Class.from_api(shapes.class_body({"name": "any", "bindingMode": mode}))
    try:
        return matching.is_late(claim, cls)
    except DecisionError:
        return "error"


def _fits(args: Row) -> bool:
    given = args["affinity"]
    body: Any = given
    if given and "terms" in given:
        terms = [
            {"matchExpressions": [{"key": k, "operator": "In", "values": v} for k, v in term.items()]}
            for term in given["terms"]
        ]
        body = {"required": {"nodeSelectorTerms": terms}}
    return fits(affinity(body), Node.from_api(shapes.node_body(args["nodeLabels"])))


def _finalizers(args: Row) -> list[str]:
    row: Row = {"capacity": "1Gi", "reclaim": args["reclaim"], "finalizers": args["finalizers"]}
    return list(marks.finalizers(RULES, _volume(row | _provisioned(args))))


def _migration(args: Row) -> str:
    before = "" if args["mark"] is None else RULES.migrated["kubernetes.io/migrated"]
    after = marks.migrated_to(RULES, PROVISIONERS[args["provisionedBy"]], before)
    if before == after:
        return "none"
    return "set" if after else "removed"


def _provisioned(args: Row) -> Row:
    by = PROVISIONERS[args["provisionedBy"]]
    annotations = {"pv.kubernetes.io/provisioned-by": by} if by else {}
    if args["provisionedBy"] == "migrated":
        annotations[MIGRATED_TO] = RULES.migrated[by]
    return {"annotations": annotations}


def _by_size(ledger: Ledger, args: Row) -> list[str]:
    """The free volumes that have exactly these modes, by size, whatever their class."""
    modes = frozenset(shapes.MODES[mode] for mode in args["modes"])
    places = ledger.stock.free.places().values()
    return [name for _, name in sorted(entry for rows in places if modes in rows for entry in rows[modes].entries)]


def _groups(ledger: Ledger, args: Row) -> list[list[str]]:
    """The sets of modes in the order in which they are searched."""
    asked = frozenset(shapes.MODES[mode] for mode in args["modes"])
    found = {modes for rows in ledger.stock.free.places().values() for modes in rows if asked <= modes}
    order = list(shapes.MODES)
    return [
        sorted((shapes.SHORT[mode] for mode in modes), key=order.index)
        for modes in sorted(found, key=matching.group_order)
    ]


def _stocked(rows: list[Row]) -> Ledger:
    ledger = Ledger()
    for row in rows:
        ledger.apply(Volume.from_api(shapes.volume_body(row)))
    return ledger


def _volume(row: Row) -> Volume:
    return Volume.from_api(shapes.volume_body({"name": "v"} | row))


def _claim(row: Row) -> Claim:
    return Claim.from_api(shapes.claim_body({"name": "c"} | row))


_RULES: dict[str, Callable[[Row], Any]] = {
    "accessModesSatisfied": _satisfied,
    "binderFinalizers": _finalizers,
    "bindsLate": _late,
    "migratedToMark": _migration,
    "namedVolumeSatisfies": _named,
    "nodeAffinityFits": _fits,
    "volumeModesDiffer": _modes_differ,
}
_GROUPS: dict[str, Callable[[Ledger, Row], Any]] = {"candidateGroups": _groups, "groupBySize": _by_size}
