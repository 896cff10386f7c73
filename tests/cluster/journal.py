"""Everything that claims and volumes went through, as a watch saw it: the proof that nothing changed back and forth.

Two who decide about the same objects may both be right and yet undo each other's work for ever. No look at the end
shows that, so the watch keeps each value that a deciding field ever had.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.bench.client import Client, RequestFailedError, connect

CLAIMS: Final = "/api/v1/persistentvolumeclaims"
VOLUMES: Final = "/api/v1/persistentvolumes"
CATCH_UP_SECONDS: Final = 20.0
GOODBYE_SECONDS: Final = 0.3
LOOK_SECONDS: Final = 0.05
MOST_RESUMED: Final = 20

Object = dict[str, Any]
Field = Callable[[Object], str]


def _mark(name: str) -> Field:
    return lambda body: str(body["metadata"].get("annotations", {}).get(f"pv.kubernetes.io/{name}", ""))


def _phase(body: Object) -> str:
    return str(body.get("status", {}).get("phase", ""))


def _holder(volume: Object) -> str:
    """Whom a volume is reserved for, and whether by uid."""
    reference = volume["spec"].get("claimRef")
    return f"{reference['namespace']}/{reference['name']} {reference.get('uid', '')}" if reference else ""


FIELDS: Final[Mapping[str, Mapping[str, Field]]] = {
    CLAIMS: {
        "volumeName": lambda claim: str(claim["spec"].get("volumeName", "")),
        "storageClassName": lambda claim: str(claim["spec"].get("storageClassName", "")),
        "bound-by-controller": _mark("bound-by-controller"),
        "bind-completed": _mark("bind-completed"),
        "phase": _phase,
    },
    VOLUMES: {"claimRef": _holder, "bound-by-controller": _mark("bound-by-controller"), "phase": _phase},
}
"""The fields that decide, each as text; empty where it is not set."""


class Journal:
    """Watches all claims and volumes of a cluster from entering to leaving.

    Args:
        kubeconfig: an administrator's.
    """

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig
        self._lock = threading.Lock()
        self._objects: dict[str, dict[str, Object]] = {path: {} for path in FIELDS}
        self._values: dict[tuple[str, str, str, str], list[str]] = {}
        self._others: set[str] = set()
        self._versions: dict[str, int] = {}
        self._leaving = threading.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._run: Future[None] | None = None

    def __enter__(self) -> Self:
        self._run = self._thread.submit(asyncio.run, self._follow())
        self.until("the journal has listed everything", lambda: self._versions.keys() == FIELDS.keys())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Return when all that had happened by now is written down."""
        assert self._run is not None
        self._leaving.set()
        self._thread.shutdown()
        if kind is None:
            self._run.result()

    def claims(self, namespace: str) -> dict[str, Object]:
        """Return the claims of a namespace by name, as they are now."""
        with self._lock:
            found = [body for body in self._objects[CLAIMS].values() if body["metadata"]["namespace"] == namespace]
        return {body["metadata"]["name"]: body for body in found}

    def volumes(self) -> dict[str, Object]:
        """Return all volumes by name, as they are now."""
        with self._lock:
            return {body["metadata"]["name"]: body for body in self._objects[VOLUMES].values()}

    def until(self, what: str, seen: Callable[[], Any], *, seconds: float = 60) -> None:
        """Return once `seen` is true.

        Raises:
            AssertionError: not within `seconds`, or a watch has ended.
        """
        deadline = time.monotonic() + seconds
        while not seen():
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
            # Asked at each event, a slow question would keep the watch from reading until the server breaks it off.
            if self._leaving.wait(LOOK_SECONDS) and self._run is not None:
                self._run.result()

    def turned_back(self) -> list[str]:
        """Return a line for each field that took a value again, lost one, or left Bound.

        What was bound already when the journal began is another test's, which takes it away now.
        """
        with self._lock:
            return [
                f"{path.rpartition('/')[2]} {name}: {field} went {' -> '.join(value or 'unset' for value in values)}"
                for (path, name, uid, field), values in self._values.items()
                if uid not in self._others
                if len(set(values)) < len(values) or "" in values[1:] or "Bound" in values[:-1]
            ]

    async def _follow(self) -> None:
        async with connect(self._kubeconfig) as client:
            followers = [asyncio.create_task(self._follow_kind(client, path)) for path in FIELDS]
            leaving = asyncio.create_task(asyncio.to_thread(self._leaving.wait))
            done, _ = await asyncio.wait([leaving, *followers], return_when=asyncio.FIRST_COMPLETED)
            if leaving in done:
                await asyncio.gather(*(self._catch_up(client, path) for path in FIELDS))
            self._leaving.set()
            for follower in followers:
                follower.cancel()
            await asyncio.wait(followers)
            # A stream that is broken off says goodbye in the background; nothing tells when it has.
            await asyncio.sleep(GOODBYE_SECONDS)
            broken = [follower.exception() for follower in followers if not follower.cancelled()]
            if broken:
                raise AssertionError(f"a watch cannot go on: {broken[0] or 'it was ended too often'}") from broken[0]

    async def _follow_kind(self, client: Client, path: str) -> None:
        listed = await client.request("GET", path)
        with self._lock:
            for body in listed["items"]:
                self._note(path, body)
                if body["status"].get("phase") in {"Bound", "Released", "Lost"}:
                    self._others.add(body["metadata"]["uid"])
            self._versions[path] = int(listed["metadata"]["resourceVersion"])
        for _ in range(MOST_RESUMED):
            # A server may end a stream at any time. Taken up where it ended, it leaves nothing out.
            with suppress(RequestFailedError):
                async with aclosing(client.watch(path, resource_version=str(self._versions[path]))) as events:
                    async for event in events:
                        with self._lock:
                            self._note(path, event["object"], gone=event["type"] == "DELETED")

    def _note(self, path: str, body: Object, *, gone: bool = False) -> None:
        meta = body["metadata"]
        self._versions[path] = int(meta["resourceVersion"])
        if gone:
            self._objects[path].pop(meta["uid"], None)
            return
        self._objects[path][meta["uid"]] = body
        for field, read in FIELDS[path].items():
            values = self._values.setdefault((path, meta["name"], meta["uid"], field), [])
            if (value := read(body)) != (values[-1] if values else None):
                values.append(value)

    async def _catch_up(self, client: Client, path: str) -> None:
        """Wait until the watch has told all that a list of this moment holds."""
        listed = await client.request("GET", path)
        newest = max((int(body["metadata"]["resourceVersion"]) for body in listed["items"]), default=0)
        async with asyncio.timeout(CATCH_UP_SECONDS):
            while self._versions[path] < newest:  # noqa: ASYNC110 - the watch runs in this loop and sets no event
                await asyncio.sleep(0.02)
