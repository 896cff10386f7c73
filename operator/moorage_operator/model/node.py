"""Nodes, and which drivers the kubelet of each has registered.

Neither record holds a resourceVersion: a node's object changes with every heartbeat, and a record
that compares equal means that nothing that decides anything has changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from sys import intern
from typing import Any

from moorage_csi.contract import TOPOLOGY_KEY
from moorage_operator.model.ids import Uid
from moorage_operator.model.metadata import Metadata
from moorage_operator.model.storage_class import TopologyTerm


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node."""

    name: str
    uid: Uid
    labels: Mapping[str, str]
    ready: bool
    unschedulable: bool

    @classmethod
    def from_api(cls, body: Mapping[str, Any]) -> "Node":
        """Parse a Node as the API server sends it.

        Raises:
            MalformedObjectError: it lacks identity.
        """
        meta = Metadata.from_api(body)
        conditions = (body.get("status") or {}).get("conditions") or ()
        return cls(
            name=intern(meta.name),
            uid=meta.uid,
            labels=dict(meta.labels),
            ready=any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions),
            unschedulable=bool((body.get("spec") or {}).get("unschedulable")),
        )

    def allowed_by(self, terms: tuple[TopologyTerm, ...]) -> bool:
        """Whether a class's allowed topologies include this node.

        A node is its own segment of our topology key even before the kubelet has labelled it.
        """
        if not terms:
            return True
        return any(
            all(self.labels.get(key, self.name if key == TOPOLOGY_KEY else "") in values for key, values in term)
            for term in terms
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDrivers:
    """One CSINode: the drivers whose node plugins are registered on the node of that name."""

    name: str
    uid: Uid
    drivers: frozenset[str]

    @classmethod
    def from_api(cls, body: Mapping[str, Any]) -> "NodeDrivers":
        """Parse a CSINode as the API server sends it.

        Raises:
            MalformedObjectError: it lacks identity.
        """
        meta = Metadata.from_api(body)
        drivers = (body.get("spec") or {}).get("drivers") or ()
        return cls(
            name=intern(meta.name), uid=meta.uid, drivers=frozenset(intern(driver["name"]) for driver in drivers)
        )
