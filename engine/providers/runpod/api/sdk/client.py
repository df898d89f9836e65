"""`PodApi` over RunPod's SDK, which takes 2 s and 60 MB: one helper process loads it for all runners of a home."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import msgspec

import engine
from engine.errors import MissingExtraError, ProviderError
from engine.providers.runpod.api import errors, shared_files
from engine.providers.runpod.api.credentials import URL_VARIABLE, VARIABLE, ApiKey
from engine.providers.runpod.api.protocol import GpuOffer, Order, Pod
from engine.providers.runpod.api.sdk import wire
from engine.providers.settings import RunPodLimits
from engine.store.salt import salt_of

START_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 2.0
_ATTEMPTS: Final = 3
_KEPT_VARIABLES: Final = ("PATH", "LANG", "LC_ALL", "TMPDIR")
_PACKAGES: Final = Path(engine.__file__).resolve().parent.parent
_Link = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class SdkApi:
    """The SDK with the server at `base_url`, through the home's helper process, which is started if none runs."""

    def __init__(self, home: Path, base_url: str, key: ApiKey, limits: RunPodLimits) -> None:
        _check_installed()
        self._home = home.resolve()
        self._folder = shared_files.folder_of(self._home)
        self._base_url = base_url
        self._key = key
        self._limits = limits
        self._identity = wire.identity(key, salt_of(self._home), base_url)

    @property
    def name(self) -> str:
        """`sdk`."""
        return "sdk"

    def account(self, salt: bytes) -> str:
        """See `PodApi`, as for the methods below."""
        return self._key.account(salt, self.name, self._base_url)

    async def list_pods(self) -> tuple[Pod, ...]:
        """One call."""
        pods = (await self._call(self._request("list_pods"))).pods
        if pods is None:
            raise _missing()
        return pods

    async def list_gpus(self) -> tuple[GpuOffer, ...]:
        """One call; the SDK does not report the stock."""
        gpus = (await self._call(self._request("list_gpus"))).gpus
        if gpus is None:
            raise _missing()
        return gpus

    async def create_pod(self, order: Order) -> str:
        """Two calls: the SDK queries the GPU first; after an error there, nothing has been created."""
        pod_id = (await self._call(wire.Request(op="create_pod", seconds=self._limits.api, order=order))).pod_id
        if pod_id is None:
            raise _missing()
        return pod_id

    async def terminate_pod(self, pod_id: str) -> bool:
        """One call."""
        reply = await self._call(wire.Request(op="terminate_pod", seconds=self._limits.api, pod_id=pod_id))
        return reply.terminated

    async def fingerprints(self, pod_id: str) -> frozenset[str] | None:
        """None: the SDK cannot read logs."""
        return None

    async def close(self) -> None:
        """Nothing to close; the helper exits when it is idle."""

    def _request(self, op: wire.Op) -> wire.Request:
        return wire.Request(op=op, seconds=self._limits.api)

    async def _call(self, request: wire.Request) -> wire.Reply:
        reader, writer = await self._connected()
        failure: ProviderError
        try:
            async with asyncio.timeout(self._limits.api + GRACE_SECONDS):
                writer.write(msgspec.json.encode(request) + b"\n")
                await writer.drain()
                reply = msgspec.json.decode(await reader.readline(), type=wire.Reply)
            if reply.failure is None:
                return reply
            failure = reply.failure.error()
            if failure.code == "api_key_rejected":
                failure = errors.rejected(self._key.source)
        except TimeoutError:
            failure = errors.timed_out(self._limits.api)
        except (OSError, ValueError, msgspec.MsgspecError):
            failure = errors.unavailable("the process that runs its SDK has ended")
        finally:
            writer.close()
        raise failure

    async def _connected(self) -> _Link:
        """A connection to a helper with this key. Raises `sdk_unusable`; nothing has been sent to RunPod then."""
        link = await self._connect()
        if link is not None:
            return link
        async with shared_files.locked(self._folder / "sdk.start.lock", START_SECONDS):
            for _ in range(_ATTEMPTS):
                link = await self._connect()
                if link is not None:
                    return link
                await self._start()
        raise ProviderError(
            "The process that runs RunPod's SDK does not start.",
            f'See {self._folder / wire.LOG} for the reason, or set api = "rest" below [runpod] in config.toml.',
            code="sdk_unusable",
        )

    async def _connect(self) -> _Link | None:
        """None if no helper listens, or one with another key or server."""
        try:
            with wire.short_path(self._folder, wire.socket_name(self._identity)) as path:
                reader, writer = await asyncio.open_unix_connection(path, limit=wire.LONGEST_LINE)
        except OSError:
            return None
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                hello = msgspec.json.decode(await reader.readline(), type=wire.Hello)
            if hello.identity == self._identity and wire.peer_user(writer) == os.getuid():
                return reader, writer
        except (OSError, ValueError, msgspec.MsgspecError):
            pass
        writer.close()
        return None

    async def _start(self) -> None:
        """Start a helper, and wait until it listens or gives up."""
        with contextlib.suppress(OSError):  # the log or the process cannot be created; the caller notices
            await self._spawn()

    async def _spawn(self) -> None:
        log = os.open(self._folder / wire.LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            starting = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "engine.providers.runpod.api.sdk.helper",
                "--home",
                str(self._home),
                "--idle",
                str(self._limits.helper_idle),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=self._environment(),
                start_new_session=True,
            )
        finally:
            os.close(log)
        try:
            async with asyncio.timeout(START_SECONDS):
                await starting.wait()
        except TimeoutError:
            starting.kill()
            await starting.wait()

    def _environment(self) -> dict[str, str]:
        """The helper's environment: no proxy, `.netrc` or other token. The key is passed only here."""
        inherited = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        path = os.pathsep.join(filter(None, (str(_PACKAGES), os.environ.get("PYTHONPATH"))))
        own = {"HOME": str(self._folder), "PYTHONPATH": path, VARIABLE: self._key.value, URL_VARIABLE: self._base_url}
        return inherited | own


def _check_installed() -> None:
    """Raises `MissingExtraError`, or `sdk_unusable` for any version but the pinned one, whose internals are patched."""
    try:
        installed = version("runpod") if importlib.util.find_spec("runpod") else None
    except PackageNotFoundError:
        installed = None
    if installed is None:
        raise MissingExtraError(
            "RunPod's SDK is not installed.",
            "Run: pip install 'glasshouse[runpod]', or set api = \"rest\" below [runpod] in config.toml.",
        )
    if installed != wire.PINNED:
        raise ProviderError(
            f"RunPod's SDK has version {installed}, and this program works only with {wire.PINNED}.",
            "Run: pip install 'glasshouse[runpod]', or set api = \"rest\" below [runpod] in config.toml.",
            code="sdk_unusable",
        )


def _missing() -> ProviderError:
    return errors.invalid("it is missing")
