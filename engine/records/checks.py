"""The two verdicts of a row, check by check. Each check states what was observed, and why it passed or failed.

The reasons are part of the published row: `verify` recomputes and compares them, so they are never reworded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from engine.events import (
    PackageOpened,
    PodClosed,
    ReleaseGranted,
    ResultReached,
    RunnerClosed,
    TrainCheckpoint,
    TrainFinished,
    TrainStarted,
)
from engine.measure.stepchain import step_chain
from engine.records import rules
from engine.records.contradictions import log_contradictions
from engine.records.facts import Facts
from engine.records.learned import same_held_out
from engine.records.rules import Group, Outcome
from engine.records.times import contradictions
from engine.records.timing import timing_outcome
from engine.store.views import Check

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Checker = Callable[[Facts], Outcome]


def verdicts(facts: Facts) -> tuple[Check, ...]:
    """Every check of both verdicts, in a fixed order."""
    return (*_run("lifecycle", LIFECYCLE, facts), *_run("model_artifact", ARTIFACT, facts))


def _run(group: Group, table: dict[str, Checker], facts: Facts) -> list[Check]:
    outcomes = {
        name: rules.not_applicable(applies, facts.plan.segments) or _outcome(table[name], facts)
        for name, applies in rules.NAMES[group].items()
    }
    return [Check(name=name, group=group, status=status, reason=reason) for name, (status, reason) in outcomes.items()]


def _outcome(check: Checker, facts: Facts) -> Outcome:
    """Run one check. Malformed data from the allocation fails the check; the run must still end with a row."""
    try:
        return check(facts)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return "failed", f"the material is malformed ({type(error).__name__})"


def is_clean(checks: tuple[Check, ...]) -> bool:
    """Every applicable check passed and none is pending."""
    return all(check.status in {"passed", "not_applicable"} for check in checks)


def _released_after(facts: Facts) -> Outcome:
    results, granted = facts.runner(ResultReached), facts.runner(ReleaseGranted)
    if not granted:
        return "failed", "no key was released"
    if len(granted) != 1 or "release" not in facts.receipts:
        return "failed", "the release is not backed by exactly one receipt"
    passed = [e for e in results if e.body.status in {"affirming", "warning"}]
    if passed and passed[0].seq < granted[0].seq:
        return "passed", "the result stands before the release in the runner's log"
    return "failed", "the release does not follow a result that passed"


def _trained_after(facts: Facts) -> Outcome:
    opened, started = facts.pod(PackageOpened), facts.pod(TrainStarted, "protected")
    granted = facts.runner(ReleaseGranted)
    if not opened or not started or not granted:
        return "failed", "release or training is absent from the logs"
    linked = opened[0].body.runner_head == granted[0].hash
    if linked and opened[0].seq < started[0].seq:
        return "passed", "the allocation's log links to the release, and training stands after it"
    return "failed", "training does not stand after a release that the runner's log knows"


def _chains(facts: Facts) -> Outcome:
    broken = [name for name, whole in (("runner", facts.runner_whole), ("allocation", facts.pod_whole)) if not whole]
    if broken:
        return "failed", f"the chain of the {' and the '.join(broken)} is not whole"
    if found := log_contradictions(facts):
        return "failed", f"the allocation's log contradicts itself: {', '.join(found)}"
    return _closed(facts)


def _closed(facts: Facts) -> Outcome:
    ours, theirs = facts.runner(RunnerClosed), facts.pod(PodClosed)
    if not ours or not theirs or facts.pod_log[-1].hash != theirs[-1].hash:
        return "failed", "a log lacks its end"
    if not facts.is_closed():
        return "failed", "the attester did not sign its log to the end"
    if ours[-1].body.pod_head != theirs[-1].hash:
        return "failed", "the runner closed over another end of the allocation's log"
    if theirs[-1].body.runner_head not in {event.hash for event in facts.runner_log}:
        return "failed", "the allocation closed over a head that the runner's log does not have"
    return "passed", f"{len(facts.runner_log)} and {len(facts.pod_log)} events, each linked to the one before"


def _attestation(facts: Facts) -> Outcome:
    return rules.attestation(facts.view)


def _zeroized(facts: Facts) -> Outcome:
    return rules.zeroization(facts.view, facts.wipe_faults())


def _raw_completed(facts: Facts) -> Outcome:
    return rules.raw_completed(facts.view)


def _same_allocation(facts: Facts) -> Outcome:
    identities = facts.identities()
    if len(identities) < 2:
        return "failed", "the allocation was not identified in both segments"
    if identities["raw"] == identities["protected"]:
        return "passed", "one machine, by its nonce and the start of its first process, in both segments"
    return "failed", "the machine changed between the segments"


def _gone(facts: Facts) -> Outcome:
    proof, cleanup = facts.gone(), facts.view.summary.cleanup
    if cleanup not in {"not_ours", "kept"} and proof and proof.listings == 0 and not facts.pod_log:
        return "not_applicable", "nothing was acquired"
    return rules.allocation_gone(facts.view, proof.listings if proof and proof.count == 0 else None)


def _times(facts: Facts) -> Outcome:
    summary = facts.view.summary
    found = contradictions(
        summary.started_at,
        summary.finished_at,
        summary.duration_sec,
        facts.runner_log,
        facts.pod_log,
        facts.delegated(),
    )
    if found:
        return "failed", "; ".join(found)
    if summary.duration_sec is None:
        return "passed", "no log runs backwards; the duration by the boot clock is unknown"
    return "passed", "no log runs backwards, and UTC and the boot clock agree"


def _finite(facts: Facts) -> Outcome:
    for kind in facts.plan.kinds():
        segment = facts.segment(kind)
        losses = facts.series[kind].losses
        if segment is None or segment.final_loss is None or not losses:
            return "failed", f"the {kind} segment has no final loss"
        if not all(math.isfinite(loss) for loss in losses):
            return "failed", f"a loss of the {kind} segment is not finite"
        if segment.final_loss != losses[-1]:
            return "failed", f"the final loss of the {kind} segment is not the last of its series"
        finished = facts.pod(TrainFinished, kind)
        if not finished or not finished[-1].body.adapter_finite:
            return "failed", f"the {kind} adapter is not known to be finite"
    return "passed", "every loss and every adapter value is finite"


def _planned_stop(facts: Facts) -> Outcome:
    return rules.planned_stop(facts.view, facts.plan.target)


def _distinct(facts: Facts) -> Outcome:
    return rules.adapters_distinct(facts.view)


def _collected(facts: Facts) -> Outcome:
    collected = facts.collected()
    sealed = False
    for kind in facts.plan.kinds():
        adapter = collected.get(kind)
        if adapter is None:
            return "failed", f"the {kind} adapter was not collected"
        if adapter.status == "sealed":
            sealed = True
        elif adapter.status != "opened":
            return "failed", f"the {kind} adapter: {adapter.code or 'unknown'}"
    if sealed:
        return "not_applicable", "the recipient key is under a passphrase; `glasshouse adapter` opens it"
    return "passed", "each adapter opened, and is the one that its log names"


def _bits(losses: Sequence[float], count: int) -> NDArray[np.uint32]:
    import numpy as np

    return np.array(losses[:count], dtype="<f4").view("<u4")


def _same_losses(facts: Facts) -> Outcome:
    raw, protected = facts.series["raw"].losses, facts.series["protected"].losses
    common = min(len(raw), len(protected))
    if common == 0:
        return "failed", "a segment has no steps"
    different = _bits(raw, common) != _bits(protected, common)
    if not different.any():
        return "passed", f"the loss bits of {common} common steps are equal"
    return "failed", f"the losses part at measured step {int(different.argmax()) + 1} of {common}"


def _same_tensors(facts: Facts) -> Outcome:
    raw, protected = facts.segment("raw"), facts.segment("protected")
    if raw is None or protected is None or not raw.steps or not protected.steps:
        return "failed", "a segment has no steps"
    digests = [
        {e.body.step: e.body.tensor_digest for e in facts.pod(TrainCheckpoint, kind)} for kind in ("raw", "protected")
    ]
    common = sorted(set(digests[0]) & set(digests[1]))
    ended_apart = raw.steps == protected.steps and (
        raw.tensor_digest is None or raw.tensor_digest != protected.tensor_digest
    )
    if ended_apart or any(digests[0][step] != digests[1][step] for step in common):
        return "failed", "the final adapters differ" if ended_apart else "the adapters part at a checkpoint"
    if raw.steps == protected.steps:
        return "passed", f"equal at {len(common)} checkpoints and at the end"
    if not common:
        return "not_applicable", "the step counts differ and there is no common checkpoint"
    return "passed", f"equal at {len(common)} checkpoints, the last after step {common[-1]}"


def _evidence_of_steps(facts: Facts) -> Outcome:
    finished = facts.pod(TrainFinished, "protected")
    series = facts.series["protected"]
    if not finished or not finished[-1].body.step_chain:
        return "failed", "the protected segment left no step chain"
    if finished[-1].body.step_chain == step_chain(series.losses, series.nanos):
        return "passed", f"recomputed over {len(series.losses)} steps"
    return "failed", "the step chain does not fit the series"


def _honest_timing(facts: Facts) -> Outcome:
    if facts.plan.inject_overhead_pct:
        return "failed", f"the plan injects {facts.plan.inject_overhead_pct:g} % to test the method"
    return "passed", "nothing was injected"


LIFECYCLE: Final[dict[str, Checker]] = {
    "attestation_verified": _attestation,
    "released_after_result": _released_after,
    "trained_after_release": _trained_after,
    "chains_whole": _chains,
    "zeroization_proven": _zeroized,
    "raw_completed": _raw_completed,
    "same_allocation": _same_allocation,
    "allocation_gone": _gone,
    "times_consistent": _times,
}
ARTIFACT: Final[dict[str, Checker]] = {
    "finite": _finite,
    "planned_stop": _planned_stop,
    "adapters_distinct": _distinct,
    "adapters_open": _collected,
    "same_losses": _same_losses,
    "same_tensors": _same_tensors,
    "same_held_out": same_held_out,
    "step_chain": _evidence_of_steps,
    "nothing_injected": _honest_timing,
    "timing_consistent": timing_outcome,
}
