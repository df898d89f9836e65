"""`key show, backup, restore, rotate, revoke`: the operator's keys. Private keys never go to a stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from engine.errors import UsageError
from glasshouse_tui.commands.base import Session, Subcommand, check_home, session_of
from glasshouse_tui.commands.confirm import confirm, require_terminal
from glasshouse_tui.commands.key_facts import facts_text, key_facts
from glasshouse_tui.commands.output import emit_json, emit_text, new_file, note
from glasshouse_tui.commands.passphrase import (
    KEYS,
    given_passphrase,
    passphrase_if_needed,
    passphrase_option,
    require_passphrase,
)

if TYPE_CHECKING:
    from engine.attestation.revocation import Kind

_FILE: Final = click.Path(path_type=Path, dir_okay=False)


@click.group(short_help="Show, back up, restore, rotate and revoke the operator's keys.")
def key() -> None:
    """The operator's keys: one signs, the other decrypts sealed adapters."""


@key.command(cls=Subcommand, short_help="Show fingerprints, dates and states.")
@click.option("--public", is_flag=True, help="Print only the public signing key, for `verify --trust`.")
@click.option("-o", "--output", type=_FILE, metavar="FILE", help="Write the public signing key to a new FILE.")
@click.pass_context
def show(context: click.Context, public: bool, output: Path | None) -> int:
    """Show the current and former keys, and whether they are protected by a passphrase."""
    session = session_of(context)
    folder = session.home / KEYS
    if public or output is not None:
        return _show_public(context, folder, output)
    facts = key_facts(folder)
    if session.json:
        emit_json(facts)
    elif not facts["present"]:
        emit_text(f"There are no keys in {facts['folder']} yet; the first run creates them.")
    else:
        emit_text(facts_text(facts))
    return 0


def _show_public(context: click.Context, folder: Path, output: Path | None) -> int:
    from engine.attestation.signers import trust_line
    from engine.sealing.key_generations import read_ring
    from engine.sealing.pem import fingerprint

    ring = read_ring(folder)
    if ring is None:
        raise _no_keys(folder, "show")
    raw = bytes.fromhex(ring.signing)
    line = trust_line(raw)
    if output is not None:
        with new_file(output) as file:
            file.write(f"{line}\n".encode())
    if session_of(context).json:
        written = None if output is None else str(output)
        emit_json({"public": line, "fingerprint": fingerprint(raw), "file": written})
    elif output is None:
        emit_text(line)
    else:
        emit_text(f"The public signing key is in {output}.")
    return 0


def _no_keys(folder: Path, what: str) -> UsageError:
    return UsageError(f"There are no keys in {folder} to {what}.", "The first run creates them.", code="key_missing")


@key.command(cls=Subcommand, short_help="Write the keys to an encrypted file.")
@click.argument("file", type=_FILE)
@passphrase_option
@click.pass_context
def backup(context: click.Context, file: Path, passphrase_file: Path | None) -> int:
    """Write all keys and statements to a new FILE, encrypted with a passphrase.

    Keys that have a passphrase are backed up with the same one.
    """
    from engine.sealing.backup import backup as write_backup

    session = session_of(context)
    folder = session.home / KEYS
    if not key_facts(folder)["present"]:
        raise _no_keys(folder, "back up")
    passphrase = passphrase_if_needed(session.home, passphrase_file)
    if passphrase is None:
        passphrase = require_passphrase(passphrase_file, what="the backup", confirm=True)
    write_backup(folder, file, passphrase)
    if session.json:
        emit_json({"backup": str(file), **key_facts(folder)})
    else:
        emit_text(f"The keys are in {file}. Keep it apart from its passphrase; neither can be recovered.")
    return 0


@key.command(cls=Subcommand, short_help="Restore the keys from a backup.")
@click.argument("file", type=_FILE)
@click.option("--protect", is_flag=True, help="Protect the restored keys with the same passphrase.")
@click.option("--force", is_flag=True, help="Replace other keys in this home.")
@passphrase_option
@click.pass_context
def restore(context: click.Context, file: Path, protect: bool, force: bool, passphrase_file: Path | None) -> int:
    """Restore the keys from a backup FILE."""
    from engine.sealing.backup import restore as read_backup

    session = session_of(context)
    check_home(session)
    folder = session.home / KEYS
    passphrase = require_passphrase(passphrase_file, what="the backup")
    read_backup(file, folder, passphrase, key_passphrase=passphrase if protect else None, force=force)
    facts = key_facts(folder)
    if facts["keys"][0]["state"] == "revoked":
        note(
            "the restored signing key is revoked, so new rows will not be accepted; run `glasshouse key rotate` first."
        )
    if session.json:
        emit_json(facts)
    else:
        emit_text(facts_text(facts))
    return 0


