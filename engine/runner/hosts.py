"""Static hosts under names that may be published: a plan is, and a host's name in the settings may be its address."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Final

from engine.errors import StoreError
from engine.providers.settings import Settings, host_settings

SALT: Final = "hosts.salt"
_SALT_BYTES: Final = 32
_LENGTH: Final = 16


def published_name(home: Path, name: str) -> str:
    """The name of a host in plans: the same for all runs of this home, and telling nothing to others.

    Raises `StoreError` (`store_unwritable`).
    """
    return "host-" + hashlib.sha256(_salt(home) + name.encode()).hexdigest()[:_LENGTH]


def host_in(home: Path, settings: Settings, published: str | None) -> str | None:
    """The settings' name of the host that a plan names; a name of the settings stays, and so does None."""
    if published is None or any(host.name == published for host in settings.host):
        return published
    return next((host.name for host in settings.host if published_name(home, host.name) == published), published)


def chosen_host(home: Path, settings: Settings, wanted: str | None) -> str:
    """The published name of the host that was asked for; None is the only one there is.

    Raises `UsageError` as `host_settings`.
    """
    return published_name(home, host_settings(settings, wanted).name)


def _salt(home: Path) -> bytes:
    path = home / SALT
    try:
        if not path.exists():
            part = path.with_name(f".{SALT}.{secrets.token_hex(4)}")
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_SALT_BYTES))
            try:
                path.hardlink_to(part)
            except FileExistsError:
                pass  # another process was first
            finally:
                part.unlink()
        return path.read_bytes()
    except OSError as error:
        raise StoreError(
            f"{path} cannot be made or read: {error.strerror}.",
            "Free some space or choose another --home.",
            code="store_unwritable",
        ) from error
