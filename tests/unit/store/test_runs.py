"""A run's life in the store: plan, states, segments, proofs, row."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from engine.errors import StoreError, UsageError
from engine.plan import Plan, load_plan, plan_digest
from engine.store.reader import Reader
from engine.store.views import Check
from engine.store.writer import Writer


@dataclass
class Clock:
    """Counts seconds."""

    seconds: int = 0

    def __call__(self) -> str:
        self.seconds += 1
        return f"2026-11-01T00:{self.seconds // 60:02}:{self.seconds % 60:02}.000Z"


CHECKS = (
    Check(name="chains_whole", group="lifecycle", status="passed", reason="both chains verify"),
    Check(name="allocation_gone", group="lifecycle", status="pending", reason="kept for 30 min"),
)


def test_new_run_is_queued_with_its_plan_and_pending_segments(reader: Reader, writer: Writer, plan: Plan) -> None:
    writer.create_run("run-a", plan)
    view = reader.run("run-a")
    summary = view.summary
    assert (summary.label, summary.preset, summary.provider, summary.model) == (
        "first light", "demo", "local", "tiny-qwen2",
    )  # fmt: skip
    assert (summary.state, summary.step_budget, summary.target_sec, summary.order) == (
        "queued", 200, None, "raw-first",
    )  # fmt: skip
    assert (summary.attestation, summary.key, summary.runtime_state) == ("not_requested", "withheld", "pending")
    assert (summary.started_at, summary.finished_at, summary.clean, summary.overhead_pct) == (None,) * 4
    assert [(part.kind, part.position, part.state, part.steps) for part in view.segments] == [
        ("raw", 0, "pending", 0), ("protected", 1, "pending", 0),
    ]  # fmt: skip
    assert view.plan is not None
    assert load_plan(view.plan) == plan
    assert view.plan_digest == plan_digest(plan)
    assert view.row is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", summary.created_at)


def test_segments_follow_the_order_of_the_plan(reader: Reader, writer: Writer, plan: Plan) -> None:
    writer.create_run("swapped", msgspec.structs.replace(plan, order="protected-first"))
    writer.create_run("alone", msgspec.structs.replace(plan, segments="protected"))
    assert [part.kind for part in reader.run("swapped").segments] == ["protected", "raw"]
    assert [part.kind for part in reader.run("alone").segments] == ["protected"]
    assert (reader.run("alone").summary.order, reader.run("alone").summary.raw_steps) == (None, None)


def test_second_run_of_one_id_is_refused(reader: Reader, writer: Writer, plan: Plan) -> None:
    writer.create_run("run-a", plan)
    with pytest.raises(StoreError) as caught:
        writer.create_run("run-a", msgspec.structs.replace(plan, label="other"))
    assert caught.value.code == "run_exists"
    assert reader.run("run-a").summary.label == "first light"


def test_states_are_kept_with_time_and_reason(home: Path, plan: Plan) -> None:
    with Writer(home, clock=Clock()) as writer, Reader(home) as reader:
        writer.create_run("run-a", plan)
        writer.transition("run-a", "run", "allocating", "asking local")
        writer.transition("run-a", "segment:protected", "attesting")
        writer.transition("run-a", "attestation", "awaiting_evidence")
        writer.transition("run-a", "attestation", "verified", "software tier")
        writer.transition("run-a", "key", "released")
        writer.transition("run-a", "runtime", "running")
        writer.transition("run-a", "cleanup", "terminating")
        view = reader.run("run-a")
    summary = view.summary
    assert (summary.state, summary.reason, summary.attestation, summary.key) == (
        "allocating", "asking local", "verified", "released",
    )  # fmt: skip
    assert (summary.runtime_state, summary.cleanup) == ("running", "terminating")
    assert summary.started_at == "2026-11-01T00:00:02.000Z"
    assert [part.state for part in view.segments] == ["pending", "attesting"]
    history = [(move.subject, move.state, move.reason) for move in view.transitions]
    assert history[3:6] == [
        ("run", "allocating", "asking local"),
        ("segment:protected", "attesting", ""),
        ("attestation", "awaiting_evidence", ""),
    ]
    assert [move.at for move in view.transitions] == sorted(move.at for move in view.transitions)


def test_same_state_again_is_recorded_once_unless_its_reason_changes(
    reader: Reader, writer: Writer, plan: Plan
) -> None:
    writer.create_run("run-a", plan)
    for reason in ("waiting", "waiting", "still waiting"):
        writer.transition("run-a", "run", "queued", reason)
    moves = [move.reason for move in reader.run("run-a").transitions if move.subject == "run"]
    assert moves == ["", "waiting", "still waiting"]


@pytest.mark.parametrize(
    ("subject", "state"),
    [
        ("run", "sleeping"), ("segment:raw", "verified"), ("segment:third", "done"), ("weather", "fine"),
        ("key", "running"),
    ],
)  # fmt: skip
def test_unknown_states_and_subjects_are_refused(
    reader: Reader, writer: Writer, plan: Plan, subject: str, state: str
) -> None:
    writer.create_run("run-a", plan)
    before = reader.run("run-a")
    with pytest.raises(StoreError) as caught:
        writer.transition("run-a", subject, state)
    assert caught.value.code == "state_unknown"
    assert reader.run("run-a") == before


def test_an_ended_run_stays_ended_but_its_cleanup_continues(reader: Reader, writer: Writer, plan: Plan) -> None:
    writer.create_run("run-a", plan)
    writer.transition("run-a", "run", "failed", "link lost")
    ended = reader.run("run-a").summary.finished_at
    with pytest.raises(StoreError) as caught:
        writer.transition("run-a", "run", "running")
    assert caught.value.code == "run_final"
    writer.transition("run-a", "cleanup", "gone")
    summary = reader.run("run-a").summary
    assert (summary.state, summary.cleanup, summary.finished_at) == ("failed", "gone", ended)
    assert ended is not None


def test_the_end_time_stays_when_the_reason_is_recorded_later(home: Path, plan: Plan) -> None:
    with Writer(home, clock=Clock()) as writer, Reader(home) as reader:
        writer.create_run("run-a", plan)
        writer.transition("run-a", "run", "cancelled")
        ended = reader.run("run-a").summary.finished_at
        writer.transition("run-a", "run", "cancelled", "by the operator")
        summary = reader.run("run-a").summary
    assert (summary.finished_at, summary.reason) == (ended, "by the operator")


def test_row_of_a_cancelled_run_leaves_it_cancelled(reader: Reader, writer: Writer, plan: Plan) -> None:
    writer.create_run("run-a", plan)
    writer.transition("run-a", "run", "cancelled")
    writer.finish("run-a", {"clean": False}, (), "failed")
    assert reader.run("run-a").summary.state == "cancelled"


def test_segment_fields_are_kept_and_phases_merge(reader: Reader, writer: Writer, plan: Plan) -> None:
    writer.create_run("run-a", plan)
    writer.segment("run-a", "raw", phases={"loading": 1.5})
    writer.segment(
        "run-a", "raw", steps=200, elapsed_sec=15.25, final_loss=0.5, stop_reason="step_budget",
        adapter_sha256="a" * 64, tensor_digest="b" * 64, phases={"warming": 0.25},
    )  # fmt: skip
    raw = reader.run("run-a").segments[0]
    assert (raw.steps, raw.elapsed_sec, raw.final_loss, raw.stop_reason) == (200, 15.25, 0.5, "step_budget")
    assert raw.phases == {"loading": 1.5, "warming": 0.25}
    assert raw.steps_per_second == pytest.approx(200 / 15.25)
    assert reader.run("run-a").segments[1].phases == {}


def test_loss_that_is_not_finite_is_unknown(reader: Reader, writer: Writer, plan: Plan) -> None:
    writer.create_run("run-a", plan)
    writer.segment("run-a", "raw", final_loss=math.nan, last_loss=math.inf)
    raw = reader.run("run-a").segments[0]
    assert (raw.final_loss, raw.last_loss) == (None, None)


def test_segment_that_the_plan_lacks_is_refused(writer: Writer, plan: Plan) -> None:
    writer.create_run("alone", msgspec.structs.replace(plan, segments="protected"))
    with pytest.raises(StoreError):
        writer.segment("alone", "raw", steps=1)


def test_description_is_kept_and_found_by_the_filter(reader: Reader, writer: Writer, plan: Plan) -> None:
    writer.create_run("run-a", plan)
    writer.describe("run-a", gpu_model="NVIDIA H100", tier="software", ear_status="warning")
    writer.describe("run-a", reason_codes=["ptrace_absent"])
    view = reader.run("run-a")
    assert (view.summary.gpu_model, view.tier, view.ear_status) == ("NVIDIA H100", "software", "warning")
    assert view.reason_codes == ("ptrace_absent",)
    assert [run.id for run in reader.runs(text="h100 LIGHT")] == ["run-a"]


def test_finishing_keeps_row_checks_and_verdict(reader: Reader, writer: Writer, plan: Plan) -> None:
    writer.create_run("run-a", plan)
    row = {"id": "run-a", "overheadPct": 1.25, "clean": False, "rawFinalLoss": 0.1, "costUsd": None}
    writer.finish("run-a", row, CHECKS)
    view = reader.run("run-a")
    assert view.row == row
    assert view.checks == CHECKS
    assert (view.summary.state, view.summary.clean, view.summary.overhead_pct) == ("finished", False, 1.25)
    assert view.summary.finished_at is not None


def test_the_row_is_replaced_when_a_pending_check_passes(reader: Reader, writer: Writer, plan: Plan) -> None:
    writer.create_run("run-a", plan)
    writer.finish("run-a", {"clean": False}, CHECKS)
    first = reader.run("run-a").summary
    settled = (CHECKS[0], msgspec.structs.replace(CHECKS[1], status="passed", reason="absent twice"))
    writer.finish("run-a", {"clean": True}, settled)
    view = reader.run("run-a")
    assert (view.summary.clean, view.checks) == (True, settled)
    assert (view.summary.state, view.summary.finished_at) == ("finished", first.finished_at)


def test_failed_run_keeps_its_partial_row(reader: Reader, writer: Writer, plan: Plan) -> None:
    writer.create_run("run-a", plan)
    writer.finish("run-a", {"rawSteps": 10, "clean": False}, (), "failed", "the trainer was killed")
    summary = reader.run("run-a").summary
    assert (summary.state, summary.reason, summary.overhead_pct) == ("failed", "the trainer was killed", None)


def test_overhead_must_be_a_number(reader: Reader, writer: Writer, plan: Plan) -> None:
    writer.create_run("run-a", plan)
    with pytest.raises(StoreError):
        writer.finish("run-a", {"overheadPct": math.inf, "clean": False}, ())
    assert reader.run("run-a").summary.state == "queued"


def test_later_evidence_replaces_earlier(reader: Reader, writer: Writer, plan: Plan) -> None:
    writer.create_run("run-a", plan)
    writer.evidence("run-a", "token", "eyJ.a")
    writer.evidence("run-a", "token", "eyJ.b")
    writer.evidence("run-a", "policy", {"version": 1})
    assert reader.evidence("run-a") == {"token": "eyJ.b", "policy": {"version": 1}}


def test_a_different_second_receipt_is_refused(reader: Reader, writer: Writer, plan: Plan) -> None:
    writer.create_run("run-a", plan)
    envelope = {"payload": "e30=", "payloadType": "application/vnd.in-toto+json", "signatures": [{"sig": "AA=="}]}
    writer.receipt("run-a", "release", envelope)
    writer.receipt("run-a", "release", envelope)
    with pytest.raises(StoreError) as caught:
        writer.receipt("run-a", "release", {**envelope, "payload": "W10="})
    assert caught.value.code == "receipt_exists"
    assert reader.receipts("run-a") == {"release": envelope}


def test_a_run_receipt_can_be_replaced(reader: Reader, writer: Writer, plan: Plan) -> None:
    writer.create_run("run-a", plan)
    writer.receipt("run-a", "run_receipt", {"payload": "a"})
    writer.receipt("run-a", "run_receipt", {"payload": "b"}, replace=True)
    assert reader.receipts("run-a") == {"run_receipt": {"payload": "b"}}


def test_runs_are_found_by_unique_prefix_or_as_last(home: Path, plan: Plan) -> None:
    with Writer(home, clock=Clock()) as writer, Reader(home) as reader:
        for run_id in ("ab12", "ab34", "cd56"):
            writer.create_run(run_id, plan)
        assert reader.resolve("ab1") == "ab12"
        assert reader.resolve("last") == "cd56"
        for prefix, code in (("ab", "run_ambiguous"), ("x", "run_unknown"), ("", "run_unknown"), ("%", "run_unknown")):
            with pytest.raises(UsageError) as caught:
                reader.resolve(prefix)
            assert caught.value.code == code
        assert "ab12, ab34" in _message(reader, "ab")


def _message(reader: Reader, prefix: str) -> str:
    with pytest.raises(UsageError) as caught:
        reader.resolve(prefix)
    return caught.value.message


def test_last_without_any_run_hints_how_to_start_one(reader: Reader) -> None:
    with pytest.raises(UsageError) as caught:
        reader.resolve("last")
    assert "demo" in caught.value.hint


def test_reads_and_writes_of_an_unknown_run_raise_run_unknown(reader: Reader, writer: Writer) -> None:
    for use in (
        lambda: reader.run("nope"),
        lambda: reader.series("nope", "raw"),
        lambda: reader.log("nope"),
        lambda: reader.events("nope", "pod"),
        lambda: writer.transition("nope", "run", "running"),
        lambda: writer.ingest("nope", [], 0),
        lambda: writer.claim_runner("nope"),
        lambda: writer.request("nope", "cancel"),
    ):
        with pytest.raises(UsageError) as caught:
            use()
        assert caught.value.code == "run_unknown"
