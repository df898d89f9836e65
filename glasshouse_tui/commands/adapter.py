"""`adapter`: write a run's adapter as a folder that `peft` loads, completely or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Literal

import click
import msgspec

from engine.errors import RefusedError, SealingError, UsageError
from engine.runner.folder import ADAPTER_CONFIG, ADAPTER_FILES, RunFolder
from engine.store.views import RunView
from engine.system.files import mapped, read_named
from engine.wire import sha256_hex
from glasshouse_tui.commands.base import RUN_ID, Session, Subcommand, open_reader, session_of
from glasshouse_tui.commands.output import emit_json, emit_text
from glasshouse_tui.commands.passphrase import KEYS, passphrase_if_needed, passphrase_option

Kind = Literal["raw", "protected"]

WEIGHTS: Final = "adapter_model.safetensors"
MAX_CONFIG_BYTES: Final = 1024 * 1024


@click.command(cls=Subcommand, short_help="Decrypt a run's adapter into a peft folder.")
@click.argument("run_id", type=RUN_ID, metavar="ID")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="A new or empty folder.",
)
@click.option(
    "--segment",
    type=click.Choice(("protected", "raw")),
    help="Which segment's adapter (default: protected if the run has one).",
)
@passphrase_option
@click.pass_context
def adapter(
    context: click.Context, run_id: str, output: Path, segment: Kind | None, passphrase_file: Path | None
) -> int:
    """Decrypt a run's sealed adapter with the operator's key into a folder that `peft` loads.

    ID is any unique prefix of a run's id, or `last`.
    """
    session = session_of(context)
    reader = open_reader(session)
    view = reader.run(reader.resolve(run_id))
    kind: Kind = segment or ("raw" if view.summary.segments == "raw" else "protected")
    _refuse_nonempty(output)
    source = _source(session, view, kind)
    with ExitStack() as stack:
        weights = (
            stack.enter_context(mapped(source))
            if kind == "raw"
            else memoryview(_opened(session, view, source, passphrase_file))
        )
        _check(view, kind, weights)
        config = read_named(source.parent / ADAPTER_CONFIG, MAX_CONFIG_BYTES)
        _write_folder(output, {WEIGHTS: weights, ADAPTER_CONFIG: config})
    if session.json:
        emit_json({"id": view.summary.id, "segment": kind, "folder": str(output), "files": [WEIGHTS, ADAPTER_CONFIG]})
    else:
        emit_text(f"The {kind} adapter of run {view.summary.id} is in {output}.")
    return 0


def _refuse_nonempty(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise _occupied(folder)


def _occupied(folder: Path) -> UsageError:
    return UsageError(f"{folder} already exists and is not an empty folder.", "Give -o another folder.")


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


def _opened(session: Session, view: RunView, source: Path, passphrase_file: Path | None) -> bytearray:
    from engine.sealing.adapter import open_adapter, read_adapter_header
    from engine.sealing.operator_keys import OperatorKeys

    claimed = read_adapter_header(source).binding
    expected = msgspec.structs.replace(claimed, run_id=view.summary.id, segment="protected")
    keys = OperatorKeys.load(session.home / KEYS, passphrase_if_needed(session.home, passphrase_file))
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


def _write_folder(folder: Path, files: dict[str, bytes | memoryview]) -> None:
    """Create the folder (0700) with its files (0600), or leave everything as it was: an adapter is the user's alone."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    part.mkdir(mode=0o700)
    try:
        for name, data in files.items():
            descriptor = os.open(part / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        _rename(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _rename(part: Path, folder: Path) -> None:
    """Put the folder in its place; the system itself refuses to replace anything but an empty folder."""
    try:
        part.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise _occupied(folder) from error
        raise
