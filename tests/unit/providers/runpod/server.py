"""A server that sends scripted answers and records requests; in a thread, so that one can serve many tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

Manner = Literal["whole", "hang", "drip", "cut", "stream"]
_MARKS = {
    "podFindAndDeployOnDemand": "create",
    "podTerminate": "terminate",
    "myself": "list",
    "gpuTypes(": "gpu",
    "gpuTypes": "gpus",
}


@dataclass(frozen=True)
class Answer:
    """`hang` sends nothing, `drip` never ends, `cut` closes the connection, `stream` stays open.

    None of them ends before the client disconnects, however slow the machine is.
    """

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    manner: Manner = "whole"

    def data(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass(frozen=True)
class Received:
    """One request as it was received."""

    op: str
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    text: str


class Server:
    """Sends the scripted answers of each operation in order, the last one repeatedly."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.url = ""
        self._script: dict[str, deque[Answer]] = defaultdict(deque)
        self._loop = asyncio.new_event_loop()
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        started = threading.Event()
        self._started = started
        self._thread.start()
        started.wait(60)

    def clear(self) -> None:
        self.received.clear()
        self._script.clear()

    def script(self, op: str, *answers: Answer) -> None:
        self._script[op] = deque(answers)

    def ops(self) -> list[str]:
        return [one.op for one in self.received]

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._started.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _listen(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        op = _op(request, text)
        self.received.append(
            Received(op, request.method, request.path, dict(request.query), dict(request.headers), text)
        )
        script = self._script[op]
        if not script:
            return web.json_response({"title": "nothing is scripted", "status": 599, "detail": op}, status=599)
        return await _answer(request, script.popleft() if len(script) > 1 else script[0])


def _op(request: web.Request, text: str) -> str:
    if request.path == "/graphql":
        return next((op for mark, op in _MARKS.items() if mark in text), "unknown")
    if request.path == "/v2/catalog/gpus":
        return "gpus"
    if request.path.endswith("/logs"):
        return "logs"
    return {"GET": "list", "POST": "create", "DELETE": "terminate"}.get(request.method, "unknown")


async def _answer(request: web.Request, answer: Answer) -> web.StreamResponse:
    if answer.manner == "whole":
        body = b"" if answer.status == 204 else answer.data()
        return web.Response(status=answer.status, body=body, headers=answer.headers)
    if answer.manner == "cut":
        if request.transport is not None:
            request.transport.close()
        return web.Response()
    with contextlib.suppress(ConnectionError):
        if answer.manner == "hang":
            await asyncio.Event().wait()
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        await response.prepare(request)
        if answer.manner == "stream":
            await response.write(answer.data())
            await asyncio.Event().wait()
        while True:
            await response.write(answer.data())
            await asyncio.sleep(0.02)
    return web.Response()
