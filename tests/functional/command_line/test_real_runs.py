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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.store.reader import Reader
from tests.functional import canaries
from tests.functional.command_line.conftest import CommandLine
from tests.functional.runs.support import LONG, Operator

pytestmark = pytest.mark.training
of_own = pytest.mark.xdist_group("own")


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> None:
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


@dataclass(frozen=True)
class OwnRun:
    """A finished pair on own data, with words planted in everything that went into it."""

    cli: CommandLine
    row: dict[str, Any]
    err: str
    secrets: dict[str, str]
    places: dict[str, str]
    environment: dict[str, str]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> OwnRun:
    """One real run for the tests of what it leaves."""
    base = tmp_path_factory.mktemp("canary-base")
    folder = base / "canary-data-folder"
    folder.mkdir()
    file = folder / "canary-data-file.jsonl"
    file.write_text("".join(f'{{"prompt": "say canary-sample {n}", "completion": "{n}"}}\n' for n in range(8)))
    secrets = {
        "RUNPOD_API_KEY": "rpa_canary-api-key-1234567890",
        "HF_TOKEN": "hf_canary-hub-token-1234567890",
        "AWS_SECRET_ACCESS_KEY": "canary-cloud-secret-1234567890",
    }
    environment = {**secrets, "USER": "canary-user", "LOGNAME": "canary-user", "RUNPOD_POD_ID": "canary-pod-id"}
    cli = CommandLine(base / "canary-home")
    inputs: list[str | Path] = ["--data", file, "--public-data", "--label", "mine", "--challenge", "who asks"]
    done = cli("run", *inputs, "--steps", "40", "--settling", "5", "--json", env=environment)
    assert done.code == 0, done.out + done.err
    assert "\x1b" not in done.err
    words = {**secrets, "sample": "canary-sample", "user": "canary-user", "pod": "canary-pod-id"}
    places = {"data file": "canary-data-file", "data folder": "canary-data-folder", "base": "canary-base"}
    return OwnRun(cli, done.document, done.err, words, places | {"home": "canary-home"}, environment)


@of_own
def test_a_pair_on_ones_own_public_data_is_clean_and_its_adapter_opens(own: OwnRun, tmp_path: Path) -> None:
    cli, row = own.cli, own.row
    assert (row["clean"], row["attestation"], row["runtimeState"]) == (True, "verified", "zeroized")
    assert math.isfinite(row["rawFinalLoss"])
    assert math.isfinite(row["protectedFinalLoss"])
    assert row["rawAdapterSha256"] != row["protectedAdapterSha256"]
    assert row["rawTensorDigest"] == row["protectedTensorDigest"]
    assert (row["label"], row["challenge"]) == ("mine", "who asks")
    assert "steps 40/40" in own.err
    assert cli("show", "last", "--json").document == row
    assert f"{row['overheadPct']:.2f} %" in cli("show", "last").out
    opened = cli("adapter", "last", "-o", tmp_path / "adapter", "--json")
    assert opened.code == 0, opened.out
    assert not (cli.home / "runs" / row["id"]).exists()


@of_own
def test_nothing_that_was_planted_is_in_an_export_a_log_or_a_column(own: OwnRun) -> None:
    words = own.secrets | own.places
    outputs = [
        (" ".join(options), own.cli("export", "last", *options).out.encode())
        for options in (["--format", "json"], ["--summary"], ["--format", "md"], ["--format", "csv"])
    ]
    outputs.append(("show", own.cli("show", "last", "--json").out.encode()))
    assert all(len(text) > 500 for _, text in outputs)
    assert canaries.occurrences(words, iter(outputs)) == []
    everywhere = dict(canaries.columns(own.cli.home))
    assert {"events.body", "receipts.body", "evidence.body", "allocations.detail"} <= everywhere.keys()
    assert canaries.occurrences(words, ((n, c) for n, c in everywhere.items() if n not in canaries.MAY_LOCATE)) == []
    assert canaries.occurrences(own.secrets, iter(everywhere.items())) == []
    assert canaries.occurrences(own.secrets, canaries.files(own.cli.home)) == []
    assert canaries.occurrences({"the home": "canary-home"}, iter(everywhere.items())), "the search finds what is there"


