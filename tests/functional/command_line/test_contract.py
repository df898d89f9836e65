"""What all commands have in common: JSON, exit codes, the home, no heavy imports."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.functional.command_line.conftest import CommandLine

HEAVY = (
    "textual",
    "torch",
    "transformers",
    "peft",
    "asyncssh",
    "runpod",
    "numpy",
    "cryptography",
    "sqlite_utils",
)


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["runs"], {"runs"}),
        (["presets"], {"presets"}),
        (["doctor"], {"demoCanRun", "checks"}),
        (["allocations", "--offline"], {"at", "allocations", "troubles", "totals"}),
        (["cleanup"], {"ended"}),
        (["key", "show"], {"present", "encrypted", "created", "folder", "keys", "former"}),
        (["completions", "bash"], {"shell", "install", "script"}),
        (["resume"], {"resumed", "failed"}),
        (["--version"], {"version"}),
    ],
)
def test_json_is_one_document_and_nothing_else(cli: CommandLine, arguments: Sequence[str], keys: set[str]) -> None:
    cli.home.mkdir(mode=0o700)
    done = cli(*arguments, "--json")
    assert done.code == 0, done.out + done.err
    assert set(done.document) == keys
    assert done.err == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "x"],
        ["watch", "x"],
        ["logs", "x"],
        ["cancel", "x"],
        ["resume", "x"],
        ["cleanup", "x"],
        ["doctor", "--live"],
        ["doctor", "--max-cost", "1"],
        ["adapter", "x", "-o", "nowhere"],
        ["key", "backup", "nowhere"],
        ["demo", "--nope"],
        ["run"],
        ["run", "--steps", "many"],
        ["data"],
        ["data", "nowhere.jsonl"],
        ["nope"],
        ["key"],
        ["completions", "tcsh"],
        [],
    ],
)
def test_usage_errors_exit_2_with_a_message_as_text_and_as_json(cli: CommandLine, arguments: Sequence[str]) -> None:
    done = cli(*arguments, "--json")
    assert done.code == 2
    assert set(done.document["error"]) == {"code", "message", "hint"}
    text = cli(*arguments)
    assert text.code == 2
    assert text.out == ""
    assert text.err.startswith("error: ")
    assert "Traceback" not in text.err


def test_without_a_terminal_the_console_reports_that_and_exits_2(cli: CommandLine) -> None:
    done = cli()
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: The console needs a terminal.\n  ")
    assert "\x1b" not in done.err
    assert not cli.home.exists()


def test_the_home_is_given_before_or_after_the_command_or_in_the_environment(cli: CommandLine, tmp_path: Path) -> None:
    cases: list[tuple[list[str], list[str], dict[str, str]]] = [
        (["--home", "one"], [], {}),
        ([], ["--home", "two"], {"GLASSHOUSE_HOME": "not-this"}),
        ([], [], {"GLASSHOUSE_HOME": str(tmp_path / "three")}),
    ]
    folders = [
        cli.process([*cli.command, *before, "key", "show", "--json", *after], variables).document["folder"]
        for before, after, variables in cases
    ]
    here = Path.cwd()
    assert folders == [str(place / "keys") for place in (here / "one", here / "two", tmp_path / "three")]


def test_an_empty_home_has_no_runs_and_all_published_rows(cli: CommandLine) -> None:
    assert cli("runs", "--json").document == {"runs": []}
    assert "glasshouse demo" in cli("runs").out
    published = cli("runs", "--source", "published", "--json").document["runs"]
    assert len(published) == 17
    assert {run["source"] for run in published} == {"published"}
    assert len(cli("runs", "--source", "mine,published", "--limit", "3", "--json").document["runs"]) == 3
    row = cli("show", "pub-lora-7b-30k", "--json").document
    assert (row["overheadPct"], row["rawSteps"]) == (-0.73, 30000)


def test_a_negative_overhead_is_called_noise_and_not_faster(cli: CommandLine) -> None:
    shown = cli("show", "pub-lora-7b-30k").out
    assert "-0.73 % (within noise: no interval from a single pair)" in shown
    assert "unknown" in shown
    assert "faster" not in shown


def test_presets_mark_our_own_settings(cli: CommandLine) -> None:
    shown = cli("presets").out
    assert "* LoRA rank      8" in shown
    assert "    model          Qwen/Qwen2.5-0.5B-Instruct" in shown
    listed = {item["name"]: item for item in cli("presets", "--json").document["presets"]}
    assert "lora.r" in listed["7b-15m"]["ours"]
    assert listed["demo"]["target"]["steps"] > 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["runs", "--json"],
        ["show", "pub-lora-7b-30k", "--json"],
        ["presets", "--json"],
        ["completions", "fish"],
        ["--help"],
        ["--version"],
        [],
    ],
)
def test_quick_commands_import_nothing_heavy(cli: CommandLine, arguments: Sequence[str]) -> None:
    script = (
        "import sys\n"
        "from glasshouse_tui.cli import main\n"
        "main(sys.argv[1:])\n"
        f"sys.stderr.write('heavy:' + ','.join(name for name in {HEAVY!r} if name in sys.modules))\n"
    )
    assert cli.python(script, *arguments).err.rpartition("heavy:")[1:] == ("heavy:", "")


def test_unwritable_output_is_reported_on_stderr(cli: CommandLine) -> None:
    done = cli.process(["sh", "-c", '"$@" > /dev/full', "sh", *cli.command, "presets", "--json"])
    assert done.code == 1
    assert "the disk is full" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_home_that_was_mistyped_is_made_and_said_to_be_new_once(cli: CommandLine, options: list[str]) -> None:
    first, second = cli("runs", *options), cli("runs", *options)
    assert f"made a new home in {cli.home}" in first.err
    assert "--home" in first.err
    assert (first.code, second.code, second.err) == (0, 0, "")


def test_the_first_start_says_where_everything_is_kept(cli: CommandLine, tmp_path: Path) -> None:
    there = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    done = cli.process([*cli.command, "runs"], there)
    assert done.err == (
        f"note: this is the first start: database, keys and runs are kept in {tmp_path / 'data' / 'glasshouse'}.\n"
    )
    assert cli.process([*cli.command, "runs"], there).err == ""


def test_verify_makes_no_home(cli: CommandLine, tmp_path: Path) -> None:
    done = cli("verify", tmp_path / "none")
    assert "new home" not in done.err
    assert not cli.home.exists()


@pytest.mark.parametrize("streams", [">&-", ">&- 2>&-", "<&-"])
def test_closed_streams_cause_no_traceback(cli: CommandLine, streams: str) -> None:
    done = cli.process(["sh", "-c", f'"$@" {streams}', "sh", *cli.command, "presets"])
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_pipe_closed_early_causes_no_message(cli: CommandLine, unbuffered: str) -> None:
    cli.home.mkdir(mode=0o700)
    running = subprocess.Popen(
        [*cli.command, "runs"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=cli.environment({"GLASSHOUSE_HOME": str(cli.home), "PYTHONUNBUFFERED": unbuffered}),
    )
    assert running.stdout is not None
    running.stdout.close()
    _, errors = running.communicate(timeout=120)
    assert (running.returncode, errors) == (1, b"")
    assert not (cli.home / "logs").exists()


def test_an_unexpected_error_is_one_message_and_a_private_log(cli: CommandLine) -> None:
    done = cli.python(
        "import sys\n"
        "from glasshouse_tui import cli\n"
        "cli.COMMANDS['runs'] = 'no.such.module:runs'\n"
        "sys.exit(cli.main(sys.argv[1:]))\n",
        "runs",
    )
    assert done.code == 1
    assert "Traceback" not in done.out + done.err
    (log,) = (cli.home / "logs").glob("crash-*.log")
    assert str(log) in done.err
    assert log.stat().st_mode & 0o777 == 0o600
    assert "ModuleNotFoundError" in log.read_text()
