"""`PodApi` over RunPod's REST v2, as its OpenAPI document of August 2026 describes it."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from engine.errors import ProviderError
from engine.providers.runpod.api import errors, rest_wire
from engine.providers.runpod.api.credentials import ApiKey
from engine.providers.runpod.api.protocol import GpuOffer, Order, Pod
from engine.providers.settings import RunPodLimits
from engine.system.imports import without

with without("click", "pygments", "rich"):  # httpx would load 4 MB for its own command line
    import httpx

LONGEST_ANSWER: Final = 8 * 1024 * 1024
LONGEST_LOG: Final = 1024 * 1024
LOG_LINES: Final = 1000
LOG_SECONDS: Final = 5.0
QUIET_SECONDS: Final = 0.5
"""A log that prints nothing for this long after a fingerprint is taken as complete."""
_FINGERPRINT: Final = re.compile(r"SHA256:[A-Za-z0-9+/]{43}(?![A-Za-z0-9+/])")
_POD_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NOT_FOUND: Final = 404
Read = TypeVar("Read")


class _Answer(NamedTuple):
    status: int
    headers: httpx.Headers
    body: bytes


class RestApi:
    """REST v2 below `base_url`. Proxies, `.netrc` and redirects are ignored; a request is sent once."""

    def __init__(self, base_url: str, key: ApiKey, limits: RunPodLimits, cloud: str = "SECURE") -> None:
        self._base_url = base_url
        self._key = key
        self._limits = limits
        self._cloud = cloud
        self._client: httpx.AsyncClient | None = None

    @property
    def name(self) -> str:
        """`rest`."""
        return "rest"

    def account(self, salt: bytes) -> str:
        """See `PodApi`, as for the methods below."""
        return self._key.account(salt, self.name, self._base_url)

    async def list_pods(self) -> tuple[Pod, ...]:
        """Includes the members of clusters."""
        answer = await self._request("GET", "/pods", {"includeClusterPods": "true"})
        self._expect(answer, 200)
        date = answer.headers.get("Date")
        return tuple(rest_wire.pod(one, date) for one in _decode(answer, rest_wire.Pods).pods)

    async def list_gpus(self) -> tuple[GpuOffer, ...]:
        """With the stock of the chosen cloud."""
        params = {"include": "AVAILABILITY", "product": "POD", "cloud": self._cloud}
        answer = await self._request("GET", "/catalog/gpus", params)
        self._expect(answer, 200)
        return tuple(rest_wire.offer(one) for one in _decode(answer, rest_wire.Gpus).gpus)

    async def create_pod(self, order: Order) -> str:
        """Sent exactly once, over a new connection: an idle one may just be breaking, which would lose the answer."""
        async with self._new_client() as client:
            answer = await self._request("POST", "/pods", body=rest_wire.request(order), client=client)
        if 400 <= answer.status < 500:
            raise self._not_created(answer, order)
        self._expect(answer, 200, 201)
        pod_id = _decode(answer, rest_wire.Created).id
        if not _POD_ID.fullmatch(pod_id):
            raise errors.invalid("the pod's id is invalid")
        return pod_id

    async def terminate_pod(self, pod_id: str) -> bool:
        """False for a pod that RunPod does not know."""
        answer = await self._request("DELETE", f"/pods/{_id(pod_id)}")
        if answer.status == 409:
            raise errors.refused(
                "to terminate a pod that belongs to a cluster", hint="Terminate the cluster in RunPod's console."
            )
        if answer.status == _NOT_FOUND:
            return False
        self._expect(answer, 200, 202, 204)
        return True

    async def fingerprints(self, pod_id: str) -> frozenset[str] | None:
        """Reads the container's log for at most `LOG_SECONDS`; an empty set if it printed none."""
        fingerprints: set[str] = set()
        readable = False
        params: dict[str, str | int] = {"source": "container", "tail": LOG_LINES}
        try:
            async with (
                asyncio.timeout(min(LOG_SECONDS, self._limits.api)) as limit,
                self._open().stream("GET", f"/pods/{_id(pod_id)}/logs", params=params) as response,
            ):
                readable = response.status_code == 200 and _is_plain(response)
                if readable:
                    await _read_log(response, fingerprints, limit)
        except TimeoutError:  # expected: the stream lasts as long as the pod
            pass
        except (httpx.HTTPError, httpx.StreamError, OSError):
            return None
        return frozenset(fingerprints) if readable else None

    async def close(self) -> None:
        """The next call opens a new connection."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _request(
        self,
        method: str,
        path: str,
        params: dict[str, str] | None = None,
        *,
        body: dict[str, Any] | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> _Answer:
        """One request under one deadline for the whole answer, however slowly the server sends it."""
        failure: ProviderError
        try:
            async with (
                asyncio.timeout(self._limits.api),
                (client or self._open()).stream(method, path, params=params, json=body) as response,
            ):
                return _Answer(response.status_code, response.headers, await _whole(response))
        except TimeoutError:
            failure = errors.timed_out(self._limits.api)
        except httpx.ConnectError:
            failure = errors.unavailable("it cannot be reached")
            if body is not None:  # no byte of the order was sent
                failure = errors.nothing_ordered(failure)
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            failure = errors.unavailable(_why(error))
        except ProviderError as error:
            failure = error
        # Raised outside the except blocks: a chained library exception would carry the request and its secrets.
        raise failure

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = self._new_client()
        return self._client

    def _new_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"{self._base_url}/v2",
            headers={
                "Authorization": f"Bearer {self._key.value}",
                "Accept-Encoding": "identity",
                "User-Agent": "glasshouse",
            },
            trust_env=False,
            follow_redirects=False,
            timeout=None,  # noqa: S113  # one deadline covers the whole call
            limits=httpx.Limits(max_connections=4, max_keepalive_connections=1, keepalive_expiry=10.0),
        )

    def _expect(self, answer: _Answer, *statuses: int) -> None:
        """Raise for any other status."""
        if answer.status not in statuses:
            raise self._error(answer)

    def _error(self, answer: _Answer) -> ProviderError:
        status = answer.status
        if status in {401, 403}:
            return errors.rejected(self._key.source, status)
        if status == 402:
            return errors.no_balance()
        if status == 410:
            return errors.gone(self.name)
        if status == 429:
            return errors.rate_limited(answer.headers.get("Retry-After"), answer.headers.get("Date"))
        if status >= 500 or status == 408:
            return errors.unavailable(f"it answered with status {status}")
        return errors.invalid(f"its status is {status}")

    def _not_created(self, answer: _Answer, order: Order) -> ProviderError:
        """Why a pod was not created, by the table in RunPod's OpenAPI document."""
        detail = errors.clean(rest_wire.detail(answer.body), (self._key.value, *order.environment.values()))
        if answer.status == 400:
            return errors.no_capacity(order.gpu, detail)
        if answer.status == 403:
            hint = f"Check that the API key from {self._key.source} may use this GPU and cloud and may create pods."
            return errors.refused(f"to rent {order.gpu}", detail or "403", hint)
        if answer.status in {401, 402, 408, 410, 429}:
            return self._error(answer)
        hint = "Check the image, the GPU and the disk in config.toml."
        return errors.refused("the order of a pod", detail or str(answer.status), hint)


