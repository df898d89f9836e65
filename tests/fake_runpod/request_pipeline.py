"""The steps of every API call: key, rate limit, scripted fault, work, record."""

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
from tests.fake_runpod.faults import ActiveFaults, number
from tests.fake_runpod.views import Call, Rule

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.fake_runpod.pod import Pod

HTML: Final = b"<html><head><title>500 Internal Server Error</title></head><body>nginx</body></html>"
_WATCH_SECONDS: Final = 0.05
_SECRET_HEADERS: Final = frozenset({"authorization", "cookie", "proxy-authorization"})


@dataclass(frozen=True)
class Reply:
    """A complete answer. `defect` says how it breaks the published contract."""

    status: int
    body: bytes = b""
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    pod_id: str | None = None
    defect: str | None = None


@dataclass(frozen=True)
class Caller:
    """Whose key a call used; `pod` is set if it is a pod's own key."""

    name: Literal["account", "pod", "unknown", "nobody"]
    pod: Pod | None = None


@dataclass(frozen=True)
class ApiCall:
    """One parsed call. `perform` does it, `pretend` answers as if it were done, `refuse` creates an error of the API.

    `stream`, if set, answers instead of `perform`, piece by piece.
    """

    api: Literal["graphql", "v2"]
    op: str
    perform: Callable[[ActiveFaults, Caller], Awaitable[Reply]]
    refuse: Callable[[int, str], Reply]
    pretend: Callable[[], Reply] | None = None
    pod_id: str | None = None
    stream: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None


class RequestPipeline:
    """Serves parsed calls for one account."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._times: deque[float] = deque()

    async def serve(self, request: web.Request, call: ApiCall) -> web.StreamResponse:
        """Answer one call and keep a record of it."""
        record = _Record(self._account, request, call, self._caller(request))
        try:
            return await self._serve(request, call, record)
        except Exception as error:
            record.defect = f"the fake failed: {type(error).__name__}"
            raise
        finally:
            record.keep()

    async def _serve(self, request: web.Request, call: ApiCall, record: _Record) -> web.StreamResponse:
        refusal = self._refusal(call, record.caller)
        if refusal is not None:
            return record.answer(refusal)
        pod_ids = [pod for pod in (call.pod_id, record.caller.pod and record.caller.pod.id) if pod]
        faults = self._account.faults.take(call.op, call.api, pod_ids)
        record.fault = faults.names

        async def done() -> Reply:
            try:
                return await call.perform(faults, record.caller)
            except RefusedError as error:
                return call.refuse(error.status, error.message)

        if faults.call is not None:
            return await self._apply_fault(request, call, faults.call, record, done)
        if call.stream is not None:
            record.status = 200
            return await call.stream(request)
        return record.answer(await done())

    def _caller(self, request: web.Request) -> Caller:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.isascii():
            return Caller("nobody")
        if secrets.compare_digest(key, self._account.key):
            return Caller("account")
        pod = self._account.pod_of_key(key)
        return Caller("unknown") if pod is None else Caller("pod", pod)

    def _refusal(self, call: ApiCall, caller: Caller) -> Reply | None:
        if caller.name in {"nobody", "unknown"}:
            return call.refuse(401, "Unauthorized")
        if caller.pod is not None:
            allowed = {"terminate": {"terminate", "stop"}, "stop": {"stop"}, "nothing": set[str]()}
            if call.op not in allowed[self._account.settings.pod_key] or call.pod_id != caller.pod.id:
                return call.refuse(403, "This key may not do that.")
        limit = self._account.settings.calls_per_minute
        if limit is None:
            return None
        now = time.monotonic()
        while self._times and now - self._times[0] >= 60:
            self._times.popleft()
        if len(self._times) >= limit:
            return _waiting(call.refuse(429, "Too many requests"), 60 - (now - self._times[0]))
        self._times.append(now)
        return None

    async def _apply_fault(  # noqa: PLR0911 - one arm per fault
        self,
        request: web.Request,
        call: ApiCall,
        rule: Rule,
        record: _Record,
        done: Callable[[], Awaitable[Reply]],
    ) -> web.StreamResponse:
        canned = _canned(rule, call)
        if canned is not None:
            return record.answer(canned)
        match rule.do:
            case "ignored":
                return record.answer(_pretend(call) if call.pretend else await done())
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
                self._account.keep_task(asyncio.create_task(_later(number(rule, "seconds", 1.0), done)))
                return record.answer(call.refuse(500, "Internal server error"))
            case "cut_json":
                reply = await done()
                return record.answer(
                    Reply(reply.status, reply.body[: len(reply.body) // 2], reply.kind, pod_id=reply.pod_id)
                )
            case _:
                return await _drip(request, await done(), number(rule, "every", 1.0), record)


class _Record:
    """The record of a call, whatever its outcome."""

    def __init__(self, account: Account, request: web.Request, call: ApiCall, caller: Caller) -> None:
        self.caller = caller
        self.status = 0
        self.fault: str | None = None
        self._account = account
        self._call = call
        self._at = time.monotonic()
        self._pod_id = call.pod_id
        self.defect: str | None = None
        self._headers = {name: value for name, value in request.headers.items() if name.lower() not in _SECRET_HEADERS}

    def answer(self, reply: Reply) -> web.Response:
        """The reply as it is sent; one that breaks the contract is sent as a 500."""
        self._pod_id = self._pod_id or reply.pod_id
        if reply.defect is not None:
            self.defect = reply.defect
            reply = self._call.refuse(500, "the fake broke the contract")
        self.status = reply.status
        headers = dict(reply.headers)
        if reply.body or reply.status != 204:
            headers["Content-Type"] = reply.kind
        return web.Response(status=reply.status, body=reply.body, headers=headers)

    def keep(self) -> None:
        """Add the record to the account's list."""
        self._account.calls.append(
            Call(
                op=self._call.op,
                api=self._call.api,
                at=self._at,
                status=self.status,
                pod_id=self._pod_id,
                caller=self.caller.name,
                headers=self._headers,
                fault=self.fault,
                defect=self.defect,
            )
        )


