"""One segment: its state, bar, steps, rate, time and loss, and its stages."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical

from engine.store.views import RunView, SegmentView
from glasshouse_tui.format import DASH, count, duration, loss, rate, whole_percent, words
from glasshouse_tui.run_metrics import fraction_done, stages
from glasshouse_tui.state_styles import state_style
from glasshouse_tui.widgets.paint import Line, Lines, bar, line, spread
from glasshouse_tui.widgets.stages import StageRow

_PUBLISHED = "The stages were not published."


class SegmentCard(Vertical):
    """The card of one segment, `raw` or `protected`."""

    DEFAULT_CSS = "SegmentCard { height: auto; width: 1fr; }"

    def __init__(self, kind: str) -> None:
        super().__init__(id=kind, classes="card")
        self.kind = kind
        self.border_title = kind
        self._shown: tuple[RunView, datetime] | None = None

    def compose(self) -> ComposeResult:
        """The figures above, the stages below."""
        yield Lines(classes="figures")
        yield StageRow(id=f"{self.kind}-stages")

    def on_resize(self, _event: events.Resize) -> None:
        """Lay out the figures for the new width."""
        if self._shown:
            self.show(*self._shown)

    def show(self, view: RunView, now: datetime) -> None:
        """Show this card's segment of a run as of `now`."""
        self._shown = (view, now)
        segment = view.segment(self.kind)
        if segment is None:
            self.display = False
            return
        self.display = True
        figures = self.query_one(Lines)
        width = self.content_size.width
        published = view.summary.source == "published"
        figures.show(_published_lines(view, segment, width) if published else _live_lines(view, segment, width))
        self.query_one(StageRow).show(stages(view, self.kind, now), _PUBLISHED if published else "")


def _live_lines(view: RunView, segment: SegmentView, width: int) -> list[Line]:
    summary = view.summary
    style = state_style("segment", segment.state)
    fraction = fraction_done(segment, summary)
    tone = segment.kind if segment.state != "failed" else "bad"
    stopped = f"stopped: {words(segment.stop_reason)}" if segment.stop_reason else ""
    budget = f" of {summary.step_budget:,}" if summary.step_budget else ""
    target = f" of {duration(summary.target_sec)}" if summary.target_sec else ""
    percents = f" {whole_percent(fraction):>5}"
    return [
        spread(line((style.text, style.tone)), line((stopped, "muted")), width),
        (*bar(fraction, width - len(percents), tone), (percents, "plain")),
        spread(
            line((count(segment.steps), "strong"), (f"{budget} steps", "muted")),
            line((rate(segment.steps_per_second), "strong"), (" steps/s", "muted")),
            width,
        ),
        spread(
            line((duration(segment.elapsed_sec), "strong"), (f"{target} measured", "muted")),
            line(("loss ", "muted"), (loss(_loss_of(segment)), "strong")),
            width,
        ),
    ]


def _loss_of(segment: SegmentView) -> float | None:
    return segment.final_loss if segment.final_loss is not None else segment.last_loss


def _published_lines(view: RunView, segment: SegmentView, width: int) -> list[Line]:
    row: dict[str, Any] = view.row or {}
    epochs = row.get(f"{segment.kind}EpochsPerSec")
    pace, unit = (epochs, "epochs/s") if epochs is not None else (segment.steps_per_second, "steps/s")
    steps = count(segment.steps) if segment.steps else DASH
    return [
        line(("published", "muted")),
        spread(
            line((steps, "strong"), (" steps", "muted")), line((rate(pace), "strong"), (f" {unit}", "muted")), width
        ),
        spread(
            line((duration(segment.elapsed_sec or None), "strong"), (" measured", "muted")),
            line(("loss ", "muted"), (loss(_loss_of(segment)), "strong")),
            width,
        ),
        line(("adapter ", "muted"), (segment.adapter_sha256 or DASH, "plain")),
    ]
