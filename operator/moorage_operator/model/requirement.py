"""Conditions on labels: what selectors and node affinities are made of.

One record serves both, since label selectors (``matchLabels``, ``matchExpressions``) and node selector terms use the
same operators with the same meaning (apimachinery's ``labels.Requirement``); node selectors add ``Gt`` and ``Lt``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from sys import intern
from typing import Any, Final

IN: Final = "In"
NOT_IN: Final = "NotIn"
EXISTS: Final = "Exists"
DOES_NOT_EXIST: Final = "DoesNotExist"
GREATER: Final = "Gt"
LESS: Final = "Lt"

NAME: Final = "metadata.name"
"""The one field that a node selector term may match besides labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One condition on one label."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    @property
    def problem(self) -> str:
        """What makes it unreadable; empty when nothing does."""
        if self.operator in {IN, NOT_IN}:
            return "" if self.values else f"{self.operator} of {self.key!r} has no values"
        if self.operator in {EXISTS, DOES_NOT_EXIST}:
            return f"{self.operator} of {self.key!r} has values" if self.values else ""
        if self.operator in {GREATER, LESS}:
            whole = len(self.values) == 1 and _whole(self.values[0]) is not None
            return "" if whole else f"{self.operator} of {self.key!r} needs one whole number"
        return f"{self.operator!r} of {self.key!r} is no operator: In, NotIn, Exists and DoesNotExist are"

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether the labels meet it."""
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return value is not None and value in self.values
            case "NotIn":
                return value is None or value not in self.values
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
        number, bound = _whole(value or ""), _whole(self.values[0]) if self.values else None
        if number is None or bound is None:
            return False
        return number > bound if self.operator == GREATER else number < bound

    @classmethod
    def from_api(cls, expression: Mapping[str, Any]) -> "Requirement":
        """Parse an entry of ``matchExpressions`` or ``matchFields``."""
        return cls(
            key=intern(expression.get("key") or ""),
            operator=intern(expression.get("operator") or ""),
            values=tuple(intern(str(value)) for value in expression.get("values") or ()),
        )


Requirements = tuple[Requirement, ...]
"""All of them must hold."""


def hold(requirements: Iterable[Requirement], labels: Mapping[str, str]) -> bool:
    """Whether the labels meet all of them."""
    return all(requirement.holds(labels) for requirement in requirements)


def selector(body: Mapping[str, Any] | None) -> Requirements | None:
    """Parse a label selector; None when there is none, empty when it selects everything."""
    if body is None:
        return None
    labels = body.get("matchLabels") or {}
    exact = (
        Requirement(key=intern(key), operator=IN, values=(intern(value),)) for key, value in sorted(labels.items())
    )
    return *exact, *(Requirement.from_api(each) for each in body.get("matchExpressions") or ())


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
