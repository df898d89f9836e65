"""A row as text: segments side by side, the overhead and its uncertainty, both verdicts."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import fill
from typing import Any, Final

from engine.store.views import Check, RunView
from glasshouse_tui.commands.output import (
    UNKNOWN,
    failure_lines,
    known,
    local_time,
    loss,
    other_failures,
    plain,
    rate,
    seconds,
    table,
)
from glasshouse_tui.format import controls_text, environment_text

_MARKS: Final = {"passed": "ok", "failed": "FAILED", "not_applicable": "n/a", "pending": "pending"}
_VERDICTS: Final = (("lifecycle", "lifecycle"), ("model_artifact", "model artifact"))
_INDENT: Final = "  "
_KEY_WIDTH: Final = 13


def row_text(view: RunView, row: dict[str, Any]) -> str:
    """The row as text, about 80 columns wide unless its values are longer; nulls are shown as `unknown`."""
    blocks = [_headline(view, row), _facts(view, row), _segments(view, row), _learned(row), _results(view, row)]
    blocks += [_verdict(title, [c for c in view.checks if c.group == group]) for group, title in _VERDICTS]
    if row.get("note"):
        blocks.append(fill(plain(row["note"]), 80))
    return "\n\n".join(block for block in blocks if block)


def cleanliness(view: RunView) -> str:
    """`clean`, `NOT CLEAN`, or why there is no verdict."""
    if view.summary.source == "published":
        return "published"
    if view.summary.clean is None:
        return "no verdict yet"
    return "clean" if view.summary.clean else "NOT CLEAN"


def overhead_text(pct: float | None, interval: Iterable[float] | None, *, provisional: bool = False) -> str:
    """The overhead and its uncertainty: a single pair has no interval, and a negative value is not a speed-up."""
    if pct is None:
        return UNKNOWN
    bounds = list(interval) if interval is not None else None
    if bounds is not None and len(bounds) == 2:
        low, high = bounds
        uncertainty = f"95 % interval {low:.2f} to {high:.2f} %"
        uncertainty = f"within noise: {uncertainty}" if low <= 0 <= high else uncertainty
        uncertainty = f"control failed: {uncertainty}" if high < 0 else uncertainty
    else:
        uncertainty = "no interval from a single pair"
        uncertainty = f"within noise: {uncertainty}" if pct < 0 else uncertainty
    return f"{pct:.2f} % ({'provisional; ' if provisional else ''}{uncertainty})"


def _lines(pairs: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"{_INDENT}{name:<{_KEY_WIDTH}}{value}" for name, value in pairs)


def _headline(view: RunView, row: dict[str, Any]) -> str:
    summary = view.summary
    label = known(row.get("label", summary.label))
    line = f"run {plain(summary.id)}  {label}  {summary.state}, {cleanliness(view)}"
    lines = [line, f"{_INDENT}{plain(summary.reason)}"] if summary.reason else [line]
    if summary.error is not None:
        lines += failure_lines(summary.error, indent=_INDENT)
    lines += [f"{_INDENT}{line}" for line in other_failures(view)]
    lines += [f"{_INDENT}note: {plain(one.reason)}" for one in view.warnings]
    return "\n".join(lines)


def _facts(view: RunView, row: dict[str, Any]) -> str:
    summary = view.summary
    if summary.target_sec is not None:
        target = f"{summary.target_sec:g} s per segment"
    elif summary.step_budget is not None:
        target = f"{summary.step_budget} steps per segment"
    else:
        target = "target unknown"
    source = ((view.plan or {}).get("model") or {}).get("source")
    unversioned = {"tiny": "shipped with this version", "folder": "a local folder"}.get(str(source))
    order = f"{known(row.get('order', summary.order))}; " if summary.segments == "pair" else ""
    pairs = [
        ("model", known(row.get("model", summary.model))),
        ("revision", unversioned or known(row.get("modelRevision"))),
        ("provider", f"{known(summary.provider)}, GPU {known(row.get('gpuModel', summary.gpu_model))}"),
        ("segments", f"{order}{target}; seed {known(row.get('seed'))}"),
        ("started", local_time(row.get("startedAt") or summary.started_at)),
        ("finished", local_time(row.get("finishedAt") or summary.finished_at)),
    ]
    pairs += [(name, plain(row[name])) for name in ("published", "challenge") if row.get(name)]
    return _lines(pairs)


def _segments(view: RunView, row: dict[str, Any]) -> str:
    kinds = [kind for kind in ("raw", "protected") if view.summary.segments in ("pair", kind)]
    live = {segment.kind: segment for segment in view.segments}

    def cells(name: str) -> list[Any]:
        return [row.get(f"{kind}{name}") for kind in kinds]

    steps, elapsed = cells("Steps"), cells("ElapsedSec")
    losses = cells("FinalLoss")
    rows = [
        ["steps", *(known(value) for value in steps)],
        *_updates(row, kinds),
        ["elapsed", *(seconds(value) for value in elapsed)],
        ["rate", *(rate(count, time) for count, time in zip(steps, elapsed, strict=True))],
        ["final loss", *(loss(value) for value in losses)],
        ["stop reason", *(known(value) for value in cells("StopReason"))],
        ["adapter", *(_short(value) for value in cells("AdapterSha256"))],
        ["tensors", *(_short(value) for value in cells("TensorDigest"))],
    ]
    rows[-3:-3] = _held_out(row, kinds)
    if live:
        rows.insert(0, ["state", *(live[kind].state if kind in live else UNKNOWN for kind in kinds)])
    body = table(["", *kinds], rows)
    return "\n".join(_INDENT + line for line in body.splitlines())


def _updates(row: dict[str, Any], kinds: list[str]) -> list[list[str]]:
    """What was trained, settling steps included; rows of an earlier version do not say."""
    names = {"updates": "Updates", "samples used": "SamplesUsed", "epochs": "Epochs"}
    return [
        [title, *(known(row[f"{kind}{name}"]) for kind in kinds)]
        for title, name in names.items()
        if all(f"{kind}{name}" in row for kind in kinds)
    ]


def _held_out(row: dict[str, Any], kinds: list[str]) -> list[list[str]]:
    """The losses on held-out samples, if the run had any."""
    if not row.get("heldOutSamples"):
        return []
    moments = ("Before", "After")
    return [
        [f"held-out {moment.lower()}", *(loss(row.get(f"{kind}HeldOutLoss{moment}")) for kind in kinds)]
        for moment in moments
    ]


def _learned(row: dict[str, Any]) -> str:
    """What the training came to: the data, a question's answers, a warning where it diverged."""
    pairs = []
    if row.get("samplesUsed") is not None:
        kept, all_of_them = row.get("answerTokensKept"), row.get("answerTokens")
        share = f", {100 * kept / all_of_them:.1f} % of the answers' tokens kept" if kept and all_of_them else ""
        cut = f"{row['samplesUsed']} samples used, {row['samplesDropped']} dropped, {row['samplesCut']} cut{share}"
        pairs.append(("data", cut))
    if row.get("question"):
        pairs.append(("question", plain(row["question"])))
        pairs += [(moment, known(row.get(f"answer{moment.title()}"))) for moment in ("before", "after")]
    if row.get("diverged"):
        uniform = known(row.get("uniformLoss"))
        pairs.append(("diverged", f"the last losses are worse than guessing ({uniform}): lower --lr"))
    return _lines(pairs)


