"""What was logged: both chains whole to the heads that were signed, and in the order that the path needs."""

from __future__ import annotations

from typing import Final

from engine.attestation.reasons import refusal
from engine.events import (
    AdapterCollected,
    AdapterSaved,
    AdapterSealed,
    ChallengeTaken,
    LaunchAccepted,
    SegmentState,
    TrainFinished,
    TrainStarted,
    ZeroizeScan,
)
from engine.records.facts import Facts
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
    """Both chains hold from their first event to the heads that were signed."""
    facts, heads = case.facts, case.bundle.heads
    broken = [name for name, held in (("runner", facts.runner_whole), ("pod", facts.pod_whole)) if not held]
    ends = {"runner": facts.runner_log, "pod": facts.pod_log}
    broken += [name for name, log in ends.items() if name not in broken and _head(log) != getattr(heads, name)]
    if broken and not (broken == ["pod"] and not facts.pod_log):
        raise refusal("log_broken", " and ".join(broken))
    if facts.has("pod", RUN_CLOSED) and not facts.is_closed():
        raise refusal("log_broken", "the attester did not sign its end")
    if contradictions := _contradictions(facts):
        raise refusal("log_contradicts", ", ".join(contradictions))
    return f"{len(facts.runner_log)} and {len(facts.pod_log)} events"


def _contradictions(facts: Facts) -> list[str]:
    """What one event says and another denies."""
    launches = [one.body for one in facts.pod(LaunchAccepted)]
    begun = [one.body.segment for one in facts.pod(SegmentState) if one.body.state == "launching"]
    nonces = {one.body.nonce_sha256 for one in facts.pod(ChallengeTaken)}
    sealed = [one.body for one in facts.pod(AdapterSealed)]
    saved = [one.body for one in facts.pod(AdapterSaved)]
    adapters: dict[str, AdapterSaved | AdapterSealed] = {
        **{body.segment: body for body in saved},
        **{body.segment: body for body in sealed},
    }
    trained: dict[str, str] = {one.body.segment: one.body.tensor_digest for one in facts.pod(TrainFinished)}
    after = [one.body.hits for one in facts.pod(ZeroizeScan) if one.body.moment == "after"]
    denials = {
        "the order of the segments": begun != list(facts.plan.kinds())[: len(begun)],
        "the launch": len(launches) > 1,
        "the accelerator": any(one.body.gpu != launches[0].gpu for one in facts.pod(TrainStarted)),
        "the trained tensors": any(body.tensor_digest != trained.get(kind) for kind, body in adapters.items()),
        "the nonce of the adapter": any(body.nonce_sha256 not in nonces for body in sealed),
        "the collected adapter": any(
            seen.status == "opened" and not _is_named(seen, adapters.get(kind))
            for kind, seen in facts.collected().items()
        ),
        "the scans": not facts.wipe_faults() and any(count for hits in after for count in hits.values()),
    }
    return [what for what, denied in denials.items() if denied]


def _is_named(seen: AdapterCollected, named: AdapterSaved | AdapterSealed | None) -> bool:
    """Whether a downloaded adapter that opened is the one that the allocation's log names."""
    return named is not None and (seen.sha256, seen.tensor_digest, seen.code) == (
        named.sha256,
        named.tensor_digest,
        None,
    )


def _head(log: list[Event]) -> str:
    return log[-1].hash if log else "0" * 64


def order(case: Case) -> str:
    """What had to come first came first, in both logs; between them the links say so, no clock."""
    if case.bundle.result is None:
        raise NotApplicableError
    pod = _places(case.facts.pod_log, POD_ORDER, ATTEST_EVIDENCE)
    runner = _places(case.facts.runner_log, RUNNER_ORDER, ATTEST_RESULT)
    runner_hashes, pod_hashes = case.hashes("runner"), case.hashes("pod")
    told = [
        _after(pod_hashes, runner, ATTEST_RESULT, "podHead", pod[ATTEST_EVIDENCE].seq),
        _after(runner_hashes, pod, ATTEST_CHALLENGE, "runnerHead", runner[ATTEST_CHALLENGE].seq),
    ]
    if RELEASE_GRANTED in runner and RELEASE_PLAN_COMPLETED in pod:
        told.append(_after(runner_hashes, pod, RELEASE_PLAN_COMPLETED, "runnerHead", runner[RELEASE_GRANTED].seq))
    if ADAPTER_SEALED in pod:
        told.append(_after(runner_hashes, pod, ADAPTER_SEALED, "runnerHead", runner[RELEASE_GRANTED].seq))
    if RUN_CLOSED in runner and RUN_CLOSED in pod:
        told.append(_after(pod_hashes, runner, RUN_CLOSED, "podHead", pod[RUN_CLOSED].seq))
    heads = case.claims.heads if case.attested else None
    if heads is not None and (heads.pod not in pod_hashes or heads.runner not in runner_hashes):
        raise refusal("order_broken", "the evidence names heads that the logs lack")
    return f"{len(told)} links between the logs"


def _places(log: list[Event], wanted: tuple[str, ...], known: str) -> dict[str, Event]:
    """The first event of each name, of the protected segment where two have it.

    Raises where they are out of order, or one up to `known` is missing.
    """
    found: dict[str, Event] = {}
    for event in log:
        mine = event.event not in _BY_SEGMENT or event.body.get("segment") == "protected"
        if event.event in wanted and mine:
            found.setdefault(event.event, event)
    places = [found[name].seq for name in wanted if name in found]
    if places != sorted(places):
        raise refusal("order_broken", "a log has its events in another order")
    absent = [name for name in wanted[: wanted.index(known) + 1] if name not in found]
    if absent:
        raise refusal("order_broken", f"{absent[0]} is missing")
    return found


def _after(hashes: dict[str, int], log: dict[str, Event], name: str, link: str, seq: int) -> str:
    """The other log's event that this one links to stands at `seq` or later."""
    event = log.get(name)
    if event is None or hashes.get(str(event.body.get(link)), -1) < seq:
        raise refusal("order_broken", f"{name} does not link behind what it follows")
    return name
