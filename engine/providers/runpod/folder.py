"""The private folder of a rented allocation. It outlives the run's folder and is destroyed when the pod is proven gone.

HOME/allocations/NAME/   0700
  client_key             the private key that logs in; 0600
  client_key.pub
  host_key.pub           the pod's host key; its private half is only in the order
  asked.json             every request for a pod, written before it is sent
  noticed                when the age of `asked.json` was found unknown, by the boot clock
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import asyncssh
import msgspec

from engine.errors import ProviderError
from engine.system.clock import BootTime
from engine.system.files import overwrite, sync_folder, write_private

ALLOCATIONS: Final = "allocations"
CLIENT_KEY: Final = "client_key"
CLIENT_PUBLIC_KEY: Final = "client_key.pub"
HOST_PUBLIC_KEY: Final = "host_key.pub"
RECORD: Final = "asked.json"
NOTICED: Final = "noticed"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,190}")


class CreateRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """One request for a pod. `settled`: RunPod refused it, nothing was created. Prices in USD; `requested_at` in UTC.

    `requested_boot` is `boot_seconds` in the boot `boot_id`. The pod terminates itself after `seconds`.
    """

    gpu: str
    gpu_model: str
    price_per_hour: float
    seconds: float
    requested_at: str = msgspec.field(name="askedAt")
    boot_id: str
    requested_boot: float = msgspec.field(name="askedBoot")
    settled: bool = False


class CreateRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """All requests under one name, in order. `account` is the account that they were sent to; see `account_of`."""

    name: str
    run_id: str
    account: str = ""
    requests: tuple[CreateRequest, ...] = msgspec.field(name="asks", default=())

    @property
    def open(self) -> CreateRequest | None:
        """The latest request that may have created a pod; None if every one was refused."""
        return next((request for request in reversed(self.requests) if not request.settled), None)


@dataclass(frozen=True, slots=True)
class Keys:
    """What an order passes to a pod: the client's public key line, and the host's private key in OpenSSH's format."""

    client_public: str
    host_private: bytes = field(repr=False)


class AllocationFolder:
    """The folder of one allocation."""

    def __init__(self, home: Path, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ProviderError("An allocation's name must not be a path.", code="allocation_unknown")
        self.path = home.resolve() / ALLOCATIONS / name
        self.name = name

    @property
    def client_key(self) -> Path:
        """The private key that logs in."""
        return self.path / CLIENT_KEY

    def create(self) -> Keys:
        """Create the folder with new keys of both sides; the host's private key is only in the result."""
        with self._translated():
            for folder in (self.path.parent, self.path):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder.chmod(0o700)
            client, host = (asyncssh.generate_private_key("ssh-ed25519", comment=self.name) for _ in range(2))
            write_private(self.path / CLIENT_KEY, client.export_private_key())
            write_private(self.path / CLIENT_PUBLIC_KEY, client.export_public_key())
            write_private(self.path / HOST_PUBLIC_KEY, host.export_public_key())
            sync_folder(self.path.parent)
        return Keys(client_public=client.export_public_key().decode().strip(), host_private=host.export_private_key())

    def host_key(self) -> asyncssh.SSHKey | None:
        """The pod's pinned public key; None when it, or the client's key, is missing here."""
        try:
            asyncssh.read_private_key(self.client_key)
            return asyncssh.read_public_key(self.path / HOST_PUBLIC_KEY)
        except (OSError, asyncssh.KeyImportError):
            return None

    def record(self) -> CreateRecord | None:
        """The requests so far; None without a record. Raises `allocation_unknown` when it cannot be read."""
        try:
            return msgspec.json.decode((self.path / RECORD).read_bytes(), type=CreateRecord)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise ProviderError(
                f"The record {self.path / RECORD} of the pods that were requested cannot be read.",
                "Run `glasshouse cleanup`: it searches for the pod by its name.",
                code="allocation_unknown",
            ) from error

    def seconds_since_noticed(self) -> float:
        """How long ago, by the boot clock, the record's age was found unknown; the first call writes that down."""
        now, path = BootTime.now(), self.path / NOTICED
        noticed = None
        with contextlib.suppress(OSError, UnicodeDecodeError):
            noticed = BootTime.read(path.read_text("ascii"))
        if noticed is None or noticed.until(now) is None:
            noticed = now
            with contextlib.suppress(OSError):
                write_private(path, str(now).encode("ascii"))
        return noticed.until(now) or 0.0

    def write_record(self, record: CreateRecord) -> None:
        """Write the record; it is on the disk when this returns."""
        with self._translated():
            write_private(self.path / RECORD, msgspec.json.encode(record))

    def destroy(self) -> None:
        """Overwrite the private key and remove the folder; errors are ignored, since the pod is gone already."""
        with contextlib.suppress(OSError):
            overwrite(self.client_key)
        shutil.rmtree(self.path, ignore_errors=True)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ProviderError(
                f"The allocation's folder {self.path} cannot be written: {error.strerror}.",
                "No pod was requested. Free some space, or choose another home with --home.",
                code="acquire_failed",
            ) from error
