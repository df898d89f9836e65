"""`export` and `verify`: write the public artifact of a row, and check artifacts offline."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from engine.errors import GlasshouseError, UsageError
from engine.system.files import read_named
from engine.system.text import visible_json
from glasshouse_tui.commands.base import RUN_ID, QuietSubcommand, Subcommand, open_reader, session_of
from glasshouse_tui.commands.output import as_builtins, emit_json, emit_text, plain
from glasshouse_tui.commands.proof_text import proof_lines
from glasshouse_tui.commands.verify_adapter import with_adapter
from glasshouse_tui.format import slack

if TYPE_CHECKING:
    from engine.records.formats import Format
    from engine.records.trust import Anchors
    from engine.records.verify import Verification

FAILED: Final = 1
NOT_CLEAN: Final = 3
_FILE: Final = click.Path(path_type=Path, dir_okay=False)
_EXISTING_FILE: Final = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command(cls=Subcommand, short_help="Write the public artifact of a row.")
@click.argument("run_id", type=RUN_ID, metavar="ID")
@click.option("--format", "form", type=click.Choice(["json", "md", "csv"]), default="json", help="Default: json.")
@click.option("-o", "--output", type=_FILE, metavar="FILE", help="Write to a new FILE instead of stdout.")
@click.option("--summary", is_flag=True, help="Omit the step series; the artifact says so, and proves less.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.pass_context
def export(context: click.Context, run_id: str, form: Format, output: Path | None, summary: bool, force: bool) -> int:
    """Write the public artifact of an ended run: the row, and the signed bundle that proves it.

    It contains no key, token, address, user name or path. Label and challenge are published as given.
    Only JSON can be verified. ID is any unique prefix of a run's id, or `last`.
    """
    from engine.records.export import export_run
    from engine.records.formats import artifact_digest, render

    session = session_of(context)
    reader = open_reader(session)
    artifact = export_run(reader, reader.resolve(run_id), summary=summary)
    data = render(artifact, form)
    if output is None:
        if session.json and form != "json":
            raise UsageError("--json and --format conflict on stdout.", "Add -o FILE, or remove one of them.")
        sys.stdout.flush()
        sys.stdout.buffer.write(visible_json(data) if form == "json" else data)
        sys.stdout.buffer.flush()
        return 0
    _write(output, data, force=force)
    report = {"file": str(output), "format": form, "bytes": len(data), "artifactSha256": artifact_digest(artifact)}
    if session.json:
        emit_json(report)
    else:
        emit_text(f"{output}: {len(data):,} bytes, artifact {report['artifactSha256']}")
    return 0


def _exists(path: Path) -> UsageError:
    return UsageError(f"{path} already exists.", "Choose another file, or add --force.", code="file_exists")


def _write(path: Path, data: bytes, *, force: bool) -> None:
    """Write the file completely or not at all; an existing one is replaced only with `force`."""
    if path.exists() and not force:
        raise _exists(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if force:
            partial.replace(path)
        else:
            os.link(partial, path)
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise GlasshouseError(
            f"{path} cannot be written: {error.strerror}.", "Choose another path for -o.", code="file_unwritable"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


@click.command(cls=QuietSubcommand, short_help="Check exported artifacts, offline.")
@click.argument("files", type=_FILE, metavar="FILE...", nargs=-1, required=True)
@click.option("--trust", multiple=True, metavar="KEY", help="Trust an operator's key: fingerprint, hex, or file.")
@click.option(
    "--reference",
    type=_EXISTING_FILE,
    multiple=True,
    metavar="FILE",
    help="Reference values: a release's signed file, or your own digests.",
)
@click.option("--policy", type=_EXISTING_FILE, multiple=True, metavar="FILE", help="Another policy to accept.")
@click.option(
    "--revocation", type=_EXISTING_FILE, multiple=True, metavar="FILE", help="A key's revocation or rotation statement."
)
@click.option("--challenge", metavar="TEXT", help="The challenge text that the row must contain.")
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also check that this folder holds the row's adapter, and who signed it.",
)
@click.pass_context
def verify(
    context: click.Context,
    files: tuple[Path, ...],
    trust: tuple[str, ...],
    reference: tuple[Path, ...],
    policy: tuple[Path, ...],
    revocation: tuple[Path, ...],
    challenge: str | None,
    adapter: Path | None,
) -> int:
    """Check exported artifacts: signatures, bindings, order, and every figure of the row, recomputed.

    No database and no network is used. A row is accepted if its signer is this home or given by --trust, its worker is
    one that this version builds or given by --reference, and its policy is at least as strict as the built-in one or
    given by --policy. What was installed there must be known too: from a release's reference values, from --reference,
    or because this home measured it. Exit codes: 0 genuine and clean; 1 a check failed; 3 genuine but not clean, a
    summary that could not be checked completely, or environment_unknown: nothing shows what ran.
    """
    from engine.records.trust import anchors

    if adapter is not None and len(files) != 1:
        raise UsageError("An adapter belongs to one row.", "Give one FILE with --adapter.")
    session = session_of(context)
    known = anchors(
        session.home, trust=trust, references=reference, policies=policy, revocations=revocation, challenge=challenge
    )
    worst = 0
    documents: list[dict[str, Any]] = []
    for file in files:
        document, code = _judged(file, known, alone=len(files) == 1)
        if adapter is not None and "error" not in document:
            document, code = with_adapter(document, code, _content(file), adapter, known)
        documents.append(document)
        worst = code if worst == 0 or code == FAILED else worst
        if not session.json:
            emit_text(document["text"] + ("\n" if file != files[-1] else ""))
    if session.json:
        for document in documents:
            del document["text"]
        emit_json(documents[0] if len(files) == 1 else {"verifications": documents})
    return worst


def _judged(file: Path, known: Anchors, *, alone: bool) -> tuple[dict[str, Any], int]:
    """The verdict on one file and its exit code. Among several files, an unreadable one does not stop the others."""
    from engine.records.verify import verify_bytes

    try:
        result = verify_bytes(_content(file), known)
    except GlasshouseError as error:
        if alone and isinstance(error, UsageError):
            raise
        text = f"{plain(file)}\n  FAILED  {error.code}: {plain(error.message)} {error.hint}"
        return {"file": str(file), "genuine": False, "error": error.as_dict(), "text": text}, FAILED
    code = FAILED if not result.genuine else 0 if result.clean and result.complete and result.known else NOT_CLEAN
    return {"file": str(file), **as_builtins(result), "text": _text(file, result)}, code


def _content(file: Path) -> bytes:
    from engine.records.artifact import MAX_ARTIFACT_BYTES

    try:
        return read_named(file, MAX_ARTIFACT_BYTES)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise UsageError(
            f"{file} cannot be read: {why}.", "Give an exported artifact.", code="file_unreadable"
        ) from error


def _text(file: Path, result: Verification) -> str:
    lines = [f"{plain(file)}: run {plain(result.id)}, {plain(result.label)}"]
    lines += proof_lines(result.proofs)
    if result.checks:
        lines.append("The row's own checks, recomputed:")
        width = max(len(check["name"]) for check in result.checks)
        lines += [f"  {check['name']:<{width}}  {check['status']:<14}  {check['reason']}" for check in result.checks]
    return "\n".join([*lines, _verdict(result)])


def _verdict(result: Verification) -> str:
    if not result.genuine:
        codes = [proof.code for proof in result.proofs if proof.status == "failed"]
        return f"NOT GENUINE under what you trust: {', '.join(dict.fromkeys(codes))}."
    if not result.known:
        return (
            "Genuine by signatures and logs, but WHAT RAN IS UNKNOWN: no reference value covers the packages installed "
            "where the worker ran. See `environment` above."
        )
    if not result.complete:
        return "All present parts verify, but the step series are omitted: the figures could not be recomputed."
    overhead = ""
    if result.overhead_pct is not None:
        overhead = f" Overhead {result.overhead_pct:+.2f} % ({slack(result.timing_slack_pct)})."
    clean = "and clean" if result.clean else "but NOT clean: see the checks that did not pass"
    return f"Genuine {clean}.{overhead} Software tier: no proof against whoever controls both operator and machine."
