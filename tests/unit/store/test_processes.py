"""Several processes on one database: readers beside a writer, a writer killed at any moment, a full disk."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import StoreError
from engine.plan import Plan
from engine.store import connection
from engine.store.home import database_path
from engine.store.reader import Reader
from engine.store.writer import Writer
from engine.wire import ChainReader, ChainWriter, Event, to_line

Child = Callable[..., "subprocess.Popen[str]"]
Noisy = Callable[[str, int, int], dict[str, Any]]
RUN = "run-a"

INGEST_FROM_THE_TAIL = """
import sys
from pathlib import Path
from engine.store.writer import Writer
from engine.wire import ChainReader
lines = Path(sys.argv[2]).read_bytes().splitlines(keepends=True)
with Writer(Path(sys.argv[1])) as writer:
    tail = writer.tail("run-a")
    chain = ChainReader("run-a", head=tail.head, next_seq=tail.next_seq)
    offset = tail.offset
    for line in lines[tail.next_seq:]:
        event = chain.feed(line)
        offset += len(line)
        writer.ingest("run-a", [event], offset)
        print(event.seq, flush=True)
"""

STOP_INSIDE_A_TRANSACTION = """
import sys, time
from pathlib import Path
from engine.store.writer import Writer
def clock():
    print("inside", flush=True)
    time.sleep(600)
Writer(Path(sys.argv[1]), clock=clock).transition("run-a", "run", "running")
"""


@pytest.fixture
def log(noisy: Noisy) -> list[Event]:
    chain = ChainWriter(RUN)
    events = [chain.append("launch.accepted", {})]
    for kind in ("raw", "protected"):
        for number in range(300):
            events.append(chain.append("train.progress", noisy(kind, number * 10, 10)))
            if number % 25 == 0:
                events.append(chain.append("train.checkpoint", {"segment": kind, "step": number * 10}))
    return events


@pytest.fixture
def log_file(tmp_path: Path, log: list[Event]) -> Path:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(to_line(event) for event in log))
    return path


def stored_lines(reader: Reader) -> bytes:
    return b"".join(to_line(event) for event in reader.events(RUN, "pod"))


def test_killed_writer_loses_and_repeats_nothing(
    home: Path, reader: Reader, writer: Writer, plan: Plan, child: Child, log_file: Path, log: list[Event]
) -> None:
    writer.create_run(RUN, plan)
    moment = random.Random(11)  # noqa: S311  the same moments each time
    for _ in range(4):
        process = child(INGEST_FROM_THE_TAIL, home, log_file)
        assert process.stdout is not None
        for _ in range(moment.randrange(10, 120)):
            process.stdout.readline()
        time.sleep(moment.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        tail = reader.tail(RUN)
        assert stored_lines(reader) == log_file.read_bytes()[: tail.offset]
        view = reader.run(RUN)
        for segment in view.segments:
            series = reader.series(RUN, segment.kind)
            assert segment.steps == len(series.losses) == len(series.nanos)
            assert segment.elapsed_sec == (sum(series.nanos) / 1e9 or None)
    process = child(INGEST_FROM_THE_TAIL, home, log_file)
    _, err = process.communicate(timeout=120)
    assert err == ""
    assert stored_lines(reader) == log_file.read_bytes()
    assert reader.tail(RUN) == (log_file.stat().st_size, log[-1].hash, len(log))


def test_writer_killed_inside_a_transaction_leaves_nothing_of_it(
    home: Path, reader: Reader, writer: Writer, plan: Plan, child: Child
) -> None:
    writer.create_run(RUN, plan)
    before = reader.run(RUN)
    process = child(STOP_INSIDE_A_TRANSACTION, home)
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"
    assert reader.run(RUN) == before
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert reader.run(RUN) == before
    writer.transition(RUN, "run", "allocating")
    assert reader.run(RUN).summary.state == "allocating"


def test_a_writer_that_waits_too_long_raises_store_busy(
    home: Path, plan: Plan, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "BUSY_SECONDS", 0.2)
    with Writer(home) as writer:
        writer.create_run(RUN, plan)
        process = child(STOP_INSIDE_A_TRANSACTION, home)
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(StoreError) as caught:
            writer.set_setting("a", "b")
        assert caught.value.code == "store_busy"


def test_readers_see_only_whole_states_while_a_writer_writes(
    home: Path, reader: Reader, writer: Writer, plan: Plan, child: Child, log_file: Path, log: list[Event]
) -> None:
    writer.create_run(RUN, plan)
    process = child(INGEST_FROM_THE_TAIL, home, log_file)
    drain = threading.Thread(target=process.communicate, daemon=True)
    drain.start()
    reads, versions = 0, set()
    while process.poll() is None:
        versions.add(reader.data_version())
        events = reader.events(RUN, "pod")
        chain = ChainReader(RUN)
        for event in events:
            chain.check(event)
        steps = reader.run(RUN).summary
        reads += 1
        assert (steps.raw_steps or 0) >= sum(
            10 for event in events if event.event == "train.progress" and event.body["segment"] == "raw"
        )
    drain.join(30)
    assert reads > 3
    assert len(versions) > 3
    assert len(reader.events(RUN, "pod")) == len(log)


def test_several_writers_take_turns(home: Path, reader: Reader, plan: Plan, child: Child) -> None:
    Writer(home).close()
    code = """
