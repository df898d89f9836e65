"""Shell completion, prompts on a terminal, the operator's keys."""

from __future__ import annotations

import os
import pty
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine.sealing.operator_keys import OperatorKeys

if TYPE_CHECKING:
    from tests.functional.command_line.conftest import CommandLine


def test_bash_completes_commands_options_presets_and_run_ids(cli: CommandLine) -> None:
    cli.enter_run(owner=os.getpid()).close()
    for words, expected in (
        ("glasshouse ru", {"run", "runs"}),
        ("glasshouse run --pre", {"--preset"}),
        ("glasshouse run --preset de", {"demo"}),
        ("glasshouse show a1", {cli.run_id}),
        ("glasshouse da", {"data"}),
        ("glasshouse data --max", {"--max-length"}),
        ("glasshouse key re", {"restore", "revoke"}),
    ):
        done = cli.process(
            cli.command,
            {
                "_GLASSHOUSE_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(words.count(" ")),
                "GLASSHOUSE_HOME": str(cli.home),
            },
        )
        assert {line.partition(",")[2] for line in done.out.split()} == expected
        assert done.err == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_completion_script(cli: CommandLine, shell: str) -> None:
    done = cli("completions", shell)
    assert done.code == 0
    assert "_GLASSHOUSE_COMPLETE" in done.out


def test_a_terminal_prompts_for_a_passphrase_without_echo(cli: CommandLine, tmp_path: Path) -> None:
    OperatorKeys.ensure(cli.home / "keys")
    target = tmp_path / "keys.backup"
    command = [*cli.command, "--home", str(cli.home), "key", "backup", str(target)]
    child, terminal = pty.fork()
    if child == 0:
        os.execve(command[0], command, cli.environment())  # noqa: S606
    seen = b""
    for _ in range(2):
        while not seen.rstrip().endswith(b":"):
            seen += os.read(terminal, 1024)
        time.sleep(0.1)
        os.write(terminal, b"open sesame\n")
        seen += b"\n"
    try:
        while chunk := os.read(terminal, 1024):
            seen += chunk
    except OSError:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert target.stat().st_mode & 0o777 == 0o600
    assert b"open sesame" not in seen
    assert b"Passphrase for the backup" in seen


def test_keys_move_by_backup_and_never_appear_on_a_stream(cli: CommandLine, tmp_path: Path) -> None:
    cli("key", "backup", tmp_path / "x", "--json").refused(2, "key_missing")
    keys = OperatorKeys.ensure(cli.home / "keys")
    shown = cli("key", "show", "--json")
    prints = {item["name"]: item["fingerprint"] for item in shown.document["keys"]}
    assert prints == {"signing": keys.signing_fingerprint, "recipient": keys.recipient_fingerprint}
    backup, other = tmp_path / "keys.backup", tmp_path / "other"
    cli("key", "backup", backup, "--json").refused(2, "passphrase_needed")
    right = {"GLASSHOUSE_PASSPHRASE": "open sesame"}
    written = cli("key", "backup", backup, "--json", env=right)
    assert written.code == 0, written.out
    cli("key", "backup", backup, "--json", env=right).refused(1, "backup_exists")
    wrong = cli("key", "restore", backup, "--json", home=other, env={"GLASSHOUSE_PASSPHRASE": "open barley"})
    wrong.refused(1, "key_passphrase_wrong")
    restored = cli("key", "restore", backup, "--protect", "--json", home=other, env=right)
    assert {item["name"]: item["fingerprint"] for item in restored.document["keys"]} == prints
    assert restored.document["encrypted"] is True
    for done in (shown, written, restored):
        for private in (keys.signing.private_bytes_raw(), keys.recipient.private_bytes_raw()):
            assert private.hex() not in done.out + done.err
        assert "open sesame" not in done.out + done.err


def test_a_passphrase_file_unlocks_protected_keys(cli: CommandLine, tmp_path: Path) -> None:
    OperatorKeys.ensure(cli.home / "keys", "open sesame")
    file = tmp_path / "passphrase"
    file.write_text("open sesame\n")
    cli("key", "backup", tmp_path / "x", "--json").refused(2, "passphrase_needed")
    done = cli("key", "backup", tmp_path / "x", "--passphrase-file", file, "--json")
    assert (done.code, done.document["encrypted"]) == (0, True)
