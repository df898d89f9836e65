"""Allocations seen from outside a run: the overview, cleanup, the sentinel and the live test."""
