"""The one private write: what a reader, a crash and a power cut may see of it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from engine.system.files import overwrite, private_file, write_private


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
