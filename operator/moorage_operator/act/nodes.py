"""Where a node's plugin listens: the address of the ready pod of ours on that node.

One list of pods per question, with selectors that leave at most a handful; nothing is cached here.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from moorage_operator.errors import ApiError, DriverUnreachableError


class Store(Protocol):
    """What is needed of the API server; ``act.api.Api`` has it."""

    async def list(self, path: str, *, labels: str = "", fields: str = "") -> list[dict[str, Any]]:
        """Read a collection."""
        ...


class Nodes:
    """Finds node plugins.

    Args:
        store: the API server.
        namespace: of the node plugin's pods.
        selector: their labels.
        port: TCP, where they serve Identity and Controller.
    """

    def __init__(self, store: Store, *, namespace: str, selector: str, port: int) -> None:
        self._store = store
        self._namespace = namespace
        self._selector = selector
        self._port = port

    async def address(self, node: str) -> str:
        """``host:port`` of the plugin on this node.

        Raises:
            DriverUnreachableError: there is no ready one; says what is seen instead and what to do.
        """
        try:
            pods = await self._store.list(
                f"/api/v1/namespaces/{self._namespace}/pods", labels=self._selector, fields=f"spec.nodeName={node}"
            )
        except ApiError as error:
            raise DriverUnreachableError(
                f"the node plugin on node {node} cannot be looked up: {error}", node=node
            ) from error
        for pod in pods:
            ip = (pod.get("status") or {}).get("podIP")
            if ip and _is_ready(pod):
                return f"[{ip}]:{self._port}" if ":" in ip else f"{ip}:{self._port}"
        raise DriverUnreachableError(self._missing(node, pods), node=node)

    def _missing(self, node: str, pods: list[dict[str, Any]]) -> str:
        if not pods:
            return (
                f"there is no node plugin on node {node} (no pod with labels {self._selector} in namespace "
                f"{self._namespace}): see whether the DaemonSet may run there (taints, nodeSelector) and whether the node is up"
            )
        pod = next((one for one in pods if not one["metadata"].get("deletionTimestamp")), pods[0])
        name = f"{self._namespace}/{pod['metadata']['name']}"
        return f"the node plugin on node {node} is not ready: pod {name} {_state(pod)}; see kubectl -n {self._namespace} describe pod {pod['metadata']['name']}"


def _is_ready(pod: Mapping[str, Any]) -> bool:
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def _state(pod: Mapping[str, Any]) -> str:
    """What is the matter with a pod, in the words that ``kubectl get pods`` uses."""
    if pod["metadata"].get("deletionTimestamp"):
        return "is terminating"
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or ():
        state = container.get("state") or {}
        reason = (state.get("waiting") or state.get("terminated") or {}).get("reason")
        if reason:
            return f"is {status.get('phase', 'Pending')} ({reason})"
    return f"is {status.get('phase', 'Pending')}"