def _pretend(call: ApiCall) -> Reply:
    try:
        return call.pretend() if call.pretend else Reply(204)
    except RefusedError as error:
        return call.refuse(error.status, error.message)


def _canned(rule: Rule, call: ApiCall) -> Reply | None:  # noqa: PLR0911 - one arm per fault
    """The answer of a fault that only answers."""
    how: dict[str, Any] = rule.how
    match rule.do:
        case "status":
            body = how.get("body")
            error = call.refuse(int(how.get("code", 500)), "Scripted")
            text = body if isinstance(body, str) else json.dumps(body)
            return Reply(
                error.status,
                error.body if body is None else text.encode(),
                str(how.get("kind", error.kind)),
                dict(how.get("headers", {})),
            )
        case "html500":
            return Reply(500, HTML, "text/html")
        case "errors_empty":
            return Reply(200, b'{"errors": [], "data": null}')
        case "myself_null":
            return Reply(200, b'{"data": {"myself": null}}' if call.api == "graphql" else b'{"pods": null}')
        case "no_capacity":
            return call.refuse(400, NO_CAPACITY)
        case "no_balance":
            return call.refuse(402, NO_BALANCE)
        case "gone410":
            return call.refuse(410, "This API has been retired.")
        case "rate_limited":
            return _waiting(call.refuse(429, "Too many requests"), number(rule, "seconds", 1.0))
        case "forbidden":
            return call.refuse(403, "Forbidden")
        case "unauthorized":
            return call.refuse(401, "Unauthorized")
    return None


def _waiting(reply: Reply, seconds: float) -> Reply:
    """The reply with `Retry-After` in whole seconds, rounded up."""
    headers = {**reply.headers, "Retry-After": str(max(1, -int(-seconds // 1)))}
    return Reply(reply.status, reply.body, reply.kind, headers)


async def client_left(request: web.Request) -> None:
    """Return once the client closed its connection."""
    while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(_WATCH_SECONDS)


async def _later(seconds: float, done: Callable[[], Awaitable[Reply]]) -> None:
    await asyncio.sleep(seconds)
    await done()


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


async def _drip(request: web.Request, reply: Reply, every: float, record: _Record) -> web.StreamResponse:
    answer = record.answer(reply)
    record.status = 0
    response = web.StreamResponse(status=answer.status, headers={"Content-Type": reply.kind})
    response.content_length = len(reply.body)
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        for index in range(len(reply.body)):
            await response.write(reply.body[index : index + 1])
            await asyncio.sleep(every)
        record.status = reply.status
    return response
