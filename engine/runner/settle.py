"""Bringing the row of an ended run up to date once its allocation is proven gone, and signing it anew."""

from __future__ import annotations

import contextlib
from pathlib import Path

from engine.errors import GlasshouseError
from engine.plan import load_plan
from engine.providers.protocol import EmptyProof
from engine.records import build_row
from engine.records.facts import gather
from engine.runner.allocation import record_gone
from engine.runner.folder import RunFolder
from engine.runner.journal import Journal
from engine.runner.release import outcome_of
from engine.runner.signing import sign_row
from engine.runner.staging import Staging
from engine.store.reader import Reader
from engine.store.views import FINAL_RUN_STATES, AllocationView
from engine.store.writer import Writer


def settle_runs(home: Path, writer: Writer, reader: Reader, entry: AllocationView, proof: EmptyProof) -> list[str]:
    """Settle every ended run that the allocation served; returns their ids. What is being run settles itself."""
    settled = []
    for run_id in reader.runs_served(entry.id):
        summary = reader.run(run_id).summary
        if summary.state in FINAL_RUN_STATES and summary.cleanup not in {"gone", "not_ours"}:
            with contextlib.suppress(GlasshouseError, OSError):  # somebody else is at it, or its folder is damaged
                _settle(home, writer, reader, run_id, proof)
                settled.append(run_id)
    return settled


def _settle(home: Path, writer: Writer, reader: Reader, run_id: str, proof: EmptyProof) -> None:
    writer.claim_runner(run_id)
    try:
        view = reader.run(run_id)
        folder = RunFolder(home, run_id)
        journal = Journal(writer, reader, run_id)
        if "allocation_gone" not in reader.evidence(run_id):
            record_gone(writer, journal, run_id, proof)
        writer.transition(run_id, "cleanup", outcome_of(proof), proof.statement)
        if view.row is None:
            return
        facts = gather(reader, run_id)
        row, checks = build_row(
            facts, state=view.summary.state, reason=view.summary.reason, cost_usd=view.row.get("costUsd")
        )
        row["finishedAt"] = view.row["finishedAt"]
        with contextlib.suppress(GlasshouseError):  # without the run's key the row says what is known, unsigned anew
            staging = Staging(load_plan(view.plan), folder, writer, journal, run_id)
            if staging.is_prepared and "delegation" in facts.receipts:
                writer.receipt(run_id, "run", sign_row(staging, facts, row), replace=True)
        writer.finish(run_id, row, checks, reason=view.summary.reason)  # of an ended run only the row is replaced
        folder.destroy()
    finally:
        writer.release_runner(run_id)
