"""Every failure becomes a code, a message, a hint and an exit code."""

from __future__ import annotations

import errno
from pathlib import Path

import click
import pytest

from engine.errors import PlanError, StoreError
from glasshouse_tui.commands.failures import explain, write_crash_log


def test_our_errors_keep_code_message_hint_and_exit_code(tmp_path: Path) -> None:
    failure = explain(PlanError("No plan.", "Make one.", code="plan_x"), tmp_path)
    assert failure.as_document() == {"error": {"code": "plan_x", "message": "No plan.", "hint": "Make one."}}
    assert failure.as_text() == "error: No plan.\n  Make one."
    assert failure.exit_code == 2
    assert explain(StoreError("No."), tmp_path).exit_code == 1
    assert explain(StoreError("No.", code="no_code"), tmp_path).as_text() == "error: No."


def test_errors_cannot_control_the_terminal(tmp_path: Path) -> None:
    assert "\x1b" not in explain(StoreError("A \x1b[2J b.", "C \x1b[2J d."), tmp_path).as_text()


def test_a_full_disk_names_the_path(tmp_path: Path) -> None:
    failure = explain(OSError(errno.ENOSPC, "No space left", "/data/x"), tmp_path)
    assert (failure.code, failure.exit_code) == ("disk_full", 1)
    assert "/data/x" in failure.message
    assert "Free some space" in failure.hint


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR])
def test_an_unusable_path_is_named(tmp_path: Path, number: int) -> None:
    failure = explain(OSError(number, "no", "/data/x"), tmp_path)
    assert (failure.code, failure.exit_code) == ("path_unusable", 1)
    assert "/data/x" in failure.message


def test_usage_errors_exit_2_and_point_to_help(tmp_path: Path) -> None:
    context = click.Context(click.Command("run"), info_name="run")
    failure = explain(click.UsageError("No such option '--x'", context), tmp_path)
    assert (failure.exit_code, failure.message) == (2, "No such option '--x'.")
    assert failure.hint == "See `run --help`."


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort(), EOFError()])
def test_an_interrupt_exits_130(tmp_path: Path, error: BaseException) -> None:
    assert explain(error, tmp_path).exit_code == 130


def test_an_unexpected_error_goes_to_a_private_log_that_the_message_names(tmp_path: Path) -> None:
    failure = explain(RuntimeError("the cause"), tmp_path / "home")
    (log,) = (tmp_path / "home" / "logs").glob("*.log")
    assert str(log) in failure.message
    assert "the cause" not in failure.as_text()
    assert failure.exit_code == 1
    assert log.stat().st_mode & 0o777 == 0o600
    assert "RuntimeError: the cause" in log.read_text()


def test_a_crash_log_falls_back_to_the_temporary_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    path = write_crash_log(RuntimeError("x"), file / "home")
    try:
        assert path.exists()
        assert tmp_path not in path.parents
    finally:
        path.unlink()
