"""What can be read only once is copied once, privately and within limits; nothing is waited for without end."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engine.errors import DataError
from engine.payload.data.read import read_data
from engine.payload.data.spool import is_stream, spool, spooled
from tests.unit.payload.data.written import PAIR, SAMPLE, written

READ = (
    "import sys\nfrom pathlib import Path\n"
    "from engine.errors import DataError\n"
    "from engine.payload.data.read import read_data\n"
    "from engine.payload.data.spool import spooled\n"
    "try:\n"
    "    with spooled(Path(sys.argv[1]), patience=float(sys.argv[2])) as path:\n"
    "        print(len(read_data(path).samples), oct(path.stat().st_mode), oct(path.parent.stat().st_mode))\n"
    "    print(path.exists())\n"
    "except DataError as error:\n    print(error.code)\n"
)
DATA = b'{"prompt": "Hi?", "completion": "Yes."}\n'


def run(script: str, *, stdin: bytes | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        ["bash", "-c", script, sys.executable, READ],
        input=stdin,
        stdin=None if stdin is not None else subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=120,
        env={**os.environ, **(env or {})},
    )
    return done.stdout.decode()


def test_a_file_and_a_folder_are_used_where_they_are(tmp_path: Path) -> None:
    path = written(tmp_path, PAIR)
    assert spool(path, tmp_path / "unused") == path
    with spooled(tmp_path) as folder:
        assert folder == tmp_path
    assert not is_stream(tmp_path / "absent")


def test_standard_input_is_copied_privately_and_the_copy_is_gone_afterwards(tmp_path: Path) -> None:
    out = run('"$0" -c "$1" - 60', stdin=DATA * 50_000, env={"TMPDIR": str(tmp_path)})
    assert out.split() == ["50000", "0o100600", "0o40700", "False"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "script",
    [
        'printf "%s" "$DATA" | "$0" -c "$1" - 60',
        'printf "%s" "$DATA" | "$0" -c "$1" /dev/stdin 60',
        '"$0" -c "$1" <(printf "%s" "$DATA") 60',
        '"$0" -c "$1" <(sleep 0.5; printf "%s" "$DATA"; sleep 0.5) 60',
        'printf "%s" "$DATA" > "$TMPDIR/f"; "$0" -c "$1" - 60 < "$TMPDIR/f"; rm "$TMPDIR/f"',
        'printf "%s" "$DATA" > "$TMPDIR/f"; "$0" -c "$1" /dev/fd/0 60 < "$TMPDIR/f"; rm "$TMPDIR/f"',
    ],
    ids=["a pipe", "/dev/stdin", "a process substitution", "a slow one", "a file as input", "its descriptor"],
)
def test_every_kind_of_stream_is_read_to_its_end(tmp_path: Path, script: str) -> None:
    out = run(script, env={"DATA": DATA.decode() * 3, "TMPDIR": str(tmp_path)})
    assert out.split() == ["3", "0o100600", "0o40700", "False"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ('"$0" -c "$1" - 60 < /dev/null', "data_empty"),
        ('"$0" -c "$1" <(true) 60', "data_empty"),
        ('"$0" -c "$1" - 60 <&-', "data_unreadable"),
    ],
)
def test_input_that_does_not_come_is_refused(script: str, code: str) -> None:
    assert run(script).strip() == code


@pytest.mark.parametrize("begun", [b"", b"x"])
def test_a_writer_that_falls_silent_is_given_up(begun: bytes) -> None:
    ours, theirs = os.pipe()
    try:
        os.write(theirs, begun)
        done = subprocess.run(
            [sys.executable, "-c", READ, "-", "0.2"], stdin=ours, capture_output=True, check=True, timeout=120
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.stdout.decode().strip() == "data_no_input"


def test_a_terminal_is_refused_at_once() -> None:
    ours, theirs = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", READ, "-", "60"], stdin=theirs, capture_output=True, check=True, timeout=120
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.stdout.decode().strip() == "data_unreadable"


def test_a_named_pipe_without_a_writer_is_given_up_and_leaves_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DataError) as caught:
        spool(tmp_path / "pipe", folder, patience=0.1)
    assert caught.value.code == "data_no_input"
    assert list(folder.iterdir()) == []


def test_a_named_pipe_whose_writer_comes_later_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Timer(0.3, pipe.write_bytes, [DATA])
    writer.start()
    copy = spool(pipe, tmp_path, patience=60)
    writer.join()
    assert read_data(copy).samples == (SAMPLE,)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600


def test_more_than_the_limit_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    writer = threading.Thread(target=pipe.write_bytes, args=[b"x" * 2000])
    writer.start()
    with pytest.raises(DataError) as caught:
        spool(pipe, folder, most=1000, patience=60)
    writer.join()
    assert caught.value.code == "data_too_large"
    assert list(folder.iterdir()) == []
