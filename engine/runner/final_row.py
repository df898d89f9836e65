"""The row of an ended run: computed, signed, stored, and signed again once its allocation is proven gone."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.attestation.receipts import run_receipt
from engine.errors import GlasshouseError
from engine.measure.stepchain import step_chain
from engine.plan import load_plan, plan_digest
from engine.providers.protocol import EmptyProof
from engine.records import build_row
from engine.records.facts import Facts, gather
from engine.runner.allocation import record_gone
from engine.runner.end_allocation import outcome_of
from engine.runner.folder import RunFolder
from engine.runner.journal import Journal
from engine.runner.staging import Staging
from engine.store.reader import Reader
from engine.store.views import FINAL_RUN_STATES, AllocationView
from engine.store.writer import Writer
from engine.wire import GENESIS


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


def sign_row(staging: Staging, facts: Facts, row: Mapping[str, Any]) -> dict[str, Any]:
    """The receipt of an ended run. A series is named by the head of the step chain over it."""
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
