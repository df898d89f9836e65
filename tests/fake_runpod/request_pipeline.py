"""The way of every API call: key, rate limit, scripted fault, work, record."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from aiohttp import web

from tests.fake_runpod.account import NO_BALANCE, NO_CAPACITY, Account, RefusedError
from tests.fake_runpod.faults import Struck, number
from tests.fake_runpod.views import Call, Rule

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.fake_runpod.pod import Pod

HTML: Final = b"<html><head><title>500 Internal Server Error</title></head><body>nginx</body></html>"
_WATCH_SECONDS: Final = 0.05
_KEYLESS: Final = frozenset({"authorization", "cookie", "proxy-authorization"})


@dataclass(frozen=True)
class Reply:
    """A whole answer. `defect` says how it breaks the published contract."""

    status: int
    body: bytes = b""
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    pod_id: str | None = None
    defect: str | None = None


@dataclass(frozen=True)
class Caller:
    """Whose key a call brought; `pod` where it is a pod's own."""

    name: Literal["account", "pod", "unknown", "nobody"]
    pod: Pod | None = None


@dataclass(frozen=True)
class Asked:
    """One understood call. `perform` does it, `pretend` answers as if it were done, `refuse` makes the API's own error.

    `stream` answers in its place, bit by bit.
    """

    api: Literal["graphql", "v2"]
    op: str
    perform: Callable[[Struck, Caller], Awaitable[Reply]]
    refuse: Callable[[int, str], Reply]
    pretend: Callable[[], Reply] | None = None
    pod_id: str | None = None
    stream: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None


class Gate:
    """Serves understood calls for one account."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._times: deque[float] = deque()

    async def serve(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        """Answer one call and keep a record of it."""
        record = _Record(self._account, request, asked, self._caller(request))
        try:
            return await self._serve(request, asked, record)
        except Exception as error:
            record.defect = f"the fake failed: {type(error).__name__}"
            raise
        finally:
            record.keep()

    async def _serve(self, request: web.Request, asked: Asked, record: _Record) -> web.StreamResponse:
        refusal = self._refusal(asked, record.caller)
        if refusal is not None:
            return record.answer(refusal)
        wanted = [pod for pod in (asked.pod_id, record.caller.pod and record.caller.pod.id) if pod]
        struck = self._account.faults.take(asked.op, asked.api, wanted)
        record.fault = struck.names

        async def done() -> Reply:
            try:
                return await asked.perform(struck, record.caller)
            except RefusedError as error:
                return asked.refuse(error.status, error.message)

        if struck.call is not None:
            return await self._struck(request, asked, struck.call, record, done)
        if asked.stream is not None:
            record.status = 200
            return await asked.stream(request)
        return record.answer(await done())

    def _caller(self, request: web.Request) -> Caller:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.isascii():
            return Caller("nobody")
        if secrets.compare_digest(key, self._account.key):
            return Caller("account")
        pod = self._account.pod_of_key(key)
        return Caller("unknown") if pod is None else Caller("pod", pod)

    def _refusal(self, asked: Asked, caller: Caller) -> Reply | None:
        if caller.name in {"nobody", "unknown"}:
            return asked.refuse(401, "Unauthorized")
        if caller.pod is not None:
            allowed = {"terminate": {"terminate", "stop"}, "stop": {"stop"}, "nothing": set[str]()}
            if asked.op not in allowed[self._account.settings.pod_key] or asked.pod_id != caller.pod.id:
                return asked.refuse(403, "This key may not do that.")
        limit = self._account.settings.calls_per_minute
        if limit is None:
            return None
        now = time.monotonic()
        while self._times and now - self._times[0] >= 60:
            self._times.popleft()
        if len(self._times) >= limit:
            return _waiting(asked.refuse(429, "Too many requests"), 60 - (now - self._times[0]))
        self._times.append(now)
        return None

    async def _struck(  # noqa: PLR0911 - one arm a fault
        self,
        request: web.Request,
        asked: Asked,
        rule: Rule,
        record: _Record,
        done: Callable[[], Awaitable[Reply]],
    ) -> web.StreamResponse:
        plain = _plain(rule, asked)
        if plain is not None:
            return record.answer(plain)
        match rule.do:
            case "ignored":
                return record.answer(_pretended(asked) if asked.pretend else await done())
            case "hang":
                if rule.how.get("done"):
                    await done()
                await client_left(request)
                return web.Response(status=500)
            case "lose_reply":
                await done()
                _cut(request)
                return web.Response(status=500)
            case "late":
                self._account.later(asyncio.create_task(_later(number(rule, "seconds", 1.0), done)))
                return record.answer(asked.refuse(500, "Internal server error"))
            case "cut_json":
                reply = await done()
                return record.answer(
                    Reply(reply.status, reply.body[: len(reply.body) // 2], reply.kind, pod_id=reply.pod_id)
                )
            case _:
                return await _drip(request, await done(), number(rule, "every", 1.0), record)


class _Record:
    """What is kept of a call, whatever becomes of it."""

    def __init__(self, account: Account, request: web.Request, asked: Asked, caller: Caller) -> None:
        self.caller = caller
        self.status = 0
        self.fault: str | None = None
        self._account = account
        self._asked = asked
        self._at = time.monotonic()
        self._pod_id = asked.pod_id
        self.defect: str | None = None
        self._headers = {name: value for name, value in request.headers.items() if name.lower() not in _KEYLESS}

    def answer(self, reply: Reply) -> web.Response:
        """The reply as it goes out; one that breaks the contract goes out as a 500."""
        self._pod_id = self._pod_id or reply.pod_id
        if reply.defect is not None:
            self.defect = reply.defect
            reply = self._asked.refuse(500, "the fake broke the contract")
        self.status = reply.status
        headers = dict(reply.headers)
        if reply.body or reply.status != 204:
            headers["Content-Type"] = reply.kind
        return web.Response(status=reply.status, body=reply.body, headers=headers)

    def keep(self) -> None:
        """Into the account's list."""
        self._account.calls.append(
            Call(
                op=self._asked.op,
                api=self._asked.api,
                at=self._at,
                status=self.status,
                pod_id=self._pod_id,
                caller=self.caller.name,
                headers=self._headers,
                fault=self.fault,
                defect=self.defect,
            )
        )


