"""Where a volume can be used: the node affinity of a PersistentVolume.

Only ``required`` counts. Absent means everywhere; present without terms means nowhere. Terms are ORed, the expressions
of a term ANDed, and a term without expressions never holds (binding.md 1.3).
"""

from collections.abc import Mapping
from typing import Any

from moorage_operator.model.node import Node
from moorage_operator.model.requirement import NAME, Requirement, Requirements, hold

Affinity = tuple[tuple[Requirements, Requirements], ...]
"""Terms: what must hold of the node's labels, and of its fields."""


def affinity(body: Mapping[str, Any] | None) -> Affinity | None:
    """Parse ``spec.nodeAffinity``; None fits every node."""
    required = (body or {}).get("required")
    if required is None:
        return None
    return tuple(
        (_requirements(term.get("matchExpressions")), _requirements(term.get("matchFields")))
        for term in required.get("nodeSelectorTerms") or ()
    )


def fits(terms: Affinity | None, node: Node) -> bool:
    """Whether a volume of that affinity can be used on the node."""
    if terms is None:
        return True
    fields = {NAME: node.name}
    return any(
        (expressions or of_fields) and hold(expressions, node.labels) and hold(of_fields, fields)
        for expressions, of_fields in terms
    )


def _requirements(expressions: list[Mapping[str, Any]] | None) -> Requirements:
    return tuple(Requirement.from_api(expression) for expression in expressions or ())
