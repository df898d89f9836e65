"""Opening an SSH connection: one pinned host key, one client key or the keys of an agent, none of the operator's own
settings.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import asyncssh

from engine.errors import RemoteError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from engine.remote.endpoint import Endpoint, LinkLimits

CIPHERS: Final = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes256-ctr",
)
HOST_KEY_ALGORITHMS: Final = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)


async def connect(endpoint: Endpoint, limits: LinkLimits) -> asyncssh.SSHClientConnection:
    """Connect and log in.

    Raises `RemoteError`: `connect_failed` (refused, unreachable or too slow; trying again may help),
    `host_key_mismatch`, `auth_rejected`, `key_unusable`, `agent_unusable`.
    """
    async with _client_keys(endpoint, limits) as client_keys:
        return await _connect(endpoint, limits, client_keys)


async def _connect(
    endpoint: Endpoint, limits: LinkLimits, client_keys: Sequence[asyncssh.SSHKey | asyncssh.SSHKeyPair]
) -> asyncssh.SSHClientConnection:
    host_key = pinned_key(endpoint.host_key)
    where = f"{endpoint.host}:{endpoint.port}"
    try:
        return await asyncssh.connect(
            endpoint.host,
            endpoint.port,
            username=endpoint.user,
            client_keys=list(client_keys),
            known_hosts=([host_key], [], []),
            config=None,
            agent_path=None,
            agent_forwarding=False,
            x11_forwarding=False,
            preferred_auth="publickey",
            password_auth=False,
            kbdint_auth=False,
            host_based_auth=False,
            gss_auth=False,
            gss_kex=False,
            compression_algs=None,
            encryption_algs=list(CIPHERS),
            server_host_key_algs=_pinned_first(host_key),
            connect_timeout=limits.connect,
            login_timeout=limits.login,
            # asyncssh gives up one interval after the count is reached.
            keepalive_interval=limits.keepalive_interval,
            keepalive_count_max=limits.keepalive_count - 1,
        )
    except asyncssh.HostKeyNotVerifiable as error:
        raise _mismatch(where) from error
    except asyncssh.KeyExchangeFailed as error:
        if "host key" in error.reason:
            raise _mismatch(where) from error
        raise _failed(where, "no common algorithms") from error
    except asyncssh.PermissionDenied as error:
        raise RemoteError(
            f"{where} rejected the client key of user {endpoint.user}.",
            "Check that the allocation was given this run's public key.",
            code="auth_rejected",
        ) from error
    except TimeoutError as error:
        raise _failed(where, "no answer in time") from error
    except (asyncssh.Error, OSError) as error:
        raise _failed(where, type(error).__name__) from error


async def shown_host_key(host: str, port: int, limits: LinkLimits, kinds: Sequence[str] = ()) -> asyncssh.SSHKey | None:
    """The public key that the server at an address shows, of one of `kinds` if any; nothing is logged into.

    None where it has no such key. Raises `RemoteError` (`connect_failed`).
    """
    where = f"{host}:{port}"
    try:
        async with asyncio.timeout(limits.connect + limits.login):
            return await asyncssh.get_server_host_key(
                host, port, config=None, server_host_key_algs=list(kinds or HOST_KEY_ALGORITHMS)
            )
    except asyncssh.KeyExchangeFailed:
        return None
    except TimeoutError as error:
        raise _failed(where, "no answer in time") from error
    except (asyncssh.Error, OSError) as error:
        raise _failed(where, type(error).__name__) from error


@asynccontextmanager
async def _client_keys(
    endpoint: Endpoint, limits: LinkLimits
) -> AsyncIterator[Sequence[asyncssh.SSHKey | asyncssh.SSHKeyPair]]:
    """The endpoint's own key, or those of its agent, which signs as long as the context lasts.

    asyncssh asks no agent where it is given keys, and reads the operator's own files where it is given none.
    """
    if endpoint.client_key is not None:
        yield [_private_key(endpoint.client_key)]
        return
    try:
        async with asyncio.timeout(limits.connect):
            agent = await asyncssh.connect_agent(endpoint.agent_path or "")
            keys = await agent.get_keys()
    except (OSError, ValueError, TimeoutError, asyncssh.Error) as error:
        raise _no_agent("No SSH agent answers") from error
    try:
        if not keys:
            raise _no_agent("The SSH agent holds no key")
        yield keys
    finally:
        agent.close()


def _no_agent(what: str) -> RemoteError:
    return RemoteError(
        f"{what}, and this host has no key file.",
        "Start an agent, add the key with ssh-add, and start glasshouse where SSH_AUTH_SOCK names it.",
        code="agent_unusable",
    )


def pinned_key(line: str) -> asyncssh.SSHKey:
    """A public key from its line; raises `RemoteError` (`key_unusable`)."""
    try:
        return asyncssh.import_public_key(line)
    except asyncssh.KeyImportError as error:
        raise _unreadable() from error


def _private_key(key: bytes | Path) -> asyncssh.SSHKey:
    try:
        return asyncssh.import_private_key(key) if isinstance(key, bytes) else asyncssh.read_private_key(key)
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, OSError) as error:
        raise _unreadable() from error


def _unreadable() -> RemoteError:
    return RemoteError(
        "An SSH key of this allocation cannot be read.",
        "Release the allocation; of your own host, check the key file: one with a passphrase needs an agent.",
        code="key_unusable",
    )


def _pinned_first(host_key: asyncssh.SSHKey) -> list[str]:
    """Every algorithm, the pinned key's own before the others.

    A server without the pinned kind of key then shows the one it has, and the mismatch is seen here, not told by
    a server that hangs up.
    """
    own = {algorithm.decode() for algorithm in host_key.sig_algorithms}
    return sorted(HOST_KEY_ALGORITHMS, key=lambda name: name not in own)


def _mismatch(where: str) -> RemoteError:
    return RemoteError(
        f"{where} shows another host key than the one pinned for this allocation; nothing was sent to it.",
        "Somebody may be in between, or the allocation was replaced: release it.",
        code="host_key_mismatch",
    )


def _failed(where: str, why: str) -> RemoteError:
    return RemoteError(f"No SSH connection to {where}: {why}.", "Is the allocation up?", code="connect_failed")
