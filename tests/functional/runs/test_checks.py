"""Each check of the row fails when the fact that it depends on is broken; the facts are those of a real pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from engine.plan import Target
from engine.records.facts import Facts, gather
from engine.records.row import build_row
from engine.store.reader import Reader
from engine.store.views import Check, RunView, Series
from engine.wire import (
    ADAPTER_COLLECTED,
    ALLOCATION_GONE,
    RELEASE_GRANTED,
    RUN_CLOSED,
    SEGMENT_STATE,
    TRAIN_CHECKPOINT,
    TRAIN_FINISHED,
    TRAIN_MEASURED,
    TRAIN_OBSERVED,
    TRAIN_STARTED,
    ZEROIZE_DONE,
    Event,
    canonical,
)
from tests.functional.runs.support import Operator

Finished = tuple[Operator, RunView]
Change = Callable[[Facts], Facts]


@pytest.fixture(scope="session")
def facts(finished: Finished) -> Facts:
    """The facts of the finished pair."""
    operator, view = finished
    with Reader(operator.home) as reader:
        return gather(reader, view.summary.id)


def _failed(facts: Facts) -> set[str]:
    _, checks = build_row(facts, state="finished", reason="")
    return {check.name for check in checks if check.status != "passed"}


def _summary(**fields: Any) -> Change:
    def change(facts: Facts) -> Facts:
        summary = msgspec.structs.replace(facts.view.summary, **fields)
        return msgspec.structs.replace(facts, view=msgspec.structs.replace(facts.view, summary=summary))

    return change


def _segment(kind: str, **fields: Any) -> Change:
    def change(facts: Facts) -> Facts:
        segments = tuple(
            msgspec.structs.replace(segment, **fields) if segment.kind == kind else segment
            for segment in facts.view.segments
        )
        return msgspec.structs.replace(facts, view=msgspec.structs.replace(facts.view, segments=segments))

    return change


def _events(log: str, keep: Callable[[Event], bool]) -> Change:
    def change(facts: Facts) -> Facts:
        return msgspec.structs.replace(facts, **{log: [event for event in getattr(facts, log) if keep(event)]})

    return change


def _body(log: str, name: str, kind: str | None, **fields: Any) -> Change:
    def change(facts: Facts) -> Facts:
        events = []
        for event in getattr(facts, log):
            hit = event.event == name and (kind is None or event.body.get("segment") == kind)
            events.append(msgspec.structs.replace(event, body={**event.body, **fields}) if hit else event)
        return msgspec.structs.replace(facts, **{log: events})

    return change


def _without_receipt(kind: str) -> Change:
    def change(facts: Facts) -> Facts:
        return msgspec.structs.replace(facts, receipts={k: v for k, v in facts.receipts.items() if k != kind})

    return change


def _loss(kind: str, index: int, loss: float) -> Change:
    def change(facts: Facts) -> Facts:
        old = facts.series[kind]
        losses = (*old.losses[:index], loss, *old.losses[index + 1 :])
        series = {**facts.series, kind: Series(losses=losses, nanos=old.nanos)}
        return msgspec.structs.replace(facts, series=series)

    return change


def _time(kind: str, index: int) -> Change:
    def change(facts: Facts) -> Facts:
        old = facts.series[kind]
        nanos = (*old.nanos[:index], old.nanos[index] + 1, *old.nanos[index + 1 :])
        return msgspec.structs.replace(facts, series={**facts.series, kind: Series(losses=old.losses, nanos=nanos)})

    return change


def _times(kind: str, factor: int) -> Change:
    def change(facts: Facts) -> Facts:
        old = facts.series[kind]
        nanos = tuple(nano * factor for nano in old.nanos)
        return msgspec.structs.replace(facts, series={**facts.series, kind: Series(losses=old.losses, nanos=nanos)})

    return change


def _plan(**fields: Any) -> Change:
    return lambda facts: msgspec.structs.replace(facts, plan=msgspec.structs.replace(facts.plan, **fields))


def test_the_untouched_facts_pass_every_check(facts: Facts) -> None:
    assert _failed(facts) == set()


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("attestation_verified", _summary(attestation="rejected")),
        ("attestation_verified", _summary(attestation="awaiting_evidence")),
        ("released_after_result", _without_receipt("release")),
        ("released_after_result", _events("runner_log", lambda event: event.event != "attest.result")),
        ("released_after_result", _body("runner_log", "attest.result", None, status="contraindicated")),
        ("trained_after_release", _body("pod_log", "enclave.release_plan_completed", None, runnerHead="0" * 64)),
        ("trained_after_release", _events("pod_log", lambda event: event.event != TRAIN_STARTED)),
        ("trained_after_release", _events("runner_log", lambda event: event.event != RELEASE_GRANTED)),
        ("chains_whole", lambda facts: msgspec.structs.replace(facts, pod_whole=False)),
        ("chains_whole", lambda facts: msgspec.structs.replace(facts, runner_whole=False)),
        ("chains_whole", _events("pod_log", lambda event: event.event != RUN_CLOSED)),
        ("chains_whole", _events("runner_log", lambda event: event.event != RUN_CLOSED)),
        ("chains_whole", _body("runner_log", RUN_CLOSED, None, podHead="0" * 64)),
        ("chains_whole", _body("pod_log", RUN_CLOSED, None, receipt={})),
        ("chains_whole", _body("pod_log", RUN_CLOSED, None, runnerHead="0" * 64)),
        ("zeroization_proven", _summary(runtime_state="unverified")),
        ("zeroization_proven", _without_receipt("zeroization")),
        ("zeroization_proven", _body("pod_log", ZEROIZE_DONE, None, reasons=["scanner_status"])),
        ("zeroization_proven", _body("pod_log", ZEROIZE_DONE, None, state="unverified")),
        ("raw_completed", _segment("raw", state="failed")),
        ("same_allocation", _body("pod_log", SEGMENT_STATE, "raw", identity={"nonce": "another"})),
        ("same_allocation", _events("pod_log", lambda event: event.event != SEGMENT_STATE)),
        ("allocation_gone", _summary(cleanup="leaked")),
        ("allocation_gone", _summary(cleanup="terminating")),
        ("allocation_gone", _body("runner_log", ALLOCATION_GONE, None, count=1)),
        ("allocation_gone", _events("runner_log", lambda event: event.event != ALLOCATION_GONE)),
        ("finite", _segment("protected", final_loss=None)),
        ("finite", _segment("raw", final_loss=1.0)),
        ("finite", _loss("raw", 3, float("nan"))),
        ("finite", _body("pod_log", TRAIN_FINISHED, "raw", adapterFinite=False)),
        ("planned_stop", _segment("raw", stop_reason="cancelled")),
        ("planned_stop", _segment("raw", steps=59)),
        ("planned_stop", _plan(target=Target(seconds=3600.0))),
        ("adapters_distinct", _segment("raw", adapter_sha256=None)),
        ("adapters_open", _body("runner_log", ADAPTER_COLLECTED, "raw", status="wrong", code="x")),
        ("adapters_open", _events("runner_log", lambda event: event.event != ADAPTER_COLLECTED)),
        ("same_losses", _loss("protected", 7, 1.0)),
        ("same_tensors", _segment("protected", tensor_digest="0" * 64)),
        ("same_tensors", _body("pod_log", TRAIN_CHECKPOINT, "raw", tensorDigest="0" * 64)),
        ("same_tensors", _body("pod_log", TRAIN_CHECKPOINT, "raw", step=["no", "number"])),
        ("step_chain", _time("protected", 5)),
        ("step_chain", _body("pod_log", TRAIN_FINISHED, "protected", stepChain=None)),
        ("timing_consistent", _times("raw", 100)),
        ("timing_consistent", _times("protected", 100)),
        ("timing_consistent", _events("runner_log", lambda event: event.event != TRAIN_OBSERVED)),
        ("timing_consistent", _body("pod_log", TRAIN_MEASURED, "protected", elapsedNs=1)),
        ("nothing_injected", _plan(inject_overhead_pct=0.5)),
    ],
)
def test_a_broken_fact_fails_its_check(facts: Facts, check: str, change: Change) -> None:
    assert check in _failed(change(facts))


def test_a_wrong_raw_adapter_fails_although_the_other_is_sealed(facts: Facts) -> None:
    first = _plan(order="protected-first")(facts)
    sealed = _body("runner_log", ADAPTER_COLLECTED, "protected", status="sealed")
    assert "adapters_open" in _failed(sealed(first))
    wrong = _body("runner_log", ADAPTER_COLLECTED, "raw", status="wrong", code="x")
    _, checks = build_row(wrong(sealed(first)), state="finished", reason="")
    assert {check.name: check.status for check in checks}["adapters_open"] == "failed"


def test_step_times_of_zero_leave_a_row(facts: Facts) -> None:
    times = {"raw": (0,) * 59 + (60_000_000_000,), "protected": (1_000_000_000,) * 60}
    series = {kind: Series(losses=facts.series[kind].losses, nanos=nanos) for kind, nanos in times.items()}
    row, _ = build_row(msgspec.structs.replace(facts, series=series), state="finished", reason="")
    assert row["overheadPrecisionPct"] is None
    canonical(row)


def test_equal_artifacts_are_refused(facts: Facts) -> None:
    raw = facts.segment("raw")
    assert raw is not None
    assert "adapters_distinct" in _failed(_segment("protected", adapter_sha256=raw.adapter_sha256)(facts))


def test_a_row_with_a_failed_check_is_never_clean(facts: Facts) -> None:
    row, checks = build_row(_summary(cleanup="leaked")(facts), state="finished", reason="")
    assert row["clean"] is False
    assert isinstance(checks[0], Check)


def test_a_failed_run_is_never_clean_whatever_its_checks(facts: Facts) -> None:
    assert build_row(facts, state="failed", reason="x")[0]["clean"] is False
