"""`adapter`: decrypt a run's sealed adapter into a folder that peft loads, or merge it into its base model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click
import msgspec

from engine.errors import RefusedError, SealingError, UsageError
from engine.runner.folder import ADAPTER_CONFIG, ADAPTER_FILES, RunFolder
from engine.system.files import mapped, read_named
from engine.wire import sha256_hex
from glasshouse_tui.commands.base import RUN_ID, Session, Subcommand, open_reader, session_of
from glasshouse_tui.commands.output import emit_json, emit_text
from glasshouse_tui.commands.passphrase import KEYS, passphrase_if_needed, passphrase_option

if TYPE_CHECKING:
    from engine.plan import Plan
    from engine.records.adapters.folder import Adapter, Wishes, Written
    from engine.sealing.operator_keys import OperatorKeys
    from engine.store.views import RunView

Kind = Literal["raw", "protected"]

MAX_CONFIG_BYTES: Final = 1024 * 1024
_FOLDER: Final = click.Path(path_type=Path)


@click.command(cls=Subcommand, short_help="Decrypt a run's adapter into a peft folder.")
@click.argument("run_id", type=RUN_ID, metavar="ID")
@click.option("-o", "--output", type=_FOLDER, required=True, metavar="DIR", help="A new or empty folder.")
@click.option(
    "--segment",
    type=click.Choice(("protected", "raw")),
    help="Which segment's adapter (default: protected if the run has one).",
)
@click.option("--merged", is_flag=True, help="Write base model and adapter as one model (needs the extra `local`).")
@click.option("--with-base", is_flag=True, help="Add the base model (a tiny one or a folder) in a subfolder `base`.")
@click.option("--base", type=_FOLDER, metavar="DIR", help="The base model's folder; its digest must be the run's.")
@click.option("--sign", is_flag=True, help="Sign the folder with the operator's key (needs the extra `signing`).")
@passphrase_option
@click.pass_context
def adapter(
    context: click.Context,
    run_id: str,
    output: Path,
    segment: Kind | None,
    merged: bool,
    with_base: bool,
    base: Path | None,
    sign: bool,
    passphrase_file: Path | None,
) -> int:
    """Decrypt a run's sealed adapter with the operator's key into a folder that `peft` loads.

    The folder has the tokenizer and chat template that the run trained with, and a model card that states data, recipe
    and row. --merged computes the whole model on this machine; a hub model is taken from the hub's cache, or
    downloaded. --with-base writes the folder's absolute path into adapter_config.json, since peft needs it. --sign adds
    `model.sig` (OpenSSF model signing), which `glasshouse verify ROW.json --adapter DIR` and `model_signing verify
    certificate` check. ID is any unique prefix of a run's id, or `last`.
    """
    from engine.records.adapters.base_model import used_folder
    from engine.records.adapters.folder import Wishes, check_wishes, plan_of, write_adapter

    session = session_of(context)
    reader = open_reader(session)
    view = reader.run(reader.resolve(run_id))
    kind: Kind = segment or ("raw" if view.summary.segments == "raw" else "protected")
    source = _source(session, view, kind)
    wishes = Wishes(merged=merged, with_base=with_base, sign=sign, base=base)
    plan = plan_of(view.plan)
    check_wishes(plan, wishes, output)
    if merged or with_base:
        wishes = msgspec.structs.replace(wishes, base=base or used_folder(source.parent))
    keys = _keys(session, passphrase_file) if sign or kind == "protected" else None
    with ExitStack() as stack:
        if kind == "raw" or keys is None:
            weights = stack.enter_context(mapped(source))
        else:
            weights = memoryview(_opened(view, source, keys))
        _check(view, kind, weights)
        opened = _adapter(session, view, plan, kind, weights, reader.evidence(view.summary.id))
        written = write_adapter(opened, wishes, output, keys if sign else None)
    _report(session, view, kind, output, wishes, written, keys if sign else None)
    return 0


def _report(
    session: Session,
    view: RunView,
    kind: Kind,
    output: Path,
    wishes: Wishes,
    written: Written,
    signer: OperatorKeys | None,
) -> None:
    signed_by = None if signer is None else signer.signing_fingerprint
    if session.json:
        document = {"id": view.summary.id, "segment": kind, "folder": str(output), "files": list(written.files)}
        emit_json({**document, "missing": list(written.missing), "signedBy": signed_by})
        return
    what = "The merged model with the" if wishes.merged else "The"
    lines = [f"{what} {kind} adapter of run {view.summary.id} is in {output}: {', '.join(written.files)}."]
    if written.missing:
        lines.append(
            f"Not kept with this run: {', '.join(written.missing)}. Use the base model's, and see README.md there."
        )
    if signed_by is not None:
        lines.append(f"Signed by {signed_by}.")
    emit_text("\n".join(lines))


def _source(session: Session, view: RunView, kind: Kind) -> Path:
    run_id = view.summary.id
    folder = RunFolder(session.home, run_id).adapters
    source = folder / ADAPTER_FILES[kind]
    if view.summary.segments not in ("pair", kind):
        raise UsageError(f"Run {run_id} has no {kind} segment.", "Remove --segment.", code="adapter_missing")
    if view.summary.source == "published":
        raise UsageError(
            f"{run_id} is a published row, and its adapters were not published.",
            "Only your own runs have adapters here.",
            code="adapter_missing",
        )
    if not source.is_file() or not (folder / ADAPTER_CONFIG).is_file():
        raise SealingError(
            f"Run {run_id} has no {kind} adapter here: it is {view.summary.state}.",
            f"`glasshouse show {run_id}` shows how far it got.",
            code="adapter_missing",
        )
    return source


def _keys(session: Session, passphrase_file: Path | None) -> OperatorKeys:
    from engine.sealing.operator_keys import OperatorKeys

    return OperatorKeys.load(session.home / KEYS, passphrase_if_needed(session.home, passphrase_file))


def _opened(view: RunView, source: Path, keys: OperatorKeys) -> bytearray:
    from engine.sealing.adapter import open_adapter, read_adapter_header

    claimed = read_adapter_header(source).binding
    expected = msgspec.structs.replace(claimed, run_id=view.summary.id, segment="protected")
    return keys.with_recipient(lambda recipient: open_adapter(source, recipient, expected))


def _check(view: RunView, kind: Kind, weights: memoryview) -> None:
    """Raises `RefusedError` (`adapter_differs`) unless this is the adapter that the run's log recorded."""
    recorded = next((segment.adapter_sha256 for segment in view.segments if segment.kind == kind), None)
    if sha256_hex(weights) != recorded:
        raise RefusedError(
            f"This is not the {kind} adapter that run {view.summary.id} recorded.",
            "The file was replaced or modified; run the segment again.",
            code="adapter_differs",
        )


def _adapter(
    session: Session,
    view: RunView,
    plan: Plan | None,
    kind: Kind,
    weights: memoryview,
    evidence: Mapping[str, Any],
) -> Adapter:
    """The adapter with what the run recorded of it; before the run ends its row is the preliminary one."""
    from engine.records.adapters.folder import Adapter
    from engine.records.adapters.tokenizers import kept_tokenizer
    from engine.records.row import live_row

    folder = RunFolder(session.home, view.summary.id).adapters
    return Adapter(
        plan=plan,
        row=view.row or live_row(view),
        kind=kind,
        weights=weights,
        config=read_named(folder / ADAPTER_CONFIG, MAX_CONFIG_BYTES),
        tokenizer=kept_tokenizer(session.home, folder),
        evidence=evidence,
    )
