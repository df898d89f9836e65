"""GraphQL as the pinned SDK uses it: every field that it queries, and no other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from tests.fake_runpod.account import ACCOUNT_PUBLIC_KEY, Account
from tests.fake_runpod.container import HOST
from tests.fake_runpod.faults import ActiveFaults
from tests.fake_runpod.graphql_text import Enum, Field, GraphqlError, Operation, parse
from tests.fake_runpod.pod import PRIVATE_IP, SSH_PORT, Order, Pod
from tests.fake_runpod.request_pipeline import ApiCall, Caller, Reply, RequestPipeline

if TYPE_CHECKING:
    from tests.fake_runpod.views import Gpu

Shape = dict[str, "Shape | None"]


def _leaves(names: str) -> Shape:
    return dict.fromkeys(names.split())


_RUNTIME: Final[Shape] = {"ports": dict.fromkeys(("ip", "isIpPublic", "privatePort", "publicPort", "type"))}
_POD: Final[Shape] = {
    **_leaves(
        "id containerDiskInGb costPerHr desiredStatus dockerArgs dockerId env gpuCount imageName lastStatusChange"
        " machineId memoryInGb name podType port ports uptimeSeconds vcpuCount volumeInGb volumeMountPath"
    ),
    "runtime": _RUNTIME,
    "machine": {"gpuDisplayName": None, "podHostId": None},
}
_GPU: Final[Shape] = {
    **_leaves(
        "maxGpuCount id displayName manufacturer memoryInGb cudaCores secureCloud communityCloud securePrice"
        " communityPrice oneMonthPrice threeMonthPrice oneWeekPrice communitySpotPrice secureSpotPrice"
    ),
    "lowestPrice": {"minimumBidPrice": None, "uninterruptablePrice": None},
}
_USER: Final[Shape] = {
    "id": None,
    "pubKey": None,
    "networkVolumes": dict.fromkeys(("id", "name", "size", "dataCenterId")),
    "pods": _POD,
}
_ROOTS: Final[dict[str, Shape]] = {
    "query": {"myself": _USER, "pod": _POD, "gpuTypes": _GPU},
    "mutation": {"podFindAndDeployOnDemand": _POD, "podTerminate": None, "podStop": _POD, "podResume": _POD},
}
_OPS: Final = {
    "pod": "get",
    "podFindAndDeployOnDemand": "create",
    "podTerminate": "terminate",
    "podStop": "stop",
    "podResume": "start",
}
_ORDER: Final[dict[str, type | tuple[type, ...]]] = {
    "name": str,
    "imageName": str,
    "cloudType": Enum,
    "startSsh": bool,
    "gpuTypeId": str,
    "supportPublicIp": bool,
    "gpuCount": int,
    "volumeInGb": int,
    "minVcpuCount": int,
    "minMemoryInGb": int,
    "allowedCudaVersions": list,
    "dataCenterId": str,
    "dockerArgs": str,
    "countryCode": str,
    "containerDiskInGb": int,
    "ports": str,
    "volumeMountPath": str,
    "env": list,
    "templateId": str,
    "networkVolumeId": str,
    "minDownload": int,
    "minUpload": int,
}


class GraphqlApi:
    """`POST /graphql`."""

    def __init__(self, account: Account, pipeline: RequestPipeline) -> None:
        self._account = account
        self._pipeline = pipeline

    def routes(self) -> list[web.RouteDef]:
        """The routes for the application."""
        return [web.post("/graphql", self._handle)]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        op, pod_id, requested, problem = "any", None, None, ""
        try:
            requested = _one_field(parse(_query(await request.read())))
            op, pod_id = _op(requested), _pod_id(requested)
        except GraphqlError as error:
            problem = str(error)

        async def perform(faults: ActiveFaults, caller: Caller) -> Reply:
            if requested is None:
                return _errors(400, problem)
            try:
                value, created = await self._answer(requested, faults, caller)
            except GraphqlError as error:
                return _errors(400, str(error))
            return _data(requested, value, created)

        def pretend() -> Reply:
            assert requested is not None
            if op != "create":
                return _data(requested, None, None)
            order = _order(requested.arguments)
            gpu, price = self._account.price(order)
            ghost = Pod(order, price, gpu.name, self._account.folder, ActiveFaults(), foreign=False)
            return _data(requested, _row(ghost), ghost.id)

        can_pretend = op in {"create", "terminate", "stop"}
        call = ApiCall("graphql", op, perform, _refused, pretend if can_pretend else None, pod_id)
        return await self._pipeline.serve(request, call)

    async def _answer(  # noqa: PLR0911 - one arm per root
        self, requested: Field, faults: ActiveFaults, caller: Caller
    ) -> tuple[object, str | None]:
        """The value of the one requested field, and the id of the pod that it created."""
        account, pod_id = self._account, _pod_id(requested)
        match requested.name:
            case "myself":
                return self._myself(), None
            case "gpuTypes":
                gpu_id = _input(requested).get("id")
                return [_gpu(gpu) for gpu in account.gpus if gpu_id in {None, gpu.id}], None
            case "pod":
                pods = [pod for pod in account.listed() if pod.id == pod_id]
                return (_row(pods[0]) if pods else None), None
            case "podTerminate":
                hidden = faults.pod_fault("unlisted")
                await account.terminate(pod_id or "", caller.name, faults.pod_fault("linger"), hidden)
                return None, None
            case "podStop":
                pod = account.find(pod_id or "")
                await pod.stop()
                return _row(pod), None
            case "podResume":
                pod = account.find(pod_id or "")
                await pod.resume(account.settings)
                return _row(pod), None
        created = account.create(_order(requested.arguments), faults)
        return _row(created), created.id

    def _myself(self) -> dict[str, Any]:
        return {
            "id": "user_fake",
            "pubKey": ACCOUNT_PUBLIC_KEY,
            "networkVolumes": [],
            "pods": [_row(pod) for pod in self._account.listed()],
        }


def _query(raw: bytes) -> str:
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise GraphqlError("POST body is not JSON.") from error
    query = body.get("query") if isinstance(body, dict) else None
    if not isinstance(query, str):
        raise GraphqlError("Must provide query string.")
    return query


def _one_field(operation: Operation) -> Field:
    if len(operation.fields) != 1:
        raise GraphqlError("Only operations with one field are served here.")
    requested = operation.fields[0]
    _check(requested, _ROOTS[operation.kind], operation.kind.title())
    return requested


def _check(requested: Field, shape: Shape, of: str) -> None:
    """Refuse a field that the type does not have, and a missing or superfluous selection."""
    if requested.name not in shape:
        raise GraphqlError(f'Cannot query field "{requested.name}" on type "{of}".')
    inner = shape[requested.name]
    if (inner is None) != (not requested.selection):
        raise GraphqlError(f'Field "{requested.name}" has a superfluous selection of subfields, or lacks one.')
    for field in requested.selection:
        _check(field, inner or {}, requested.name)


def _op(requested: Field) -> str:
    if requested.name == "gpuTypes":
        return "gpu" if _input(requested).get("id") else "gpus"
    if requested.name == "myself":
        return "list" if any(field.name == "pods" for field in requested.selection) else "user"
    return _OPS[requested.name]


def _input(requested: Field) -> dict[str, Any]:
    unknown = set(requested.arguments) - {"input"}
    value = requested.arguments.get("input", {})
    if unknown or not isinstance(value, dict):
        raise GraphqlError(f'Unknown argument on field "{requested.name}".')
    return value


def _pod_id(requested: Field) -> str | None:
    pod_id = _input(requested).get("podId")
    if requested.name in {"pod", "podTerminate", "podStop", "podResume"} and not isinstance(pod_id, str):
        raise GraphqlError('Field "podId" of required type "String!" was not provided.')
    return pod_id


def _order(arguments: dict[str, object]) -> Order:
    fields = arguments.get("input")
    if not isinstance(fields, dict):
        raise GraphqlError('Argument "input" is required.')
    for name, value in fields.items():
        kind = _ORDER.get(name)
        if kind is None:
            raise GraphqlError(f'Field "{name}" is not defined by type "PodFindAndDeployOnDemandInput".')
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is int)):
            raise GraphqlError(f'Field "{name}" cannot represent this value.')
    if str(fields.get("cloudType", "ALL")) not in {"ALL", "SECURE", "COMMUNITY"}:
        raise GraphqlError('Value does not exist in "CloudTypeEnum" enum.')
    env = {}
    for pair in fields.get("env") or []:
        if (
            not isinstance(pair, dict)
            or set(pair) != {"key", "value"}
            or not all(type(v) is str for v in pair.values())
        ):
            raise GraphqlError('Field "env" takes objects of key and value.')
        env[pair["key"]] = pair["value"]
    if fields.get("startSsh"):
        env.setdefault("PUBLIC_KEY", ACCOUNT_PUBLIC_KEY)
    return Order(
        name=fields.get("name") or "pod",
        image=fields.get("imageName") or "",
        args=fields.get("dockerArgs") or "",
        env=env,
        disk=fields.get("containerDiskInGb") or 10,
        ports=tuple(filter(None, (fields.get("ports") or "").split(","))),
        gpu=fields.get("gpuTypeId") or "",
        count=fields.get("gpuCount") or 1,
        cloud=str(fields.get("cloudType", "ALL")),
    )


def _row(pod: Pod) -> dict[str, Any]:
    """A pod's row. `desiredStatus` is the target state: RUNNING from the start."""
    ports = None
    if pod.phase == "running" and SSH_PORT in pod.order.ports:
        ip = HOST if pod.is_public else PRIVATE_IP
        port = {"ip": ip, "isIpPublic": pod.is_public, "privatePort": 22, "publicPort": pod.container.port}
        ports = [{**port, "type": "tcp"}]
    return {
        "id": pod.id,
        "containerDiskInGb": pod.order.disk,
        "costPerHr": pod.price,
        "desiredStatus": "EXITED" if pod.phase == "exited" else "RUNNING",
        "dockerArgs": pod.order.args,
        "dockerId": None,
        "env": [f"{name}={value}" for name, value in pod.order.env.items()],
        "gpuCount": pod.order.count,
        "imageName": pod.order.image,
        "lastStatusChange": f"Rented by User: {pod.created_at}",
        "machineId": pod.machine_id,
        "memoryInGb": 62,
        "name": pod.order.name,
        "podType": "RESERVED",
        "port": None,
        "ports": ",".join(pod.order.ports) or None,
        "uptimeSeconds": pod.uptime,
        "vcpuCount": 8,
        "volumeInGb": 0,
        "volumeMountPath": "/runpod-volume",
        "runtime": {"ports": ports} if pod.phase in {"starting", "running"} else None,
        "machine": {"gpuDisplayName": pod.gpu_name, "podHostId": f"{pod.id}-64411eb2"},
    }


