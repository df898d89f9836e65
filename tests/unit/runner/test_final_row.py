"""How a run ends: its state and reason, what it cost, and what of its folder stays."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.errors import RunError
from engine.runner.final_row import SIGNING_FILES, clear_folder, cost_of, destroy_leftovers, ending_of, store_row
from engine.runner.folder import RunFolder
from engine.store.failure import Failure, reason_text
from engine.store.reader import Reader
from engine.store.views import AllocationView
from engine.store.writer import Writer
from engine.wire import canonical

RUN = "0123456789ab"
CANCELLED = RunError("The run was cancelled.", code="cancelled")
BROKEN = RunError("It broke.", code="broken")


def entry(**changes: object) -> AllocationView:
    made = AllocationView(
        id="a", provider="runpod", name="a", gpu_model=None, state="gone", ledger_state="gone",
        created_at="2026-11-01T00:00:00.000Z", released_at="2026-11-01T01:00:00.000Z", price_per_hour=3.0, spent=None,
        run_id=RUN, run_state=None,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


@pytest.mark.parametrize(
    ("error", "cancelled", "segments", "expected"),
    [
        (None, False, ("done", "done"), ("finished", "")),
        (CANCELLED, True, ("failed", "failed"), ("cancelled", "cancelled: The run was cancelled.")),
        (BROKEN, True, ("done", "done"), ("failed", "broken: It broke.")),
        (None, True, ("done", "failed"), ("cancelled", "cancelled: The run was cancelled.")),
        (None, False, ("done", "failed"), ("failed", "oom: out of memory")),
        (
            None,
            False,
            ("done", "training"),
            ("failed", "segment_failed: The protected segment did not finish; its last state is training."),
        ),
    ],
)
def test_the_ending_is_the_error_then_the_cancellation_then_the_failed_segment(
    writer: Writer, reader: Reader, error: RunError | None, cancelled: bool, segments: tuple[str, str],
    expected: tuple[str, str],
) -> None:  # fmt: skip
    for kind, state in zip(("raw", "protected"), segments, strict=True):
        writer.transition(RUN, f"segment:{kind}", state, "oom: out of memory" if state == "failed" else "")
    state, why = ending_of(reader.run(RUN), None if error is None else Failure.of(error), cancelled=cancelled)
    assert (state, reason_text(why)) == expected


def test_the_ending_keeps_what_the_failed_segment_knew(writer: Writer, reader: Reader) -> None:
    failure = Failure(code="gpu_out_of_memory", message="It was too large.", hint="Use a smaller --batch.")
    writer.transition(RUN, "segment:raw", "failed", failure)
    assert ending_of(reader.run(RUN), None, cancelled=False) == ("failed", failure)


def test_a_row_of_a_failed_run_publishes_the_code_and_neither_sentence_nor_hint(writer: Writer, reader: Reader) -> None:
    failure = Failure(code="os_error", message="/home/me/secret-place is full.", hint="Free /home/me.", cause=("x",))
    writer.transition(RUN, "segment:raw", "failed", failure)
    store_row(writer, reader, RUN, None, state="failed", reason=failure, cost_usd=0.0)
    view = reader.run(RUN)
    assert view.row is not None
    assert (view.summary.error, view.row["reason"], view.row["segments"][0]["reason"]) == (
        failure, "os_error", "os_error",
    )  # fmt: skip
    assert not {"error", "hint", "cause"} & {*view.row, *view.row["segments"][0]}
    assert "/home/me" not in canonical(view.row).decode()


def test_what_a_run_cost_counts_the_seconds_for_which_it_had_the_allocation() -> None:
    assert cost_of(None, None) == 0.0
    assert cost_of(entry(price_per_hour=None), 3600.0) is None
    assert cost_of(entry(), 1800.0) == pytest.approx(1.5)
    assert cost_of(entry(), None) is None  # this machine was restarted, and the provider stated no age


def test_a_run_without_keys_gets_a_row_and_no_receipt(writer: Writer, reader: Reader) -> None:
    store_row(writer, reader, RUN, None, state="failed", reason="broken: It broke.", cost_usd=0.0)
    view = reader.run(RUN)
    assert view.row is not None
    assert (view.summary.state, view.row["clean"], view.row["state"]) == ("failed", False, "failed")
    assert reader.receipts(RUN) == {}


def test_what_the_row_is_signed_with_stays_while_the_allocation_does(
    tmp_path: Path, writer: Writer, reader: Reader
) -> None:
    folder = RunFolder(tmp_path, RUN)
    folder.create()
    for name in (*SIGNING_FILES, "content_keys.sealed", "release.bin"):
        folder.write(name, b"x")
    writer.allocation_intent("a", "runpod", "a", RUN)
    writer.finish(RUN, {}, [], state="failed")
    clear_folder(folder, reader)
    assert {path.name for path in folder.path.iterdir()} == set(SIGNING_FILES)
    destroy_leftovers(tmp_path, reader)
    assert folder.path.exists()
    writer.allocation_state("a", "gone")
    destroy_leftovers(tmp_path, reader)
    assert not folder.path.exists()


def test_the_folder_of_a_run_that_goes_on_is_never_a_leftover(tmp_path: Path, reader: Reader) -> None:
    RunFolder(tmp_path, RUN).create()
    destroy_leftovers(tmp_path, reader)
    assert RunFolder(tmp_path, RUN).path.exists()
