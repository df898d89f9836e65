"""The proofs of a verification as lines of text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from glasshouse_tui.commands.output import plain

if TYPE_CHECKING:
    from engine.records.verify import Proven

_MARKS: Final = {
    "passed": "ok",
    "failed": "FAILED",
    "not_applicable": "-",
    "not_checked": "not checked",
    "unknown": "UNKNOWN",
}


def proof_lines(proofs: Iterable[Proven]) -> list[str]:
    """One line per proof: its name, what came of it, and why."""
    shown = tuple(proofs)
    width = max((len(proof.name) for proof in shown), default=0)
    return [_line(proof, width) for proof in shown]


def _line(proof: Proven, width: int) -> str:
    detail = f"{proof.code}: {proof.reason} {proof.hint}" if proof.code else proof.reason
    return f"  {proof.name:<{width}}  {_MARKS[proof.status]:<11}  {plain(detail)}".rstrip()
