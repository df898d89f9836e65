"""How many artifacts one core verifies per minute, compared with only parsing the same file as JSON.

Rounds are interleaved, so that other load on the machine affects both alike; medians of processor time and their ratio
are printed. A second table has the processor time and the peak memory of a whole process for honest and hostile
artifacts, each verified in a child of its own, and what the first failed proof says.
Run: `python -m tests.benchmarks.bench_verify [FILE]`; without a file, a real pair is run first.
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
from typing import Any, Final

from engine.attestation.signers import TrustedKeys, trust_line, trusted_key
from engine.records.trust import Anchors, anchors
from engine.records.verify import verify_bytes
from tests.fuzz.bounded import verified
from tests.fuzz.hostile_artifacts import HOSTILE

ROUNDS: Final = 15
IN_A_ROUND: Final = 20
MUST_A_MINUTE: Final = 1000
HOSTILE_ROUNDS: Final = 3


def demo_artifact(folder: Path) -> Path:
    """Run the demo and export its artifact."""
    file = folder / "row.json"
    start = [sys.executable, "-m", "glasshouse_tui.cli", "--home", str(folder / "home")]
    subprocess.run([*start, "demo", "--json"], check=True, capture_output=True)
    subprocess.run([*start, "export", "last", "-o", str(file)], check=True, capture_output=True)
    return file


def trusting(text: bytes) -> Anchors:
    """Anchors under which the artifact is genuine: its own operator is trusted."""
    line = trust_line(bytes.fromhex(json.loads(text)["bundle"]["operator"]))
    with tempfile.TemporaryDirectory() as nowhere:
        default = anchors(Path(nowhere))
    return Anchors(trusted=TrustedKeys.given([trusted_key(line)]), policies=default.policies)


def seconds(task: Callable[[], object]) -> float:
    """Mean processor seconds of one call over a round."""
    started = time.process_time()
    for _ in range(IN_A_ROUND):
        task()
    return (time.process_time() - started) / IN_A_ROUND


def hostile_table(honest: bytes) -> str:
    """A line for each artifact: its size, median processor seconds, peak memory of the process, the first refusal."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{place}.json" for place, name in enumerate(("honest", *HOSTILE))}
        files["honest"].write_bytes(honest)
        for name, make in HOSTILE.items():
            files[name].write_bytes(make())
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in files}
        for _ in range(HOSTILE_ROUNDS):
            for name, file in files.items():
                found[name].append(verified(file, cpu=0, address_space=0))
        sizes = {name: file.stat().st_size for name, file in files.items()}
    head = f"{'artifact':<36}{'bytes':>12}{'seconds':>10}{'peak MiB':>10}  first refusal besides the signer"
    return "\n".join([head, *(_hostile_line(name, sizes[name], runs) for name, runs in found.items())])


def _hostile_line(name: str, size: int, runs: list[dict[str, Any]]) -> str:
    taken = statistics.median(run["seconds"] for run in runs)
    peak = statistics.median(run["peak"] for run in runs) / 1024**2
    codes = [
        code
        for code in runs[0]["codes"].values()
        if code not in {"passed", "not_checked", "not_applicable", "signer_unknown"}
    ]
    return f"{name:<36}{size:>12,}{taken:>10.2f}{peak:>10.0f}  {next(iter(codes), 'none')}"


def main() -> int:
    """Print the medians, the ratio, the verifications per minute, and the table of hostile artifacts."""
    with tempfile.TemporaryDirectory() as folder:
        text = (Path(sys.argv[1]) if len(sys.argv) > 1 else demo_artifact(Path(folder))).read_bytes()
    known = trusting(text)
    first = verify_bytes(text, known)
    times: dict[str, list[float]] = {"verify": [], "json.loads": []}
    for _ in range(ROUNDS):
        times["verify"].append(seconds(lambda: verify_bytes(text, known)))
        times["json.loads"].append(seconds(lambda: json.loads(text)))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    steps = json.loads(text)["rawSteps"]
    print(f"artifact of {len(text):,} bytes, {steps} raw steps, genuine: {first.genuine}")
    for name, median in medians.items():
        print(f"{name:<12}{median * 1e3:9.2f} ms")
    print(f"ratio       {medians['verify'] / medians['json.loads']:9.1f}")
    print(f"one core does {60 / medians['verify']:,.0f} verifications per minute (required: {MUST_A_MINUTE:,})\n")
    print(hostile_table(text))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
