"""Rows and their verdicts, computed from the contents of the store alone."""

from engine.records.row import build_row, live_row

__all__ = ["build_row", "live_row"]
