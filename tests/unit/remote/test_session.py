from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import asyncssh
import pytest

from engine.errors import RemoteError
from engine.remote.endpoint import Endpoint, LinkLimits
from engine.remote.session import SshSession
from engine.remote.transfer import put_inbox, upload

if TYPE_CHECKING:
    from tests.unit.remote.conftest import Allocation

LIMITS = LinkLimits(connect=30, login=30)


def _new_key(algorithm: str = "ssh-ed25519") -> asyncssh.SSHKey:
    return asyncssh.generate_private_key(algorithm)


async def _refusal(endpoint: Endpoint) -> str:
    with pytest.raises(RemoteError) as caught:
        await SshSession.connect(endpoint, LIMITS)
    return caught.value.code


async def _endpoint(allocation: Allocation) -> Endpoint:
    allocation.lease = await allocation.provider.wait_ready(allocation.lease)
    return allocation.lease.endpoint()


@pytest.mark.parametrize("algorithm", ["ssh-ed25519", "ecdsa-sha2-nistp256"])
async def test_a_server_with_another_host_key_is_refused(allocation: Allocation, algorithm: str) -> None:
    other = _new_key(algorithm).export_public_key().decode()
    endpoint = replace(await _endpoint(allocation), host_key=other)
    assert await _refusal(endpoint) == "host_key_mismatch"


async def test_a_foreign_client_key_is_refused(allocation: Allocation) -> None:
    endpoint = replace(await _endpoint(allocation), client_key=_new_key().export_private_key())
    assert await _refusal(endpoint) == "auth_rejected"


async def test_another_user_is_refused(allocation: Allocation) -> None:
    endpoint = replace(await _endpoint(allocation), user="root")
    assert await _refusal(endpoint) == "auth_rejected"


async def test_a_closed_port_and_a_silent_one_are_connect_failures(allocation: Allocation) -> None:
    endpoint = await _endpoint(allocation)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        free = silent.getsockname()[1]
        assert await _refusal(replace(endpoint, port=free)) == "connect_failed"
        silent.listen()
        with pytest.raises(RemoteError) as caught:
            await SshSession.connect(replace(endpoint, port=free), replace(LIMITS, login=0.3))
        assert caught.value.code == "connect_failed"


async def test_a_damaged_key_is_named_without_its_content(allocation: Allocation, tmp_path: Path) -> None:
    endpoint = await _endpoint(allocation)
    bad = tmp_path / "key"
    bad.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nSECRETSECRET\n")
    with pytest.raises(RemoteError) as caught:
        await SshSession.connect(replace(endpoint, client_key=bad), LIMITS)
    assert caught.value.code == "key_unusable"
    assert "SECRET" not in str(caught.value.as_dict())
    assert "SECRET" not in repr(replace(endpoint, client_key=b"SECRET"))


async def test_a_command_gets_its_arguments_and_input_unchanged(session: SshSession) -> None:
    words = ["a b", "$HOME", "'", "", "line\nline", "*"]
    result = await session.run(["printf", "%s|", *words])
    assert (result.exit_status, result.stdout) == (0, b"".join(word.encode() + b"|" for word in words))
    data = bytes(range(256)) * 2000
    assert (await session.run(["cat"], stdin=data)).stdout == data


