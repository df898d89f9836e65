"""The contents of the Run screen's panels: proof, checks, published facts, log lines."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

from engine.events import TrainEvaluated
from engine.store.failure import Failure
from engine.store.views import Check, LogLine, RunView, Transition
from glasshouse_tui.format import DASH, brief, clock, controls_text, duration, loss, percent, plain, slack, words
from glasshouse_tui.run_metrics import is_final, overhead, reason_of
from glasshouse_tui.state_styles import UNKNOWN, StateStyle, state_style, verdict_style
from glasshouse_tui.widgets.paint import Line, line
from glasshouse_tui.widgets.table import Column, Row

_LABEL: Final = 13
_GROUPS: Final = (("lifecycle", "Lifecycle"), ("model_artifact", "Model artifact"))
_NOT_A_PROOF: Final = {"software": "software tier: no proof against the machine's owner"}

LOG_COLUMNS: Final = (
    Column("time", "TIME", 8),
    Column("chain", "FROM", 6, drop=1),
    Column("event", "EVENT", 18),
    Column("text", "", 22, flex=1),
)


def proof_lines(view: RunView) -> list[Line]:
    """Attestation, key, runtime, cleanup, overhead and verdict; fields missing from a published row are unknown."""
    summary = view.summary
    row = view.row or {}
    published = summary.source == "published"
    lines = [_state("Attestation", state_style("attestation", summary.attestation), reason_of(view, "attestation"))]
    if view.reason_codes:
        lines.append(_field("", line((", ".join(map(plain, view.reason_codes)), "bad"))))
    if summary.segments != "raw":
        ear = state_style("ear", view.ear_status)
        tier = line((words(view.tier), "plain")) if view.tier else line((UNKNOWN.text, UNKNOWN.tone))
        if view.tier or summary.attestation != "not_requested":
            lines.append(_field("Tier", tier + line(("   EAR ", "muted"), (ear.text, ear.tone))))
    if view.enforcement is not None:
        all_enforced = all(value == "enforced" for value in view.enforcement.values())
        lines.append(
            _field("Controls", line((plain(controls_text(view.enforcement)), "plain" if all_enforced else "warn")))
        )
    key = UNKNOWN if published and "keyState" not in row else state_style("key", summary.key)
    cleanup = UNKNOWN if published and "cleanup" not in row else state_style("cleanup", summary.cleanup)
    lines += [
        _state("Key", key, reason_of(view, "key")),
        _state("Runtime", state_style("runtime", summary.runtime_state), reason_of(view, "runtime")),
        _state("Cleanup", cleanup, reason_of(view, "cleanup")),
        _field("Overhead", _overhead(view)),
    ]
    if published:
        lines.append(_field("Scope", line((plain(str(row.get("scope") or DASH)), "plain"))))
    else:
        clean = verdict_style(summary.clean) if is_final(summary) else state_style("check", "pending")
        held = sum(check.status in ("passed", "not_applicable") for check in view.checks)
        tally = line((f"   {held} of {len(view.checks)} checks hold", "muted")) if view.checks else ()
        lines.append(_field("Verdict", line((clean.text, clean.tone)) + tally))
    if warning := _NOT_A_PROOF.get(view.tier or ""):
        lines += [(), line((warning, "muted"))]
    return lines


LEGEND: Final = line(("⠒⠒ ", "raw"), ("raw   ", "muted"), ("x ", "protected"), ("protected", "muted"))


def loss_lines(view: RunView, width: int) -> list[Line]:
    """Above the curve: its legend with the held-out losses, the question with its answers, a training that diverged.

    Where the width does not suffice for the question and both answers, the question is cut.
    """
    found: dict[tuple[str, str], TrainEvaluated] = {(one.segment, one.moment): one for one in view.evaluations}
    lines = [LEGEND + _held_out(view, found)]
    question = ((view.plan or {}).get("evaluation") or {}).get("question")
    if question:
        answered = "raw" if view.summary.segments == "raw" else "protected"
        before, after = (_answer(found.get((answered, moment))) for moment in ("before", "after"))
        room = max(8, width - len(before) - len(after) - 6)
        asked = plain(question, room)
        lines.append(line((f"{asked}  ", "muted"), (before, "plain"), (" → ", "muted"), (after, "strong")))
    if (view.row or {}).get("diverged"):
        lines.append(line(("diverged: the last losses are worse than guessing", "bad")))
    return lines


def _held_out(view: RunView, found: Mapping[tuple[str, str], TrainEvaluated]) -> Line:
    """The losses before and after, once if they are the same in both segments."""
    told: dict[str, str] = {}
    for segment in view.segments:
        if before := found.get((segment.kind, "before")):
            after = found.get((segment.kind, "after"))
            told[segment.kind] = f"{loss(before.loss)} → {DASH if after is None else loss(after.loss)}"
    if not told:
        return ()
    parts = {"plain": next(iter(told.values()))} if len(set(told.values())) == 1 else told
    return line(("   held out ", "muted"), *((f"{figures}  ", tone) for tone, figures in parts.items()))


def _answer(found: TrainEvaluated | None) -> str:
    return DASH if found is None or found.answer is None else plain(found.answer, 60)


def _field(label: str, value: Line) -> Line:
    return line((f"{label:<{_LABEL}}", "muted")) + value


def _state(label: str, style: StateStyle, reason: str) -> Line:
    why = line((f"   {plain(reason)}", "muted")) if reason else ()
    return _field(label, line((style.text, style.tone)) + why)


def _overhead(view: RunView) -> Line:
    if view.summary.segments != "pair":
        return line((DASH, "muted"), ("   needs both segments", "muted"))
    figure = overhead(view)
    if figure is None:
        return line((DASH, "muted"), ("   waiting for steps of both segments", "muted"))
    value, kind = figure
    if verdict := (view.row or {}).get("verdict"):
        kind = f"{kind}: {plain(str(verdict))}"
    elif is_final(view.summary):
        kind = f"{kind}, no interval"
    if is_final(view.summary) and view.summary.source != "published":
        kind = f"{kind}, {slack(view.summary.timing_slack_pct)}"
    return line((percent(value), "strong"), (f"   {kind}", "muted"))


def check_lines(checks: Sequence[Check], width: int) -> list[Line]:
    """All checks, grouped by verdict: shape, name, word, reason; a failed check's reason is shown in full."""
    lines: list[Line] = []
    for group, title in _GROUPS:
        members = [check for check in checks if check.group == group]
        if not members:
            continue
        passed = sum(check.status in ("passed", "not_applicable") for check in members)
        if lines:
            lines.append(())
        lines.append(line((title, "strong"), (f"   {passed} of {len(members)}", "muted")))
        for check in members:
            lines += _check(check, width)
    return lines


