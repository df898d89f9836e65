"""Opening an SSH connection: one pinned host key, one client key or an agent's keys, no settings from the operator's
SSH configuration.
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
        raise mismatch(where) from error
    except asyncssh.KeyExchangeFailed as error:
        if "host key" in error.reason:
            raise mismatch(where) from error
        raise _failed(where, "no common algorithms") from error
    except asyncssh.PermissionDenied as error:
        raise RemoteError(
            f"{where} rejected the client key of user {endpoint.user}.",
            "Check that the allocation was created with this run's public key; for your own host, check user and key.",
            code="auth_rejected",
        ) from error
    except TimeoutError as error:
        raise _failed(where, "no answer in time") from error
    except (asyncssh.Error, OSError) as error:
        raise _failed(where, type(error).__name__) from error


async def shown_host_key(host: str, port: int, limits: LinkLimits, kinds: Sequence[str] = ()) -> asyncssh.SSHKey:
    """The public key that the server at an address presents, of one of `kinds` if any are given, without logging in.

    Raises `RemoteError` (`connect_failed`), also if it has no key of these kinds.
    """
    where = f"{host}:{port}"
    try:
        async with asyncio.timeout(limits.connect + limits.login):
            shown = await asyncssh.get_server_host_key(
                host, port, config=None, server_host_key_algs=list(kinds or HOST_KEY_ALGORITHMS)
            )
    except TimeoutError as error:
        raise _failed(where, "no answer in time") from error
    except (asyncssh.Error, OSError) as error:
        raise _failed(where, type(error).__name__) from error
    if shown is None:
        raise _failed(where, "no host key")
    return shown


@asynccontextmanager
async def _client_keys(
    endpoint: Endpoint, limits: LinkLimits
) -> AsyncIterator[Sequence[asyncssh.SSHKey | asyncssh.SSHKeyPair]]:
    """The endpoint's own key, or those of its agent, which stays connected for the context.

    The agent's keys are passed explicitly: asyncssh uses no agent when it is given keys, and reads the operator's own
    key files when it is given none.
    """
    if endpoint.client_key is not None:
        yield [_private_key(endpoint.client_key)]
        return
    try:
        async with asyncio.timeout(limits.connect):
            agent = await asyncssh.connect_agent(endpoint.agent_path or "")
            keys = await agent.get_keys()
    except (OSError, ValueError, TimeoutError, asyncssh.Error) as error:
        raise _no_usable_agent("No SSH agent answers") from error
    try:
        if not keys:
            raise _no_usable_agent("The SSH agent has no keys")
        yield keys
    finally:
        agent.close()


def _no_usable_agent(what: str) -> RemoteError:
    return RemoteError(
        f"{what}, and no key file is configured for this host.",
        "Start an agent, add the key with ssh-add, and start glasshouse with SSH_AUTH_SOCK set.",
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
        "Release the allocation; for your own host, check the key file. A key with a passphrase needs an agent.",
        code="key_unusable",
    )


def _pinned_first(host_key: asyncssh.SSHKey) -> list[str]:
    """Every algorithm, those of the pinned key first.

    A server without that kind of key then presents another one, and the mismatch is detected here; with the pinned kind
    alone it would only close the connection.
    """
    own = {algorithm.decode() for algorithm in host_key.sig_algorithms}
    return sorted(HOST_KEY_ALGORITHMS, key=lambda name: name not in own)


def mismatch(where: str) -> RemoteError:
    """The error for a server whose host key is not the pinned one."""
    return RemoteError(
        f"{where} presents a host key other than the one pinned for this allocation; nothing was sent to it.",
        "Release the allocation: somebody may be intercepting the connection, or the machine was replaced.",
        code="host_key_mismatch",
    )


def _failed(where: str, why: str) -> RemoteError:
    return RemoteError(
        f"No SSH connection to {where}: {why}.",
        "Check that the allocation is running and can be reached.",
        code="connect_failed",
    )
