"""Runs of other processes: watching, logs, cancelling, and runs that have lost their runner."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from typing import TYPE_CHECKING

from engine.store.failure import Failure
from engine.store.reader import Reader
from engine.wire import LOG, ChainWriter

if TYPE_CHECKING:
    from tests.functional.command_line.conftest import CommandLine


def test_every_command_notes_a_run_without_a_runner(cli: CommandLine) -> None:
    cli.enter_run(owner=None).close()
    for arguments in (["runs"], ["presets"], ["key", "show"], ["show", "last"], ["completions", "fish"]):
        done = cli(*arguments, "--json")
        json.loads(done.out)
        assert f"`glasshouse resume {cli.run_id}`" in done.err, arguments
    assert "no runner" in cli("runs").out


def test_a_run_with_a_live_runner_is_not_noted(cli: CommandLine) -> None:
    cli.enter_run(owner=os.getpid()).close()
    done = cli("runs", "--json")
    assert done.err == ""
    assert [run["id"] for run in done.document["runs"]] == [cli.run_id]
    cli("resume", cli.run_id, "--json").refused(2, "run_locked")


def test_watch_follows_a_run_to_its_row_and_exits_with_its_code(cli: CommandLine) -> None:
    with cli.enter_run(owner=os.getpid()) as writer:
        watching = cli.start("watch", cli.run_id[:4], "--json")
        writer.transition(cli.run_id, "run", "running")
        time.sleep(0.5)
        writer.finish(cli.run_id, {"id": cli.run_id, "clean": False}, [], "finished")
        out, err = watching.communicate(timeout=120)
    assert watching.returncode == 3
    assert json.loads(out) == {"id": cli.run_id, "clean": False}
    assert "run         running" in err
    assert "\x1b" not in err


FAILURE = Failure(
    code="trainer_failed",
    message="/home/me/model: it broke.\x1b[2J",
    hint="Mend the model.",
    cause=("OSError: No space left on device",),
)


def test_a_failed_run_says_what_to_do_wherever_it_is_looked_at(cli: CommandLine) -> None:
    with cli.enter_run(owner=os.getpid()) as writer:
        watching = cli.start("watch", cli.run_id)
        writer.warn(cli.run_id, "The rest of the log could not be read.")
        writer.transition(cli.run_id, "segment:raw", "failed", FAILURE)
        writer.transition(cli.run_id, "run", "cleaning", FAILURE)
        row = {"id": cli.run_id, "clean": False, "reason": "trainer_failed"}
        writer.finish(cli.run_id, row, [], "failed", FAILURE)
        out, err = watching.communicate(timeout=120)
    assert watching.returncode == 1
    assert "note        warning  The rest of the log could not be read." in err
    assert err.count("Mend the model.") == 1
    error = {
        "code": "trainer_failed", "message": FAILURE.message, "hint": FAILURE.hint, "cause": list(FAILURE.cause),
    }  # fmt: skip
    shown = cli("show", "last", "--json").document
    assert shown == {**row, "error": error}
    logs = cli("logs", "last", "--json").document
    assert (logs["error"], [one["text"] for one in logs["warnings"]]) == (
        error, ["The rest of the log could not be read."],
    )  # fmt: skip
    (listed,) = cli("runs", "--json").document["runs"]
    assert (listed["error"], listed["reason"]) == (error, FAILURE.text)
    texts = [out, cli("show", "last").out, cli("runs").out, cli("logs", "last").err]
    for text in texts:
        assert "Mend the model." in text
        assert "trainer_failed: /home/me/model: it broke.\\x1b[2J" in text
        assert "\x1b" not in text
    assert "caused by OSError: No space left on device" in out


def test_a_wipe_that_is_not_proven_says_what_to_do_wherever_a_finished_run_is_looked_at(cli: CommandLine) -> None:
    unverified = Failure(code="zeroization_missing", message="No receipt.", hint="Treat the secrets as not wiped.")
    with cli.enter_run(owner=os.getpid()) as writer:
        writer.transition(cli.run_id, "runtime", "unverified", unverified)
        writer.finish(cli.run_id, {"id": cli.run_id, "clean": False}, [], "finished")
    told = [{
        "subject": "runtime", "state": "unverified", "code": "zeroization_missing", "message": "No receipt.",
        "hint": "Treat the secrets as not wiped.", "cause": [],
    }]  # fmt: skip
    assert cli("show", "last", "--json").document["failures"] == told
    assert cli("logs", "last", "--json").document["failures"] == told
    for text in (cli("show", "last").out, cli("logs", "last").err):
        assert "runtime unverified: zeroization_missing: No receipt." in text
        assert "Treat the secrets as not wiped." in text


def test_ctrl_c_in_watch_exits_130_and_requests_nothing(cli: CommandLine) -> None:
    with cli.enter_run(owner=os.getpid()) as writer:
        watching = cli.start("watch", cli.run_id, "--json")
        assert watching.stderr is not None
        assert watching.stderr.readline() == f"run {cli.run_id}\n"
        watching.send_signal(signal.SIGINT)
        out, err = watching.communicate(timeout=120)
        assert writer.pending_requests(cli.run_id) == []
    assert watching.returncode == 130
    assert json.loads(out)["state"] == "queued"
    assert "the run continues" in err


def test_cancel_sends_a_request_to_the_runner_and_refuses_a_final_run(cli: CommandLine) -> None:
    with cli.enter_run(owner=os.getpid()) as writer:
        done = cli("cancel", "last", "--json")
        assert done.document == {"id": cli.run_id, "requested": "cancel", "state": "queued"}
        assert [request.kind for request in writer.pending_requests(cli.run_id)] == ["cancel"]
        writer.finish(cli.run_id, {"id": cli.run_id, "clean": False}, [], "cancelled")
    cli("cancel", cli.run_id, "--json").refused(2, "run_final")
    cli("resume", cli.run_id, "--json").refused(2, "run_final")
    assert cli("watch", cli.run_id, "--json").code == 130


def test_logs_filter_by_chain_and_stop_when_the_run_ends(cli: CommandLine) -> None:
    run_id = cli.run_id
    with cli.enter_run(owner=os.getpid()) as writer:
        runner, pod = ChainWriter(run_id), ChainWriter(run_id)
        writer.append_events(run_id, "runner", [runner.append(LOG, {"text": "from the runner"})])
        writer.ingest(run_id, [pod.append(LOG, {"text": "\x1b[2Jfrom the pod"})], 100)
        lines = cli("logs", run_id, "--json").document["lines"]
        assert [(line["chain"], line["body"]["text"]) for line in lines] == [
            ("runner", "from the runner"),
            ("pod", "\x1b[2Jfrom the pod"),
        ]
        text = cli("logs", run_id, "--chain", "pod").out
        assert "from the pod" in text
        assert "from the runner" not in text
        assert "\x1b" not in text
        following = cli.start("logs", run_id, "--follow")
        time.sleep(0.5)
        writer.append_events(run_id, "runner", [runner.append(LOG, {"text": "the last one"})])
        writer.finish(run_id, {"id": run_id, "clean": True}, [], "finished")
        out, _ = following.communicate(timeout=120)
    assert following.returncode == 0
    assert "the last one" in out


def test_the_database_is_private(cli: CommandLine) -> None:
    cli.enter_run(owner=None).close()
    assert cli.home.stat().st_mode & 0o777 == 0o700
    assert (cli.home / "glasshouse.db").stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(cli.home / "glasshouse.db") as database:
        assert database.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert Reader(cli.home).runs()[0].id == cli.run_id
