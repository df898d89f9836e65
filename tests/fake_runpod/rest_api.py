"""REST v2 as RunPod's OpenAPI document describes it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from tests.fake_runpod.account import ACCOUNT_PUBLIC_KEY, Account, RefusedError
from tests.fake_runpod.container import HOST
from tests.fake_runpod.faults import ActiveFaults
from tests.fake_runpod.pod import PRIVATE_IP, SSH_PORT, Order, Pod
from tests.fake_runpod.request_pipeline import ApiCall, Caller, Reply, RequestPipeline, client_left

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tests.fake_runpod.container import Line
    from tests.fake_runpod.contract import Contract
    from tests.fake_runpod.views import Gpu

_STATUS: Final = {"pulling": "PROVISIONING", "starting": "STARTING", "running": "RUNNING", "exited": "EXITED"}
_ACTIONS: Final = {
    "PROVISIONING": ["stop", "terminate"],
    "STARTING": ["stop", "terminate"],
    "RUNNING": ["stop", "restart", "terminate"],
    "EXITED": ["start", "terminate"],
}
UNREADABLE: Final = object()
_PODS: Final = "/v2/pods"
_POD: Final = "/v2/pods/{id}"
_LOGS: Final = "/v2/pods/{id}/logs"
_ACTION: Final = "/v2/pods/{id}/action"
_GPUS: Final = "/v2/catalog/gpus"
_GPU: Final = "/v2/catalog/gpus/{id}"


class RestApi:
    """The routes of v2."""

    def __init__(self, account: Account, pipeline: RequestPipeline, contract: Contract) -> None:
        self._account = account
        self._pipeline = pipeline
        self._contract = contract

    def routes(self) -> list[web.RouteDef]:
        """The routes for the application."""
        return [
            web.get(_PODS, self._route("list", _PODS, self._list)),
            web.post(_PODS, self._route("create", _PODS, self._create)),
            web.get(_POD, self._route("get", _POD, self._get)),
            web.delete(_POD, self._route("terminate", _POD, self._delete)),
            web.get(_LOGS, self._route("logs", _LOGS, self._no_log, self._logs)),
            web.post(_ACTION, self._route("action", _ACTION, self._act)),
            web.get(_GPUS, self._route("gpus", _GPUS, self._list_gpus)),
            web.get(_GPU.replace("{id}", "{id:.+}"), self._route("gpu", _GPU, self._get_gpu)),
            web.route("*", "/v2/{tail:.*}", self._unknown),
        ]

    def _route(
        self,
        op: str,
        path: str,
        work: Callable[[_Request], Awaitable[Reply]],
        stream: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None,
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            body, faults = await _read(request)
            method = request.method.lower()
            faults = faults or self._contract.request_faults(path, method, body, request.query)
            known = body if isinstance(body, dict) and not faults else {}
            actual_op = str(known.get("action")) if op == "action" and known else op
            pod_id = None if path in {_PODS, _GPUS, _GPU} else request.match_info["id"]

            async def perform(active: ActiveFaults, caller: Caller) -> Reply:
                if faults:
                    return _problem(422 if body is not UNREADABLE else 400, "The request is not valid.", faults)
                reply = await work(_Request(request, known, active, caller, pod_id or ""))
                broken = self._contract.reply_faults(path, method, reply.status, reply.kind, reply.body)
                if broken:
                    return Reply(reply.status, reply.body, reply.kind, defect="; ".join(broken))
                return reply

            def pretend() -> Reply:
                if actual_op == "create" and not faults:
                    order = _order(known)
                    gpu, price = self._account.price(order)
                    ghost = Pod(order, price, gpu.name, self._account.folder, ActiveFaults(), foreign=False)
                    return _json(201, self._row(ghost), ghost.id)
                return Reply(204)

            call = ApiCall(
                "v2",
                actual_op,
                perform,
                _problem,
                pretend if actual_op in {"create", "terminate", "stop"} else None,
                pod_id,
            )
            if stream is not None and not faults and self._is_listed(pod_id):
                call = ApiCall("v2", actual_op, perform, _problem, None, pod_id, stream)
            return await self._pipeline.serve(request, call)

        return handle

    async def _unknown(self, request: web.Request) -> web.StreamResponse:
        async def perform(_: ActiveFaults, __: Caller) -> Reply:
            return _problem(404, "there is no such resource")

        return await self._pipeline.serve(request, ApiCall("v2", "unknown", perform, _problem))

    def _is_listed(self, pod_id: str | None) -> bool:
        return any(pod.id == pod_id for pod in self._account.listed())

    async def _list(self, _: _Request) -> Reply:
        return _json(200, {"pods": [self._row(pod) for pod in self._account.listed()]})

    async def _get(self, parsed: _Request) -> Reply:
        return _json(200, self._row(self._account.find(parsed.pod_id)))

    async def _create(self, parsed: _Request) -> Reply:
        order = _order(parsed.body)
        pod = self._account.create(order, parsed.active)
        return _json(201, self._row(pod), pod.id)

    async def _delete(self, parsed: _Request) -> Reply:
        faults = parsed.active
        await self._account.terminate(
            parsed.pod_id, parsed.by, faults.pod_fault("linger"), faults.pod_fault("unlisted")
        )
        return Reply(204)

    async def _act(self, parsed: _Request) -> Reply:
        pod, action = self._account.find(parsed.pod_id), str(parsed.body["action"])
        if action not in _ACTIONS[_STATUS[pod.phase]]:
            raise RefusedError(409, f"{action} is not valid for a pod that is {_STATUS[pod.phase]}")
        if action == "terminate":
            return await self._delete(parsed)
        if action == "stop":
            await pod.stop()
        elif action == "start":
            await pod.resume(self._account.settings)
        else:
            await pod.restart(wipe=True)
        return _json(200, self._row(pod))

    async def _list_gpus(self, parsed: _Request) -> Reply:
        stocked = _stocked(parsed.request)
        return _json(200, {"gpus": [_gpu(gpu, stocked) for gpu in self._account.gpus]})

    async def _get_gpu(self, parsed: _Request) -> Reply:
        gpu = self._account.gpu(parsed.request.match_info["id"])
        if gpu is None:
            raise RefusedError(404, "gpu type not found")
        return _json(200, _gpu(gpu, _stocked(parsed.request)))

    async def _no_log(self, parsed: _Request) -> Reply:
        self._account.find(parsed.pod_id)
        return Reply(200, kind="text/event-stream")

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        """The newest `tail` lines, then each line as it is printed, until the client leaves or the pod is gone."""
        pod = self._account.find(request.match_info["id"])
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        lines = list(pod.log.lines)
        tail = int(request.query.get("tail", 100))
        last_sent = lines[-1].number - min(tail, len(lines)) if lines else 0
        if request.query.get("source") == "system":
            last_sent = lines[-1].number if lines else 0
        left = asyncio.create_task(client_left(request))
        try:
            while not left.done():
                grown = pod.log.grown
                if request.query.get("source") != "system":
                    for line in [line for line in pod.log.lines if line.number > last_sent]:
                        await response.write(_event(line))
                        last_sent = line.number
                if pod.ended is not None:
                    break
                more = asyncio.create_task(grown.wait())
                await asyncio.wait({left, more}, return_when=asyncio.FIRST_COMPLETED)
                more.cancel()
        except ConnectionError:
            pass
        finally:
            left.cancel()
        return response

    def _row(self, pod: Pod) -> dict[str, Any]:
        status = _STATUS[pod.phase]
        running = status == "RUNNING"
        port = pod.container.port if running else None
        public = running and pod.is_public
        ports = []
        if running and SSH_PORT in pod.order.ports:
            ip = HOST if public else PRIVATE_IP
            ports = [{"private": 22, "public": port if public else None, "type": "tcp", "ip": ip}]
        return {
            "id": pod.id,
            "name": pod.order.name,
            "image": pod.order.image,
            "args": pod.order.args,
            "disk": pod.order.disk,
            "ports": list(pod.order.ports),
            "env": dict(pod.order.env),
            "registry": None,
            "status": status,
            "actions": _ACTIONS[status],
            "mounts": {},
            "gpu": {"id": pod.order.gpu, "count": pod.order.count},
            "cloud": "COMMUNITY" if pod.order.cloud == "COMMUNITY" else "SECURE",
            "dataCenterId": "US-KS-2",
            "cudaVersion": "12.8",
            "ssh": {
                "proxy": _endpoint("ssh.runpod.io", 22, f"{pod.id}-64411eb2"),
                "direct": _endpoint(HOST, pod.container.port, "root") if public and ports else None,
            },
            "template": None,
            "cost": 0.0 if status == "EXITED" else pod.price,
            "locked": False,
            "globalNetworking": {"enabled": False},
            "runtime": {"uptime": pod.uptime, "ports": ports} if running else None,
            "createdAt": pod.created_at,
            "startedAt": pod.started_at,
        }


@dataclass(frozen=True)
class _Request:
    """A request whose body conforms to the contract."""

    request: web.Request
    body: dict[str, Any]
    active: ActiveFaults
    caller: Caller
    pod_id: str

    @property
    def by(self) -> str:
        """Who terminates a pod with it."""
        return self.caller.name


async def _read(request: web.Request) -> tuple[object, list[str]]:
    """The body (None if there is none), and what is wrong with it."""
    raw = await request.read()
    if not raw:
        return None, []
    try:
        return json.loads(raw), []
    except ValueError:
        return UNREADABLE, ["the body is not JSON"]


def _order(body: dict[str, Any]) -> Order:
    """An order from a body; raises `RefusedError` if it breaks a rule between its fields."""
    if ("gpu" in body) == ("cpu" in body):
        raise RefusedError(400, "exactly one of gpu and cpu is needed")
    if "gpu" not in body or "templateId" in body:
        raise RefusedError(400, "only GPU pods from an image are supported here")
    env = dict(body.get("env", {}))
    if body.get("startSsh"):
        env.setdefault("PUBLIC_KEY", ACCOUNT_PUBLIC_KEY)
    return Order(
        name=body["name"],
        image=body["image"],
        args=body.get("args", ""),
        env=env,
        disk=body.get("disk", 10),
        ports=tuple(body.get("ports", [])),
        gpu=body["gpu"]["id"],
        count=body["gpu"].get("count", 1),
        cloud=body.get("cloud", "SECURE"),
    )


def _stocked(request: web.Request) -> bool:
    """Whether stock is requested; raises `RefusedError` unless `product` and `include` are given together."""
    given = {"include": "include" in request.query, "product": "product" in request.query}
    if given["include"] != given["product"]:
        raise RefusedError(400, "include=AVAILABILITY and product go together")
    return given["include"]


def _gpu(gpu: Gpu, stocked: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": gpu.id,
        "name": gpu.name,
        "pool": None,
        "manufacturer": "NVIDIA",
        "memory": gpu.memory,
        "secure": gpu.secure is not None,
        "community": gpu.community is not None,
        "price": {"secure": gpu.secure or 0.0, "community": gpu.community or 0.0},
        "maxCount": {"secure": gpu.most if gpu.secure else 0, "community": gpu.most if gpu.community else 0},
    }
    if stocked:
        row["availability"] = gpu.stock.upper()
        row["dataCenters"] = [{"id": "US-KS-2", "name": "US Kansas 2", "availability": gpu.stock.upper()}]
    return row


def _endpoint(host: str, port: int, user: str) -> dict[str, Any]:
    return {"host": host, "port": port, "username": user, "command": f"ssh {user}@{host} -p {port}"}


def _event(line: Line) -> bytes:
    data = json.dumps({"ts": line.at, "source": "container", "line": line.text})
    return f"id: {line.at}/{line.number:012d}\ndata: {data}\n\n".encode()


def _json(status: int, value: object, pod_id: str | None = None) -> Reply:
    return Reply(status, json.dumps(value).encode(), pod_id=pod_id)


def _problem(status: int, detail: str, errors: Sequence[str] = ()) -> Reply:
    """An error as in RFC 9457."""
    problem: dict[str, Any] = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    if errors:
        problem["errors"] = list(errors)
    return Reply(status, json.dumps(problem).encode(), "application/problem+json")
