"""`doctor`: check this machine, check a provider, and run a provider's live self-test."""

from __future__ import annotations

import click

from engine.errors import UsageError
from engine.plan import RENTED
from glasshouse_tui.commands.base import Session, Subcommand, session_of
from glasshouse_tui.commands.doctor_checks import Finding
from glasshouse_tui.commands.output import as_builtins, emit_json, emit_text, plain

_MARKS = {"ok": "ok", "missing": "MISSING", "unknown": "unknown"}


@click.command(cls=Subcommand, short_help="Check this machine, or a provider.")
@click.option("--reference", is_flag=True, help="Print the reference values of this version's worker, for `verify`.")
@click.option(
    "--provider", type=click.Choice(sorted({*RENTED, "static"})), help="Check this provider's settings, and query it."
)
@click.option("--live", is_flag=True, help="With --provider: rent the cheapest pod, test it, prove it gone.")
@click.option("--max-cost", type=click.FloatRange(min=0, min_open=True), metavar="USD", help="Cost ceiling for --live.")
@click.option(
    "--max-price",
    type=click.FloatRange(min=0, min_open=True),
    metavar="USD",
    help="Hourly price ceiling for --live.",
)
@click.option("--gpu", metavar="A,B", help="With --live: acceptable GPUs.")
@click.option(
    "--self-destruct",
    type=click.FloatRange(min=0, min_open=True, max=3600),
    is_flag=False,
    flag_value=300.0,
    metavar="[SECONDS]",
    help="With --live: let the dead-man's switch terminate the pod (default: after 300 s), and watch it.",
)
@click.option("--yes", is_flag=True, help="With --live: do not ask for confirmation.")
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
    """Report what this machine has and lacks, and how to fix it; exits 0 if the demo can run here, else 1.

    With --provider, check that provider, which costs nothing; exits 0 if it can be used. For static hosts, log in to
    each one and try its commands, home, SFTP, Python and lock; nothing is left there. With --live, also rent one pod
    under --max-cost, and prove that renting, trust and termination work; that costs money. With --reference, only
    print, as JSON, the digests of the worker that this installation builds and of the packages installed here.
    """
    session = session_of(context)
    if reference:
        from engine.records.trust import own_reference

        emit_json(as_builtins(own_reference(_environment(session))))
        return 0
    if live:
        return _live(session, provider, max_cost, max_price, gpu, self_destruct, yes=yes)
    for flag, value in (
        ("--max-cost", max_cost),
        ("--max-price", max_price),
        ("--gpu", gpu),
        ("--self-destruct", self_destruct),
    ):
        if value is not None:
            raise UsageError(f"{flag} applies to the live self-test.", f"Add --live, or remove {flag}.")
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


def _environment(session: Session) -> str:
    """The digest of the environment that a local run would use, measured now unless it was before."""
    from engine.attestation.measurement import listed_environment
    from engine.remote.bundle import site_paths
    from engine.runner.environment_local import environment_reference

    if session.home.is_dir():
        return environment_reference(session.home, site_paths())
    return listed_environment(site_paths()).measure().digest  # without a home there is nowhere to keep it


def _static(session: Session) -> int:
    from glasshouse_tui.commands.doctor_static import examine_hosts

    findings = examine_hosts(session.home)
    usable = any(finding.status == "ok" for finding in findings) and all(one.status == "ok" for one in findings)
    if session.json:
        emit_json({"provider": "static", "usable": usable, "checks": [finding.as_document() for finding in findings]})
    else:
        emit_text(_text(findings, "Every host can be used." if usable else "Not every host can be used yet."))
    return 0 if usable else 1


def _one_provider(session: Session, provider: str) -> int:
    if provider == "static":
        return _static(session)
    from glasshouse_tui.commands.doctor_checks import examine_rented, query_provider

    findings = [*examine_rented(session.home), query_provider(session.home, provider)]
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
        raise UsageError("--live rents a pod, and no provider is given.", "Add --provider runpod.")
    if max_cost is None:
        raise UsageError(
            "--live costs money, and no ceiling is given.", "Add --max-cost USD; 0.5 is plenty.", code="ceiling_missing"
        )
    if provider not in RENTED:
        raise UsageError("--live rents a pod, and a static host is not rented.", "Remove --live.")
    from glasshouse_tui.commands.doctor_live import live_test, live_test_options

    return live_test(session, provider, live_test_options(session, max_cost, max_price, gpu, self_destruct), yes=yes)


def _text(findings: list[Finding], verdict: str) -> str:
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.status]:<9}{finding.name:<{width}}  {plain(finding.detail)}")
        if finding.hint and finding.status != "ok":
            lines.append(f"{'':<9}{'':<{width}}  -> {plain(finding.hint)}")
    return "\n".join([*lines, "", verdict])