async def _read_log(response: httpx.Response, fingerprints: set[str], limit: asyncio.Timeout) -> None:
    """Collect fingerprints until the stream ends, is silent after one, or reaches the limit of time or size."""
    loop = asyncio.get_running_loop()
    until = limit.when() or loop.time()
    size, rest = 0, b""
    async for chunk in response.aiter_raw():
        size += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            fingerprints.update(_FINGERPRINT.findall(rest_wire.log_line(line)))
        if size > LONGEST_LOG:
            return
        if fingerprints:
            limit.reschedule(min(until, loop.time() + QUIET_SECONDS))


async def _whole(response: httpx.Response) -> bytes:
    """The body as it was sent; raises `api_answer_invalid` if it is too long or compressed."""
    if not _is_plain(response):
        raise errors.invalid("it is compressed")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > LONGEST_ANSWER:
            raise errors.invalid("it is too long")
    return bytes(body)


def _is_plain(response: httpx.Response) -> bool:
    """False for a compressed body: a few bytes could expand without limit."""
    return bool(response.headers.get("Content-Encoding", "identity") == "identity")


def _decode(answer: _Answer, kind: type[Read]) -> Read:
    decoded: Read | None
    try:
        decoded = msgspec.json.decode(answer.body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        decoded = None
    if decoded is None:
        raise errors.invalid()
    return decoded


def _id(pod_id: str) -> str:
    return quote(pod_id, safe="")


def _why(error: Exception) -> str:
    return "the connection broke" if isinstance(error, httpx.TransportError) else "the call failed"
