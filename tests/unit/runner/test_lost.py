"""A home that is removed, replaced or only away for a moment."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine.runner.lost import Watched
from engine.store.home import database_path
from engine.store.writer import Writer


@pytest.fixture
def home(tmp_path: Path) -> Path:
    with Writer(tmp_path / "home"):
        return tmp_path / "home"


def code(watched: Watched) -> str | None:
    watched.lost()
    error = watched.lost()
    return None if error is None else error.code


def test_a_home_that_is_made_again_is_another_home(home: Path) -> None:
    """A file system gives the number of a removed inode to the next one, unless somebody holds it."""
    watched = Watched(home)
    for _ in range(5):
        shutil.rmtree(home)
        with Writer(home):
            pass
        assert code(watched) == "home_gone"


def held() -> set[str]:
    return {str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()}


def test_the_inodes_stay_in_use_as_long_as_they_are_watched(home: Path) -> None:
    """Whether a file system gives a number out again at once is up to it; that it cannot is up to us."""
    paths = {str(home), str(database_path(home))}
    watched = Watched(home)
    assert paths <= held()
    del watched
    assert not paths & held()


def test_a_database_that_is_made_again_is_another_database(home: Path) -> None:
    watched = Watched(home)
    database_path(home).unlink()
    database_path(home).touch()
    assert code(watched) == "database_gone"


def test_a_home_that_is_away_for_one_look_is_not_lost(home: Path, tmp_path: Path) -> None:
    watched = Watched(home)
    home.rename(tmp_path / "moved")
    assert watched.is_doubtful
    assert watched.lost() is None
    (tmp_path / "moved").rename(home)
    assert not watched.is_doubtful
    assert code(watched) is None


def test_a_folder_in_a_home_that_is_being_removed_is_not_the_reason(home: Path) -> None:
    folder = home / "runs" / "one"
    folder.mkdir(parents=True)
    watched = Watched(home, folder)
    shutil.rmtree(folder)
    watched.lost()
    shutil.rmtree(home)
    assert watched.lost() is None, "the folder has been gone for two looks, the home for one"
    assert code(watched) == "home_gone"


def test_a_runs_folder_alone_is_told_as_such(home: Path) -> None:
    folder = home / "runs" / "one"
    folder.mkdir(parents=True)
    watched = Watched(home, folder)
    shutil.rmtree(folder)
    assert code(watched) == "run_folder_missing"
