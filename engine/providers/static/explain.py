"""What to do about a failed connection to a static host, in terms of its settings in config.toml."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from engine.errors import RemoteError
from engine.providers.static.ssh_config import alias_hint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.providers.settings import HostSettings

_ALIAS_CODES: Final = frozenset({"connect_failed", "auth_rejected", "host_key_mismatch"})


@contextmanager
def explained(host: HostSettings) -> Iterator[None]:
    """Name the settings in the hint of an error from a connection to this host."""
    try:
        yield
    except RemoteError as error:
        raise RemoteError(error.message, _hint(error, host), code=error.code) from error


def _hint(error: RemoteError, host: HostSettings) -> str:
    own = error.hint
    if error.code == "host_key_mismatch":
        own = (
            f"The expected one is `host_key` of host {host.name} (or of the jump) in config.toml. Somebody may be "
            "intercepting the connection, or the machine was replaced: compare with what `ssh-keygen -lf "
            "/etc/ssh/ssh_host_ed25519_key.pub` prints on the machine itself before you change it."
        )
    if error.code == "auth_rejected":
        key = f"the public half of {host.key}" if host.key else "the public half of a key in the agent"
        own = f"{error.hint} For host {host.name}, config.toml names user {host.user} and {key}."
    alias = alias_hint(host) if error.code in _ALIAS_CODES else ""
    return f"{own} {alias}".strip()
