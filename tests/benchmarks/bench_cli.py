"""How long quick commands take from start to exit, compared with a Python that does nothing.

Rounds are interleaved, so that other load on the machine affects every column alike; medians and ratios are printed.
Run: `python -m tests.benchmarks.bench_cli [ROUNDS]`.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

from engine.plan import preset
from engine.store.writer import Writer

ROUNDS: Final = 15
MUST_SECONDS: Final = 0.4
STORED_RUNS: Final = 500
PYTHON: Final = "python -c pass"
JUDGED: Final = "runs --json, empty home"


def commands(empty: Path, filled: Path) -> dict[str, list[str]]:
    """The timed commands by name; the others are compared with the first."""
    entry = Path(sys.executable).with_name("glasshouse")
    start = [str(entry)] if entry.exists() else [sys.executable, "-m", "glasshouse_tui.cli"]
    return {
        PYTHON: [sys.executable, "-c", "pass"],
        "--version": [*start, "--home", str(empty), "--version"],
        JUDGED: [*start, "--home", str(empty), "runs", "--json"],
        f"runs --json, {STORED_RUNS} runs": [*start, "--home", str(filled), "runs", "--json"],
        "show, published row": [*start, "--home", str(empty), "show", "pub-lora-7b-30k", "--json"],
        "presets --json": [*start, "--home", str(empty), "presets", "--json"],
        "completions fish": [*start, "--home", str(empty), "completions", "fish"],
    }


def fill(home: Path) -> None:
    """Write finished runs into a new store."""
    with Writer(home) as writer:
        for number in range(STORED_RUNS):
            run_id = f"{number:012x}"
            writer.create_run(run_id, preset("demo"))
            writer.finish(run_id, {"id": run_id, "clean": True}, [])


class Times(NamedTuple):
    """Seconds of one command: from start to exit, and of processor time, which other load hardly affects."""

    wall: float
    processor: float


def timed(command: list[str]) -> Times:
    """One command's times; raises `RuntimeError` unless it exits 0."""
    started = time.perf_counter()
    silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    _, status, usage = os.wait4(os.posix_spawn(command[0], command, os.environ, file_actions=silent), 0)
    wall = time.perf_counter() - started
    if status:
        raise RuntimeError(f"{command} ended with {os.waitstatus_to_exitcode(status)}")
    return Times(wall, usage.ru_utime + usage.ru_stime)


def measure(timed_commands: dict[str, list[str]], rounds: int) -> dict[str, list[Times]]:
    """The times of every command over interleaved rounds, after a first one that warms the caches."""
    times: dict[str, list[Times]] = {name: [] for name in timed_commands}
    for round_ in range(rounds + 1):
        for name, command in timed_commands.items():
            taken = timed(command)
            if round_:
                times[name].append(taken)
    return times


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    os.environ.pop("GLASSHOUSE_HOME", None)
    with tempfile.TemporaryDirectory() as folder:
        empty, filled = Path(folder, "empty"), Path(folder, "filled")
        fill(filled)
        times = measure(commands(empty, filled), rounds)
    walls = {name: statistics.median(taken.wall for taken in each) for name, each in times.items()}
    processors = {name: statistics.median(taken.processor for taken in each) for name, each in times.items()}
    out = [f"{f'medians of {rounds} rounds':<28}{'wall':>9}{'fastest':>9}{'cpu':>9}{'wall x':>8}{'cpu x':>8}"]
    for name, each in times.items():
        out.append(
            f"{name:<28}{walls[name]:>8.3f}s{min(taken.wall for taken in each):>8.3f}s{processors[name]:>8.3f}s"
            f"{walls[name] / walls[PYTHON]:>8.1f}{processors[name] / processors[PYTHON]:>8.1f}"
        )
    verdict = "met" if walls[JUDGED] < MUST_SECONDS else "MISSED"
    out.append(f"goal: {JUDGED} under {MUST_SECONDS} s: {verdict} ({walls[JUDGED]:.3f} s)")
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
