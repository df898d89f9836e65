"""What was computed: the steps that were signed, and the row that follows from everything else."""

from __future__ import annotations

from engine.attestation.reasons import refusal
from engine.measure.stepchain import step_chain
from engine.records import rebuild
from engine.records.proofs.case import Case, NotCheckedError
from engine.wire import (
    TRAIN_FINISHED,
)


def series(case: Case) -> str:
    """The steps are those that were signed and, in the protected segment, chained while they were trained."""
    if case.bundle.series is None:
        if not case.bundle.left_out:
            raise refusal("series_mismatch", "it was left out unsaid")
        raise NotCheckedError
    if case.bundle.left_out or set(case.bundle.series) != set(case.facts.plan.kinds()):
        raise refusal("series_mismatch", "it has other segments than the plan")
    chains = {kind: step_chain(one.losses, one.nanos) for kind, one in case.facts.series.items()}
    if chains != case.run_receipt.series:
        raise refusal("series_mismatch", "it is not the one that was signed")
    finished = case.facts.pod(TRAIN_FINISHED, "protected")
    if finished and finished[-1].body.get("stepChain") != chains.get("protected"):
        raise refusal("series_mismatch", "it is not the one that was chained while training")
    return " and ".join(f"{len(one.losses)} {kind} steps" for kind, one in case.facts.series.items())


def row(case: Case) -> str:
    """Every figure, state and verdict of the row follows from the logs, the receipts and the series."""
    if case.bundle.series is None:
        raise NotCheckedError
    unequal = rebuild.differences(case.made, case.row)
    if unequal:
        raise refusal("row_mismatch", ", ".join(unequal))
    return f"{len(case.row) - len(rebuild.STATED)} fields recomputed"
