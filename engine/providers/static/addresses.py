"""Where a static host is, through which servers, and with which keys: from its settings to an address."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from engine.errors import ProviderError
from engine.providers.protocol import Address, Jump
from engine.providers.static.hosts import trusted_line
from engine.remote.client_keys import check_key_file

if TYPE_CHECKING:
    from engine.providers.settings import HostSettings, Server
    from engine.remote.endpoint import LinkLimits

AGENT: Final = "SSH_AUTH_SOCK"


def check_keys(host: HostSettings) -> None:
    """Read the key files of a host and of the jumps to it, without network access.

    Raises `ProviderError` (`key_missing`, `agent_missing`) and `RemoteError` (`key_unusable`).
    """
    for name, server in host.servers:
        path = key_path(server)
        if path is not None and not path.is_file():
            raise ProviderError(
                f"The key file of {name} does not exist: {server.key}.",
                "Create it, or correct `key` in config.toml.",
                code="key_missing",
            )
        if path is not None:
            check_key_file(path)
        if server.agent and not os.environ.get(AGENT):
            raise ProviderError(
                f"{name[0].upper()}{name[1:]} needs an SSH agent, and {AGENT} is not set.",
                f"Start an agent, add the key with ssh-add, and make sure that {AGENT} is set here.",
                code="agent_missing",
            )


async def address_of(host: HostSettings, known: Address | None, limits: LinkLimits) -> Address:
    """The host's address with every server on the way pinned; a key that `known` has for a fingerprint is kept.

    A fingerprint of a later server is looked up through the earlier ones, which are trusted by then. Raises as
    `trusted_line`.
    """
    jumps: list[Jump] = []
    earlier = () if known is None else known.jumps
    for number, server in enumerate(host.proxy_jump):
        line = earlier[number].host_key if number < len(earlier) else None
        endpoints = [one.endpoint(f"jump {place}") for place, one in enumerate(jumps, 1)]
        pinned = await trusted_line(server, line, limits, endpoints, f"jump {number + 1}")
        jumps.append(Jump(**_fields(server, pinned)))
    endpoints = [one.endpoint(f"jump {place}") for place, one in enumerate(jumps, 1)]
    pinned = await trusted_line(host, None if known is None else known.host_key, limits, endpoints)
    return Address(**_fields(host, pinned), jumps=tuple(jumps))


def key_path(server: Server) -> Path | None:
    """The server's client key; None where an agent signs."""
    return None if server.key is None else Path(server.key).expanduser()


def _fields(server: Server, host_key: str) -> dict[str, Any]:
    path = key_path(server)
    return {
        "host": server.address,
        "port": server.port,
        "user": server.user,
        "host_key": host_key,
        "client_key_path": None if path is None else str(path),
        "agent_path": os.environ.get(AGENT) if server.agent else None,
    }
