"""Failures in the store: code, sentence, hint and causes stay together, in every state that keeps one."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from engine.errors import ProviderError, RunError, causes_of
from engine.plan import Plan
from engine.store.failure import Failure, failure_of
from engine.store.home import database_path
from engine.store.reader import Reader
from engine.store.writer import Writer

RUN = "0123456789ab"
FAILURE = Failure(code="trainer_failed", message="It broke.", hint="Mend it.", cause=("OSError: no space",))


@pytest.fixture
def run(writer: Writer, plan: Plan) -> str:
    writer.create_run(RUN, plan)
    return RUN


def test_a_failure_is_kept_while_the_run_cleans_up_and_at_its_end(run: str, writer: Writer, reader: Reader) -> None:
    writer.transition(run, "run", "cleaning", FAILURE)
    summary = reader.run(run).summary
    assert (summary.state, summary.error, summary.reason) == ("cleaning", FAILURE, "trainer_failed: It broke.")
    writer.finish(run, {}, [], "failed", FAILURE)
    view = reader.run(run)
    assert view.summary.error == reader.runs()[0].error == view.transitions[-1].error == FAILURE


def test_a_reason_that_is_no_failure_leaves_none(run: str, writer: Writer, reader: Reader) -> None:
    writer.transition(run, "run", "queued", FAILURE)
    writer.transition(run, "run", "staging", "installing: 3 of 5")
    assert reader.run(run).summary.error is None


def test_segments_and_allocations_keep_theirs(run: str, writer: Writer, reader: Reader) -> None:
    writer.transition(run, "segment:raw", "failed", FAILURE)
    writer.transition(run, "cleanup", "leaked", FAILURE)
    writer.allocation_intent("a1", "runpod", "glasshouse-1", run)
    writer.allocation_state("a1", "leaked", FAILURE)
    view, entry = reader.run(run), reader.allocation("a1")
    assert view.segments[0].error == FAILURE
    assert view.transitions[-1].error == FAILURE
    assert entry is not None
    assert (entry.error, entry.reason) == (FAILURE, FAILURE.text)
    writer.allocation_state("a1", "gone", "absent in two listings")
    assert reader.allocations()[0].error is None


def test_what_fails_beside_the_run_is_told_once_and_until_it_is_mended(
    run: str, writer: Writer, reader: Reader
) -> None:
    unverified = Failure(code="zeroization_missing", message="No receipt.", hint="Treat the secrets as not wiped.")
    leaked = Failure(code="leaked", message="It is listed.", hint="Run cleanup.")
    writer.transition(run, "runtime", "unverified", unverified)
    writer.transition(run, "segment:raw", "failed", FAILURE)
    writer.transition(run, "cleanup", "leaked", leaked)
    writer.finish(run, {}, [], "failed", FAILURE)
    assert [move.error for move in reader.run(run).failures] == [unverified, leaked]
    writer.transition(run, "cleanup", "gone", "absent in two listings")
    assert [move.error for move in reader.run(run).failures] == [unverified]


def test_a_failed_run_of_an_earlier_version_gets_the_hint_of_its_code(
    run: str, home: Path, writer: Writer, reader: Reader
) -> None:
    writer.finish(run, {}, [], "failed", "link_lost: The SSH connection was lost.")
    with sqlite3.connect(database_path(home)) as connection:
        connection.execute("UPDATE runs SET error = NULL")
    connection.close()
    error = reader.run(run).summary.error
    assert error is not None
    assert (error.code, error.message) == ("link_lost", "The SSH connection was lost.")
    assert "resume" in error.hint
    assert failure_of("kept until 2026-11-01T00:00:00Z") is None


def test_a_warning_is_in_the_history_once_and_changes_no_state(run: str, writer: Writer, reader: Reader) -> None:
    writer.warn(run, "The supervisor could not be asked to stop.")
    writer.warn(run, "The supervisor could not be asked to stop.")
    view = reader.run(run)
    assert [one.reason for one in view.warnings] == ["The supervisor could not be asked to stop."]
    assert view.summary.state == "queued"


def test_causes_are_few_short_and_without_paths_or_foreign_text() -> None:
    assert causes_of(RunError("alone")) == ()
    deepest = ValueError("token=hf_secret")
    full = OSError(28, "No space left on device", "/home/me/private/file")
    full.__cause__ = deepest
    ours = ProviderError("The folder /home/me/private cannot be written: full.", code="acquire_failed")
    ours.__cause__ = full
    top = RunError("It failed.")
    top.__cause__ = ours
    assert causes_of(top) == (
        "acquire_failed: The folder private cannot be written: full.",
        "OSError: No space left on device",
        "ValueError",
    )
    endless = RunError("again" * 200)
    endless.__cause__ = endless
    assert [len(one) for one in causes_of(endless)] == [200] * 4
    assert Failure.of(top).cause == causes_of(top)
