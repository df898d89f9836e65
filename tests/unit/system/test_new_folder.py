"""A new folder: private, complete, or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.system.new_folder import is_free, new_folder, write_file


def test_a_folder_appears_whole_and_private_and_under_its_own_name(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    big = tmp_path / "big"
    big.write_bytes(b"x" * 3_000_000)
    with new_folder(target) as part:
        assert part.name == "out"
        write_file(part / "a", b"a")
        write_file(part / "sub" / "b", big)
        assert not target.exists()
    assert (target / "a").read_bytes() == b"a"
    assert (target / "sub" / "b").read_bytes() == big.read_bytes()
    modes = {str(path.relative_to(target)): path.stat().st_mode & 0o777 for path in (target, *target.rglob("*"))}
    assert modes == {".": 0o700, "a": 0o600, "sub": 0o700, "sub/b": 0o600}
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as part:
        write_file(part / "a", b"a")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(FileExistsError), new_folder(target) as part:
        write_file(part / "a", b"a")
        target.mkdir()
        (target / "theirs").write_text("theirs")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


def test_what_is_free(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    names = ("absent", "empty", "full", "full/x", "link", "dangling")
    assert [is_free(tmp_path / name) for name in names] == [True, True, False, False, False, False]


def test_a_source_that_never_ends_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="regular"):
        write_file(tmp_path / "copy", tmp_path / "fifo")
