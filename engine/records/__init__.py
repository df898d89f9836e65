"""Rows and their verdicts, computed from what the store holds and from nothing else."""
