"""The wires of a cluster: node to node, pods to everything, and the machine to the API server.

All but one interface lie in the nodes' network namespaces and vanish with them. The one that does not is the machine's
end of the link to the first node; the kernel removes it together with its peer. No packet filter is used and nothing
is proxied: the address of the `kubernetes` service lies on `lo` of the first node, where the API server listens.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness import processes
from tests.harness.components import API_SERVICE
from tests.harness.errors import CommandError, StartError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.harness.node import VirtualNode

LINK = "moorage"
"""What the machine's ends of the links are called, with the cluster's number after it."""
MOST_CLUSTERS = 64


def link_name(number: int) -> str:
    """Return the name of the machine's end of a cluster's link."""
    return f"{LINK}{number}"


def outside_address(number: int) -> str:
    """Return the address at which the machine reaches a cluster's API server (a range reserved for test networks)."""
    return f"198.18.{number}.2"


def connect(nodes: Sequence[VirtualNode]) -> int:
    """Wire up the nodes, which must have been started, and return the cluster's number on this machine.

    Raises:
        StartError: all numbers are taken.
        CommandError: `ip` failed.
    """
    first = nodes[0]
    for node in nodes:
        _ip(
            node,
            "link set lo up",
            # With an address of its own, else the bridge takes its ports' lowest: it would change as pods come and go,
            # and every other pod would be cut off from the node until it has noticed.
            f"link add cni0 address 0a:58:0a:f4:{node.number - 1:02x}:01 type bridge",
            f"address add {node.pod_gateway}/24 dev cni0",
            "link set cni0 up",
        )
        # Only this file is the node's own: /proc/sys/net belongs to the network namespace of who opens it.
        node.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    _ip(
        first,
        "link add nodes type bridge",
        f"address add {first.address}/16 dev nodes",
        "link set nodes up",
        f"address add {API_SERVICE}/32 dev lo",
    )
    for node in nodes[1:]:
        _join(node, first)
    for node in nodes:
        others = [other for other in nodes if other is not node]
        _ip(node, *(f"route add {other.pod_network} via {other.address}" for other in others))
    return _link_to_machine(first)


def interface_index(number: int) -> int:
    """Return the index of the machine's end of a cluster's link, 0 where there is none; no two ever have the same."""
    try:
        return int(Path("/sys/class/net", link_name(number), "ifindex").read_text())
    except FileNotFoundError:
        return 0


def disconnect(number: int, *, index: int) -> None:
    """Remove the machine's end of a cluster's link, unless the kernel did, as it does some time after the first node's end.

    The index tells it from the link of another cluster that got the same number since.

    Raises:
        CommandError: `ip` failed.
    """
    if index != 0 and interface_index(number) == index:
        done = processes.run(["ip", "link", "delete", link_name(number)], check=False)
        if done.returncode != 0 and interface_index(number) == index:
            raise CommandError(f"{link_name(number)} cannot be removed: {done.stderr.strip()}")


def _join(node: VirtualNode, first: VirtualNode) -> None:
    """Give a further node an eth0 whose other end is a port of the first node's bridge."""
    port = f"node{node.number}"
    _ip(
        first,
        f"link add {port} type veth peer name eth0 netns {_pid(node)}",
        f"link set {port} master nodes up",
    )
    _ip(
        node,
        f"address add {node.address}/16 dev eth0",
        "link set eth0 up",
        f"route add {API_SERVICE}/32 via {first.address}",
    )


def _link_to_machine(first: VirtualNode) -> int:
    for number in range(MOST_CLUSTERS):
        name = link_name(number)
        if Path("/sys/class/net", name).exists():
            continue
        argv = ["ip", "link", "add", name, "type", "veth", "peer", "name", "machine", "netns", str(_pid(first))]
        done = processes.run(argv, check=False)
        if done.returncode != 0 and re.search("File exists", done.stderr):
            continue
        if done.returncode != 0:
            raise CommandError(f"`{' '.join(argv)}` failed: {done.stderr.strip()}")
        processes.run(["ip", "address", "add", f"198.18.{number}.1/30", "dev", name])
        processes.run(["ip", "link", "set", name, "up"])
        _ip(first, f"address add {outside_address(number)}/30 dev machine", "link set machine up")
        return number
    raise StartError(f"{MOST_CLUSTERS} clusters run already: `make down` removes them")


def _ip(node: VirtualNode, *lines: str) -> None:
    """Run `ip` commands in a node's network namespace, all by one process that stops at the first failure."""
    if lines:
        processes.run([*node.enter("net"), "ip", "-batch", "-"], stdin="\n".join(lines) + "\n")


def _pid(node: VirtualNode) -> int:
    first = node.first_process()
    if first is None:
        raise StartError(f"node {node.name} ended")
    return first.identity.pid
