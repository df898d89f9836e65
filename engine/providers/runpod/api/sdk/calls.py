"""RunPod's SDK with our own transport, deadline and parsing of answers, because the SDK's are not reliable.

The SDK's timeout is per socket read, so a dripped answer can take minutes, and it obeys proxies and `.netrc`. Only
the helper process imports this module, which patches the place where the pinned SDK sends a request.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
import requests
import runpod
from runpod.api import graphql

from engine.errors import ProviderError
from engine.providers.runpod.api import errors
from engine.providers.runpod.api.protocol import SAFE, GpuOffer, Order, Pod, RateLimitedError
from engine.providers.runpod.api.sdk import rows

LONGEST_ANSWER: Final = 8 * 1024 * 1024
_LAST_MINOR: Final = 9
_BLOCK: Final = 64 * 1024
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_START: Final = re.compile(r'[^"\\\x00-\x1f\x7f-\x9f\u2028\u2029]*')
_POD_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NO_CAPACITY: Final = re.compile(r"no longer any instances available|does not have the resources", re.IGNORECASE)
_NO_BALANCE: Final = re.compile(r"\bbalance\b|insufficient funds|spend(ing)? limit", re.IGNORECASE)
_ABSENT: Final = re.compile(r"not found|does not exist", re.IGNORECASE)
_REJECTED: Final = frozenset({"UNAUTHENTICATED", "FORBIDDEN"})
_FAULTY: Final = frozenset({"GRAPHQL_VALIDATION_FAILED", "GRAPHQL_PARSE_FAILED", "BAD_USER_INPUT"})
_current: Final = threading.local()


class Call:
    """One call's deadline, and whether the order itself was sent before the call was given up."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._until = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._over = False
        self._sent = False

    def left(self) -> float:
        """Seconds until the deadline; raises `api_timeout` after it."""
        seconds = self._until - time.monotonic()
        if self._over or seconds <= 0:
            raise errors.timed_out(self.seconds)
        return seconds

    def sending(self, *, order: bool) -> None:
        """Note that a request is being sent; raises `api_timeout` if the call was given up, so that it never is."""
        with self._lock:
            self.left()
            self._sent = self._sent or order

    def give_up(self) -> None:
        """Prevent any further request of this call."""
        with self._lock:
            self._over = True

    @property
    def has_ordered(self) -> bool:
        """True when a pod may have been created."""
        return self._sent