@key.command(cls=Subcommand, short_help="Replace the keys with new ones.")
@click.option("--signing", is_flag=True, help="Only the signing key.")
@click.option("--recipient", is_flag=True, help="Only the recipient key.")
@click.option(
    "--new-passphrase-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Protect the new keys with the first line of FILE instead of the present passphrase.",
)
@click.option("-o", "--output", type=_FILE, metavar="FILE", help="Write the statement that introduces the new key.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@passphrase_option
@click.pass_context
def rotate(
    context: click.Context,
    signing: bool,
    recipient: bool,
    new_passphrase_file: Path | None,
    output: Path | None,
    yes: bool,
    passphrase_file: Path | None,
) -> int:
    """Replace both keys, or one of them, with new ones, after a question on the terminal.

    Old rows still verify as this home's, and old adapters can still be decrypted. The old signing key signs a statement
    that introduces the new one and is then destroyed; earlier backups still contain it.
    """
    from engine.attestation.revocation import statements_to_bytes
    from engine.attestation.rotation import rotate_keys

    session = session_of(context)
    folder = session.home / KEYS
    both = signing == recipient
    if output is not None and not (both or signing):
        raise UsageError("There is no statement for a new recipient key.", "Remove -o.")
    if not key_facts(folder)["present"]:
        raise _no_keys(folder, "rotate")
    if not yes:
        _confirm_rotation(
            session, [name for name, new in (("signing", signing), ("recipient", recipient)) if both or new]
        )
    with new_file(output) as file:
        changed = rotate_keys(
            folder,
            passphrase_if_needed(session.home, passphrase_file),
            new_passphrase=None if new_passphrase_file is None else given_passphrase(new_passphrase_file),
            signing=both or signing,
            recipient=both or recipient,
        )
        file.write(statements_to_bytes(changed.publish))
    facts = key_facts(folder)
    if session.json:
        emit_json({**facts, "statement": None if output is None else str(output)})
    else:
        emit_text(facts_text(facts))
    return 0


def _confirm_rotation(session: Session, names: Sequence[str]) -> None:
    which = f"the {' and the '.join(names)} key"
    require_terminal(f"Replacing {which}", json=session.json)
    after = " The old signing key is destroyed." if "signing" in names else ""
    confirm(f"Replace {which} of {session.home}?{after}", declined="The keys were not replaced.")


@key.command(cls=Subcommand, short_help="Declare a signing key untrusted.")
@click.argument("fingerprint", required=False)
@click.option(
    "--reason",
    required=True,
    metavar="TEXT",
    help="compromised, superseded or lost; optionally a colon and your own words.",
)
@click.option("-o", "--output", type=_FILE, metavar="FILE", help="Write the revocation to a new FILE, to publish it.")
@passphrase_option
@click.pass_context
def revoke(
    context: click.Context, fingerprint: str | None, reason: str, output: Path | None, passphrase_file: Path | None
) -> int:
    """Revoke the signing key with this FINGERPRINT, or the current one.

    compromised: no row that it signed is accepted any more, whatever its date. superseded, lost: rows started before
    now are still accepted. Revoking the current key also creates a new one.
    """
    from engine.attestation.revocation import statements_to_bytes
    from engine.attestation.rotation import revoke_key

    session = session_of(context)
    folder = session.home / KEYS
    kind, text = _reason(reason)
    target = None if fingerprint is None else _fingerprint(fingerprint)
    if not key_facts(folder)["present"]:
        raise _no_keys(folder, "revoke")
    with new_file(output) as file:
        passphrase = passphrase_if_needed(session.home, passphrase_file)
        changed = revoke_key(folder, passphrase, target=target, reason=kind, text=text)
        file.write(statements_to_bytes(changed.publish))
    facts = key_facts(folder)
    if session.json:
        emit_json({**facts, "rotated": changed.rotated, "statement": None if output is None else str(output)})
        return 0
    emit_text(facts_text(facts))
    if changed.rotated:
        emit_text(f"The current signing key was revoked; the new one is {changed.keys.signing_fingerprint}.")
        if kind == "compromised":
            emit_text("A compromised key cannot introduce the new one: give others the new fingerprint yourself.")
    return 0


def _reason(reason: str) -> tuple[Kind, str]:
    from engine.attestation.revocation import KINDS

    word, _, text = reason.partition(":")
    for kind in KINDS:
        if word.strip().lower() == kind:
            return kind, text.strip()
    raise UsageError(
        "A reason must begin with one of: compromised, superseded, lost.",
        "For example: --reason 'compromised: laptop stolen'.",
        code="revocation_reason",
    )


def _fingerprint(text: str) -> str:
    name = text.strip().removeprefix("SHA256:")
    if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
        raise UsageError(
            "This is not a fingerprint, which is `SHA256:` and 64 hex digits.",
            "`glasshouse key show` prints the fingerprints.",
            code="key_unknown",
        )
    return name
