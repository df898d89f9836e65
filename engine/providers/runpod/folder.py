"""The private folder of a rented allocation. It outlives the run's and goes when the allocation is proven gone.

HOME/allocations/NAME/   0700
  client_key             logs in; 0600
  client_key.pub
  host_key.pub           the pod's host key; its private half is in the order alone
  asked.json             every creation that was asked for, written before the asking
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import asyncssh
import msgspec

from engine.errors import ProviderError
from engine.system.files import overwrite, sync_folder, write_private

ALLOCATIONS: Final = "allocations"
CLIENT_KEY: Final = "client_key"
CLIENT_PUBLIC_KEY: Final = "client_key.pub"
HOST_PUBLIC_KEY: Final = "host_key.pub"
ASKED: Final = "asked.json"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,190}")


class Ask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """One creation. `settled`: RunPod refused it, nothing was made. Prices in USD; `asked_at` UTC.

    `asked_boot` is `boot_seconds` of boot `boot_id`. The pod ends itself after `seconds`.
    """

    gpu: str
    gpu_model: str
    price_per_hour: float
    seconds: float
    asked_at: str
    boot_id: str
    asked_boot: float
    settled: bool = False


class Asked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """What was asked for under one name, in order. `account`: whom it was asked of, as `account_of` tells it."""

    name: str
    run_id: str
    account: str = ""
    asks: tuple[Ask, ...] = ()

    @property
    def open(self) -> Ask | None:
        """The creation that may have made a pod; None where each was refused."""
        return next((ask for ask in reversed(self.asks) if not ask.settled), None)


@dataclass(frozen=True, slots=True)
class Keys:
    """What an order hands to a pod: the client's public line, and the host's private key in OpenSSH's format."""

    client_public: str
    host_private: bytes = field(repr=False)


class AllocationFolder:
    """The folder of one allocation."""

    def __init__(self, home: Path, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ProviderError("An allocation's name is no path.", code="allocation_unknown")
        self.path = home.resolve() / ALLOCATIONS / name
        self.name = name

    @property
    def client_key(self) -> Path:
        """The private key that logs in."""
        return self.path / CLIENT_KEY

    def make(self) -> Keys:
        """New keys of both sides; the host's private half is nowhere but in the result."""
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
        """The public key that the pod is trusted by; None where it, or the client's key, is not here."""
        try:
            asyncssh.read_private_key(self.client_key)
            return asyncssh.read_public_key(self.path / HOST_PUBLIC_KEY)
        except (OSError, asyncssh.KeyImportError):
            return None

    def asked(self) -> Asked | None:
        """What was asked for; None without a record. Raises `allocation_unknown` where it cannot be read."""
        try:
            return msgspec.json.decode((self.path / ASKED).read_bytes(), type=Asked)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise ProviderError(
                f"The record of what was asked for under {self.name} cannot be read.",
                "Run `glasshouse cleanup`; the allocation is looked for by its name.",
                code="allocation_unknown",
            ) from error

    def since_written(self) -> float:
        """Seconds of the wall clock since the record was written, for one that cannot be read."""
        try:
            return time.time() - (self.path / ASKED).stat().st_mtime
        except OSError:
            return 0.0

    def write_asked(self, asked: Asked) -> None:
        """Put the record on the disk; it is there when this returns."""
        with self._translated():
            write_private(self.path / ASKED, msgspec.json.encode(asked))

    def destroy(self) -> None:
        """Overwrite the private key and remove the folder. What will not go stays behind: the pod is gone."""
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
                "Nothing was asked for; free some space, or choose another home with --home.",
                code="acquire_failed",
            ) from error
