"""Which host key is requested from a server with several, and the error for one without the pinned kind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncssh
import pytest

from engine.errors import RemoteError
from engine.remote.endpoint import Endpoint, LinkLimits
from engine.remote.session import SshSession

KINDS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa")


async def _connect(pinned: asyncssh.SSHKey, *held: asyncssh.SSHKey) -> None:
    client = asyncssh.generate_private_key("ssh-ed25519")
    trusted = asyncssh.import_authorized_keys(client.export_public_key().decode())
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_host_keys=list(held), authorized_client_keys=trusted, sftp_factory=True
    )
    try:
        endpoint = Endpoint(
            host="127.0.0.1",
            port=server.get_port(),
            user="root",
            host_key=pinned.export_public_key().decode(),
            client_key=client.export_private_key(),
        )
        async with await asyncio.wait_for(SshSession.connect(endpoint, LinkLimits()), 60) as session:
            assert await session.exists(str(Path("/")))
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_with_several_keys_presents_the_pinned_one(kind: str) -> None:
    keys = {name: asyncssh.generate_private_key(name) for name in KINDS}
    await _connect(keys[kind], *keys.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held", KINDS)
async def test_a_server_with_another_key_of_any_kind_is_a_mismatch(kind: str, held: str) -> None:
    pinned = asyncssh.generate_private_key(kind)
    other = asyncssh.generate_private_key(held)
    with pytest.raises(RemoteError) as caught:
        await _connect(pinned, other)
    assert caught.value.code == "host_key_mismatch"