class GraphqlFailure(Exception):
    """An error that RunPod reports in GraphQL: its message and code."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__("RunPod answered with an error")
        self.message = message
        self.code = code


class _Answer:
    """The part of a response that the SDK uses."""

    status_code: Final = 200

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    def json(self) -> dict[str, Any]:
        return self._document


class _Transport:
    """Replaces `requests` in the only module of the SDK that sends."""

    @staticmethod
    def post(url: str, *, headers: dict[str, str], data: str, timeout: float) -> _Answer:
        """One request without proxies, `.netrc` or redirects, under the call's deadline instead of the SDK's."""
        call: Call = _current.call
        call.sending(order="podFindAndDeployOnDemand" in data)
        with requests.Session() as session:
            session.trust_env = False
            headers = {**headers, "Accept-Encoding": "identity"}
            with session.post(
                url, headers=headers, data=data, timeout=call.left(), allow_redirects=False, stream=True
            ) as response:
                body = _whole(response, call)
        document = _document(body)
        _check_status(response, document)
        if document is None:
            raise errors.invalid()
        if "errors" in document:
            raise _first_failure(document["errors"])
        return _Answer(document)


class SdkCalls:
    """The calls of `PodApi`, each blocking; every error is a `ProviderError` without a cause."""

    def __init__(self, key: str) -> None:
        graphql.requests = _Transport
        runpod.api_key = key
        self._key = key

    def list_pods(self, call: Call) -> tuple[Pod, ...]:
        """`runpod.get_pods()`."""
        listed = self._run(call, runpod.get_pods)
        return tuple(rows.pod(row) for row in _convert(listed, list[rows.PodRow]))

    def list_gpus(self, call: Call) -> tuple[GpuOffer, ...]:
        """The fields of `runpod.get_gpu`, for all types of GPU in one call."""
        gpus = self._run(call, lambda: graphql.run_graphql_query(rows.GPU_QUERY)["data"]["gpuTypes"])
        return tuple(rows.offer(row) for row in _convert(gpus, list[rows.GpuRow]))

    def create_pod(self, call: Call, order: Order) -> str:
        """`runpod.create_pod(...)`; an error before the order itself was sent is definite: nothing was created."""
        check(order)
        secrets = (self._key, *order.environment.values())
        try:
            created = self._run(call, lambda: _create(order), secrets, order.gpu)
        except ProviderError as error:
            failure = error if call.has_ordered else errors.nothing_ordered(error)
        else:
            pod_id = str(_convert(created, rows.Created).id)
            if _POD_ID.fullmatch(pod_id):
                return pod_id
            failure = errors.invalid("the pod's id is invalid")
        raise failure

    def terminate_pod(self, call: Call, pod_id: str) -> bool:
        """`runpod.terminate_pod(...)`; False for a pod that RunPod does not know."""
        if not _POD_ID.fullmatch(pod_id):
            raise errors.refused("to terminate a pod", "its id is invalid")

        def terminate() -> bool:
            runpod.terminate_pod(pod_id)
            return True

        return bool(self._run(call, terminate, absent_is_success=True))

    def _run(
        self,
        call: Call,
        work: Callable[[], Any],
        secrets: tuple[str, ...] = (),
        gpu: str = "",
        *,
        absent_is_success: bool = False,
    ) -> Any:
        _current.call = call
        failure: ProviderError
        try:
            return work()
        except ProviderError as error:
            failure = error
        except GraphqlFailure as error:
            if absent_is_success and _ABSENT.search(error.message):
                return None
            failure = _failure(error, secrets or (self._key,), gpu)
        except requests.Timeout:
            failure = errors.timed_out(call.seconds)
        except (requests.RequestException, OSError):
            failure = errors.unavailable("it cannot be reached, or the connection broke")
        except ValueError:  # raised by the SDK for an unknown GPU
            failure = errors.refused(f"the GPU {gpu}", "it has no GPU of that name") if gpu else errors.invalid()
        except Exception:  # KeyError, TypeError, IndexError: the SDK uses answers unchecked
            failure = errors.invalid()
        finally:
            _current.call = None
        failure.__cause__ = failure.__context__ = None
        raise failure


def check(order: Order) -> None:
    """Raises `order_refused` for a value that could break out of the query, into which the SDK puts it unescaped."""
    values = {"name": order.name, "image": order.image, "GPU": order.gpu, **order.environment}
    wrong = next((name for name, value in values.items() if not SAFE.fullmatch(value)), None)
    if wrong is None:
        wrong = next((name for name in order.environment if not _VARIABLE.fullmatch(name)), None)
    if wrong is None and not _START.fullmatch(order.start):
        wrong = "start command"
    if wrong is not None:
        shown = wrong if SAFE.fullmatch(wrong) else "name of a variable"
        raise ProviderError(
            f"The {shown} of this order has characters that RunPod's SDK cannot send.",
            'Use letters, digits and + / = _ . : @ -, or set api = "rest" below [runpod] in config.toml.',
            code="order_refused",
        )


def _create(order: Order) -> Any:
    return runpod.create_pod(
        name=order.name,
        image_name=order.image,
        gpu_type_id=order.gpu,
        cloud_type=order.cloud,
        support_public_ip=True,
        start_ssh=True,
        gpu_count=1,
        volume_in_gb=0,
        container_disk_in_gb=order.disk_gb,
        ports="22/tcp",
        docker_args=order.start,
        env=order.environment,
        allowed_cuda_versions=None if order.min_cuda is None else _cuda_from(order.min_cuda),
    )


def _cuda_from(oldest: str) -> list[str]:
    """This CUDA version and all later minor versions, which the API requires to be listed by name."""
    major, minor = map(int, oldest.split("."))
    return [f"{major}.{number}" for number in range(minor, _LAST_MINOR + 1)]


def _whole(response: requests.Response, call: Call) -> bytes:
    """The body, read as it arrives, so that a slowly dripping one hits the deadline."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise errors.invalid("it is compressed")
    body = bytearray()
    while block := response.raw.read1(_BLOCK, decode_content=False):
        body += block
        call.left()
        if len(body) > LONGEST_ANSWER:
            raise errors.invalid("it is too long")
    if (expected := response.headers.get("Content-Length", "")).isdigit() and len(body) != int(expected):
        raise errors.invalid("it is incomplete")
    return bytes(body)


def _document(body: bytes) -> dict[str, Any] | None:
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _check_status(response: requests.Response, document: dict[str, Any] | None) -> None:
    """Raise unless the status is 200, or 400 with errors in the document, as some GraphQL servers send them."""
    status = response.status_code
    if status == 200 or (status == 400 and document is not None and "errors" in document):
        return
    if status in {401, 403}:
        raise errors.rejected("its source", status)
    if status == 402:
        raise errors.no_balance()
    if status == 410:
        raise errors.gone("sdk")
    if status == 429:
        raise errors.rate_limited(response.headers.get("Retry-After"), response.headers.get("Date"))
    if status >= 500 or status == 408:
        raise errors.unavailable(f"it answered with status {status}")
    raise errors.invalid(f"its status is {status}")


def _first_failure(reported: object) -> Exception:
    """The first of GraphQL's errors; an empty list is an invalid answer."""
    try:
        first = msgspec.convert(reported, list[rows.GraphqlError])[0]
    except (msgspec.ValidationError, IndexError):
        return errors.invalid("its list of errors is empty or malformed")
    return GraphqlFailure(first.message, str(first.extensions.get("code", "")))


def _failure(failure: GraphqlFailure, secrets: tuple[str, ...], gpu: str) -> ProviderError:
    """What an error in GraphQL means. An unknown one is ambiguous: the request may have been carried out in part."""
    if failure.code in _REJECTED or failure.message.strip().lower() in {"unauthorized", "not authorized"}:
        return errors.rejected("its source")
    detail = errors.clean(failure.message, secrets)
    if gpu and _NO_CAPACITY.search(failure.message):
        return errors.no_capacity(gpu, detail)
    if gpu and _NO_BALANCE.search(failure.message):
        return errors.no_balance()
    if failure.code in _FAULTY:
        return errors.refused("the request", detail)
    if failure.code in {"TOO_MANY_REQUESTS", "RATE_LIMITED"}:
        return RateLimitedError(errors.DEFAULT_PAUSE)
    return errors.unavailable(detail or "it answered with an error")


def _convert(value: Any, kind: Any) -> Any:
    converted: Any = None
    try:
        converted = msgspec.convert(value, kind)
    except msgspec.ValidationError:
        converted = None
    if converted is None:
        raise errors.invalid()
    return converted
