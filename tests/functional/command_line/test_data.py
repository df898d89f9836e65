"""`data`: the report of a file, a folder, a pipe and standard input; what is refused; and no run is ever entered."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from engine.store.home import database_path
from engine.system.resources import data_path

if TYPE_CHECKING:
    from tests.functional.command_line.conftest import CommandLine

EVIL = "\x1b]0;gone\x07\x1b[2J\u202e"


def lines(count: int, answer: str = "Four, five or six.") -> str:
    return "".join(
        json.dumps({"prompt": f"What is {number} and two?", "completion": answer, "note": 1}) + "\n"
        for number in range(count)
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text(lines(20))
    return path


def fed(cli: CommandLine, text: str, *arguments: str) -> Any:
    """The document of `data` with a pipe as its standard input."""
    command = [*cli.command, "--home", str(cli.home), "data", *arguments, "--json"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=cli.environment(), check=True)
    return json.loads(done.stdout)


def test_a_report_is_text_or_one_document(cli: CommandLine, file: Path) -> None:
    shown = cli("data", file)
    assert shown.code == 0
    assert shown.out.startswith("tokenizer: of the shipped tiny model")
    assert "20 samples: 20 trained on" in shown.out
    assert "  learned | Four, five or six." in shown.out
    assert "ignored keys: note" in shown.out
    document = cli("data", file, "--json").document
    assert set(document) == {"model", "digest", "bytes", "report", "refused"}
    assert document["bytes"] == file.stat().st_size
    report = document["report"]
    assert (report["samples"], report["used"], report["dropped"], report["heldOut"]) == (20, 20, 0, 0)
    assert report["maxLengthReason"] == "the longest sample"
    assert report["maxLength"] >= report["lengths"]["max"]
    assert report["answerTokensKeptPct"] == 100.0
    assert any(piece["learned"] and "Four" in piece["text"] for piece in report["shown"]["pieces"])
    assert not cli.home.exists()


def test_standard_input_a_pipe_and_a_folder_give_the_same_report(cli: CommandLine, tmp_path: Path, file: Path) -> None:
    expected = cli("data", file, "--json").document
    assert fed(cli, file.read_text(), "-") == expected
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(file.read_text(),))
    writer.start()
    assert cli("data", pipe, "--json").document == expected
    writer.join()
    folder = tmp_path / "folder"
    folder.mkdir()
    file.rename(folder / "mine.jsonl")
    assert cli("data", folder, "--json").document["report"] == expected["report"]


def test_a_share_is_held_out_and_a_length_is_given(cli: CommandLine, file: Path) -> None:
    report = cli("data", file, "--eval-split", "10", "--max-length", "300", "--json").document["report"]
    assert (report["used"], report["heldOut"], report["maxLength"], report["maxLengthReason"]) == (18, 2, 300, "given")
    assert cli("data", file, "--max-length", "auto").code == 0


def test_a_template_of_ones_own_is_used_and_named(cli: CommandLine, tmp_path: Path, file: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{% for one in messages %}[{{ one.role }}] {{ one.content }}{{ '\n' }}{% endfor %}")
    report = cli("data", file, "--chat-template", template, "--json").document["report"]
    assert "mine.jinja" in report["template"]["source"]
    assert report["shown"]["pieces"][0]["text"].startswith("[user] What is")
    other = cli("data", file, "--json").document["report"]
    assert report["template"]["digest"] != other["template"]["digest"]
    template.write_text("{{ broken")
    cli("data", file, "--chat-template", template, "--json").refused(2, "chat_template_invalid")


def test_data_of_which_most_is_lost_is_reported_and_exits_1(cli: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(lines(5, "a very long answer " * 40))
    done = cli("data", path, "--max-length", "64", "--json")
    assert done.code == 1
    assert done.document["refused"]["code"] == "data_mostly_lost"
    assert done.document["report"]["warnings"]
    text = cli("data", path, "--max-length", "64")
    assert (text.code, "refused by a run: " in text.out) == (1, True)
    nothing = cli("data", path, "--max-length", "3", "--json")
    assert (nothing.code, nothing.document["refused"]["code"]) == (1, "data_nothing_to_learn")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("", "data_empty"),
        ("{broken\n" + lines(3), "data_json_invalid"),
        (lines(1) + '{"prompt": "without an answer"}\n', "data_shape_invalid"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', "data_preference"),
        (lines(1), "data_split_empty"),
    ],
)
def test_bad_data_exits_2_with_its_code(cli: CommandLine, tmp_path: Path, content: str, code: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    cli("data", path, "--eval-split", "10", "--json").refused(2, code)
    assert not cli.home.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-length", "1"],
        ["--max-length", "many"],
        ["--max-length", "1000000"],
        ["--eval-split", "0"],
        ["--eval-split", "51"],
        ["--eval-split", "nan"],
        ["--revision", "c" * 40],
        ["--model", "/nowhere/model"],
        ["--chat-template", "/nowhere/template"],
        ["--max-length", "513"],
    ],
)
def test_options_that_cannot_be_used_exit_2(cli: CommandLine, file: Path, arguments: list[str]) -> None:
    done = cli("data", file, *arguments, "--json")
    assert done.code == 2, done.out
    assert done.document["error"]["hint"]
    assert cli("data", file, *arguments).err.startswith("error: ")


def test_a_file_that_is_not_there_is_refused(cli: CommandLine, tmp_path: Path) -> None:
    cli("data", tmp_path / "nowhere.jsonl", "--json").refused(2, "data_missing")
    cli("data", "/dev/zero", "--json").refused(2, "data_unreadable")


def test_hostile_text_in_the_data_controls_nothing(cli: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "evil.jsonl"
    evil = {"prompt": EVIL, "completion": EVIL, f"key{EVIL}": 1}
    path.write_text(json.dumps(evil) + "\n")
    for more in ([], ["--json"]):
        done = cli("data", path, *more)
        assert done.code == 0, done.out + done.err
        assert all(char.isprintable() or char == "\n" for char in done.out + done.err)
    assert "\\x1b" in cli("data", path).out


def test_a_second_report_comes_from_the_cache_of_an_existing_home(cli: CommandLine, file: Path) -> None:
    cli.home.mkdir(mode=0o700)
    first = cli("data", file, "--json").document
    (entry,) = (cli.home / "cache" / "tokens").iterdir()
    assert (cli.home / "cache" / "tokens").stat().st_mode & 0o777 == 0o700
    assert entry.stat().st_mode & 0o777 == 0o600
    used = entry.stat().st_mtime_ns
    assert cli("data", file, "--json").document == first
    assert entry.stat().st_mtime_ns > used
    assert not database_path(cli.home).exists()


def test_ctrl_c_ends_all_processes_and_exits_130(cli: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    corpus = data_path("sample_corpus.jsonl").read_text()
    with path.open("w") as large:
        for _ in range(400):
            large.write(corpus)
    running = cli.start("data", str(path))
    process = psutil.Process(running.pid)
    while not (children := process.children(recursive=True)):
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=300)
    assert (running.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "Interrupted."
    _, left = psutil.wait_procs(children, timeout=300)  # one that was interrupted while it started leaves by itself
    assert left == []


def test_what_comes_through_a_pipe_is_not_kept(cli: CommandLine, file: Path) -> None:
    cli.home.mkdir()
    fed(cli, file.read_text(), "-")
    assert not list(cli.home.rglob("*.tokens"))
    assert cli("data", file).code == 0
    assert list(cli.home.rglob("*.tokens")), "what is a file is kept"
