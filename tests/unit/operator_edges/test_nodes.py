"""Finding a node's plugin, and the sentence when there is none."""

from typing import Any

import pytest

from moorage_operator.act.nodes import Nodes
from moorage_operator.errors import DriverUnreachableError, ForbiddenError


class Pods:
    """The pods that a list returns."""

    def __init__(self, *pods: dict[str, Any]) -> None:
        self.pods = list(pods)
        self.asked: list[tuple[str, str, str]] = []
        self.error: Exception | None = None

    async def list(self, path: str, *, labels: str = "", fields: str = "") -> list[dict[str, Any]]:
        self.asked.append((path, labels, fields))
        if self.error is not None:
            raise self.error
        return self.pods


def pod(name: str, *, ip: str | None = "10.0.0.5", ready: bool = True, **more: Any) -> dict[str, Any]:
    status = {"podIP": ip, "phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]}
    metadata = {"name": name} | ({"deletionTimestamp": "2026-01-01T00:00:00Z"} if more.pop("deleting", False) else {})
    return {"metadata": metadata, "status": status | more}


def nodes(*pods: dict[str, Any]) -> Nodes:
    return Nodes(Pods(*pods), namespace="ns", selector="app=node", port=9740)


async def test_the_ready_pod_on_that_node_is_asked_for_and_found() -> None:
    pods = Pods(pod("old", ip="10.0.0.4", deleting=True), pod("starting", ip="10.0.0.6", ready=False), pod("good"))
    found = await Nodes(pods, namespace="ns", selector="app=node", port=9740).address("node-a")
    assert found == "10.0.0.5:9740"
    assert pods.asked == [("/api/v1/namespaces/ns/pods", "app=node", "spec.nodeName=node-a")]


async def test_ipv6_stands_in_brackets() -> None:
    assert await nodes(pod("good", ip="fd00::5")).address("node-a") == "[fd00::5]:9740"


WAITING: dict[str, Any] = {
    "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}],
    "phase": "Pending",
}
CRASHED: dict[str, Any] = {"containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled"}}}]}


@pytest.mark.parametrize(
    ("pods", "says"),
    [
        ([], "there is no node plugin on node node-a .no pod with labels app=node in namespace ns.*DaemonSet"),
        ([pod("p", ready=False)], "is not ready: pod ns/p is Running; see kubectl -n ns describe pod p"),
        ([pod("p", ready=False, **WAITING)], r"ns/p is Pending \(ImagePullBackOff\)"),
        ([pod("p", ready=False, **CRASHED)], r"ns/p is Running \(OOMKilled\)"),
        ([pod("p", deleting=True)], "ns/p is terminating"),
        ([pod("p", deleting=True), pod("q", ready=False)], "ns/q is Running"),
        ([pod("p", ip=None)], "ns/p is Running"),
        ([{"metadata": {"name": "p"}}], "ns/p is Pending"),
    ],
)
async def test_the_sentence_says_what_is_seen_and_what_to_do(pods: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(DriverUnreachableError, match=says) as caught:
        await nodes(*pods).address("node-a")
    assert caught.value.node == "node-a"


async def test_an_api_server_that_refuses_is_unreachable_too() -> None:
    pods = Pods()
    pods.error = ForbiddenError("list pods: 403 Forbidden", status=403)
    with pytest.raises(DriverUnreachableError, match="cannot be looked up: list pods: 403"):
        await Nodes(pods, namespace="ns", selector="app=node", port=9740).address("node-a")
