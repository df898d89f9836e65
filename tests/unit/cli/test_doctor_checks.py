"""`doctor` does not run code from the current folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from glasshouse_tui.commands import doctor_checks


def test_no_module_of_the_current_folder_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    monkeypatch.chdir(tmp_path)
    doctor_checks._hardening()
    assert not (tmp_path / "ran").exists()
