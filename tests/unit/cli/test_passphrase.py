"""Reading a passphrase."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import UsageError
from engine.sealing.operator_keys import OperatorKeys
from glasshouse_tui.commands.passphrase import (
    VARIABLE,
    given_passphrase,
    passphrase_if_needed,
    require_passphrase,
)


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_a_file_overrides_the_environment_and_only_its_first_line_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "from the environment")
    assert given_passphrase(None) == "from the environment"
    file = tmp_path / "pass"
    file.write_text(" with blanks \r\nand more\n")
    assert given_passphrase(file) == " with blanks "


@pytest.mark.parametrize("content", [b"", b"\nx", b"\xff\xfe"])
def test_a_file_without_a_passphrase_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "pass"
    file.write_bytes(content)
    with pytest.raises(UsageError):
        given_passphrase(file)
    with pytest.raises(UsageError, match="cannot be read"):
        given_passphrase(tmp_path / "absent")


def test_without_a_terminal_there_is_no_prompt() -> None:
    with pytest.raises(UsageError) as caught:
        require_passphrase(None, what="the backup")
    assert caught.value.code == "passphrase_needed"
    assert VARIABLE in caught.value.hint


def test_only_protected_keys_need_a_passphrase(tmp_path: Path) -> None:
    assert passphrase_if_needed(tmp_path, None) is None
    OperatorKeys.ensure(tmp_path / "keys")
    assert passphrase_if_needed(tmp_path, None) is None
    OperatorKeys.ensure(tmp_path / "other" / "keys", "secret")
    with pytest.raises(UsageError, match="operator's keys"):
        passphrase_if_needed(tmp_path / "other", None)
