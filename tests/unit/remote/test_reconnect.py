from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import asyncssh
import pytest

from engine.errors import ProviderError, RemoteError
from engine.remote.reconnect import Reconnecting
from engine.remote.session import SshSession
from engine.remote.transfer import upload

if TYPE_CHECKING:
    from tests.unit.remote.conftest import Allocation


async def test_an_operation_survives_two_killed_servers(allocation: Allocation, folder: Path) -> None:
    changes: list[bool] = []
    tries = 0

    async def write(session: SshSession) -> str:
        nonlocal tries
        tries += 1
        if tries <= 2:
            allocation.kill_server()
        return await upload(session, b"data", str(folder / "file"))

    link = Reconnecting(allocation.session, allocation.limits, on_link=lambda up, _: changes.append(up))
    async with link:
        await link.call(write)
        assert tries == 3
        assert changes == [True, False, True, False, True]
    assert (folder / "file").read_bytes() == b"data"


async def test_one_session_serves_while_the_link_holds(allocation: Allocation) -> None:
    async with Reconnecting(allocation.session, allocation.limits) as link:

        async def same(session: SshSession) -> SshSession:
            return session

        assert await link.call(same) is await link.call(same)


async def test_an_error_of_the_operation_itself_is_not_retried(allocation: Allocation) -> None:
    tries = 0

    async def missing(session: SshSession) -> None:
        nonlocal tries
        tries += 1
        await session.read_at(str(allocation.root / "none"), 0, 1)

    async with Reconnecting(allocation.session, allocation.limits) as link:
        with pytest.raises(RemoteError) as caught:
            await link.call(missing)
    assert (caught.value.code, tries) == ("remote_missing", 1)


async def test_a_wrong_host_key_or_a_gone_allocation_ends_the_attempts(allocation: Allocation) -> None:
    endpoint = (await allocation.provider.wait_ready(allocation.lease)).endpoint()
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()

    async def impostor() -> SshSession:
        return await SshSession.connect(replace(endpoint, host_key=other), allocation.limits)

    async def gone() -> SshSession:
        raise ProviderError("It is gone.", code="allocation_gone")

    for opener, code in ((impostor, "host_key_mismatch"), (gone, "allocation_gone")):
        with pytest.raises((RemoteError, ProviderError)) as caught:
            await Reconnecting(opener, allocation.limits).call(SshSession.sftp)
        assert caught.value.code == code


async def test_it_gives_up_at_its_deadline_with_growing_jittered_pauses(allocation: Allocation) -> None:
    endpoint = (await allocation.provider.wait_ready(allocation.lease)).endpoint()
    bounds: list[float] = []

    async def refused() -> SshSession:
        return await SshSession.connect(replace(endpoint, port=1), allocation.limits)

    def jitter(most: float) -> float:
        bounds.append(most)
        return most

    limits = replace(allocation.limits, give_up=3.0)
    began = time.monotonic()
    with pytest.raises(RemoteError) as caught:
        await Reconnecting(refused, limits, jitter=jitter).call(SshSession.sftp)
    assert caught.value.code == "connect_failed"
    assert time.monotonic() - began < 33.0
    assert bounds[:4] == [0.05, 0.1, 0.2, 0.2]


async def test_an_attempt_that_the_deadline_cuts_off_leaves_the_failure_before_it(allocation: Allocation) -> None:
    endpoint = (await allocation.provider.wait_ready(allocation.lease)).endpoint()
    attempts = 0

    async def refused_then_silent() -> SshSession:
        nonlocal attempts
        attempts += 1
        if attempts > 1:
            await asyncio.Event().wait()
        return await SshSession.connect(replace(endpoint, port=1), allocation.limits)

    limits = replace(allocation.limits, give_up=1.0)
    with pytest.raises(RemoteError) as caught:
        await Reconnecting(refused_then_silent, limits).call(SshSession.sftp)
    assert (caught.value.code, attempts) == ("connect_failed", 2)
