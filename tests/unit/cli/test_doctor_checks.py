"""What `doctor` does not take from the folder that it is called in."""

from __future__ import annotations

from pathlib import Path

import pytest

from glasshouse_tui.commands import doctor_checks


def test_no_module_of_the_folder_one_stands_in_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    monkeypatch.chdir(tmp_path)
    doctor_checks._hardening()
    assert not (tmp_path / "ran").exists()