async def test_status_and_both_outputs_come_back(session: SshSession) -> None:
    result = await session.run(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (result.exit_status, result.stdout, result.stderr) == (7, b"out\n", b"err\n")


async def test_a_command_ended_by_a_signal_has_no_status(session: SshSession) -> None:
    killed = await session.run(["sh", "-c", "kill -9 $PPID"])
    assert killed.exit_status is None


async def test_endless_output_is_cut_off(session: SshSession) -> None:
    with pytest.raises(RemoteError) as caught:
        await session.run(["yes"], max_output=100_000)
    assert caught.value.code == "remote_output_too_long"
    assert (await session.run(["echo", "still here"])).stdout == b"still here\n"


async def test_a_command_that_takes_too_long_is_abandoned(session: SshSession) -> None:
    with pytest.raises(RemoteError) as caught:
        await session.run(["sleep", "5"], timeout=0.2)
    assert caught.value.code == "remote_timeout"
    assert (await session.run(["echo", "on"])).stdout == b"on\n"


async def test_a_command_on_a_killed_server_is_a_lost_link(allocation: Allocation, session: SshSession) -> None:
    running = asyncio.create_task(session.run(["sleep", "30"]))
    await asyncio.sleep(0.2)
    allocation.kill_server()
    with pytest.raises(RemoteError) as caught:
        await running
    assert caught.value.code == "link_lost"
    assert not session.is_open
    for operation in (session.run(["true"]), session.exists("/"), upload(session, b"x", "/x")):
        with pytest.raises(RemoteError) as caught:
            await operation
        assert caught.value.code == "link_lost"


async def test_a_frozen_server_is_noticed_after_the_silent_intervals(
    allocation: Allocation, session: SshSession
) -> None:
    ready = allocation.ready()
    os.kill(ready.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(RemoteError) as caught:
            await session.run(["true"])
        waited = time.monotonic() - began
    finally:
        os.kill(ready.pid, signal.SIGCONT)
    assert caught.value.code == "link_lost"
    silent = allocation.limits.keepalive_interval * allocation.limits.keepalive_count
    assert silent * 0.7 < waited < silent + 30.0 < allocation.limits.command


async def test_folders_and_presence(session: SshSession, folder: Path) -> None:
    made = folder / "sub"
    await session.mkdir(str(made))
    await session.mkdir(str(made))
    assert made.stat().st_mode & 0o777 == 0o700
    assert await session.exists(str(made))
    assert not await session.exists(str(folder / "none"))
    (folder / "file").write_bytes(b"x")
    with pytest.raises(RemoteError) as caught:
        await session.mkdir(str(folder / "file"))
    assert caught.value.code == "remote_not_a_folder"


async def test_removing_a_tree_removes_links_and_not_their_targets(
    session: SshSession, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "kept").write_bytes(b"x")
    (folder / "link").symlink_to(tmp_path)
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "file").write_bytes(b"x")
    await session.remove_tree(str(folder))
    await session.remove_tree(str(folder))
    assert not await session.exists(str(folder))
    assert (tmp_path / "kept").read_bytes() == b"x"


@pytest.mark.parametrize("path", ["/", "/home", "a/relative/path", "/a/../b", "/a/b/.."])
async def test_removing_anything_but_a_run_folder_is_refused(session: SshSession, path: str) -> None:
    with pytest.raises(RemoteError) as caught:
        await session.remove_tree(path)
    assert caught.value.code == "remote_path_refused"


async def test_reading_from_an_offset_is_bounded_by_the_end(session: SshSession, folder: Path) -> None:
    data = os.urandom(700_000)
    (folder / "data").write_bytes(data)
    path = str(folder / "data")
    assert await session.read_at(path, 100, 600_000) == data[100:600_100]
    assert await session.read_at(path, 699_999, 10) == data[-1:]
    assert await session.read_at(path, 700_000, 10) == b""
    with pytest.raises(RemoteError) as caught:
        await session.read_at(path + "x", 0, 1)
    assert caught.value.code == "remote_missing"


async def test_an_inbox_message_appears_whole_under_its_name(session: SshSession, folder: Path) -> None:
    (folder / "inbox").mkdir()
    await put_inbox(session, str(folder), "release.json", b"{}")
    await put_inbox(session, str(folder), "release.json", b'{"again":1}')
    assert [path.name for path in (folder / "inbox").iterdir()] == ["release.json"]
    assert (folder / "inbox" / "release.json").read_bytes() == b'{"again":1}'
    for name in ("../job.json", "a/b", "", ".hidden"):
        with pytest.raises(RemoteError) as caught:
            await put_inbox(session, str(folder), name, b"x")
        assert caught.value.code == "remote_path_refused"