def _results(view: RunView, row: dict[str, Any]) -> str:
    summary = view.summary
    tier, ear = row.get("tier", view.tier), row.get("earStatus", view.ear_status)
    pairs = []
    if summary.segments == "pair":
        provisional = view.row is None
        pairs.append(
            (
                "overhead",
                overhead_text(row.get("overheadPct"), row.get("overheadCi95"), provisional=provisional),
            )
        )
        if "timingSlackPct" in row and not provisional:
            value = row["timingSlackPct"]
            pairs.append(("timing slack", UNKNOWN if value is None else f"±{value:.2f} %, by the runner's own clock"))
        precision = row.get("overheadPrecisionPct")
        within = UNKNOWN if precision is None else f"+-{precision:.2f} % within this pair's segments"
        pairs.append(("precision", within))
        pairs.append(("noise floor", known(row.get("noiseFloorPct"), " %")))
    if summary.segments != "raw":
        codes = f" ({', '.join(plain(code) for code in view.reason_codes)})" if view.reason_codes else ""
        state = f"{known(row.get('attestation'))}{codes}; tier {known(tier)}, EAR {known(ear)}"
        pairs += [("attestation", state), ("runtime", known(row.get("runtimeState")))]
        if view.enforcement is not None:
            pairs.append(("controls", plain(controls_text(view.enforcement))))
    if view.environment is not None:
        pairs.append(("environment", plain(environment_text(view.environment))))
    same = known(row.get("sameAllocation"))
    both = f"; same for both segments: {same}" if summary.segments == "pair" else ""
    pairs += [
        ("allocation", f"{summary.cleanup}{both}"),
        ("cost", known(row.get("costUsd"), " USD")),
        ("plan", _short(row.get("planDigest", view.plan_digest))),
    ]
    return _lines(pairs)


def _short(digest: object) -> str:
    return plain(digest)[:16] if isinstance(digest, str) and digest else UNKNOWN


def _verdict(title: str, checks: list[Check]) -> str:
    if not checks:
        return ""
    counts = [(word, sum(check.status == status for check in checks)) for status, word in _COUNTED]
    summed = ", ".join(f"{count} {word}" for word, count in counts if count)
    width = max(len(check.name) for check in checks)
    lines = [
        f"{_MARKS[check.status]:<8}{plain(check.name):<{width}}  {plain(check.reason)}".rstrip() for check in checks
    ]
    return "\n".join([f"{title}: {summed}", *(_INDENT + line for line in lines)])


_COUNTED: Final = (
    ("passed", "passed"),
    ("failed", "failed"),
    ("pending", "pending"),
    ("not_applicable", "not applicable"),
)