def _check(check: Check, width: int) -> list[Line]:
    style = state_style("check", check.status)
    head = line(
        (f"{style.shape} ", style.tone),
        (f"{words(check.name):<24}", "plain" if check.status == "passed" else style.tone),
        (f"{style.word:<8} ", style.tone),
    )
    if check.status == "failed":
        wrapped = textwrap.wrap(plain(check.reason), max(20, width - 2)) or [""]
        return [head, *(line(("  ", "plain"), (text, "bad")) for text in wrapped)]
    return [head + line((plain(check.reason), "muted"))]


def fact_lines(row: dict[str, Any]) -> list[Line]:
    """The facts of a published row, as published."""
    return [
        line((f"{plain(name):<24}", "muted"), (_fact(value), "plain" if value is not None else "muted"))
        for name, value in row.items()
    ]


def _fact(value: Any) -> str:
    return UNKNOWN.word if value is None else plain(str(value))


def log_row(entry: LogLine) -> Row:
    """A log line as a row of `LOG_COLUMNS`."""
    return Row(
        str(entry.rowid),
        {
            "time": line((clock(entry.ts), "muted")),
            "chain": line((entry.chain, "protected" if entry.chain == "pod" else "muted")),
            "event": line((plain(entry.event, 40), "protected" if entry.chain == "pod" else "plain")),
            "text": line((brief(entry.body), "muted")),
        },
    )


def warning_row(warning: Transition) -> Row:
    """A warning of the runner as a row of `LOG_COLUMNS`."""
    return Row(
        f"warning:{warning.id}",
        {
            "time": line((clock(warning.at), "muted")),
            "chain": line(("runner", "muted")),
            "event": line(("! warning", "warn")),
            "text": line((plain(warning.reason), "warn")),
        },
    )


def advice_lines(view: RunView) -> list[Line]:
    """What to do about the failure of a run, and of wipe or clean-up, and what it came from; empty if none failed."""
    error = view.summary.error
    lines: list[Line] = []
    if error is not None and view.summary.state != "cancelled":
        lines += _what_to_do(error)
    for move in view.failures:
        if move.error is not None:
            lines.append(line((f"{move.subject} {move.state}  ", "muted"), (plain(move.error.text), "bad")))
            lines += _what_to_do(move.error)
    return lines


def _what_to_do(error: Failure) -> list[Line]:
    lines = [line(("what to do  ", "muted"), (plain(text), "warn")) for text in error.hint.splitlines() if text.strip()]
    return lines + [line(("caused by   ", "muted"), (plain(cause), "muted")) for cause in error.cause]


def left_text(seconds: float | None) -> str:
    """`about 7.7 s left`; empty if unknown."""
    return "" if seconds is None else f"about {duration(seconds)} left"
