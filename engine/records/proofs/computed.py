"""Proofs of what was computed: the signed step series, and the row that follows from everything else."""

from __future__ import annotations

import itertools
from typing import Final

from engine.attestation.reasons import refusal
from engine.events import COMMITTED, ProgressDigest, TrainFinished, read_body
from engine.measure.stepchain import step_chain
from engine.records import rebuild
from engine.records.artifact import check_steps, logged_steps
from engine.records.facts import CLOCK_SLACK
from engine.records.progression import Progression
from engine.records.proofs.case import Case, NotApplicableError, NotCheckedError, moment
from engine.store.views import FINAL_RUN_STATES
from engine.wire import TRAIN_PROGRESS

TIMES: Final = "times_consistent"
"""The check of a row whose times contradict each other: it says so itself, and is not clean."""


def series(case: Case) -> str:
    """The steps are those that were signed and, in the protected segment, chained while they were trained."""
    if case.bundle.series is None:
        if not case.bundle.left_out:
            raise refusal("series_mismatch", "it was left out unsaid")
        raise NotCheckedError
    if case.bundle.left_out or set(case.bundle.series) != set(case.facts.plan.kinds()):
        raise refusal("series_mismatch", "it has other segments than the plan")
    facts = case.full_facts
    chains = {kind: step_chain(one.losses, one.nanos) for kind, one in facts.series.items()}
    if chains != case.run_receipt.series:
        raise refusal("series_mismatch", "it is not the one that was signed")
    check_steps(facts.pod_log, facts.series)
    for finished in (logged.body for logged in facts.pod(TrainFinished)):
        kind, one = finished.segment, facts.series.get(finished.segment)
        if one is None or (finished.steps, finished.elapsed_ns) != (len(one.nanos), sum(one.nanos)):
            raise refusal("series_mismatch", f"the attester counted other steps or another time ({kind})")
        if finished.step_chain not in ((chains[kind],) if kind == "protected" else (None, chains[kind])):
            raise refusal("series_mismatch", "it is not the one that was chained while training")
    return " and ".join(f"{len(one.losses)} {kind} steps" for kind, one in facts.series.items())


def training(case: Case) -> str:
    """The allocation's log says of the training only what the plan can produce; by the runner's own rules."""
    if case.bundle.series is None:
        raise NotCheckedError
    if not case.facts.pod_log:
        raise NotApplicableError
    progression = Progression(case.facts.plan)
    for steps in logged_steps(case.facts.pod_log).values():
        progression.within_budget(steps)
    for event in case.facts.pod_log:
        if event.event != TRAIN_PROGRESS:
            progression.take(read_body(event, COMMITTED["pod"][event.event]))
            continue
        part = read_body(event, ProgressDigest)
        one = case.full_facts.series[part.segment]
        progression.steps(part, one.losses[part.first : part.to], one.nanos[part.first : part.to])
    return " and ".join(f"{track.steps} {kind} steps" for kind, track in progression.tracks.items())


def row(case: Case) -> str:
    """Every figure, state and verdict of the row follows from the logs, the receipts and the series."""
    has_series = case.bundle.series is not None
    unequal = [*rebuild.differences(case.recomputed_row, case.row, has_series=has_series), *_implausible(case)]
    if unequal:
        raise refusal("row_mismatch", ", ".join(unequal))
    if not has_series:
        raise NotCheckedError
    return f"{len(case.row) - len(rebuild.STATED)} fields recomputed"


def _implausible(case: Case) -> list[str]:
    """The stated fields with impossible values."""
    row = case.row
    wrong = []
    if row["state"] not in FINAL_RUN_STATES or (row["state"] == "finished") != (row["reason"] == ""):
        wrong.append("state")
    counts = case.facts.plan.data.counts
    if counts is not None and row["dataSamples"] not in (None, counts.used):
        wrong.append("samplesUsed, dataSamples")
    if case.attested and row["version"] != case.claims.swversion:
        wrong.append("version")
    stated = (case.delegation.issued, row["startedAt"], row["finishedAt"], case.run_receipt.finished)
    times = [moment(text) for text in stated if text is not None]
    is_admitted = any(check["name"] == TIMES and check["status"] == "failed" for check in case.recomputed_row["checks"])
    if not is_admitted and any(later + CLOCK_SLACK < earlier for earlier, later in itertools.pairwise(times)):
        wrong.append("startedAt, finishedAt")
    if row["finishedAt"] is None or (row["startedAt"] is None and row["state"] == "finished"):
        wrong.append("finishedAt")
    return wrong
