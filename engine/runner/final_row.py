"""The row of an ended run: computed, signed, stored, and signed again once its allocation is proven gone."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from engine.attestation.receipts import run_receipt
from engine.errors import GlasshouseError, UsageError
from engine.hints import HINTS
from engine.measure.stepchain import step_chain
from engine.plan import is_of_earlier_version, load_plan, plan_digest
from engine.providers.protocol import EmptyProof
from engine.records.facts import Facts, gather
from engine.records.row import build_row
from engine.runner.allocation import record_gone
from engine.runner.end_allocation import outcome_of
from engine.runner.folder import INPUTS, RunFolder, left_behind
from engine.runner.journal import Journal
from engine.runner.staging import BUNDLE, PREPARED, Staging
from engine.sealing.run_key import RUN_KEY_FILES
from engine.store.failure import Failure, Reason, reason_text
from engine.store.reader import Reader
from engine.store.views import FINAL_RUN_STATES, AllocationView, RunState, RunView, SegmentView
from engine.store.writer import Writer
from engine.wire import GENESIS, utc_now

FinalState = Literal["finished", "failed", "cancelled"]
SIGNING_FILES: Final = (*RUN_KEY_FILES, INPUTS, PREPARED, BUNDLE)
"""What a run's folder keeps until its allocation is gone: its row is then signed again."""


def ending_of(view: RunView, failure: Failure | None, *, cancelled: bool) -> tuple[FinalState, Reason]:
    """The final state of a run, and why: the failure first, then a cancellation, then a segment that failed."""
    if failure is not None:
        return "cancelled" if failure.code == "cancelled" else "failed", failure
    if cancelled:
        return "cancelled", Failure(code="cancelled", message="The run was cancelled.")
    failed = next((segment for segment in view.segments if segment.state != "done"), None)
    if failed is not None:
        return "failed", failed.error or failed.reason or _unexplained(failed)
    return "finished", ""


def _unexplained(failed: SegmentView) -> Failure:
    message = f"The {failed.kind} segment did not finish; its last state is {failed.state}."
    return Failure(code="segment_failed", message=message, hint=HINTS["segment_failed"])


def cost_of(entry: AllocationView | None, held_seconds: float | None) -> float | None:
    """What the allocation cost in USD while a run had it, `held_seconds` by the boot clock; None if that is unknown."""
    if entry is None:
        return 0.0
    if entry.price_per_hour is None or held_seconds is None:
        return None
    return entry.price_per_hour * held_seconds / 3600


def cost_of_run(reader: Reader, run_id: str, entry: AllocationView | None) -> float | None:
    """`cost_of`, for a run and its allocation."""
    return cost_of(entry, None if entry is None else reader.held_seconds(entry.id, run_id))


def store_row(
    writer: Writer,
    reader: Reader,
    run_id: str,
    staging: Staging | None,
    *,
    state: RunState,
    reason: Reason,
    cost_usd: float | None,
    ended: tuple[str, float | None] | None = None,
) -> None:
    """Compute the row, sign it and store it; for a run that has already ended only row and receipt are replaced.

    Without the run's keys (`staging` None), or before anything was prepared, the row is stored without a receipt.
    `ended`: when an ended run ended, and its duration, as in its present row.
    """
    facts = _ending(gather(reader, run_id), ended)
    row, checks = build_row(facts, state=state, reason=reason_text(reason), cost_usd=cost_usd)
    if staging is not None and staging.is_prepared and "delegation" in facts.receipts:
        writer.receipt(run_id, "run", sign_row(staging, facts, row), replace=True)
    final: FinalState = state if state in FINAL_RUN_STATES else "failed"
    writer.finish(run_id, row, checks, state=final, reason=reason)


def _ending(facts: Facts, ended: tuple[str, float | None] | None) -> Facts:
    """The facts with the run's end: now, unless it ended before."""
    summary = facts.view.summary
    finished_at, duration = (utc_now(), summary.duration_sec) if ended is None else ended
    summary = msgspec.structs.replace(summary, finished_at=finished_at, duration_sec=duration)
    return msgspec.structs.replace(facts, view=msgspec.structs.replace(facts.view, summary=summary))


