"""The database's POSIX locks, which a process loses when it closes any descriptor of the file."""

from __future__ import annotations

import os
from pathlib import Path

from engine.store.home import create_file, database_path
from engine.store.reader import Reader
from engine.store.writer import Writer


def locks_of(path: Path) -> int:
    """How many locks this process holds on a file."""
    inode = f":{path.stat().st_ino} "
    lines = Path("/proc/locks").read_text().splitlines()
    return sum(inode in line and f" {os.getpid()} " in line for line in lines)


def test_a_second_writer_in_the_process_does_not_release_the_locks(home: Path) -> None:
    """A process loses its POSIX locks on a file with the first descriptor of it that it closes."""
    with Writer(home) as writer, Reader(home) as reader:
        assert reader.count(("published",)) == 17
        writer.set_setting("a", "b")
        held = locks_of(database_path(home))
        assert held > 0
        Writer(home)._connection.execute("SELECT 1")
        assert locks_of(database_path(home)) >= held
        create_file(database_path(home))
        assert locks_of(database_path(home)) >= held
