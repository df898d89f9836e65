"""Proofs about the logs: both chains are whole up to the signed heads, and the events are in the required order."""

from __future__ import annotations

from typing import Final

from engine.attestation.reasons import refusal
from engine.records.contradictions import log_contradictions
from engine.records.proofs.case import Case, NotApplicableError
from engine.wire import (
    ADAPTER_SEALED,
    ALLOCATION_GONE,
    ANTI_DEBUG_READY,
    ATTEST_CHALLENGE,
    ATTEST_EVIDENCE,
    ATTEST_RESULT,
    LAUNCH_ACCEPTED,
    MEASURED,
    PACKAGE_SEALED,
    RELEASE_GRANTED,
    RELEASE_PLAN_COMPLETED,
    RUN_CLOSED,
    TRAIN_FINISHED,
    TRAIN_STARTED,
    ZEROIZE_DONE,
    ZEROIZE_STARTED,
    Event,
)

POD_ORDER: Final = (
    LAUNCH_ACCEPTED, ANTI_DEBUG_READY, MEASURED, ATTEST_CHALLENGE, ATTEST_EVIDENCE, RELEASE_PLAN_COMPLETED,
    TRAIN_STARTED, TRAIN_FINISHED, ADAPTER_SEALED, ZEROIZE_STARTED, ZEROIZE_DONE, RUN_CLOSED,
)  # fmt: skip
RUNNER_ORDER: Final = (
    PACKAGE_SEALED, ATTEST_CHALLENGE, ATTEST_RESULT, RELEASE_GRANTED, RUN_CLOSED, ALLOCATION_GONE,
)  # fmt: skip
_BY_SEGMENT: Final = {TRAIN_STARTED, TRAIN_FINISHED}


def logs(case: Case) -> str:
    """Both chains verify from their first event to the signed heads."""
    facts, heads = case.facts, case.bundle.heads
    broken = [name for name, whole in (("runner", facts.runner_whole), ("pod", facts.pod_whole)) if not whole]
    ends = {"runner": facts.runner_log, "pod": facts.pod_log}
    broken += [name for name, log in ends.items() if name not in broken and _head(log) != getattr(heads, name)]
    if broken and not (broken == ["pod"] and not facts.pod_log):
        raise refusal("log_broken", " and ".join(broken))
    if facts.has("pod", RUN_CLOSED) and not facts.is_closed():
        raise refusal("log_broken", "the attester did not sign its end")
    if found := log_contradictions(facts):
        raise refusal("log_contradicts", ", ".join(found))
    return f"{len(facts.runner_log)} and {len(facts.pod_log)} events"


def _head(log: list[Event]) -> str:
    return log[-1].hash if log else "0" * 64


def order(case: Case) -> str:
    """The events are in the required order; between the two logs the links prove it, not a clock."""
    if case.bundle.result is None:
        raise NotApplicableError
    pod = _first_events(case.facts.pod_log, POD_ORDER, ATTEST_EVIDENCE)
    runner = _first_events(case.facts.runner_log, RUNNER_ORDER, ATTEST_RESULT)
    runner_hashes, pod_hashes = case.hashes("runner"), case.hashes("pod")
    links = [
        _after(pod_hashes, runner, ATTEST_RESULT, "podHead", pod[ATTEST_EVIDENCE].seq),
        _after(runner_hashes, pod, ATTEST_CHALLENGE, "runnerHead", runner[ATTEST_CHALLENGE].seq),
    ]
    if RELEASE_GRANTED in runner and RELEASE_PLAN_COMPLETED in pod:
        links.append(_after(runner_hashes, pod, RELEASE_PLAN_COMPLETED, "runnerHead", runner[RELEASE_GRANTED].seq))
    if ADAPTER_SEALED in pod:
        links.append(_after(runner_hashes, pod, ADAPTER_SEALED, "runnerHead", runner[RELEASE_GRANTED].seq))
    if RUN_CLOSED in runner and RUN_CLOSED in pod:
        links.append(_after(pod_hashes, runner, RUN_CLOSED, "podHead", pod[RUN_CLOSED].seq))
    heads = case.claims.heads if case.attested else None
    if heads is not None and (heads.pod not in pod_hashes or heads.runner not in runner_hashes):
        raise refusal("order_broken", "the evidence names heads that the logs lack")
    return f"{len(links)} links between the logs"


def _first_events(log: list[Event], names: tuple[str, ...], required_until: str) -> dict[str, Event]:
    """The first event of each name, for the protected segment if both segments have it.

    Raises `RefusedError` (`order_broken`) if they are out of order, or one up to `required_until` is missing.
    """
    events: dict[str, Event] = {}
    for event in log:
        relevant = event.event not in _BY_SEGMENT or event.body.get("segment") == "protected"
        if event.event in names and relevant:
            events.setdefault(event.event, event)
    positions = [events[name].seq for name in names if name in events]
    if positions != sorted(positions):
        raise refusal("order_broken", "a log has its events in another order")
    absent = [name for name in names[: names.index(required_until) + 1] if name not in events]
    if absent:
        raise refusal("order_broken", f"{absent[0]} is missing")
    return events


def _after(hashes: dict[str, int], log: dict[str, Event], name: str, link: str, seq: int) -> str:
    """Check that this event links to the other log's event at `seq` or a later one."""
    event = log.get(name)
    if event is None or hashes.get(str(event.body.get(link)), -1) < seq:
        raise refusal("order_broken", f"{name} does not link behind what it follows")
    return name
