"""Opening an SSH connection: one pinned host key, one client key or an agent's keys, no settings from the operator's
SSH configuration. Through jump hosts, each of them is a connection of this kind, pinned like the last one.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import asyncssh

from engine.errors import RemoteError
from engine.remote.client_keys import client_keys, fingerprints, pinned_key
from engine.remote.connect_errors import (
    closed_early,
    failed,
    mismatch,
    no_common_algorithm,
    outdated,
    rejected,
    unreachable,
    where_of,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

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
OUTDATED_HOST_KEYS: Final = ("ssh-rsa",)
"""Signatures with SHA-1: requested only to name what an old server has, never to log in."""
_TOO_MANY: Final = "oo many authentication failures"
"""What sshd says, in either case of its first letter, when an agent has offered too many keys."""


class _Client(asyncssh.SSHClient):
    """Remembers the key of a server that is not trusted, for the error, and trusts none."""

    def __init__(self) -> None:
        self.shown: asyncssh.SSHKey | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.shown = key
        return False


async def connect(endpoint: Endpoint, limits: LinkLimits) -> asyncssh.SSHClientConnection:
    """Connect and log in, through the endpoint's jump hosts if it has any; they close with the connection.

    Raises `RemoteError`: `connect_failed` (refused, unreachable or too slow; trying again may help),
    `host_key_mismatch`, `auth_rejected`, `key_unusable`, `agent_unusable`, `algorithms_outdated`, `jump_refused`. The
    sentence names the server that it is about.
    """
    opened: asyncssh.SSHClientConnection | None = None
    for step in (*endpoint.jumps, endpoint):
        opened = await _through(opened, step, limits)
    if opened is None:
        raise RuntimeError("an endpoint has at least itself")
    return opened


@asynccontextmanager
async def connected(
    jumps: Sequence[Endpoint], limits: LinkLimits
) -> AsyncIterator[asyncssh.SSHClientConnection | None]:
    """The connection to the last of several jump hosts, None without any; raises as `connect`."""
    opened: asyncssh.SSHClientConnection | None = None
    try:
        for step in jumps:
            opened = await _through(opened, step, limits)
        yield opened
    finally:
        if opened is not None:
            opened.close()


async def _through(
    tunnel: asyncssh.SSHClientConnection | None, endpoint: Endpoint, limits: LinkLimits
) -> asyncssh.SSHClientConnection:
    try:
        async with client_keys(endpoint, limits) as keys:
            made = await _connect(endpoint, limits, keys, tunnel)
    except BaseException:
        if tunnel is not None:
            tunnel.close()
        raise
    if tunnel is not None:
        made.set_tunnel(tunnel)  # closed with it; asyncssh does so by itself only for jumps that it opened
    return made


async def _connect(
    endpoint: Endpoint,
    limits: LinkLimits,
    keys: Sequence[asyncssh.SSHKey | asyncssh.SSHKeyPair],
    tunnel: asyncssh.SSHClientConnection | None,
) -> asyncssh.SSHClientConnection:
    host_key, client = pinned_key(endpoint.host_key), _Client()
    where = where_of_endpoint(endpoint)
    try:
        return await asyncssh.connect(
            endpoint.host,
            endpoint.port,
            tunnel=tunnel,
            client_factory=lambda: client,
            username=endpoint.user,
            client_keys=list(keys),
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
        raise mismatch(where, host_key.get_fingerprint(), client.shown) from error
    except asyncssh.PermissionDenied as error:
        raise rejected(where, endpoint.user, fingerprints(keys)) from error
    except (asyncssh.Error, OSError, TimeoutError) as error:
        if _TOO_MANY in str(error):
            raise rejected(where, endpoint.user, fingerprints(keys), f"t{_TOO_MANY}") from error
        raise await _explained(error, endpoint, limits, tunnel) from error


async def shown_host_key(
    endpoint: Endpoint,
    limits: LinkLimits,
    kinds: Sequence[str] = (),
    tunnel: asyncssh.SSHClientConnection | None = None,
) -> asyncssh.SSHKey:
    """The public key that the endpoint's server presents, of one of `kinds` if any are given, without logging in.

    The connection goes through `tunnel`, never around it. Raises `RemoteError` (`connect_failed`,
    `algorithms_outdated`), also if the server has no key of these kinds.
    """
    try:
        async with asyncio.timeout(limits.connect + limits.login):
            shown = await _presented(endpoint, kinds or HOST_KEY_ALGORITHMS, tunnel)
    except (asyncssh.Error, OSError, TimeoutError) as error:
        raise (_translated(error, endpoint) if kinds else await _explained(error, endpoint, limits, tunnel)) from error
    if shown is None:
        raise failed(where_of_endpoint(endpoint), "it has no host key")
    return shown


async def _presented(
    endpoint: Endpoint, kinds: Sequence[str], tunnel: asyncssh.SSHClientConnection | None
) -> asyncssh.SSHKey | None:
    return await asyncssh.get_server_host_key(
        endpoint.host, endpoint.port, tunnel=tunnel, config=None, server_host_key_algs=list(kinds)
    )


async def _explained(
    error: Exception, endpoint: Endpoint, limits: LinkLimits, tunnel: asyncssh.SSHClientConnection | None
) -> RemoteError:
    """The error for a failed connection.

    A server whose host keys are all of a kind that is refused here hangs up without a word, and asyncssh keeps its list
    to itself: such a server is asked once more, for that kind.
    """
    if isinstance(error, asyncssh.ConnectionLost | ConnectionResetError | BrokenPipeError):
        where = where_of_endpoint(endpoint)
        try:
            async with asyncio.timeout(limits.connect):
                await _presented(endpoint, OUTDATED_HOST_KEYS, tunnel)
            return outdated(where, "host key", OUTDATED_HOST_KEYS, HOST_KEY_ALGORITHMS)
        except asyncssh.KeyExchangeFailed as again:
            # The first time, its reset overtook the list that it had sent.
            if "host key" not in again.reason:
                return no_common_algorithm(where, again.reason)
        except (asyncssh.Error, OSError, TimeoutError):
            pass
    return _translated(error, endpoint)


def _translated(error: Exception, endpoint: Endpoint) -> RemoteError:
    where = where_of_endpoint(endpoint)
    if isinstance(error, asyncssh.KeyExchangeFailed):
        return no_common_algorithm(where, error.reason)
    if isinstance(error, asyncssh.ChannelOpenError):
        return _not_forwarded(error, endpoint)
    if isinstance(error, TimeoutError):
        return failed(
            where, "no answer came in time", "Check the address, and whether a firewall drops the connection."
        )
    if isinstance(error, OSError):
        return unreachable(where, endpoint.host, error)
    return closed_early(where, error)


def _not_forwarded(error: asyncssh.ChannelOpenError, endpoint: Endpoint) -> RemoteError:
    """The jump host before this server opened no connection to it."""
    where = where_of_endpoint(endpoint)
    if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
        return RemoteError(
            f"The jump host before {where} does not forward connections to it.",
            "Allow it there: AllowTcpForwarding (yes or local) and PermitOpen in its sshd_config, and no `restrict` or "
            "`no-port-forwarding` for this key in authorized_keys.",
            code="jump_refused",
        )
    return failed(where, "the jump host before it cannot reach it", "Check the address as that jump host sees it.")


def where_of_endpoint(endpoint: Endpoint) -> str:
    """The server in a sentence: a jump host as such, the last one with the number of jumps before it."""
    where = where_of(endpoint.host, endpoint.port)
    if endpoint.label:
        return f"{endpoint.label} {where}"
    if endpoint.jumps:
        return f"{where} (through {', '.join(where_of(one.host, one.port) for one in endpoint.jumps)})"
    return where


def _pinned_first(host_key: asyncssh.SSHKey) -> list[str]:
    """Every algorithm, those of the pinned key first.

    A server without that kind of key then presents another one, and the mismatch is detected here; with the pinned kind
    alone it would only close the connection.
    """
    own = {algorithm.decode() for algorithm in host_key.sig_algorithms}
    return sorted(HOST_KEY_ALGORITHMS, key=lambda name: name not in own)
