"""The checks that the console shows: the final verdict's, or as far as the stored states decide them already."""

from __future__ import annotations

from engine.records.rules import provisional
from engine.store.views import Check, RunView
from glasshouse_tui.run_metrics import is_final


def checks_of(view: RunView) -> tuple[Check, ...]:
    """The final verdict's checks if there are any, else the provisional ones; none for a published row."""
    if view.checks or view.summary.source == "published":
        return view.checks
    return () if is_final(view.summary) else provisional(view)
