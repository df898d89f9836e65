"""The database's locks, which the operating system takes from a process that is careless with descriptors."""

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


def test_another_writer_of_this_process_takes_no_lock_away(home: Path) -> None:
    """POSIX locks go with the first descriptor that is closed, whoever opened it."""
    with Writer(home) as writer, Reader(home) as reader:
        assert reader.count(("published",)) == 17
        writer.set_setting("a", "b")
        held = locks_of(database_path(home))
        assert held > 0
        Writer(home)._connection.execute("SELECT 1")
        assert locks_of(database_path(home)) >= held
        create_file(database_path(home))
        assert locks_of(database_path(home)) >= held
