from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from engine.worker.isolation import procfs


def test_a_process_is_identified_by_pid_and_start_time_together() -> None:
    child = subprocess.Popen(["sleep", "30"])
    seen = procfs.identity(child.pid)
    assert not procfs.gone(seen.pid, seen.start)
    assert procfs.gone(seen.pid, seen.start - 1)
    child.kill()
    child.wait()
    assert procfs.gone(seen.pid, seen.start)
    assert procfs.start_time(seen.pid) is None


def test_a_zombie_counts_as_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "print()"], stdout=subprocess.PIPE)
    seen = procfs.identity(child.pid)
    assert child.stdout is not None
    child.stdout.read()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert procfs.gone(seen.pid, seen.start)
    child.wait()


def test_tasks_are_counted() -> None:
    before = procfs.task_count()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    assert procfs.task_count() == before + 1
    assert procfs.task_count(os.getpid()) == before + 1
    stop.set()
    thread.join()


def test_deleted_files_and_memfds_that_are_held_open_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    with path.open("wb"):
        path.unlink()
        memfd = os.memfd_create("held")
        found = procfs.deleted_open_files(os.getpid())
        os.close(memfd)
    assert found is not None
    assert f"disk:{path}" in found
    assert "memfd:held" in found
    after = procfs.deleted_open_files(os.getpid())
    assert after is not None
    assert not {f"disk:{path}", "memfd:held"} & set(after)


def test_a_process_that_is_gone_holds_nothing() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert procfs.deleted_open_files(child.pid) == []


def test_leftovers_name_everything_in_a_folder(tmp_path: Path) -> None:
    assert procfs.leftovers(tmp_path) == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".hidden").touch()
    assert procfs.leftovers(tmp_path) == ["a", "a/.hidden"]
    assert procfs.leftovers(tmp_path / "absent") == []


def test_clearing_overwrites_and_removes_everything_inside(tmp_path: Path) -> None:
    scratch, outside = tmp_path / "scratch", tmp_path / "outside"
    (scratch / "deep").mkdir(parents=True)
    outside.write_text("kept")
    (scratch / "link").symlink_to(outside)
    plain = scratch / "deep" / "plain"
    plain.write_bytes(os.urandom(3_000_000))
    with plain.open("rb") as held:
        procfs.clear(scratch)
        assert held.read() == bytes(3_000_000)
    assert scratch.is_dir()
    assert procfs.leftovers(scratch) == []
    assert outside.read_text() == "kept"
    procfs.clear(tmp_path / "absent")


def test_deleted_files_of_other_processes_count_where_they_lay_in_the_folder(tmp_path: Path) -> None:
    hold = "import sys; files = [open(name, 'w') for name in sys.argv[1:]]; print(flush=True); input()"
    (tmp_path / "run").mkdir()
    names = [tmp_path / "run" / "one", tmp_path / "run" / "two", tmp_path / "other"]
    before = procfs.deleted_files_held(tmp_path / "run")[0]
    child = subprocess.Popen([sys.executable, "-c", hold, *names], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert procfs.deleted_files_held(tmp_path / "run")[0] == before
    for name in names:
        name.unlink()
    assert procfs.deleted_files_held(tmp_path / "run")[0] == before + 2
    child.communicate(b"\n")
    with (tmp_path / "mine").open("w"):
        (tmp_path / "mine").unlink()
        assert procfs.deleted_files_held(tmp_path / "run")[0] == before + 1


def test_own_memfds_are_listed_once_and_without_the_known_ones() -> None:
    known, stray = os.memfd_create("known"), os.memfd_create("stray")
    again = os.dup(stray)
    found = procfs.own_memfds({procfs.file_of(known)})
    files = [procfs.file_of(fd) for fd in found]
    assert files.count(procfs.file_of(stray)) == 1
    assert procfs.file_of(known) not in files
    for fd in (*found, known, stray, again):
        os.close(fd)
