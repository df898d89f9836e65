"""Every option that takes a file, given something else: refused with a code and a hint, and not waited for for ever."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from glasshouse_tui.cli import main

STORED = Path(__file__).parents[2] / "vectors" / "artifact"
VERIFY = ["verify", str(STORED / "row.json")]
OPTIONS = {
    "artifact": (["verify"], "file_unreadable"),
    "--reference": ([*VERIFY, "--reference"], "reference_invalid"),
    "--policy": ([*VERIFY, "--policy"], "policy_unreadable"),
    "--revocation": ([*VERIFY, "--revocation"], "revocation_unreadable"),
    "--trust": ([*VERIFY, "--trust"], "trust_invalid"),
    "--data": (["run", "--preset", "demo", "--stand-in", "--data"], "data_no_input"),
    "run --policy": (["run", "--preset", "demo", "--policy"], "policy_unreadable"),
    "key restore": (["key", "restore", "--passphrase-file", "PASSPHRASE"], "backup_invalid"),
    "--passphrase-file": (["key", "restore", str(STORED / "row.json"), "--passphrase-file"], "usage"),
}


@pytest.mark.parametrize("what", OPTIONS)
@pytest.mark.parametrize("kind", ["fifo", "link to a device", "folder", "loop"])
def test_what_is_no_file_is_refused_at_once(
    what: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.payload.data.spool.PATIENCE_SECONDS", 0.2)  # a pipe is given time for its writer
    named, passphrase = tmp_path / "named", tmp_path / "passphrase"
    passphrase.write_text("a passphrase\n")
    if kind == "fifo":
        os.mkfifo(named)
    elif kind == "folder":
        named.mkdir()
    else:
        named.symlink_to(named if kind == "loop" else "/dev/zero")
    arguments, code = OPTIONS[what]
    given = [str(passphrase) if word == "PASSPHRASE" else word for word in arguments]
    home = tmp_path / "home"
    assert main(["--home", str(home), *given, str(named), "--json"]) in (1, 2)
    error = json.loads(capsys.readouterr().out)["error"]
    # A folder or a loop is refused while options are parsed, and a device is found missing or unreadable.
    others = ("usage", "data_missing", "data_empty", "data_unreadable")
    assert error["code"] in ((code, *others) if kind != "fifo" else (code,))
    assert error["hint"]
    assert not (home / "keys").exists()
