"""`doctor`: what this machine lacks, line by line, and whether the demo can run on it."""

from __future__ import annotations

import click

from glasshouse_tui.commands.base import Subcommand, session_of
from glasshouse_tui.commands.diagnosis import Finding, examine
from glasshouse_tui.commands.output import as_builtins, emit_json, emit_text, plain

_MARKS = {"ok": "ok", "missing": "MISSING", "unknown": "unknown"}


@click.command(cls=Subcommand, short_help="Say what this machine lacks.")
@click.option("--reference", is_flag=True, help="Print the reference value of this version's worker, for `verify`.")
@click.pass_context
def doctor(context: click.Context, reference: bool) -> int:
    """Say what this machine has and lacks, and what to do; exits 0 when the demo can run here, else 1.

    With --reference it only prints, as JSON, the digest of the worker that this installation builds.
    """
    session = session_of(context)
    if reference:
        from engine.records.anchors import own_reference

        emit_json(as_builtins(own_reference()))
        return 0
    findings = examine(session.home)
    can_run = not any(finding.needed and finding.status == "missing" for finding in findings)
    if session.json:
        emit_json({"demoCanRun": can_run, "checks": [finding.as_document() for finding in findings]})
    else:
        emit_text(_text(findings, can_run=can_run))
    return 0 if can_run else 1


def _text(findings: list[Finding], *, can_run: bool) -> str:
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.status]:<9}{finding.name:<{width}}  {plain(finding.detail)}")
        if finding.hint and finding.status != "ok":
            lines.append(f"{'':<9}{'':<{width}}  -> {plain(finding.hint)}")
    lines.append("")
    lines.append("`glasshouse demo` can run here." if can_run else "`glasshouse demo` cannot run here yet.")
    return "\n".join(lines)
