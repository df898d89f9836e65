"""The console in a pseudo-terminal: `python -m tests.benchmarks.bench_console [--rows 1000000]`.

Printed, never asserted: first frame against Textual's minimal app in interleaved rounds, key to display in a long
history while another process commits 200 events a second, and processor time and memory while watching that run.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import os
import pty
import re
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

import psutil

from engine.plan import Model, Plan, Target
from engine.store.writer import Writer
from engine.wire import TRAIN_PROGRESS, ChainWriter
from tests.benchmarks.bench_store import _history

ROUNDS: Final = 5
KEYS: Final = 200
WATCH_SECONDS: Final = 20.0
RUN: Final = "b81e44d0a6c1"
MINIMAL: Final = """
from textual.app import App
from textual.widgets import Static
class Minimal(App):
    def compose(self):
        yield Static("first frame")
Minimal().run()
"""
WRITER: Final = "from tests.benchmarks.bench_console import write_events; import sys; write_events(sys.argv[1])"


class Screen:
    """A program in its own pseudo-terminal."""

    def __init__(self, *command: str, columns: int = 120, lines: int = 40) -> None:
        self.started = time.perf_counter()
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        variables = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=variables, start_new_session=True
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        with contextlib.suppress(OSError):
            while os.read(self._master, 65536):
                pass
        self.process.wait(20)
        os.close(self._master)

    def until(self, text: str, seconds: float = 60.0) -> float:
        """Seconds from the start until the text was drawn."""
        output = b""
        while time.perf_counter() - self.started < seconds:
            output += self.read(0.05)
            if text in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.decode(errors="replace")):
                return time.perf_counter() - self.started
        raise TimeoutError(text)

    def read(self, seconds: float) -> bytes:
        """What is drawn next; empty when nothing is drawn within that time."""
        return os.read(self._master, 65536) if select.select([self._master], [], [], seconds)[0] else b""

    def drain(self, quiet: float) -> None:
        """Read until nothing is drawn for `quiet` seconds."""
        while self.read(quiet):
            pass

    def press(self, key: str) -> float:
        """Seconds from a key to what it draws; waits first until nothing else is being drawn."""
        self.drain(0.02)
        os.write(self._master, key.encode())
        started = time.perf_counter()
        if not self.read(1.0):
            raise TimeoutError(key)
        return time.perf_counter() - started

    def watch(self, seconds: float) -> tuple[float, float]:
        """Percentage of a core and memory in MB while the program runs for `seconds`."""
        process = psutil.Process(self.process.pid)
        before, ends = process.cpu_times(), time.perf_counter() + seconds
        while time.perf_counter() < ends:
            self.read(0.05)
        after = process.cpu_times()
        used = after.user + after.system - before.user - before.system
        return used / seconds * 100, process.memory_info().rss / 1e6


def write_events(home: str) -> None:
    """Commit 200 steps a second in ten transactions, until killed."""
    chain, first = ChainWriter(RUN), 0
    with Writer(Path(home)) as writer:
        writer.create_run(
            RUN, Plan(label="live", model=Model(source="tiny", name="tiny"), target=Target(steps=1_000_000))
        )
        writer.claim_runner(RUN)
        writer.transition(RUN, "run", "running")
        for state in ("launching", "loading", "warming", "training"):
            writer.transition(RUN, "segment:raw", state)
        while True:
            events = []
            for step in range(first, first + 20):
                body = {
                    "segment": "raw", "from": step, "to": step + 1,
                    "losses": base64.b64encode(struct.pack("<f", 2.0)).decode(),
                    "nanos": base64.b64encode(struct.pack("<Q", 5_000_000)).decode(),
                }  # fmt: skip
                events.append(chain.append(TRAIN_PROGRESS, body))
            writer.append_events(RUN, "pod", events)
            first += 20
            time.sleep(0.1)


def _console(home: Path) -> tuple[str, ...]:
    return (sys.executable, "-m", "glasshouse_tui.cli", "--home", str(home))


def first_frame(home: Path) -> None:
    """The console's first frame, compared with that of a minimal Textual app."""
    ours, smallest = [], []
    for _ in range(ROUNDS):
        with Screen(sys.executable, "-c", MINIMAL) as screen:
            smallest.append(screen.until("first frame"))
        with Screen(*_console(home)) as screen:
            ours.append(screen.until("glasshouse"))
    least, console = statistics.median(smallest), statistics.median(ours)
    print(f"first frame: minimal app {least:.3f} s, console {console:.3f} s, {console - least:+.3f} s (goal +0.2)")


def keys_and_watching(home: Path) -> None:
    """Key to display in History, then processor time and memory on the Run screen, both during a live run."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(home)])
    try:
        with Screen(*_console(home)) as screen:
            screen.until("live")
            screen.press("h")
            screen.until("newest first")
            screen.drain(0.5)
            taken = sorted(screen.press("j" if number % 60 < 40 else "k") for number in range(KEYS))
            middle, late = statistics.median(taken) * 1000, taken[int(KEYS * 0.95)] * 1000
            print(f"key to display: median {middle:.1f} ms, 95th percentile {late:.1f} ms (goal 16)")
            screen.press("f")
            screen.drain(0.6)
            screen.press("\r")
            screen.until("measured")
            screen.watch(3.0)
            share, memory = screen.watch(WATCH_SECONDS)
            print(f"watching a run: {share:.1f} % of a core (goal 5), {memory:.0f} MB (goal 150)")
    finally:
        writer.kill()
        writer.wait()


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        _history(home, rows).close()
        print(f"{rows:,} rows, {datetime.now(UTC):%Y-%m-%d}, load {os.getloadavg()[0]:.1f}")
        first_frame(home)
        keys_and_watching(home)


if __name__ == "__main__":
    main()
