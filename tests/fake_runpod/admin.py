"""`/_fake/`: the tests' access to actual state and script, without a key: the program listens on loopback only."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from tests.fake_runpod.account import Account, RefusedError
from tests.fake_runpod.views import Gpu, Rule, Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.fake_runpod.pod import Pod


class Admin:
    """`GET` reads state, `POST` with a JSON object changes it."""

    def __init__(self, account: Account) -> None:
        self._account = account

    def routes(self) -> list[web.RouteDef]:
        """The routes for the application."""
        account = self._account
        queries: dict[str, Callable[[], object]] = {
            "pods": lambda: [pod.view() for pod in account.existing()],
            "ever": lambda: [pod.past() for pod in account.ever],
            "calls": lambda: account.calls,
            "settings": lambda: account.settings,
        }
        actions: dict[str, Callable[[dict[str, Any]], Awaitable[object]]] = {
            "fault": self._fault,
            "clear": self._clear,
            "reset": self._reset,
            "gpus": self._gpus,
            "settings": self._settings,
            "foreign": self._foreign,
            "vanish": self._vanish,
            "appear": self._appear,
            "restart": self._restart,
            "stop": self._stop,
            "move": self._move,
            "drop_links": lambda data: self._signal(data, signal.SIGKILL),
            "freeze": lambda data: self._signal(data, signal.SIGSTOP),
            "thaw": lambda data: self._signal(data, signal.SIGCONT),
        }
        return [
            *(web.get(f"/_fake/{name}", _query_handler(query)) for name, query in queries.items()),
            *(web.post(f"/_fake/{name}", _action_handler(action)) for name, action in actions.items()),
        ]

    def _pod(self, data: dict[str, Any]) -> Pod:
        for pod in self._account.existing():
            if pod.id == data["id"]:
                return pod
        raise RefusedError(404, "no such pod exists")

    async def _fault(self, data: dict[str, Any]) -> None:
        self._account.faults.add(msgspec.convert(data, Rule))

    async def _clear(self, _: dict[str, Any]) -> None:
        self._account.faults.clear()

    async def _reset(self, _: dict[str, Any]) -> None:
        await self._account.reset()

    async def _gpus(self, data: dict[str, Any]) -> None:
        self._account.gpus = msgspec.convert(data["gpus"], tuple[Gpu, ...])

    async def _settings(self, data: dict[str, Any]) -> None:
        merged = {**msgspec.to_builtins(self._account.settings), **data}
        self._account.settings = msgspec.convert(merged, Settings)

    async def _foreign(self, data: dict[str, Any]) -> object:
        return self._account.foreign(data["name"], data["gpu"]).view()

    async def _vanish(self, data: dict[str, Any]) -> None:
        await self._pod(data).terminate("fake")

    async def _appear(self, data: dict[str, Any]) -> None:
        self._account.appear(data["id"])

    async def _restart(self, data: dict[str, Any]) -> object:
        pod = self._pod(data)
        await pod.restart(wipe=bool(data["wipe"]))
        return pod.view()

    async def _stop(self, data: dict[str, Any]) -> None:
        await self._pod(data).stop()

    async def _move(self, data: dict[str, Any]) -> object:
        pod = self._pod(data)
        await pod.container.move()
        return pod.view()

    async def _signal(self, data: dict[str, Any], number: signal.Signals) -> int:
        container = self._pod(data).container
        if data.get("server"):
            for listener in container.listeners():
                listener.send_signal(number)
        return container.signal_links(number)


def _query_handler(query: Callable[[], object]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(query()), content_type="application/json")

    return handle


def _action_handler(
    action: Callable[[dict[str, Any]], Awaitable[object]],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        try:
            result = await action(json.loads(await request.read() or b"{}"))
        except RefusedError as error:
            return web.Response(status=error.status, text=error.message)
        except (KeyError, ValueError) as error:  # the test sent an invalid request
            return web.Response(status=400, text=str(error))
        return web.Response(body=msgspec.json.encode(result), content_type="application/json")

    return handle