def _gpu(gpu: Gpu) -> dict[str, Any]:
    lowest = min((price for price in (gpu.secure, gpu.community) if price is not None), default=None)
    stocked = None if gpu.stock == "none" else lowest
    return {
        "maxGpuCount": gpu.most,
        "id": gpu.id,
        "displayName": gpu.name,
        "manufacturer": "Nvidia",
        "memoryInGb": gpu.memory,
        "cudaCores": 0,
        "secureCloud": gpu.secure is not None,
        "communityCloud": gpu.community is not None,
        "securePrice": gpu.secure,
        "communityPrice": gpu.community,
        **dict.fromkeys(("oneMonthPrice", "threeMonthPrice", "oneWeekPrice", "communitySpotPrice", "secureSpotPrice")),
        "lowestPrice": {"minimumBidPrice": None, "uninterruptablePrice": stocked},
    }


def _selected(value: object, selection: tuple[Field, ...]) -> object:
    if isinstance(value, list) and selection:
        return [_selected(each, selection) for each in value]
    if isinstance(value, dict) and selection:
        return {field.name: _selected(value[field.name], field.selection) for field in selection}
    return value


def _data(requested: Field, value: object, created: str | None) -> Reply:
    body = {"data": {requested.name: _selected(value, requested.selection)}}
    return Reply(200, json.dumps(body).encode(), pod_id=created)


def _errors(status: int, message: str) -> Reply:
    return Reply(status, json.dumps({"errors": [{"message": message}], "data": None}).encode())


def _refused(status: int, message: str) -> Reply:
    """Refusals by the account have HTTP status 200; those by the request pipeline keep theirs."""
    return _errors(200 if status in {400, 402, 404} else status, message)
