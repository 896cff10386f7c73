"""An HTTP server on a real socket that does what the script says, faults of the wire among them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as it came over the wire."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What to do with a request. ``wire`` may be ``whole``, ``reset`` (no answer), ``half`` or ``hang``."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    wire: str = "whole"


def status(code: int, reason: str, message: str = "no", **details: Any) -> Answer:
    """A Kubernetes Status."""
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason}
    return Answer(status=code, body={**body, "message": message, "details": details})


class Scripted:
    """Answers from the script in order, then with the last one for ever."""

    def __init__(self, *script: Answer | Callable[[Request], Answer]) -> None:
        self.script = list(script)
        self.requests: list[Request] = []
        self.connections = 0
        self.url = ""

    @asynccontextmanager
    async def serve(self) -> AsyncIterator["Scripted"]:
        writers: set[asyncio.StreamWriter] = set()
        tasks: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            writers.add(writer)
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                await self._converse(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writers.discard(writer)
                tasks.discard(task)
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        try:
            yield self
        finally:
            server.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await server.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, path, _ = head[0].split(" ")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            request = Request(method=method, path=path, headers=headers, body=body)
            self.requests.append(request)
            step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
            if not await self._answer(step if isinstance(step, Answer) else step(request), writer):
                return

    async def _answer(self, answer: Answer, writer: asyncio.StreamWriter) -> bool:
        """Carry out one step; False when the connection ends with it."""
        if answer.wire == "reset":
            return False
        if answer.wire == "hang":
            await asyncio.sleep(3600)
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        lines = [f"HTTP/1.1 {answer.status} x", f"Content-Length: {len(body)}", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        writer.write(body[: len(body) // 2] if answer.wire == "half" else body)
        await writer.drain()
        return answer.wire == "whole"
