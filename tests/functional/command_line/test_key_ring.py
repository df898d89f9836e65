"""`key rotate`, `key revoke`, `key show --public`: the life of an operator's keys."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine.attestation.revocation import read_revocations
from engine.attestation.signers import TrustedKeys, judge_signer, trusted_key
from engine.errors import RefusedError
from engine.sealing.operator_keys import OperatorKeys

if TYPE_CHECKING:
    from tests.functional.command_line.conftest import CommandLine, Done

PASSPHRASE = {"GLASSHOUSE_PASSPHRASE": "open sesame"}


def signing_states(done: Done) -> dict[str, str]:
    """The state of each signing key by fingerprint, from `--json`."""
    assert done.code == 0, done.out + done.err
    items = done.document["keys"] + done.document["former"]
    return {item["fingerprint"]: item["state"] for item in items if item["name"] == "signing"}


def test_rotated_and_revoked_keys_for_their_owner_and_for_others(cli: CommandLine, tmp_path: Path) -> None:
    folder = cli.home / "keys"
    first = OperatorKeys.ensure(folder)
    published = tmp_path / "first.pub"
    assert cli("key", "show", "--public", "-o", published).code == 0
    assert cli("key", "show", "--public").out == published.read_text()
    cli("key", "show", "-o", published, "--json").refused(2, "output_exists")

    rotated = cli("key", "rotate", "--yes", "-o", tmp_path / "rotation", "--json")
    second = OperatorKeys.load(folder)
    assert signing_states(rotated) == {second.signing_fingerprint: "current", first.signing_fingerprint: "retired"}

    words = ["--reason", "superseded: a new machine"]
    revoked = cli("key", "revoke", *words, "-o", tmp_path / "revocation", "--json")
    third = OperatorKeys.load(folder)
    assert revoked.document["rotated"] is True
    assert signing_states(revoked) == {
        third.signing_fingerprint: "current",
        second.signing_fingerprint: "revoked",
        first.signing_fingerprint: "retired",
    }
    shown = cli("key", "show")
    assert "superseded: a new machine" in shown.out
    assert shown.out.count("SHA256:") == 5  # the recipient keys are listed too

    trusted = TrustedKeys.given([trusted_key(published)])
    statements = read_revocations([tmp_path / "rotation", tmp_path / "revocation"])
    now = datetime.now(UTC)
    assert judge_signer(third.signing_public, now, trusted=trusted, revocations=statements).state == "current"
    with pytest.raises(RefusedError) as caught:
        judge_signer(second.signing_public, now, trusted=trusted, revocations=statements)
    assert caught.value.code == "signer_revoked"

    secrets = [
        half
        for keys in (first, second, third)
        for half in (keys.signing.private_bytes_raw(), keys.recipient.private_bytes_raw())
    ]
    lines = [line for path in folder.glob("*.pem") for line in path.read_text().splitlines()[1:-1]]
    files = [path.read_text() for path in tmp_path.iterdir() if path.is_file()]
    output = " ".join([done.out + done.err for done in (rotated, revoked, shown)] + files)
    for secret in [*(half.hex() for half in secrets), *(base64.b64encode(half).decode() for half in secrets), *lines]:
        assert secret not in output


def test_a_refused_key_command_changes_nothing_and_leaves_no_file(cli: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for command in (["rotate"], ["revoke", "--reason", "lost"]):
        cli("key", *command, "-o", out, "--json").refused(2, "key_missing")
    assert not cli.home.exists()
    keys = OperatorKeys.ensure(cli.home / "keys", "open sesame")
    before = {path.name: path.read_bytes() for path in (cli.home / "keys").iterdir()}
    for command, code in (
        (["revoke", "--reason", "bored"], "revocation_reason"),
        (["revoke", "SHA256:12", "--reason", "lost"], "key_unknown"),
        (["revoke", keys.recipient_fingerprint, "--reason", "lost"], "key_unknown"),
        (["revoke", "--reason", "lost: " + "x" * 201], "revocation_text"),
        (["rotate", "--recipient"], "usage"),
    ):
        cli("key", *command, "-o", out, "--json", env=PASSPHRASE).refused(2, code)
    cli("key", "rotate", "--yes", "-o", out, "--json").refused(2, "passphrase_needed")
    wrong = {"GLASSHOUSE_PASSPHRASE": "open barley"}
    cli("key", "rotate", "--yes", "-o", out, "--json", env=wrong).refused(1, "key_passphrase_wrong")
    cli("key", "rotate", "--yes", "-o", tmp_path / "no" / "folder", "--json", env=PASSPHRASE).refused(
        2, "output_unwritable"
    )
    assert {path.name: path.read_bytes() for path in (cli.home / "keys").iterdir()} == before
    assert not out.exists()


def test_rotation_can_change_the_passphrase(cli: CommandLine, tmp_path: Path) -> None:
    folder = cli.home / "keys"
    OperatorKeys.ensure(folder, "open sesame")
    (tmp_path / "new").write_text("open barley\n")
    done = cli(
        "key", "rotate", "--yes", "--recipient", "--new-passphrase-file", tmp_path / "new", "--json", env=PASSPHRASE
    )
    assert (done.code, done.document["encrypted"]) == (0, True)
    assert len(OperatorKeys.load(folder, "open barley").past_recipients) == 1
    assert "sesame" not in done.out + done.err + json.dumps([path.name for path in folder.iterdir()])
