"""The run receipt: the run key's signature over the row, the adapters, the step series and both logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.attestation.receipts import run_receipt
from engine.measure.stepchain import step_chain
from engine.plan import plan_digest
from engine.records.facts import Facts
from engine.runner.staging import Staging
from engine.wire import GENESIS


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
