"""The one private write: what a reader, a crash and a power cut may see of it."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from engine.system.files import overwrite, private_file, read_named, write_private


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What was synced, in order, and whether the final name existed by then."""
    seen: list[tuple[str, bool]] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        folder = path if path.is_dir() else path.parent
        seen.append(("folder" if path.is_dir() else "file", (folder / "key").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    return seen


def test_the_bytes_are_synced_before_the_name_exists_and_the_folder_after(
    tmp_path: Path, synced: list[tuple[str, bool]]
) -> None:
    write_private(tmp_path / "key", b"secret")
    assert synced == [("file", False), ("folder", True)]
    assert (tmp_path / "key").read_bytes() == b"secret"


def test_only_the_owner_may_read_it_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_private(tmp_path / "key", b"secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"old")
    with pytest.raises(RuntimeError), private_file(tmp_path / "key") as file:
        file.write(b"half of the n")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert (tmp_path / "key").read_bytes() == b"old"


def test_a_link_at_the_target_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"untouched")
    (tmp_path / "key").symlink_to(tmp_path / "victim")
    write_private(tmp_path / "key", b"secret")
    assert (tmp_path / "victim").read_bytes() == b"untouched"
    assert not (tmp_path / "key").is_symlink()


def test_what_may_be_lost_is_written_without_waiting_for_the_disk(
    tmp_path: Path, synced: list[tuple[str, bool]]
) -> None:
    write_private(tmp_path / "cache", b"prices", durable=False)
    assert synced == []


def test_overwriting_keeps_the_length_and_none_of_the_bytes(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"secret")
    with (tmp_path / "key").open("rb") as held:
        overwrite(tmp_path / "key")
        assert held.read() == bytes(6)


def _irregular(folder: Path) -> dict[str, Path]:
    """Things that a person may name instead of a file."""
    paths = {name: folder / name for name in ("fifo", "folder", "loop", "socket", "link")}
    os.mkfifo(paths["fifo"])
    paths["folder"].mkdir()
    paths["loop"].symlink_to(paths["loop"])
    paths["link"].symlink_to(paths["fifo"])
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(paths["socket"]))
    endless = {"zeros": Path("/dev/zero"), "terminal": Path("/dev/tty"), "name": Path("a\0b")}
    return {**paths, **endless, "missing": folder / "missing"}


def test_what_is_no_regular_file_is_refused_at_once_and_not_waited_for(tmp_path: Path) -> None:
    for path in _irregular(tmp_path).values():
        with pytest.raises(OSError, match=r".") as caught:
            read_named(path, 10)
        assert caught.value.strerror


def test_a_named_file_is_read_through_links_up_to_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 10)
    (tmp_path / "link").symlink_to(file)
    assert read_named(tmp_path / "link", 10) == b"x" * 10
    with pytest.raises(OSError, match="larger than 9 bytes"):
        read_named(file, 9)


def test_a_file_without_an_end_is_read_up_to_the_limit_only(tmp_path: Path) -> None:
    """A file of /proc states no size, as one that grows states an old one."""
    assert Path("/proc/self/status").stat().st_size == 0
    with pytest.raises(OSError, match="larger than 0 bytes"):
        read_named(Path("/proc/self/status"), 0)
