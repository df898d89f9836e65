"""The run receipt: the run key's signature over the row, the adapters, the step series and both logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.attestation.receipts import run_receipt
from engine.measure.stepchain import step_chain
from engine.plan import plan_digest
from engine.records.facts import Facts
from engine.runner.context import RunContext


def sign_row(context: RunContext, facts: Facts, row: Mapping[str, Any]) -> dict[str, Any]:
    """The receipt of an ended run. A series is named by the head of the step chain over it."""
    adapters: dict[str, str] = {
        segment.kind: segment.adapter_sha256 for segment in facts.view.segments if segment.adapter_sha256 is not None
    }
    return run_receipt(
        run_id=context.run_id,
        row=row,
        plan_digest=plan_digest(context.plan),
        manifest_sha256=context.staging.prepared.manifest_digest,
        adapters=adapters,
        series={kind: step_chain(series.losses, series.nanos) for kind, series in facts.series.items()},
        runner_head=context.journal.head,
        pod_head=context.writer.tail(context.run_id, "pod").head,
        delegation=facts.receipts["delegation"],
        bundle_sha256=context.staging.bundle_digest,
        challenge=context.plan.challenge,
        privates=[context.staging.run_key.signing],
    )
