"""Pods, as far as they use claims.

The record holds no resourceVersion: a pod's status changes often, and a record that compares equal means that nothing
that decides anything has changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from sys import intern
from typing import Any, Final

from moorage_operator.model.ids import Uid
from moorage_operator.model.metadata import Metadata

FINISHED: Final = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod.

    Attributes:
        claims: names of the claims in its namespace that it uses; those of its ephemeral volumes are among them.
        node: where it runs, or is to run; empty while it is not scheduled.
        finished: it will not run again.
    """

    namespace: str
    name: str
    uid: Uid
    claims: tuple[str, ...]
    node: str
    finished: bool

    @classmethod
    def from_api(cls, body: Mapping[str, Any]) -> "Pod":
        """Parse a Pod as the API server sends it.

        Raises:
            MalformedObjectError: it lacks identity.
        """
        meta = Metadata.from_api(body)
        spec: Mapping[str, Any] = body.get("spec") or {}
        return cls(
            namespace=meta.namespace,
            name=meta.name,
            uid=meta.uid,
            claims=tuple(_claims(meta.name, spec)),
            node=intern(spec.get("nodeName") or ""),
            finished=(body.get("status") or {}).get("phase") in FINISHED,
        )


def _claims(pod: str, spec: Mapping[str, Any]) -> list[str]:
    found = []
    for volume in spec.get("volumes") or ():
        source = volume.get("persistentVolumeClaim")
        if source is not None:
            found.append(source.get("claimName") or "")
        elif "ephemeral" in volume:
            # The ephemeral volume controller names the claim it makes after both.
            found.append(f"{pod}-{volume.get('name', '')}")
    return found
