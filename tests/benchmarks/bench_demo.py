"""How long `glasshouse demo` takes from start to exit, and where the time goes.

Each round runs it twice in a fresh home, so that a first run (which measures the environment) and a second one (which
has it cached) see the same load. Run: `python -m tests.benchmarks.bench_demo [ROUNDS]`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Final

ROUNDS: Final = 3
MUST_SECONDS: Final = 75.0
GOAL_SECONDS: Final = 45.0
MUST_TRAIN_SECONDS: Final = 15.0


def demo(home: str) -> tuple[float, dict[str, Any]]:
    """One demo: seconds from start to exit, and its row; raises `RuntimeError` unless it is clean."""
    command = [sys.executable, "-m", "glasshouse_tui.cli", "--home", home, "demo", "--json"]
    began = time.perf_counter()
    ran = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    taken = time.perf_counter() - began
    if ran.returncode != 0:
        raise RuntimeError(f"the demo ended with {ran.returncode}: {ran.stderr.decode()[-2000:]}")
    return taken, json.loads(ran.stdout)


def stages(row: dict[str, Any], total: float) -> dict[str, float]:
    """Seconds by stage; `rest` is staging, collecting, cleaning and the start of processes."""
    phases_seconds = {
        f"{kind} {name}": taken for kind, phases in row["phases"].items() for name, taken in phases.items()
    }
    return {**phases_seconds, "rest": total - sum(phases_seconds.values())}


def main() -> None:
    """Print medians by stage, and the total against its limits."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    times: dict[str, list[float]] = {"first run": [], "second run": []}
    by_stage: dict[str, list[float]] = {}
    training: list[float] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as home:
            for name, taken in times.items():
                seconds, row = demo(home)
                taken.append(seconds)
                training.append(min(row["rawElapsedSec"], row["protectedElapsedSec"]))
                for stage, part in stages(row, seconds).items():
                    by_stage.setdefault(stage, []).append(part)
                print(f"{name:12}{seconds:8.1f} s   training {training[-1]:.1f} s a segment", flush=True)
    print(f"\nmedians of {rounds} rounds")
    for stage, parts in by_stage.items():
        print(f"  {stage:24}{statistics.median(parts):8.2f} s")
    for name, taken in times.items():
        whole = statistics.median(taken)
        print(f"  {name:24}{whole:8.1f} s   {whole / MUST_SECONDS:.2f} of limit, {whole / GOAL_SECONDS:.2f} of goal")
    print(
        f"  {'training a segment':24}{statistics.median(training):8.1f} s   must be {MUST_TRAIN_SECONDS:.0f} s or more"
    )


if __name__ == "__main__":
    main()
