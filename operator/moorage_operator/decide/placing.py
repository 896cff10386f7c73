"""Which nodes may get a volume that no pod has been scheduled for yet, and in which order they are asked.

The order is a hash of claim and node: volumes spread evenly without anybody counting, and the same
claim asks the same node first after a restart, so that it finds what was made before. Nodes that are
known to be too full, or not Ready, come last; they are not left out, since figures age.
"""

import hashlib
from collections.abc import Iterable

from moorage_csi.contract import DRIVER_NAME
from moorage_operator.ledger import Ledger
from moorage_operator.model.ids import Uid
from moorage_operator.model.node import Node
from moorage_operator.model.storage_class import Class
from moorage_operator.model.volume import Volume
from moorage_operator.notes import Rooms


def candidates(ledger: Ledger, cls: Class) -> tuple[Node, ...]:
    """The nodes where a volume of the class may be made, in no order."""
    return tuple(
        node
        for node in ledger.nodes_with(DRIVER_NAME)
        if not node.unschedulable and node.allowed_by(cls.allowed_topologies)
    )


def order(nodes: Iterable[Node], *, uid: Uid, size: int, rooms: Rooms | None) -> tuple[str, ...]:
    """The names of the nodes in the order in which they are asked."""

    def rank(node: Node) -> tuple[bool, bool, bytes]:
        free = None if rooms is None else rooms.free.get(node.name)
        full = free is not None and free < size
        return full, not node.ready, hashlib.sha256(f"{uid}/{node.name}".encode()).digest()

    return tuple(node.name for node in sorted(nodes, key=rank))


def why_none(ledger: Ledger, cls: Class) -> str:
    """The sentence for a claim that has no candidate at all."""
    nodes = ledger.nodes_with(DRIVER_NAME)
    if not nodes:
        return (
            "No node has Moorage's node plugin registered: waiting for one "
            "(kubectl get csinodes shows which drivers each node has)"
        )
    allowed = [node for node in nodes if node.allowed_by(cls.allowed_topologies)]
    if not allowed:
        which = "The one node" if len(nodes) == 1 else f"None of the {len(nodes)} nodes"
        negated = "is not" if len(nodes) == 1 else "is"
        return f"{which} with Moorage's node plugin {negated} within allowedTopologies of class {cls.name}"
    cordoned = ", ".join(sorted(node.name for node in allowed))
    return f"Every node that could hold the volume is marked unschedulable: {cordoned}"


def any_node(ledger: Ledger, volume: Volume) -> str:
    """For storage that every node reaches: the node that a hash of the volume picks; empty when there is none."""
    nodes = ledger.nodes_with(DRIVER_NAME)
    return order(nodes, uid=volume.uid, size=0, rooms=None)[0] if nodes else ""
