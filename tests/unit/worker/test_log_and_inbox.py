"""The allocation's log and its inbox."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from engine.errors import RunError
from engine.wire import ChainReader
from engine.worker.event_log import EVENTS_FILE, EventLog
from engine.worker.inbox import MAX_MESSAGE, Inbox


def test_every_line_of_the_log_is_whole_and_linked(tmp_path: Path) -> None:
    log = EventLog(tmp_path, "run")
    log.state("raw", "launching")
    log.note("hello", code="a_code")
    reader = ChainReader("run")
    events = [reader.feed(line) for line in (tmp_path / EVENTS_FILE).read_bytes().splitlines()]
    assert [event.event for event in events] == ["segment.state", "log"]
    assert reader.head == log.head


def test_a_second_supervisor_cannot_write_the_same_log(tmp_path: Path) -> None:
    EventLog(tmp_path, "run")
    with pytest.raises(FileExistsError):
        EventLog(tmp_path, "run")


def test_the_log_is_private(tmp_path: Path) -> None:
    EventLog(tmp_path, "run")
    assert (tmp_path / EVENTS_FILE).stat().st_mode & 0o777 == 0o600


def test_a_message_is_read_once_it_exists(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    assert inbox.take("end.json") is None
    (tmp_path / "end.json").write_text(json.dumps({"a": 1}))
    assert inbox.take("end.json") == {"a": 1}


def test_a_symbolic_link_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("{}")
    (tmp_path / "end.json").symlink_to(tmp_path / "real")
    assert Inbox(tmp_path).take("end.json") is None


@pytest.mark.parametrize("content", [b"[]", b"x" * (MAX_MESSAGE + 1)])
def test_a_message_that_is_too_large_or_not_an_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "end.json").write_bytes(content)
    with pytest.raises(RunError) as caught:
        Inbox(tmp_path).take("end.json")
    assert caught.value.code == "inbox_invalid"


def test_a_wait_that_times_out_raises_runner_silent(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        Inbox(tmp_path).wait("end.json", 0.1, give_up=lambda: None)
    assert caught.value.code == "runner_silent"


def test_a_cancel_ends_the_wait(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    os.close(os.open(tmp_path / "cancel.json", os.O_CREAT))

    def give_up() -> None:
        if inbox.cancelled():
            raise RunError("stop", code="cancelled")

    with pytest.raises(RunError) as caught:
        inbox.wait("end.json", 5, give_up=give_up)
    assert caught.value.code == "cancelled"
