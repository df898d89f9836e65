"""Static hosts under names that may be published: a plan is, and a host's name in the settings may be its address."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from engine.providers.settings import Settings, host_settings
from engine.store.salt import salt_of

_LENGTH: Final = 16


def published_name(home: Path, name: str) -> str:
    """The name of a host in plans: the same for all runs of this home, and telling nothing to others.

    Raises `StoreError` as `salt_of`.
    """
    return "host-" + hashlib.sha256(salt_of(home) + name.encode()).hexdigest()[:_LENGTH]


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
