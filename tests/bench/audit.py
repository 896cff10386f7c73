"""Writes counted where they arrive: in the API server's own audit log, by user, verb and resource."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclass(frozen=True, slots=True)
class Write:
    """One finished write: who, what, on which object, and the HTTP status it was answered with."""

    user: str
    verb: str
    resource: str
    name: str
    code: int


def position(log: Path) -> int:
    """Return the log's end in bytes: what comes after it belongs to what is done next."""
    return log.stat().st_size if log.exists() else 0


def writes(log: Path, *, since: int, user: str) -> Iterator[Write]:
    """Yield the writes of one user whose audit entries lie beyond a position; the resource is `name/subresource`.

    Renewing the Lease is left out: it goes on for ever and belongs to no object.
    """
    with log.open("rb") as lines:
        lines.seek(since)
        for line in lines:
            entry = json.loads(line)
            if entry["stage"] != "ResponseComplete" or entry["verb"] not in WRITES:
                continue
            if entry["user"]["username"] != user:
                continue
            reference = entry.get("objectRef", {})
            if reference.get("resource") == "leases":
                continue
            resource = "/".join(filter(None, (reference.get("resource"), reference.get("subresource"))))
            yield Write(
                user=user,
                verb=entry["verb"],
                resource=resource,
                name=reference.get("name", ""),
                code=entry.get("responseStatus", {}).get("code", 0),
            )


def tally(found: Iterator[Write]) -> Counter[str]:
    """Count writes by `verb resource`, those answered with a conflict apart."""
    counted: Counter[str] = Counter()
    for write in found:
        refused = " (409)" if write.code in {409, 422} else ""
        counted[f"{write.verb} {write.resource}{refused}"] += 1
    return counted
