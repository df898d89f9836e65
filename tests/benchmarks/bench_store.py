"""The store with a long history: `python tests/benchmarks/bench_store.py [--rows 1000000]`.

Reads of a page are timed on a long and on a short history in interleaved rounds; the ratio of the medians shows
how much the length of the history costs. Printed, never asserted.
"""

from __future__ import annotations

import argparse
import base64
import random
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from engine.plan import Model, Plan, Target
from engine.store.home import database_path
from engine.store.listing import Sort
from engine.store.published import search_text
from engine.store.reader import Reader
from engine.store.views import Source
from engine.store.writer import Writer
from engine.wire import ChainWriter, Event

SHORT_HISTORY = 1_000
PAGE = 200
ROUNDS = 15
MODELS = ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "tiny", "local/folder")
GPUS = ("NVIDIA GeForce RTX 4090", "NVIDIA H100 80GB HBM3", "NVIDIA RTX A4000", "CPU")


def _rows(count: int) -> Iterator[tuple[object, ...]]:
    noise = random.Random(2)  # noqa: S311  the same history each time
    for number in range(count):
        run_id = f"{noise.getrandbits(64):016x}"
        seconds = number * 7
        created = (
            f"2026-{1 + seconds // 2_592_000 % 12:02}-{1 + seconds // 86_400 % 28:02}"
            f"T{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{noise.randrange(1000):03}Z"
        )
        label, model, gpu = f"nightly {number % 5000}", noise.choice(MODELS), noise.choice(GPUS)
        if number % 100_000 == 77:
            label = f"needle {number}"
        state = "failed" if number % 97 == 0 else "finished"
        overhead = None if state == "failed" else round(noise.gauss(0.8, 3), 2)
        words = search_text(label, run_id, model, gpu, "local")
        yield run_id, label, gpu, model, state, created, created, created, overhead, words


def _history(home: Path, count: int) -> Reader:
    Writer(home).close()
    connection = sqlite3.connect(database_path(home))
    connection.executemany(
        """INSERT INTO runs (id, source, label, provider, gpu_model, model, segments, run_order, state, created_at,
            started_at, finished_at, overhead_pct, attestation, key_state, runtime_state, cleanup, clean, search)
        VALUES (?, 'mine', ?, 'local', ?, ?, 'pair', 'raw-first', ?, ?, ?, ?, ?, 'verified', 'destroyed',
            'zeroized', 'gone', 1, ?)""",
        _rows(count),
    )
    connection.execute(
        """INSERT INTO segments (run, kind, position, state, steps)
        SELECT key, 'raw', 0, 'done', 100 FROM runs WHERE source = 'mine'
        UNION ALL SELECT key, 'protected', 1, 'done', 100 FROM runs WHERE source = 'mine'"""
    )
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return Reader(home)


def _milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def _compare(what: str, short: Callable[[], object], long: Callable[[], object]) -> None:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        times[0].append(_milliseconds(short))
        times[1].append(_milliseconds(long))
    low, high = (statistics.median(some) for some in times)
    print(f"{what:<44}{low:>10.2f} ms{high:>10.2f} ms{high / low:>9.1f}x  (worst {max(times[1]):.1f} ms)")


