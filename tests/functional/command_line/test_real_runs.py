"""Runs for real, through the installed command: a clean pair, Ctrl-C in the middle, a runner that is killed."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engine.store.reader import Reader

if TYPE_CHECKING:
    from tests.functional.command_line.conftest import CommandLine

pytestmark = pytest.mark.training


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def runner_of(cli: CommandLine, run_id: str) -> int:
    """The process that runs a run."""
    with sqlite3.connect(cli.home / "glasshouse.db") as database:
        found = database.execute("SELECT pid FROM locks WHERE name = ?", (f"run:{run_id}",)).fetchone()
    return int(found[0]) if found else 0


def first_line(process: subprocess.Popen[str]) -> str:
    """The run's id, which is the first thing that progress says."""
    assert process.stderr is not None
    return process.stderr.readline().removeprefix("run ").strip()


def test_a_pair_on_ones_own_public_data_is_clean_and_its_adapter_opens(cli: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(f'{{"prompt": "say {n}", "completion": "{n}"}}\n' for n in range(8)))
    inputs: list[str | Path] = ["--data", file, "--public-data", "--label", "mine", "--challenge", "who asks"]
    done = cli("run", *inputs, "--steps", "40", "--warmup", "5", "--json")
    assert done.code == 0, done.out + done.err
    row = done.document
    assert (row["clean"], row["attestation"], row["runtimeState"]) == (True, "verified", "zeroized")
    assert math.isfinite(row["rawFinalLoss"])
    assert math.isfinite(row["protectedFinalLoss"])
    assert row["rawAdapterSha256"] != row["protectedAdapterSha256"]
    assert row["rawTensorDigest"] == row["protectedTensorDigest"]
    assert "\x1b" not in done.err
    assert (row["label"], row["challenge"]) == ("mine", "who asks")
    assert "steps 40/40" in done.err
    assert cli("show", "last", "--json").document == row
    assert f"{row['overheadPct']:.2f} %" in cli("show", "last").out
    opened = cli("adapter", "last", "-o", tmp_path / "adapter", "--json")
    assert opened.code == 0, opened.out
    assert not (cli.home / "runs" / row["id"]).exists()


def test_ctrl_c_cancels_cleans_up_and_exits_130(cli: CommandLine) -> None:
    process = cli.start("run", "--preset", "demo", "--segments", "protected", "--steps", "100000", "--json")
    run_id = first_line(process)
    reader = Reader(cli.home)
    wait_for(lambda: any(s.steps > 0 for s in reader.run(run_id).segments))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    row = json.loads(out)
    assert (row["state"], row["clean"], row["runtimeState"]) == ("cancelled", False, "zeroized")
    assert "Cancelling: waiting for the run to zeroize" in err
    assert not (cli.home / "runs" / run_id).exists()
    assert cli("runs", "--json").err == ""


def test_a_run_whose_runner_is_killed_is_mentioned_and_resume_finishes_it(cli: CommandLine) -> None:
    started = cli("run", "--preset", "demo", "--segments", "raw", "--steps", "300", "--detach", "--json")
    run_id = started.document["id"]
    assert started.document["state"] == "queued"
    reader = Reader(cli.home)
    wait_for(lambda: reader.run(run_id).segments[0].steps > 0)
    os.kill(runner_of(cli, run_id), signal.SIGKILL)
    wait_for(lambda: reader.run(run_id).summary.orphaned)
    assert f"`glasshouse resume {run_id}`" in cli("runs", "--json").err
    done = cli("resume", "--json")
    assert done.document == {"resumed": [{"id": run_id}], "failed": []}
    watched = cli("watch", run_id, "--json")
    assert watched.code == 0, watched.out + watched.err
    assert (watched.document["rawSteps"], watched.document["clean"]) == (300, True)