def sign_row(staging: Staging, facts: Facts, row: dict[str, Any]) -> dict[str, Any]:
    """The run receipt: the run key's signature over the row, the adapters, the step series and both logs' heads.

    A series is represented by the head of the step chain over it.
    """
    adapters: dict[str, str] = {
        segment.kind: segment.adapter_sha256 for segment in facts.view.segments if segment.adapter_sha256 is not None
    }
    return run_receipt(
        run_id=staging.run_id,
        row=row,
        plan_digest=plan_digest(facts.plan),
        manifest_sha256=staging.prepared.manifest_digest,
        adapters=adapters,
        series={kind: step_chain(series.losses, series.nanos) for kind, series in facts.series.items()},
        runner_head=facts.runner_log[-1].hash if facts.runner_log else GENESIS,
        pod_head=facts.pod_log[-1].hash if facts.pod_log else GENESIS,
        delegation=facts.receipts["delegation"],
        bundle_sha256=staging.bundle_digest,
        challenge=facts.plan.challenge,
        privates=[staging.run_key.signing],
    )


def settle_runs(
    home: Path, writer: Writer, reader: Reader, entry: AllocationView, proof: EmptyProof, *, again: bool = False
) -> list[str]:
    """Update the row of every ended run that used a released allocation; returns their ids.

    A run that has not ended yet updates its own row at its end. `again`: also of those whose row says that it is gone,
    since it is listed again.
    """
    settled = []
    for run_id in reader.runs_served(entry.id):
        summary = reader.run(run_id).summary
        if summary.state in FINAL_RUN_STATES and (again or summary.cleanup not in {"gone", "not_ours"}):
            with contextlib.suppress(GlasshouseError, OSError):  # another process updates it, or its folder is damaged
                _settle(home, writer, reader, run_id, proof, entry)
                settled.append(run_id)
    return settled


def _settle(home: Path, writer: Writer, reader: Reader, run_id: str, proof: EmptyProof, entry: AllocationView) -> None:
    writer.claim_runner(run_id)
    try:
        view = reader.run(run_id)
        folder = RunFolder(home, run_id)
        journal = Journal(writer, reader, run_id)
        record_gone(writer, journal, run_id, proof)
        writer.transition(run_id, "cleanup", outcome_of(proof), proof.statement)
        if view.row is None or is_of_earlier_version(view.plan):
            return  # a row of an earlier version stays as it was signed
        staging = None
        with contextlib.suppress(GlasshouseError):  # without the run's key the row gets no new receipt
            staging = Staging(load_plan(view.plan), folder, writer, journal, run_id)
        store_row(
            writer,
            reader,
            run_id,
            staging,
            state=view.summary.state,
            reason=view.summary.error or view.summary.reason,
            cost_usd=_cost_again(reader, view, entry),
            ended=(view.row["finishedAt"], view.row.get("durationSec")),
        )
        clear_folder(folder, reader)
    finally:
        writer.release_runner(run_id)


def _cost_again(reader: Reader, view: RunView, entry: AllocationView) -> float | None:
    """What an ended run cost, now that its allocation has changed: the time after its end counts unless it was kept."""
    stored = (view.row or {}).get("costUsd")
    present = reader.allocation(entry.id) or entry
    was_kept = any(move.subject == "cleanup" and move.state == "kept" for move in view.transitions)
    if was_kept or present.run_id != view.summary.id:
        return stored
    return cost_of_run(reader, view.summary.id, present)


def clear_folder(folder: RunFolder, reader: Reader) -> None:
    """Destroy the folder of an ended run; while its allocation exists, keep what its row is signed with."""
    if folder.run_id in _unsettled(reader):
        folder.keep_only(SIGNING_FILES)
    else:
        folder.destroy()


def destroy_leftovers(home: Path, reader: Reader) -> None:
    """Destroy the folders of ended runs whose runner died before doing so."""
    unsettled = _unsettled(reader)
    for run_id in left_behind(home):
        with contextlib.suppress(UsageError):  # a run that is being created at this moment
            if reader.run(run_id).summary.state in FINAL_RUN_STATES and run_id not in unsettled:
                RunFolder(home, run_id).destroy()


def _unsettled(reader: Reader) -> set[str]:
    """The runs whose allocation is not gone yet, or is gone and still looked for: their rows may be signed again."""
    entries = [*reader.allocations(open_only=True), *reader.looked_for()]
    return {run_id for entry in entries for run_id in reader.runs_served(entry.id)}