@of_own
def test_the_export_is_verified_by_the_operator_and_by_a_stranger(own: OwnRun, tmp_path: Path) -> None:
    file = tmp_path / "row.json"
    written = own.cli("export", "last", "-o", file, "--json")
    assert written.document["bytes"] == file.stat().st_size
    assert own.cli("export", "last", "-o", file, "--json").refused(2, "file_exists")
    at_home = own.cli("verify", file, "--json")
    assert (at_home.code, at_home.document["genuine"], at_home.document["clean"]) == (0, True, True)
    assert at_home.document["overheadPct"] == own.row["overheadPct"]
    stranger = CommandLine(tmp_path / "stranger")
    unknown = stranger("verify", file)
    assert (unknown.code, "signer_unknown" in unknown.out, unknown.out.count("FAILED")) == (1, True, 1)
    line = own.cli("key", "show", "--public").out.strip()
    trusted = stranger("verify", file, "--trust", line, "--challenge", "who asks")
    assert (trusted.code, "environment_unknown" in trusted.out, "WHAT RAN IS UNKNOWN" in trusted.out) == (3, True, True)
    assert stranger("verify", file, "--trust", line, "--challenge", "somebody else").code == 1
    assert not stranger.home.exists()
    reference = tmp_path / "reference.json"
    reference.write_text(own.cli("doctor", "--reference").out)
    assert own.cli("verify", file, "--reference", reference).code == 0
    told = stranger("verify", file, "--trust", line, "--reference", reference)
    assert (told.code, "you alone vouch for it" in told.out) == (0, True)
    assert "somebody else needs a reference" in own.cli("verify", file).out
    launched = written.document["artifactSha256"]
    assert launched == own.cli("export", "last", "-o", file, "--force", "--json").document["artifactSha256"]
    bundle = json.loads(file.read_text())["bundle"]["logs"]["pod"][0]["body"]["bundleDigest"]
    assert json.loads(reference.read_text())["bundles"] == [bundle]
    summary = tmp_path / "summary.json"
    assert own.cli("export", "last", "--summary", "-o", summary).code == 0
    partly = own.cli("verify", summary)
    assert (partly.code, "could not be recomputed" in partly.out) == (3, True)
    both = own.cli("verify", file, summary, "--json")
    assert (both.code, len(both.document["verifications"])) == (3, 2)


@of_own
def test_a_changed_export_is_told_with_its_code(own: OwnRun, tmp_path: Path) -> None:
    document = own.cli("export", "last").document
    file = tmp_path / "row.json"
    file.write_text(json.dumps(document | {"overheadPct": -9.0}))
    refused = own.cli("verify", file, "--json")
    assert refused.code == 1
    codes = {proof["name"]: proof["code"] for proof in refused.document["proofs"] if proof["status"] == "failed"}
    assert codes == {"run_receipt": "receipt_other_run"}
    file.write_text("{")
    refused = own.cli("verify", file, "--json")
    assert (refused.code, refused.document["error"]["code"]) == (1, "artifact_malformed")
    own.cli("verify", tmp_path / "none", "--json").refused(2, "file_unreadable")
    own.cli("verify", file, "--trust", "nonsense", "--json").refused(2, "trust_invalid")
    file.write_text("{}")
    own.cli("verify", file, "--reference", file, "--json").refused(2, "reference_invalid")
    own.cli("export", "nothing", "--json").refused(2, "run_unknown")


@of_own
def test_a_rotation_keeps_the_row_and_a_revocation_is_seen(own: OwnRun, tmp_path: Path) -> None:
    file, statement = tmp_path / "row.json", tmp_path / "revocation.jsonl"
    assert own.cli("export", "last", "-o", file).code == 0
    line = own.cli("key", "show", "--public").out.strip()
    former = own.cli("key", "show", "--json").document["keys"][0]["fingerprint"]
    stranger = CommandLine(tmp_path / "stranger")
    assert own.cli("key", "rotate", "--yes").code == 0
    assert own.cli("key", "show", "--public").out.strip() != line
    assert own.cli("verify", file).code == 0
    assert own.cli("key", "revoke", former, "--reason", "compromised", "-o", statement).code == 0
    refused = own.cli("verify", file, "--json")
    codes = [proof["code"] for proof in refused.document["proofs"] if proof["status"] == "failed"]
    assert (refused.code, codes) == (1, ["signer_revoked"])
    assert stranger("verify", file, "--trust", line).code == 3
    told = stranger("verify", file, "--trust", line, "--revocation", statement)
    assert (told.code, "signer_revoked" in told.out) == (1, True)


def test_ctrl_c_cancels_cleans_up_and_exits_130(cli: CommandLine) -> None:
    cli.home.mkdir(mode=0o700)
    process = cli.start("run", "--preset", "demo", "--segments", "protected", "--steps", "100000", "--json")
    run_id = first_line(process)
    reader = Reader(cli.home)
    wait_for(lambda: any(s.steps > 0 for s in reader.run(run_id).segments))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, out + err
    row = json.loads(out)
    assert (row["state"], row["clean"], row["runtimeState"]) == ("cancelled", False, "zeroized")
    assert "Cancelling: waiting for the run to zeroize" in err
    assert not (cli.home / "runs" / run_id).exists()
    assert cli("runs", "--json").err == ""


def test_a_run_whose_runner_is_killed_is_mentioned_and_resume_finishes_it(
    cli: CommandLine, small_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(small_tree))
    steps = ("--segments", "raw", "--steps", str(LONG.steps))
    started = cli("run", "--preset", "demo", *steps, "--detach", "--json")
    run_id = started.document["id"]
    assert started.document["state"] == "queued"
    reader = Reader(cli.home)
    wait_for(lambda: reader.run(run_id).segments[0].steps > 0)
    os.kill(runner_of(cli, run_id), signal.SIGKILL)
    wait_for(lambda: reader.run(run_id).summary.orphaned)
    assert f"`glasshouse resume {run_id}`" in cli("runs", "--json").err
    done = cli("resume", "--json")
    assert done.document == {"resumed": [{"id": run_id}], "failed": []}
    Operator(cli.home).hurry(run_id)
    watched = cli("watch", run_id, "--json")
    assert watched.code == 0, watched.out + watched.err
    assert (watched.document["rawSteps"], watched.document["clean"]) == (LONG.steps, True)