import sys
from pathlib import Path
from engine.plan import Model, Plan, Target
from engine.store.writer import Writer
plan = Plan(label="many", model=Model(source="tiny", name="tiny"), target=Target(steps=1))
with Writer(Path(sys.argv[1])) as writer:
    for number in range(40):
        writer.create_run(f"{sys.argv[2]}-{number}", plan)
"""
    for process in [child(code, home, name) for name in ("a", "b", "c")]:
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
    assert reader.count() == len(reader.runs()) == 120


def test_one_writer_serves_several_threads(reader: Reader, writer: Writer, plan: Plan) -> None:
    def work(name: int) -> None:
        for number in range(25):
            writer.create_run(f"{name}-{number}", plan)
            reader.runs(limit=5)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reader.count() == 100


def test_full_disk_is_named_and_nothing_is_half_written(
    home: Path, reader: Reader, writer: Writer, plan: Plan, noisy: Noisy
) -> None:
    writer.create_run(RUN, plan)
    connection = writer._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 4}")
    chain = ChainWriter(RUN)
    stored = 0
    with pytest.raises(StoreError) as caught:
        for number in range(1000):
            events = [
                chain.append("log", {"text": "x" * 500}),
                chain.append("train.progress", noisy("raw", number * 50, 50)),
            ]
            writer.ingest(RUN, events, number + 1)
            stored = number + 1
    assert caught.value.code == "store_full"
    assert str(home) in caught.value.message
    assert reader.tail(RUN).next_seq == stored * 2
    assert len(reader.events(RUN, "pod")) == stored * 2
    assert reader.run(RUN).segments[0].steps == stored * 50
    connection.execute("PRAGMA max_page_count = 1000000")
    writer.transition(RUN, "run", "failed", "the disk was full")


def test_slow_read_can_be_interrupted(home: Path, reader: Reader, writer: Writer, plan: Plan) -> None:
    writer.create_run(RUN, plan)
    with sqlite3.connect(database_path(home)) as connection:
        connection.execute(
            """WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
            INSERT INTO runs (id, source, label, provider, model, segments, state, created_at, attestation, key_state,
                runtime_state, cleanup, search)
            SELECT 'n' || i, 'mine', 'n', 'local', 'tiny', 'raw', 'finished', '2026-01-01T00:00:00.000Z',
                'verified', 'destroyed', 'zeroized', 'gone', 'n' || i FROM n"""
        )
    connection.close()
    caught: list[StoreError] = []
    stop = threading.Event()

    def search() -> None:
        while not stop.is_set():
            try:
                reader.runs(text="needle")
            except StoreError as error:
                caught.append(error)
                stop.set()

    thread = threading.Thread(target=search)
    thread.start()
    deadline = time.monotonic() + 60
    while not stop.is_set() and time.monotonic() < deadline:
        reader.interrupt()
        time.sleep(0.002)
    stop.set()
    thread.join()
    assert [error.code for error in caught] == ["store_interrupted"]
    assert [run.id for run in reader.runs(limit=1)] == [RUN]
