"""The client's side of a login: one private key, or the keys of an agent that signs and is never forwarded."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import asyncssh

from engine.errors import RemoteError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from engine.remote.endpoint import Endpoint, LinkLimits

_ENCRYPTED = "passphrase"
"""In asyncssh's sentence about an encrypted key; it has no error type of its own for one."""


@asynccontextmanager
async def client_keys(
    endpoint: Endpoint, limits: LinkLimits
) -> AsyncIterator[Sequence[asyncssh.SSHKey | asyncssh.SSHKeyPair]]:
    """The endpoint's own key, or those of its agent, which stays connected for the context.

    The agent's keys are passed explicitly: asyncssh uses no agent when it is given keys, and reads the operator's own
    key files when it is given none. Raises `RemoteError`: `key_unusable`, `agent_unusable`.
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


def check_key_file(path: Path) -> None:
    """Read a private key as a login would; raises `RemoteError` (`key_unusable`)."""
    _private_key(path)


def pinned_key(line: str) -> asyncssh.SSHKey:
    """A public key from its line; raises `RemoteError` (`key_unusable`)."""
    try:
        return asyncssh.import_public_key(line)
    except asyncssh.KeyImportError as error:
        raise _unusable("The host key that is pinned for this allocation cannot be read.") from error


def fingerprints(keys: Sequence[asyncssh.SSHKey | asyncssh.SSHKeyPair]) -> list[str]:
    """The SHA-256 fingerprints of the keys that a login offers, as `ssh-keygen -l` prints them."""
    digests = (sha256(key.public_data).digest() for key in keys)
    return [f"SHA256:{b64encode(digest).decode().rstrip('=')}" for digest in digests]


def _private_key(key: bytes | Path) -> asyncssh.SSHKey:
    name = f"The client key {key}" if isinstance(key, Path) else "The client key of this allocation"
    try:
        return asyncssh.import_private_key(key) if isinstance(key, bytes) else asyncssh.read_private_key(key)
    except OSError as error:
        raise _unusable(f"{name} cannot be read: {(error.strerror or type(error).__name__).lower()}.") from error
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        if _ENCRYPTED in str(error).lower():
            raise RemoteError(
                f"{name} has a passphrase, and a run in the background has nobody to ask for it.",
                "Add it to an agent with ssh-add, and set `agent = true` in place of `key` for this host; an agent "
                "only signs and is never forwarded. Or name a key without a passphrase.",
                code="key_unusable",
            ) from None
        raise _unusable(f"{name} is not a private key that can be read.") from error


def _no_usable_agent(what: str) -> RemoteError:
    return RemoteError(
        f"{what}, and no key file is configured for this host.",
        "Start an agent, add the key with ssh-add, and start glasshouse with SSH_AUTH_SOCK set.",
        code="agent_unusable",
    )


def _unusable(sentence: str) -> RemoteError:
    return RemoteError(
        sentence, "Release the allocation; for your own host, check `key` and `host_key`.", code="key_unusable"
    )