def _pages(short: Reader, long: Reader, rows: int) -> None:
    def deep(reader: Reader, count: int) -> str:
        return reader.runs(limit=1, offset=count * 9 // 10)[0].id

    low, high = deep(short, SHORT_HISTORY), deep(long, rows)
    every: tuple[Source, ...] = ("mine", "published")
    print(f"{'page of 200, medians':<44}{SHORT_HISTORY:>10,} rows{rows:>8,} rows{'ratio':>10}")
    _compare("newest page", lambda: short.runs(limit=PAGE), lambda: long.runs(limit=PAGE))
    _compare("newest page, published too", lambda: short.runs(every, PAGE), lambda: long.runs(every, PAGE))
    _compare("page 90 % down", lambda: short.runs(limit=PAGE, before=low), lambda: long.runs(limit=PAGE, before=high))
    _compare("page above it", lambda: short.runs(limit=PAGE, above=low), lambda: long.runs(limit=PAGE, above=high))
    _compare(
        "jump 90 % down by offset",
        lambda: short.runs(limit=PAGE, offset=SHORT_HISTORY * 9 // 10),
        lambda: long.runs(limit=PAGE, offset=rows * 9 // 10),
    )
    sorts: tuple[Sort, ...] = ("overhead_pct", "label", "model")
    for sort in sorts:
        _compare(
            f"by {sort}, 90 % down",
            partial(short.runs, limit=PAGE, before=low, sort=sort),
            partial(long.runs, limit=PAGE, before=high, sort=sort),
        )
    for text in ("7b h100", "needle", "no such run"):
        _compare(
            f"filter {text!r}",
            partial(short.runs, limit=PAGE, text=text),
            partial(long.runs, limit=PAGE, text=text),
        )
    _compare("count", short.count, long.count)
    _compare("count of 'needle'", lambda: short.count(text="needle"), lambda: long.count(text="needle"))
    _compare("unfinished", short.unfinished, long.unfinished)
    _compare("failed only", lambda: short.runs(states=("failed",), limit=PAGE),
             lambda: long.runs(states=("failed",), limit=PAGE))  # fmt: skip
    _compare("published only", lambda: short.runs(("published",)), lambda: long.runs(("published",)))
    _compare("one run by prefix", lambda: short.run(short.resolve(low[:9])), lambda: long.run(long.resolve(high[:9])))


def progress_events(run_id: str, steps: int) -> list[Event]:
    """A pod's log of two segments: ten noisy steps per event."""
    noise, chain = random.Random(3), ChainWriter(run_id)  # noqa: S311  the same noise each time
    events: list[Event] = []
    for kind in ("raw", "protected"):
        for first in range(0, steps // 2, 10):
            losses = struct.pack("<10f", *(noise.lognormvariate(-1, 0.3) for _ in range(10)))
            nanos = struct.pack("<10Q", *(int(noise.gauss(5e7, 2e6)) for _ in range(10)))
            body = {
                "segment": kind,
                "from": first,
                "to": first + 10,
                "losses": base64.b64encode(losses).decode(),
                "nanos": base64.b64encode(nanos).decode(),
            }
            events.append(chain.append("train.progress", body))
    return events


def _ingesting(home: Path) -> None:
    events = progress_events("bench", 36_000)
    plan = Plan(label="bench", model=Model(source="tiny", name="tiny"), target=Target(steps=18_000))
    with Writer(home) as writer:
        writer.create_run("bench", plan)
        started = time.perf_counter()
        for number, event in enumerate(events):
            writer.ingest("bench", [event], number)
        spent = time.perf_counter() - started
    reader = Reader(home)
    print(f"\ningest, one event per transaction: {spent / len(events) * 1000:.2f} ms per event ({len(events)} events)")
    print(f"100 points of 18,000 losses: {_milliseconds(lambda: reader.series_points('bench', 'raw', 100)):.1f} ms")
    print(f"whole log rebuilt: {_milliseconds(lambda: reader.events('bench', 'pod')):.0f} ms")


def _starting(home: Path) -> None:
    head = "from pathlib import Path; from engine.store.reader import Reader; "
    codes = {
        "bare": "pass",
        "reading": f"{head}Reader(Path({str(home)!r})).runs()",
        "empty": f"{head}Reader(Path('/nonexistent')).runs()",
    }
    times: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(7):
        for name, code in codes.items():
            times[name].append(_milliseconds(partial(subprocess.run, [sys.executable, "-c", code], check=True)))
    bare, reading, empty = (statistics.median(some) for some in times.values())
    print(
        f"\npython starts in {bare:.0f} ms; reading the store adds {reading - bare:.0f} ms, "
        f"an empty home {empty - bare:.0f} ms"
    )


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        short, long = _history(Path(folder) / "short", SHORT_HISTORY), _history(Path(folder) / "long", rows)
        _pages(short, long, rows)
        _ingesting(Path(folder) / "ingest")
        _starting(Path(folder) / "short")


if __name__ == "__main__":
    main()
