from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import asyncssh
import pytest

from engine.errors import RemoteError
from engine.providers.local.sftp import RootedSftp
from engine.remote.endpoint import Endpoint, LinkLimits
from engine.remote.session import SshSession
from engine.remote.transfer import BLOCK_BYTES, IN_FLIGHT, WINDOW_BYTES, download, in_order, upload

if TYPE_CHECKING:
    from tests.unit.remote.conftest import Allocation

CONTENT = os.urandom(2 * WINDOW_BYTES + 12345)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "weights"
    path.write_bytes(CONTENT)
    return path


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def _no_commands(process: asyncssh.SSHServerProcess[str]) -> None:
    process.exit(127)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@asynccontextmanager
async def _server(root: Path, kind: type[RootedSftp]) -> AsyncIterator[SshSession]:
    """An SSH server in this process whose SFTP server is of class `kind`, and which runs no commands."""
    host, client = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    keys = asyncssh.import_authorized_keys(client.export_public_key().decode())
    listener = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[host],
        authorized_client_keys=keys,
        process_factory=_no_commands,
        sftp_factory=lambda channel: kind(channel, str(root)),
        config=None,
    )
    endpoint = Endpoint(
        "127.0.0.1",
        listener.get_port(),
        "user",
        client.export_private_key(),
        host.export_public_key().decode(),
    )
    async with await SshSession.connect(endpoint, LinkLimits()) as session:
        yield session
    listener.close()


async def test_an_upload_is_complete_with_its_mode_and_leaves_no_part(
    session: SshSession, folder: Path, source: Path
) -> None:
    reported: list[tuple[int, int]] = []
    target = folder / "weights"
    digest = await upload(session, source, str(target), 0o640, lambda sent, total: reported.append((sent, total)))
    assert digest == _digest(CONTENT)
    assert target.read_bytes() == CONTENT
    assert target.stat().st_mode & 0o777 == 0o640
    assert _names(folder) == ["weights"]
    assert reported[-1] == (len(CONTENT), len(CONTENT))


async def test_an_identical_file_is_not_sent_again(session: SshSession, folder: Path, source: Path) -> None:
    reported: list[int] = []
    await upload(session, source, str(folder / "weights"))
    await upload(session, source, str(folder / "weights"), progress=lambda sent, _: reported.append(sent))
    assert reported == []


async def test_a_target_with_other_content_is_replaced(session: SshSession, folder: Path) -> None:
    target = folder / "job.json"
    target.write_bytes(b"old")
    await upload(session, b"new", str(target))
    assert target.read_bytes() == b"new"
    await upload(session, b"", str(target))
    assert target.read_bytes() == b""


async def test_an_upload_cut_by_a_killed_server_is_resumed(allocation: Allocation, folder: Path, source: Path) -> None:
    target = folder / "weights"

    def cut(sent: int, _total: int) -> None:
        if sent == WINDOW_BYTES + 12 * BLOCK_BYTES:
            allocation.kill_server()

    first = await allocation.session()
    with pytest.raises(RemoteError) as caught:
        await upload(first, source, str(target), progress=cut)
    assert caught.value.code == "link_lost"
    assert not target.exists()
    reported: list[int] = []
    async with await allocation.session() as second:
        await upload(second, source, str(target), progress=lambda sent, _: reported.append(sent))
    assert target.read_bytes() == CONTENT
    assert reported[0] > 10 * BLOCK_BYTES


@pytest.mark.parametrize("size", [WINDOW_BYTES + 1000, len(CONTENT), len(CONTENT) + 1000])
async def test_a_part_with_other_bytes_is_not_trusted(
    session: SshSession, folder: Path, source: Path, size: int
) -> None:
    (folder / "weights.part").write_bytes(os.urandom(size))
    assert await upload(session, source, str(folder / "weights")) == _digest(CONTENT)
    assert (folder / "weights").read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["target", "target.part"])
async def test_links_in_the_way_of_an_upload_are_refused(
    session: SshSession, folder: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "victim").write_bytes(b"kept")
    (folder / name).symlink_to(tmp_path / "victim")
    with pytest.raises(RemoteError) as caught:
        await upload(session, b"x", str(folder / "target"))
    assert caught.value.code == "remote_not_a_file"
    assert (tmp_path / "victim").read_bytes() == b"kept"


async def test_an_unreadable_source_is_named(session: SshSession, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RemoteError) as caught:
        await upload(session, tmp_path / "none", str(folder / "target"))
    assert caught.value.code == "local_unreadable"


class _Flipping(RootedSftp):
    def write(self, file_obj: object, offset: int, data: bytes) -> int:
        return super().write(file_obj, offset, bytes([data[0] ^ 1]) + data[1:])


@pytest.mark.parametrize("size", [1000, 400_000])
async def test_an_upload_with_changed_bytes_is_never_renamed_into_place(tmp_path: Path, size: int) -> None:
    async with _server(tmp_path, _Flipping) as session:
        with pytest.raises(RemoteError) as caught:
            await upload(session, os.urandom(size), str(tmp_path / "target"))
    assert caught.value.code == "upload_failed"
    assert not (tmp_path / "target").exists()


