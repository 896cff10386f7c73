"""The part that all objects of the API server share."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from sys import intern
from typing import Any

from moorage_operator.errors import MalformedObjectError
from moorage_operator.model.ids import Uid


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """``metadata``, parsed.

    Attributes:
        created: seconds since the epoch; 0 when the server did not say.
        deleting: it has a deletionTimestamp.
    """

    name: str
    namespace: str
    uid: Uid
    resource_version: str
    annotations: Mapping[str, str]
    labels: Mapping[str, str]
    finalizers: tuple[str, ...]
    deleting: bool
    created: float

    @classmethod
    def from_api(cls, body: Mapping[str, Any]) -> "Metadata":
        """Read it from a whole object, or from one that has nothing but metadata.

        Raises:
            MalformedObjectError: name, uid or resourceVersion is missing.
        """
        meta = body.get("metadata") or {}
        name, uid, version = meta.get("name"), meta.get("uid"), meta.get("resourceVersion")
        if not name or not uid or not version:
            raise MalformedObjectError(
                f"{body.get('kind', 'an object')} {name!r} lacks name, uid or resourceVersion: {sorted(meta)}"
            )
        created = meta.get("creationTimestamp")
        return cls(
            name=name,
            namespace=intern(meta.get("namespace") or ""),
            uid=Uid(uid),
            resource_version=version,
            annotations=meta.get("annotations") or {},
            labels=meta.get("labels") or {},
            finalizers=words(meta.get("finalizers")),
            deleting=bool(meta.get("deletionTimestamp")),
            created=datetime.fromisoformat(created).timestamp() if created else 0.0,
        )


def words(values: list[str] | None) -> tuple[str, ...]:
    """A list of few distinct words, kept once in memory however many objects hold it."""
    return tuple(intern(value) for value in values or ())
