"""`doctor`: what this machine lacks, line by line; whether the demo can run on it; the live self-test of a provider."""

from __future__ import annotations

import click

from engine.errors import UsageError
from engine.plan import RENTED
from glasshouse_tui.commands.base import Session, Subcommand, session_of
from glasshouse_tui.commands.doctor_checks import Finding
from glasshouse_tui.commands.output import as_builtins, emit_json, emit_text, plain

_MARKS = {"ok": "ok", "missing": "MISSING", "unknown": "unknown"}


@click.command(cls=Subcommand, short_help="Say what this machine lacks; try a provider.")
@click.option("--reference", is_flag=True, help="Print the reference value of this version's worker, for `verify`.")
@click.option(
    "--provider", type=click.Choice(sorted(RENTED)), help="Look at this provider, and ask it whether it answers."
)
@click.option("--live", is_flag=True, help="With --provider: rent the cheapest pod, look at it, end it, prove it gone.")
@click.option("--max-cost", type=click.FloatRange(min=0, min_open=True), metavar="USD", help="Ceiling for --live.")
@click.option("--max-price", type=click.FloatRange(min=0, min_open=True), metavar="USD", help="And for an hour.")
@click.option("--gpu", metavar="A,B", help="With --live: the GPUs that are acceptable.")
@click.option(
    "--self-destruct",
    type=click.FloatRange(min=0, min_open=True, max=3600),
    is_flag=False,
    flag_value=300.0,
    metavar="[SECONDS]",
    help="With --live: let the dead-man's switch end the pod, after 300 s unless told, and watch it.",
)
@click.option("--yes", is_flag=True, help="With --live: do not ask.")
@click.pass_context
def doctor(
    context: click.Context,
    reference: bool,
    provider: str | None,
    live: bool,
    max_cost: float | None,
    max_price: float | None,
    gpu: str | None,
    self_destruct: float | None,
    yes: bool,
) -> int:
    """Say what this machine has and lacks, and what to do; exits 0 when the demo can run here, else 1.

    With --provider it asks that provider too, which spends nothing, and exits 0 when it can be used. With --live it
    rents one pod under --max-cost and proves that renting, trust and ending work; that costs money. With --reference it
    only prints, as JSON, the digest of the worker that this installation builds.
    """
    session = session_of(context)
    if reference:
        from engine.records.trust import own_reference

        emit_json(as_builtins(own_reference()))
        return 0
    if live:
        return _live(session, provider, max_cost, max_price, gpu, self_destruct, yes=yes)
    for flag, value in (("--max-cost", max_cost), ("--gpu", gpu), ("--self-destruct", self_destruct)):
        if value is not None:
            raise UsageError(f"{flag} speaks of the live self-test.", "Add --live, or leave it out.")
    if provider is not None:
        return _one_provider(session, provider)
    from glasshouse_tui.commands.doctor_checks import examine

    findings = examine(session.home)
    can_run = not any(finding.needed and finding.status == "missing" for finding in findings)
    if session.json:
        emit_json({"demoCanRun": can_run, "checks": [finding.as_document() for finding in findings]})
    else:
        verdict = "`glasshouse demo` can run here." if can_run else "`glasshouse demo` cannot run here yet."
        emit_text(_text(findings, verdict))
    return 0 if can_run else 1


def _one_provider(session: Session, provider: str) -> int:
    from glasshouse_tui.commands.doctor_checks import ask_provider, examine_rented

    findings = [*examine_rented(session.home), ask_provider(session.home, provider)]
    usable = findings[-1].status == "ok"
    if session.json:
        emit_json({"provider": provider, "usable": usable, "checks": [finding.as_document() for finding in findings]})
    else:
        emit_text(_text(findings, f"{provider} can be used." if usable else f"{provider} cannot be used yet."))
    return 0 if usable else 1


def _live(
    session: Session,
    provider: str | None,
    max_cost: float | None,
    max_price: float | None,
    gpu: str | None,
    self_destruct: float | None,
    *,
    yes: bool,
) -> int:
    if provider is None:
        raise UsageError("--live rents a pod, and no provider is named.", "Add --provider runpod.")
    if max_cost is None:
        raise UsageError(
            "--live costs money, and no ceiling is given.", "Add --max-cost USD; 0.5 is plenty.", code="ceiling_missing"
        )
    from glasshouse_tui.commands.doctor_live import live_test, wish_of

    return live_test(session, provider, wish_of(session, max_cost, max_price, gpu, self_destruct), yes=yes)


def _text(findings: list[Finding], verdict: str) -> str:
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.status]:<9}{finding.name:<{width}}  {plain(finding.detail)}")
        if finding.hint and finding.status != "ok":
            lines.append(f"{'':<9}{'':<{width}}  -> {plain(finding.hint)}")
    return "\n".join([*lines, "", verdict])
