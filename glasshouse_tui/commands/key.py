"""`key show`, `key backup`, `key restore`: the operator's keys; never any private material on a stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from engine.errors import UsageError
from glasshouse_tui.commands.base import Subcommand, session_of
from glasshouse_tui.commands.home import check_home
from glasshouse_tui.commands.output import emit_json, emit_text, local_time
from glasshouse_tui.commands.passphrase import (
    KEYS,
    asked_passphrase,
    passphrase_if_needed,
    passphrase_option,
)

_FILE: Final = click.Path(path_type=Path, dir_okay=False)


@click.group(short_help="Show, back up and restore the operator's keys.")
def key() -> None:
    """The operator's keys: one signs, the other receives sealed adapters."""


def _facts(folder: Path) -> dict[str, Any]:
    from engine.sealing.keyring import RECIPIENT_FILE, SIGNING_FILE, status

    found = status(folder)
    paths = {"signing": SIGNING_FILE, "recipient": RECIPIENT_FILE}
    return {
        "present": found.present,
        "encrypted": found.encrypted if found.present else None,
        "created": found.created,
        "folder": str(folder),
        "keys": [
            {"name": name, "algorithm": algorithm, "fingerprint": print_, "path": str(folder / paths[name])}
            for name, algorithm, print_ in (
                ("signing", "Ed25519", found.signing_fingerprint),
                ("recipient", "X25519", found.recipient_fingerprint),
            )
            if found.present
        ],
    }


@key.command(cls=Subcommand, short_help="Show fingerprints and paths.")
@click.pass_context
def show(context: click.Context) -> int:
    """Show fingerprints and paths, and whether the keys are under a passphrase."""
    session = session_of(context)
    facts = _facts(session.home / KEYS)
    if session.json:
        emit_json(facts)
    elif not facts["present"]:
        emit_text(f"There are no keys in {facts['folder']} yet; the first run makes them.")
    else:
        emit_text(_text(facts))
    return 0


def _text(facts: dict[str, Any]) -> str:
    lines = []
    for item in facts["keys"]:
        lines += [f"{item['name']:<11}{item['algorithm']:<9}{item['fingerprint']}", f"{'':<11}{item['path']}"]
    guarded = "under a passphrase" if facts["encrypted"] else "not under a passphrase"
    return "\n".join([*lines, f"made {local_time(facts['created'])}; {guarded}"])


@key.command(cls=Subcommand, short_help="Write both keys to an encrypted file.")
@click.argument("file", type=_FILE)
@passphrase_option
@click.pass_context
def backup(context: click.Context, file: Path, passphrase_file: Path | None) -> int:
    """Write both keys to a new FILE, encrypted under a passphrase.

    Keys that are under a passphrase keep it in the backup.
    """
    from engine.sealing.keys import backup as write_backup

    session = session_of(context)
    folder = session.home / KEYS
    if not _facts(folder)["present"]:
        raise UsageError(f"There are no keys in {folder} to back up.", "The first run makes them.", code="key_missing")
    passphrase = passphrase_if_needed(session.home, passphrase_file)
    if passphrase is None:
        passphrase = asked_passphrase(passphrase_file, what="the backup", confirm=True)
    write_backup(folder, file, passphrase)
    if session.json:
        emit_json({"backup": str(file), **_facts(folder)})
    else:
        emit_text(f"Both keys are in {file}. Keep it and its passphrase apart; nobody can recover either.")
    return 0


@key.command(cls=Subcommand, short_help="Put the keys of a backup in place.")
@click.argument("file", type=_FILE)
@click.option("--protect", is_flag=True, help="Keep the restored keys under the same passphrase.")
@click.option("--force", is_flag=True, help="Replace other keys that are here.")
@passphrase_option
@click.pass_context
def restore(context: click.Context, file: Path, protect: bool, force: bool, passphrase_file: Path | None) -> int:
    """Put the keys of a backup FILE in place."""
    from engine.sealing.keys import restore as read_backup

    session = session_of(context)
    check_home(session.home)
    folder = session.home / KEYS
    passphrase = asked_passphrase(passphrase_file, what="the backup")
    read_backup(file, folder, passphrase, key_passphrase=passphrase if protect else None, force=force)
    facts = _facts(folder)
    if session.json:
        emit_json(facts)
    else:
        emit_text(_text(facts))
    return 0
