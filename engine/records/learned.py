"""What a run learned: its data's counts, the loss on held-out samples, the answers to its question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from engine.events import TrainEvaluated
from engine.plan import DataCounts
from engine.records.facts import Facts, bodies
from engine.records.rules import Outcome

PLACES: Final = 6
LAST: Final = 32
"""Steps over which the loss is averaged: a single one says little."""
DIVERGED: Final = "diverged"
OF_DATA: Final = (
    "samplesUsed",
    "samplesDropped",
    "samplesCut",
    "answerTokens",
    "answerTokensKept",
    "heldOutSamples",
)
_KINDS: Final = ("raw", "protected")
_OF_SEGMENT: Final = ("heldOutLossBefore", "heldOutLossAfter", "answerBefore", "answerAfter")


def data_fields(plan: dict[str, Any]) -> dict[str, Any]:
    """The row's fields about the data of a plan, and the loss of guessing; null where the plan does not say."""
    counts = plan.get("data", {}).get("counts")
    known = None if counts is None else msgspec.convert(counts, DataCounts)
    values = (
        (None,) * len(OF_DATA)
        if known is None
        else (known.used, known.dropped, known.cut, known.answer_tokens, known.answer_tokens_kept, known.held_out)
    )
    vocab = plan.get("model", {}).get("vocab")
    return {
        **dict(zip(OF_DATA, values, strict=True)),
        "uniformLoss": None if not vocab else round(math.log(vocab), PLACES),
        DIVERGED: None,
        "question": (plan.get("evaluation") or {}).get("question"),
        **{_top(kind, name): None for kind in _KINDS for name in _OF_SEGMENT[:2]},
        "answerBefore": None,
        "answerAfter": None,
    }


def segment_fields() -> dict[str, Any]:
    """A segment's fields before anything is known of it."""
    return dict.fromkeys(_OF_SEGMENT)


def add_learned(facts: Facts, row: dict[str, Any]) -> None:
    """Fill in what the logs and the series say."""
    row[DIVERGED] = diverged(facts)
    add_evaluations(row, bodies(facts.pod_log, TrainEvaluated), facts.plan.segments)


def add_evaluations(row: dict[str, Any], evaluations: Sequence[TrainEvaluated], segments: str) -> None:
    """Fill in the held-out losses. The answers at the top are the protected segment's, if there is one."""
    for segment in row["segments"]:
        kind = segment["kind"]
        found = segment_fields()
        for body in evaluations:
            if body.segment == kind:
                found |= {f"heldOutLoss{body.moment.title()}": body.loss, f"answer{body.moment.title()}": body.answer}
        segment.update(found)
        row |= {_top(kind, name): found[name] for name in _OF_SEGMENT[:2]}
        if kind == "protected" or segments == "raw":
            row |= {name: found[name] for name in _OF_SEGMENT[2:]}


def diverged(facts: Facts) -> bool | None:
    """Whether a segment ended worse than guessing, by the mean of its last steps; None if that is unknown."""
    vocab = facts.plan.model.vocab
    series = [facts.series[kind].losses for kind in facts.plan.kinds()]
    if not vocab or not all(series):
        return None
    means = [math.fsum(losses[-LAST:]) / len(losses[-LAST:]) for losses in series]
    return any(not math.isfinite(mean) or mean > math.log(vocab) for mean in means)


def same_held_out(facts: Facts) -> Outcome:
    """Whether both segments had the same held-out losses and answers, bit for bit."""
    if facts.plan.evaluation is None:
        return "not_applicable", "the plan holds no samples out"
    raw, protected = (_moments(facts, kind) for kind in _KINDS)
    before, after = raw.get("before"), raw.get("after")
    if before is None or before.loss is None:
        return "failed", "there is no finite held-out loss before the training"
    if before != protected.get("before"):
        return "failed", "the held-out losses before the training differ"
    if len({segment.steps for segment in facts.view.segments}) > 1:
        return "passed", "equal before the training; the step counts differ, so what follows may"
    if after is None or after != protected.get("after"):
        return "failed", "the held-out losses or answers after the training differ"
    return "passed", f"equal before and after the training, over {before.tokens} tokens"


def _moments(facts: Facts, kind: str) -> dict[str, TrainEvaluated]:
    """The evaluations of a segment by their moment, without the segment's name."""
    found = [body for body in bodies(facts.pod_log, TrainEvaluated) if body.segment == kind]
    return {body.moment: msgspec.structs.replace(body, segment="raw") for body in found}


def _top(kind: str, name: str) -> str:
    return f"{kind}{name[0].upper()}{name[1:]}"
