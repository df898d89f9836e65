"""The messages between `SdkApi` and the helper process that runs RunPod's SDK: one JSON record per line.

After the helper's `Hello` the client sends one `Request` and receives one `Reply`. They never contain the API key.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec

import engine
from engine.errors import ProviderError
from engine.providers.runpod.api.credentials import ApiKey
from engine.providers.runpod.api.protocol import GpuOffer, Order, Pod, RateLimitedError

PINNED: Final = "1.12.0"
LOG: Final = "sdk.log"
LONGEST_LINE: Final = 16 * 1024 * 1024
_PROTOCOL: Final = "2"
Op = Literal["list_pods", "list_gpus", "create_pod", "terminate_pod"]


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Hello(_Record, frozen=True, kw_only=True):
    """The helper's `identity`, which the client compares with its own, and its process id."""

    identity: str
    pid: int


class Request(_Record, frozen=True, kw_only=True):
    """One call with its deadline in seconds. An order has secrets, which are not in its repr."""

    op: Op
    seconds: float
    order: Order | None = None
    pod_id: str | None = None


class Failure(_Record, frozen=True, kw_only=True):
    """A `ProviderError` of the call."""

    code: str
    message: str
    hint: str = ""
    retry_after: float | None = None

    def error(self) -> ProviderError:
        """The error as it was raised."""
        if self.retry_after is not None:
            return RateLimitedError(self.retry_after)
        return ProviderError(self.message, self.hint, code=self.code)


class Reply(_Record, frozen=True, kw_only=True):
    """The result of the call, or its failure."""

    pods: tuple[Pod, ...] | None = None
    gpus: tuple[GpuOffer, ...] | None = None
    pod_id: str | None = None
    terminated: bool = False
    failure: Failure | None = None


def failure_of(error: ProviderError) -> Failure:
    """The record of an error."""
    after = error.retry_after if isinstance(error, RateLimitedError) else None
    return Failure(code=error.code, message=error.message, hint=error.hint, retry_after=after)


def identity(key: ApiKey, salt: bytes, base_url: str) -> str:
    """A keyed digest of what client and helper must have in common: key, server, program and its version."""
    return key.account(salt, "sdk helper", base_url, PINNED, _PROTOCOL, str(Path(engine.__file__).resolve().parent))


def socket_name(identity: str) -> str:
    """The helper's socket in the folder; there is one helper per key and server."""
    return f"sdk-{identity[:16]}.sock"


@contextmanager
def short_path(folder: Path, name: str) -> Iterator[str]:
    """A path to a socket in the folder that fits into the 108 bytes of a socket address, however deep the folder is."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def peer_user(writer: asyncio.StreamWriter) -> int:
    """The user id at the other end of a socket."""
    credentials = writer.get_extra_info("socket").getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    return int(struct.unpack("3i", credentials)[1])
