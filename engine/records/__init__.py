"""Rows and their verdicts, computed from what the store holds and from nothing else."""

from engine.records.row import build_row, live_row

__all__ = ["build_row", "live_row"]
