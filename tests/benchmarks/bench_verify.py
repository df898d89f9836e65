"""How many artifacts one core verifies in a minute, beside only parsing the same file as JSON.

Rounds are interleaved, so that what else the machine does hits both alike; medians of processor time and their ratio
are printed. Run: `python -m tests.benchmarks.bench_verify [FILE]`; without a file a real pair is run first.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from engine.attestation.signers import TrustedKeys, trust_line, trusted_key
from engine.records.trust import Anchors, anchors
from engine.records.verify import verify_bytes

ROUNDS: Final = 15
IN_A_ROUND: Final = 20
MUST_A_MINUTE: Final = 1000


def made(folder: Path) -> Path:
    """The artifact of a demo that is run for this."""
    file = folder / "row.json"
    start = [sys.executable, "-m", "glasshouse_tui.cli", "--home", str(folder / "home")]
    subprocess.run([*start, "demo", "--json"], check=True, capture_output=True)
    subprocess.run([*start, "export", "last", "-o", str(file)], check=True, capture_output=True)
    return file


def trusting(text: bytes) -> Anchors:
    """Anchors under which the artifact is genuine: its own operator is trusted."""
    line = trust_line(bytes.fromhex(json.loads(text)["bundle"]["operator"]))
    with tempfile.TemporaryDirectory() as nowhere:
        found = anchors(Path(nowhere))
    return Anchors(trusted=TrustedKeys.given([trusted_key(line)]), policies=found.policies)


def seconds(task: Callable[[], object]) -> float:
    """Processor seconds of one call, over a round of them."""
    started = time.process_time()
    for _ in range(IN_A_ROUND):
        task()
    return (time.process_time() - started) / IN_A_ROUND


def main() -> int:
    """Print the medians, the ratio and what a minute holds."""
    with tempfile.TemporaryDirectory() as folder:
        text = (Path(sys.argv[1]) if len(sys.argv) > 1 else made(Path(folder))).read_bytes()
    known = trusting(text)
    first = verify_bytes(text, known)
    times: dict[str, list[float]] = {"verify": [], "json.loads": []}
    for _ in range(ROUNDS):
        times["verify"].append(seconds(lambda: verify_bytes(text, known)))
        times["json.loads"].append(seconds(lambda: json.loads(text)))
    medians = {name: statistics.median(found) for name, found in times.items()}
    steps = json.loads(text)["rawSteps"]
    print(f"artifact of {len(text):,} bytes, {steps} raw steps, genuine: {first.genuine}")
    for name, median in medians.items():
        print(f"{name:<12}{median * 1e3:9.2f} ms")
    print(f"ratio       {medians['verify'] / medians['json.loads']:9.1f}")
    print(f"a minute of one core holds {60 / medians['verify']:,.0f} verifications (asked for: {MUST_A_MINUTE:,})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
