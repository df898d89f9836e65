"""`/_fake/`: what a test sees and scripts. No key is asked for; the program listens on loopback only."""

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
    """`GET` looks, `POST` with a JSON object acts."""

    def __init__(self, account: Account) -> None:
        self._account = account

    def routes(self) -> list[web.RouteDef]:
        """For the application."""
        account = self._account
        looks: dict[str, Callable[[], object]] = {
            "pods": lambda: [pod.view() for pod in account.existing()],
            "ever": lambda: [pod.past() for pod in account.ever],
            "calls": lambda: account.calls,
            "settings": lambda: account.settings,
        }
        acts: dict[str, Callable[[dict[str, Any]], Awaitable[object]]] = {
            "fault": self._fault,
            "clear": self._clear,
            "reset": self._reset,
            "gpus": self._gpus,
            "settings": self._settings,
            "foreign": self._foreign,
            "vanish": self._vanish,
            "restart": self._restart,
            "stop": self._stop,
            "move": self._move,
            "drop_links": lambda told: self._signal(told, signal.SIGKILL),
            "freeze": lambda told: self._signal(told, signal.SIGSTOP),
            "thaw": lambda told: self._signal(told, signal.SIGCONT),
        }
        return [
            *(web.get(f"/_fake/{name}", _looking(look)) for name, look in looks.items()),
            *(web.post(f"/_fake/{name}", _acting(act)) for name, act in acts.items()),
        ]

    def _pod(self, told: dict[str, Any]) -> Pod:
        for pod in self._account.existing():
            if pod.id == told["id"]:
                return pod
        raise RefusedError(404, "no such pod exists")

    async def _fault(self, told: dict[str, Any]) -> None:
        self._account.faults.add(msgspec.convert(told, Rule))

    async def _clear(self, _: dict[str, Any]) -> None:
        self._account.faults.clear()

    async def _reset(self, _: dict[str, Any]) -> None:
        await self._account.reset()

    async def _gpus(self, told: dict[str, Any]) -> None:
        self._account.gpus = msgspec.convert(told["gpus"], tuple[Gpu, ...])

    async def _settings(self, told: dict[str, Any]) -> None:
        merged = {**msgspec.to_builtins(self._account.settings), **told}
        self._account.settings = msgspec.convert(merged, Settings)

    async def _foreign(self, told: dict[str, Any]) -> object:
        return self._account.foreign(told["name"], told["gpu"]).view()

    async def _vanish(self, told: dict[str, Any]) -> None:
        await self._pod(told).end("fake")

    async def _restart(self, told: dict[str, Any]) -> object:
        pod = self._pod(told)
        await pod.restart(wipe=bool(told["wipe"]))
        return pod.view()

    async def _stop(self, told: dict[str, Any]) -> None:
        await self._pod(told).stop()

    async def _move(self, told: dict[str, Any]) -> object:
        pod = self._pod(told)
        await pod.container.move()
        return pod.view()

    async def _signal(self, told: dict[str, Any], number: signal.Signals) -> int:
        container = self._pod(told).container
        if told.get("server"):
            for listener in container.listeners():
                listener.send_signal(number)
        return container.signal_links(number)


def _looking(look: Callable[[], object]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(look()), content_type="application/json")

    return handle


def _acting(
    act: Callable[[dict[str, Any]], Awaitable[object]],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        try:
            result = await act(json.loads(await request.read() or b"{}"))
        except RefusedError as error:
            return web.Response(status=error.status, text=error.message)
        except (KeyError, ValueError) as error:  # what the test said is wrong
            return web.Response(status=400, text=str(error))
        return web.Response(body=msgspec.json.encode(result), content_type="application/json")

    return handle
