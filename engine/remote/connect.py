"""Opening an SSH connection: one pinned host key, one client key, none of the operator's own settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import asyncssh

from engine.errors import RemoteError

if TYPE_CHECKING:
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
    `host_key_mismatch`, `auth_rejected`, `key_unusable`.
    """
    host_key, client_key = _keys(endpoint)
    where = f"{endpoint.host}:{endpoint.port}"
    try:
        return await asyncssh.connect(
            endpoint.host,
            endpoint.port,
            username=endpoint.user,
            client_keys=None if client_key is None else [client_key],
            known_hosts=([host_key], [], []),
            config=None,
            agent_path=endpoint.agent_path,
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


def _keys(endpoint: Endpoint) -> tuple[asyncssh.SSHKey, asyncssh.SSHKey | None]:
    try:
        host_key = asyncssh.import_public_key(endpoint.host_key)
        if endpoint.client_key is None:
            return host_key, None
        if isinstance(endpoint.client_key, bytes):
            return host_key, asyncssh.import_private_key(endpoint.client_key)
        return host_key, asyncssh.read_private_key(endpoint.client_key)
    except (asyncssh.KeyImportError, OSError) as error:
        raise RemoteError(
            "An SSH key of this allocation cannot be read.", "Release the allocation.", code="key_unusable"
        ) from error


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