class _Small(RootedSftp):
    """A disk with 5 MiB left, as statvfs reports it."""

    def statvfs(self, path: bytes) -> asyncssh.SFTPVFSAttrs:
        return asyncssh.SFTPVFSAttrs(bsize=4096, frsize=4096, bavail=1280)


async def test_too_little_space_is_reported_before_anything_is_sent(tmp_path: Path) -> None:
    async with _server(tmp_path, _Small) as session:
        await upload(session, bytes(1000), str(tmp_path / "fits"))
        with pytest.raises(RemoteError) as caught:
            await upload(session, bytes(2 * 1024 * 1024), str(tmp_path / "target"))
    assert caught.value.code == "remote_disk_full"
    assert "5242880" in caught.value.message
    assert _names(tmp_path) == ["fits"]


class _Filling(RootedSftp):
    """A disk that others fill during the upload: first there is space, then writes fail."""

    full = False

    def statvfs(self, path: bytes) -> asyncssh.SFTPVFSAttrs:
        return asyncssh.SFTPVFSAttrs(bsize=4096, frsize=4096, bavail=0 if _Filling.full else 1 << 20)

    def write(self, file_obj: object, offset: int, data: bytes) -> int:
        _Filling.full = True
        raise OSError(28, "No space left on device")


async def test_a_disk_that_fills_during_an_upload_is_reported_as_full(tmp_path: Path) -> None:
    async with _server(tmp_path, _Filling) as session:
        with pytest.raises(RemoteError) as caught:
            await upload(session, bytes(1000), str(tmp_path / "target"))
    assert caught.value.code == "remote_disk_full"


class _Bare(RootedSftp):
    """A server without the extensions for free space and flushing."""

    def statvfs(self, path: bytes) -> asyncssh.SFTPVFSAttrs:
        raise asyncssh.SFTPOpUnsupported("no statvfs")

    def fsync(self, file_obj: object) -> None:
        raise asyncssh.SFTPOpUnsupported("no fsync")


async def test_a_server_without_extensions_and_without_a_hash_tool_still_serves(tmp_path: Path) -> None:
    data = os.urandom(400_000)
    async with _server(tmp_path, _Bare) as session:
        await upload(session, data, str(tmp_path / "target"))
    assert (tmp_path / "target").read_bytes() == data


async def test_a_download_is_whole_private_and_hashed(session: SshSession, folder: Path, tmp_path: Path) -> None:
    (folder / "adapter").write_bytes(CONTENT)
    digest = await download(session, str(folder / "adapter"), tmp_path / "adapter", len(CONTENT))
    assert digest == _digest(CONTENT)
    assert (tmp_path / "adapter").read_bytes() == CONTENT
    assert (tmp_path / "adapter").stat().st_mode & 0o777 == 0o600
    assert _names(tmp_path) == ["adapter"]


async def test_links_folders_and_oversized_files_are_not_downloaded(
    session: SshSession, folder: Path, tmp_path: Path
) -> None:
    (folder / "big").write_bytes(bytes(101))
    (folder / "link").symlink_to(folder / "big")
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe")
    for name, code in (
        ("big", "remote_too_large"),
        ("link", "remote_not_a_file"),
        ("sub", "remote_not_a_file"),
        ("pipe", "remote_not_a_file"),
        ("none", "remote_missing"),
    ):
        with pytest.raises(RemoteError) as caught:
            await download(session, str(folder / name), tmp_path / "got", 100)
        assert caught.value.code == code
    assert _names(tmp_path) == []


class _Shrinking(RootedSftp):
    def read(self, file_obj: object, offset: int, size: int) -> bytes:
        return b"" if offset > 0 else bytes(super().read(file_obj, offset, 10))  # type: ignore[arg-type]


async def test_a_file_that_ends_early_is_not_downloaded(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(bytes(1000))
    async with _server(tmp_path, _Shrinking) as session:
        with pytest.raises(RemoteError) as caught:
            await asyncio.wait_for(download(session, str(tmp_path / "log"), tmp_path / "got", 10_000), 60)
    assert caught.value.code == "remote_changed"
    assert not (tmp_path / "got").exists()


async def test_an_unwritable_place_is_named(session: SshSession, folder: Path, tmp_path: Path) -> None:
    (folder / "file").write_bytes(b"x")
    with pytest.raises(RemoteError) as caught:
        await download(session, str(folder / "file"), tmp_path / "none" / "got", 100)
    assert caught.value.code == "local_unwritable"


async def test_blocks_under_way_are_bounded_and_come_in_order() -> None:
    under_way, most = 0, 0

    async def transfer(number: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001 * (number % 3))
        under_way -= 1
        return number

    parts = ((transfer(number), number) for number in range(5 * IN_FLIGHT))
    assert [result async for result in in_order(parts)] == [(number, number) for number in range(5 * IN_FLIGHT)]
    assert most == IN_FLIGHT


async def test_a_file_for_which_this_machine_has_no_room_is_not_fetched(
    session: SshSession, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "big").write_bytes(bytes(101))
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr("engine.remote.transfer.shutil.disk_usage", lambda _: usage)
    with pytest.raises(RemoteError) as caught:
        await download(session, str(folder / "big"), tmp_path / "adapter", 1000)
    assert caught.value.code == "local_disk_full"
    assert caught.value.hint
    assert _names(tmp_path) == []
