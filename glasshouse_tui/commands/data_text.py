"""What `data` prints: the report, and about which file and model it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import DataError
from engine.payload.prepare.report import check_loss
from engine.payload.prepare.report_text import report_lines
from glasshouse_tui.commands.output import as_builtins, emit_json, emit_text

if TYPE_CHECKING:
    from engine.payload.prepare.cache import Facts
    from engine.payload.prepare.report import Report
    from engine.plan import Model
    from glasshouse_tui.commands.base import Session


def emit_report(session: Session, report: Report, facts: Facts, model: Model) -> int:
    """Print the report on stdout; the exit code is 1 if a run would refuse the data."""
    refused = _refusal(report)
    if session.json:
        emit_json(_document(report, facts, model, refused))
    else:
        emit_text("\n".join([*_about(model), *report_lines(report), *_verdict(refused)]))
    return 0 if refused is None else 1


def _refusal(report: Report) -> DataError | None:
    try:
        check_loss(report)
    except DataError as error:
        return error
    return None


def _document(report: Report, facts: Facts, model: Model, refused: DataError | None) -> dict[str, Any]:
    """`refused` is the error with which a run would refuse the data."""
    return {
        "model": {"source": model.source, "name": model.name, "revision": model.revision},
        "digest": facts.digest,
        "bytes": facts.size,
        "report": as_builtins(report),
        "refused": None if refused is None else refused.as_dict(),
    }


def _about(model: Model) -> list[str]:
    if model.source != "tiny":
        return []
    return ["tokenizer: of the shipped tiny model, which makes many short tokens; --model reports on your own"]


def _verdict(refused: DataError | None) -> list[str]:
    return [] if refused is None else [f"refused by a run: {refused.message}", f"  {refused.hint}"]
