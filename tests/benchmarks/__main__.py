"""Runs every benchmark: `python -m tests.benchmarks [NAME...]`; each prints medians and ratios, none asserts a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAMES = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


def main() -> int:
    """Run the named benchmarks, or all of them."""
    names = sys.argv[1:] or NAMES
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(f"no benchmark {unknown[0]!r}; there are: {', '.join(NAMES)}")
        return 2
    for name in names:
        print(f"\n== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"tests.benchmarks.bench_{name}"], check=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
