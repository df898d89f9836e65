"""Bad input: a message with a hint, the right exit code, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine.store.writer import Writer
from engine.system.resources import data_path

if TYPE_CHECKING:
    from tests.functional.command_line.conftest import CommandLine

GOOD_SAMPLE = '{"prompt": "a", "completion": "b"}\n'


@pytest.mark.parametrize("arguments", [["runs"], ["demo"], ["run", "--preset", "demo"], ["resume"]])
def test_a_home_that_cannot_be_created_is_refused(cli: CommandLine, tmp_path: Path, arguments: Sequence[str]) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("mine")
    for home in (in_the_way, in_the_way / "home", Path("/proc/glasshouse-home")):
        error = cli(*arguments, "--json", home=home).refused(1, "store_unwritable")
        assert str(home) in error["message"]
        assert "--home" in error["hint"]
    assert in_the_way.read_text() == "mine"


def test_a_home_without_permissions_is_refused(cli: CommandLine) -> None:
    account: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everywhere: run as another user, or install setpriv (util-linux)")
        account = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    with tempfile.TemporaryDirectory() as folder:
        locked = Path(folder)
        locked.chmod(0o555)
        for arguments in (["runs"], ["demo"]):
            command = [*account, *cli.command, "--home", str(locked / "home"), *arguments, "--json"]
            cli.process(command, {"HOME": folder}).refused(1, "store_unwritable")


@pytest.mark.parametrize(
    "arguments", [["runs"], ["show", "last"], ["demo"], ["resume"], ["cancel", "x"], ["logs", "x"]]
)
def test_a_corrupt_database_is_reported_and_left_unchanged(cli: CommandLine, arguments: Sequence[str]) -> None:
    cli.home.mkdir(mode=0o700)
    database = cli.home / "glasshouse.db"
    database.write_bytes(b"this is no database, " * 400)
    before = database.read_bytes()
    error = cli(*arguments, "--json").refused(1, "store_corrupt")
    assert str(database) in error["message"]
    assert database.read_bytes() == before


def test_doctor_reports_a_corrupt_database(cli: CommandLine) -> None:
    cli.home.mkdir(mode=0o700)
    (cli.home / "glasshouse.db").write_bytes(b"this is no database, " * 400)
    done = cli("doctor", "--json")
    assert (done.code, done.document["demoCanRun"]) == (1, False)
    checks = {check["name"]: check for check in done.document["checks"]}
    assert checks["database"]["status"] == "missing"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--preset", "nope"], "preset_unknown"),
        (["--preset", "demo", "--steps", "0"], "plan_invalid"),
        (["--preset", "demo", "--seconds", "0"], "plan_invalid"),
        (["--preset", "demo", "--seconds", "1", "--steps", "1"], "usage"),
        (["--model", "/no/such/folder", "--steps", "1"], "model_missing"),
        (["--preset", "demo", "--data", "/no/such/file.jsonl"], "data_missing"),
        (["--preset", "demo", "--provider", "elsewhere"], "provider_unknown"),
        (["--preset", "demo", "--provider", "runpod"], "ceiling_missing"),
        (["--preset", "demo", "--gpu", "NVIDIA L4"], "usage"),
        (["--preset", "demo", "--provider", "static", "--keep-for", "5"], "usage"),
    ],
)
def test_an_impossible_plan_is_refused(cli: CommandLine, options: Sequence[str], code: str) -> None:
    cli("run", *options, "--json").refused(2, code)
    assert not cli.home.exists()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('{"prompt": "a"}', "data_shape_invalid"),
        ("{broken", "data_json_invalid"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "data_format_mixed"),
        ('{"prompt": "a", "completion": ""}', "data_sample_empty"),
    ],
)
def test_a_malformed_data_file_is_refused_with_its_line(cli: CommandLine, tmp_path: Path, line: str, code: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(f"{GOOD_SAMPLE}\n{line}\n")
    done = cli("run", "--preset", "demo", "--data", file, "--public-data", "--json")
    assert "Line 3 " in done.refused(2, code)["message"]
    assert cli("runs", "--json").document == {"runs": []}


def test_an_empty_model_folder_is_refused(cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    done = cli("run", "--model", tmp_path / "model", "--steps", "1", "--json")
    assert done.code == 2
    assert done.document["error"]["code"].startswith("model_")
    assert cli("runs", "--json").document == {"runs": []}


def test_private_data_is_not_trained_on_in_the_clear(cli: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(GOOD_SAMPLE)
    error = cli("run", "--preset", "demo", "--data", file, "--json").refused(2, "data_not_public")
    for way in ("--segments protected", "--stand-in", "--public-data"):
        assert way in error["hint"]


def test_without_the_extra_local_the_demo_says_what_to_install(cli: CommandLine) -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'peft'):\n"
        "    sys.modules[name] = None\n"
        "from glasshouse_tui.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    error = cli.python(script, "demo", "--json").refused(2, "extra_missing")
    assert "glasshouse[local]" in error["hint"] + error["message"]
    assert cli.python(script, "runs", "--json").document == {"runs": []}
    diagnosis = cli.python(script, "doctor", "--json")
    assert diagnosis.code == 1
    missing = {check["name"] for check in diagnosis.document["checks"] if check["status"] == "missing"}
    assert {"torch", "transformers", "peft"} <= missing


def test_a_full_disk_is_reported_and_nothing_stays_half_written(cli: CommandLine) -> None:
    probe = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=16k none /mnt"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip(
            "no mount namespace can be made: install unshare (util-linux) and allow user namespaces, or run as root"
        )
    script = (
        "mount -t tmpfs -o size=16k none /mnt && mkdir -m 700 /mnt/home && head -c 12k /dev/zero > /mnt/ballast; "
        '"$@"; code=$?; find /mnt/home -type f -size +0 >&2; exit $code'
    )
    command = [*cli.command, "--home", "/mnt/home", "demo", "--json"]
    done = cli.process(["unshare", "-rm", "sh", "-c", script, "sh", *command])
    assert done.code == 1, done.out + done.err
    error = done.document["error"]
    assert error["code"] in ("store_full", "disk_full")
    assert "Free some space" in error["hint"]
    assert done.err == "", "a file stayed half-written"


@pytest.mark.parametrize(
    ("change", "exit_code", "code"),
    [
        ({"allowDebug": True}, 1, "policy_loosened"),
        ({"version": 0}, 1, "policy_invalid"),
        ({"unknownField": 1}, 1, "policy_unknown_field"),
        (None, 2, "policy_unreadable"),
    ],
)
def test_a_refused_policy_starts_no_run(
    cli: CommandLine, tmp_path: Path, change: dict[str, object] | None, exit_code: int, code: str
) -> None:
    file = tmp_path / "policy.json"
    if change is not None:
        policy = json.loads(data_path("policies", "default.json").read_text())
        file.write_text(json.dumps(policy | change))
    cli("run", "--preset", "demo", "--policy", file, "--json").refused(exit_code, code)
    assert not (cli.home / "runs").exists()
    file.write_text("x")
    cli("verify", file, "--policy", file, "--json").refused(1, "policy_invalid")


def test_an_export_of_an_unfinished_or_unsigned_run_is_refused(cli: CommandLine, tmp_path: Path) -> None:
    with cli.enter_run(owner=os.getpid()):
        cli("export", cli.run_id, "--json").refused(2, "run_unfinished")
    with Writer(cli.home) as writer:
        writer.finish(cli.run_id, {"id": cli.run_id, "clean": False}, [], state="failed", reason="x: y")
    cli("export", cli.run_id, "--json").refused(2, "export_unsigned")
    cli("export", "pub-lora-05b-15m", "-o", tmp_path / "no" / "row.json", "--json").refused(1, "file_unwritable")
    file = tmp_path / "row.json"
    assert cli("export", "pub-lora-05b-15m", "-o", file).code == 0
    refused = cli("verify", file, "--json")
    assert (refused.code, refused.document["error"]["code"]) == (1, "artifact_unsigned")
