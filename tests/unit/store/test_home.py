"""The home folder and the database file: modes, unusable paths, files of other programs."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import StoreError
from engine.plan import Plan
from engine.store.connection import SCHEMA_VERSION
from engine.store.home import database_path
from engine.store.reader import Reader
from engine.store.writer import Writer

Child = Callable[..., "subprocess.Popen[str]"]


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def umask() -> Iterator[Callable[[int], None]]:
    before = os.umask(0o022)
    os.umask(before)

    def change(mask: int) -> None:
        os.umask(mask)

    yield change
    os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o277])
def test_home_and_database_are_private_whatever_the_umask(
    tmp_path: Path, umask: Callable[[int], None], plan: Plan, mask: int
) -> None:
    home = tmp_path / "home"
    umask(mask)
    with Writer(home) as writer:
        writer.create_run("r1", plan)
        assert mode(home) == 0o700
        files = {path.name: mode(path) for path in home.iterdir()}
    assert files.keys() >= {"glasshouse.db", "glasshouse.db-wal", "glasshouse.db-shm"}
    assert set(files.values()) == {0o600}


def test_a_database_that_others_can_read_is_made_private(home: Path) -> None:
    Writer(home).close()
    database_path(home).chmod(0o644)
    home.chmod(0o755)
    Writer(home).close()
    assert (mode(home), mode(database_path(home))) == (0o700, 0o600)


def test_a_folder_with_other_files_keeps_its_mode(home: Path) -> None:
    home.mkdir(mode=0o755)
    home.chmod(0o755)
    (home / "notes.txt").write_text("mine")
    Writer(home).close()
    assert (mode(home), mode(database_path(home))) == (0o755, 0o600)


def test_database_uses_the_write_ahead_log(home: Path, writer: Writer) -> None:
    assert sqlite3.connect(database_path(home)).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_reading_an_unused_home_creates_nothing(home: Path, reader: Reader) -> None:
    assert reader.runs() == []
    assert len(reader.runs(("published",))) == 17
    assert not reader.exists()
    assert not home.exists()


def test_a_reader_notices_when_the_database_is_created(home: Path, reader: Reader, plan: Plan) -> None:
    assert reader.runs() == []
    before = reader.data_version()
    with Writer(home) as writer:
        writer.create_run("r1", plan)
    assert reader.data_version() != before
    assert [run.id for run in reader.runs()] == ["r1"]


def test_data_version_changes_exactly_after_a_write(reader: Reader, writer: Writer, plan: Plan) -> None:
    first = reader.data_version()
    assert reader.data_version() == first
    writer.create_run("r1", plan)
    second = reader.data_version()
    assert second != first
    reader.runs()
    assert reader.data_version() == second


@pytest.mark.parametrize("make", [Writer, lambda home: Reader(home).runs()])
def test_a_corrupt_database_is_named_and_left_unchanged(home: Path, make: Callable[[Path], Any]) -> None:
    Writer(home).close()
    path = database_path(home)
    garbage = b"This was a database once. " * 400
    path.write_bytes(garbage)
    with pytest.raises(StoreError) as caught:
        make(home)
    assert caught.value.code == "store_corrupt"
    assert str(path) in caught.value.message
    assert "aside" in caught.value.hint
    assert path.read_bytes() == garbage


def test_damage_inside_the_file_is_reported_when_it_is_read(home: Path, plan: Plan) -> None:
    with Writer(home) as writer:
        for number in range(400):
            writer.create_run(f"run-{number:04}", plan)
    path = database_path(home)
    content = bytearray(path.read_bytes())
    content[4096 * 4 :] = os.urandom(len(content) - 4096 * 4)
    path.write_bytes(content)
    with pytest.raises(StoreError) as caught, Reader(home) as reader:
        for run in reader.runs():
            reader.run(run.id)
    assert caught.value.code == "store_corrupt"


def test_database_of_a_newer_version_is_refused(home: Path, reader: Reader) -> None:
    Writer(home).close()
    with sqlite3.connect(database_path(home)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    for use in (lambda: Writer(home), reader.runs):
        with pytest.raises(StoreError) as caught:
            use()
        assert caught.value.code == "store_newer"
        assert "Update" in caught.value.hint


def test_database_of_another_program_is_refused_unchanged(home: Path) -> None:
    home.mkdir()
    with sqlite3.connect(database_path(home)) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    before = database_path(home).read_bytes()
    with pytest.raises(StoreError) as caught:
        Writer(home)
    assert caught.value.code == "store_corrupt"
    assert database_path(home).read_bytes() == before


def test_empty_file_in_place_of_the_database_becomes_one(home: Path) -> None:
    home.mkdir()
    database_path(home).touch()
    with Reader(home) as reader:
        assert reader.count(("published",)) == 17


def test_home_under_a_file_is_unwritable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", tmp_path / "file" / "home"):
        with pytest.raises(StoreError) as caught:
            Writer(home)
        assert caught.value.code == "store_unwritable"
        assert str(home) in caught.value.message


def test_the_database_is_not_created_through_a_symlink(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    database_path(home).symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(StoreError) as caught:
        Writer(home)
    assert caught.value.code == "store_unwritable"
    assert not (tmp_path / "elsewhere.db").exists()


USE_WITHOUT_PRIVILEGES = """
import os, sys
from pathlib import Path
import engine.store.migrations
from engine.errors import StoreError
from engine.store.reader import Reader
from engine.store.writer import Writer
Reader(Path(sys.argv[1]) / "none").runs()  # import late modules now, before privileges are dropped
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for use in (lambda: Writer(Path(sys.argv[1])), lambda: Reader(Path(sys.argv[1])).runs()):
    try:
        use()
        print("usable")
    except StoreError as error:
        print(error.code)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_read_only_folder_is_unwritable_and_reads_as_empty(open_folder: Path, child: Child) -> None:
    home = open_folder / "home"
    home.mkdir()
    (home / "notes.txt").write_text("mine")
    home.chmod(0o555)
    out, err = child(USE_WITHOUT_PRIVILEGES, home).communicate(timeout=300)
    home.chmod(0o700)
    assert (out.split(), err) == (["store_unwritable", "usable"], "")


def test_a_database_in_a_read_only_folder_is_unwritable(open_folder: Path, child: Child) -> None:
    home = open_folder / "home"
    Writer(home).close()
    home.chmod(0o500)
    out, err = child(USE_WITHOUT_PRIVILEGES, home).communicate(timeout=300)
    home.chmod(0o700)
    assert (out.split(), err) == (["store_unwritable", "store_unwritable"], "")


def test_reader_cannot_write(reader: Reader, writer: Writer, plan: Plan) -> None:
    writer.create_run("r1", plan)
    with pytest.raises(StoreError), reader._reading() as db:
        db.execute("DELETE FROM transitions")


def test_reading_imports_no_heavy_package(home: Path, child: Child) -> None:
    Writer(home).close()
    code = """
import sys
from pathlib import Path
from engine.store.reader import Reader
Reader(Path(sys.argv[1])).runs(("mine", "published"))
Reader(Path(sys.argv[1]) / "empty").runs()
print(*sorted(sys.modules))
"""
    out, err = child(code, home).communicate(timeout=300)
    assert err == ""
    heavy = {"sqlite_utils", "numpy", "torch", "transformers", "asyncssh", "textual", "runpod", "click", "asyncio"}
    assert heavy & set(out.split()) == set()