def _pretended(asked: Asked) -> Reply:
    try:
        return asked.pretend() if asked.pretend else Reply(204)
    except RefusedError as error:
        return asked.refuse(error.status, error.message)


def _plain(rule: Rule, asked: Asked) -> Reply | None:  # noqa: PLR0911 - one arm a fault
    """The answer of a fault that does nothing but answer."""
    how: dict[str, Any] = rule.how
    match rule.do:
        case "status":
            body = how.get("body")
            told = asked.refuse(int(how.get("code", 500)), "Scripted")
            text = body if isinstance(body, str) else json.dumps(body)
            return Reply(
                told.status,
                told.body if body is None else text.encode(),
                str(how.get("kind", told.kind)),
                dict(how.get("headers", {})),
            )
        case "html500":
            return Reply(500, HTML, "text/html")
        case "errors_empty":
            return Reply(200, b'{"errors": [], "data": null}')
        case "myself_null":
            return Reply(200, b'{"data": {"myself": null}}' if asked.api == "graphql" else b'{"pods": null}')
        case "no_capacity":
            return asked.refuse(400, NO_CAPACITY)
        case "no_balance":
            return asked.refuse(402, NO_BALANCE)
        case "gone410":
            return asked.refuse(410, "This API has been retired.")
        case "rate_limited":
            return _waiting(asked.refuse(429, "Too many requests"), number(rule, "seconds", 1.0))
        case "forbidden":
            return asked.refuse(403, "Forbidden")
        case "unauthorized":
            return asked.refuse(401, "Unauthorized")
    return None


def _waiting(reply: Reply, seconds: float) -> Reply:
    """With `Retry-After`, whole seconds as the documents say, rounded up."""
    headers = {**reply.headers, "Retry-After": str(max(1, -int(-seconds // 1)))}
    return Reply(reply.status, reply.body, reply.kind, headers)


async def client_left(request: web.Request) -> None:
    """Return once the client closed its connection."""
    while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(_WATCH_SECONDS)


async def _later(seconds: float, done: Callable[[], Awaitable[Reply]]) -> None:
    await asyncio.sleep(seconds)
    await done()


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


async def _drip(request: web.Request, reply: Reply, every: float, record: _Record) -> web.StreamResponse:
    told = record.answer(reply)
    record.status = 0
    response = web.StreamResponse(status=told.status, headers={"Content-Type": reply.kind})
    response.content_length = len(reply.body)
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        for index in range(len(reply.body)):
            await response.write(reply.body[index : index + 1])
            await asyncio.sleep(every)
        record.status = reply.status
    return response
