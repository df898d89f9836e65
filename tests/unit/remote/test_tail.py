from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.errors import WireError
from engine.remote.session import SshSession
from engine.remote.tail import POLL_BYTES, Tail
from engine.wire import LOG, MAX_LINE_BYTES, MAX_LOG_BYTES, ChainReader, ChainWriter, to_line


def _lines(count: int, size: int = 10) -> list[bytes]:
    writer = ChainWriter("run")
    return [to_line(writer.append(LOG, {"n": n, "text": "x" * size})) for n in range(count)]


def _tail(session: SshSession, path: Path) -> Tail:
    return Tail(session, str(path), 0, ChainReader("run"))


async def _refusal(tail: Tail) -> str:
    with pytest.raises(WireError) as caught:
        await tail.poll()
    return caught.value.code


async def test_a_log_that_does_not_exist_yet_is_empty(session: SshSession, folder: Path) -> None:
    assert await _tail(session, folder / "events.jsonl").poll() == []


async def test_complete_lines_are_returned_once_and_a_partial_one_waits(session: SshSession, folder: Path) -> None:
    path = folder / "events.jsonl"
    lines = _lines(3)
    path.write_bytes(lines[0] + lines[1] + lines[2][:20])
    tail = _tail(session, path)
    got = await tail.poll()
    assert [tailed.event.seq for tailed in got] == [0, 1]
    assert [tailed.end for tailed in got] == [len(lines[0]), len(lines[0]) + len(lines[1])]
    assert await tail.poll() == []
    with path.open("ab") as file:
        file.write(lines[2][20:])
    assert [tailed.event.seq for tailed in await tail.poll()] == [2]
    assert await tail.poll() == []
    assert tail.offset == path.stat().st_size


async def test_another_tail_continues_from_a_stored_offset_and_head(session: SshSession, folder: Path) -> None:
    path = folder / "events.jsonl"
    lines = _lines(5)
    path.write_bytes(b"".join(lines[:3]))
    last = (await _tail(session, path).poll())[-1]
    path.write_bytes(b"".join(lines))
    reader = ChainReader("run", head=last.event.hash, next_seq=last.event.seq + 1)
    rest = await Tail(session, str(path), last.end, reader).poll()
    assert [tailed.event.seq for tailed in rest] == [3, 4]


async def test_a_long_log_comes_in_bounded_portions_without_a_gap(session: SshSession, folder: Path) -> None:
    path = folder / "events.jsonl"
    path.write_bytes(b"".join(_lines(40, 100_000)))
    tail = _tail(session, path)
    numbers: list[int] = []
    while got := await tail.poll():
        assert sum(len(to_line(tailed.event)) for tailed in got) <= POLL_BYTES
        numbers += [tailed.event.seq for tailed in got]
    assert numbers == list(range(40))


async def test_valid_lines_before_a_broken_one_are_returned_first(session: SshSession, folder: Path) -> None:
    path = folder / "events.jsonl"
    lines = _lines(4)
    path.write_bytes(lines[0] + lines[1] + lines[3])
    tail = _tail(session, path)
    assert [tailed.event.seq for tailed in await tail.poll()] == [0, 1]
    assert await _refusal(tail) == "log_chain_broken"
    assert await _refusal(tail) == "log_chain_broken"


async def test_a_line_of_maximum_length_is_read_and_a_longer_one_refused(session: SshSession, folder: Path) -> None:
    path = folder / "events.jsonl"
    spare = MAX_LINE_BYTES - len(_lines(1, 0)[0])
    path.write_bytes(_lines(1, spare)[0])
    assert len(await _tail(session, path).poll()) == 1
    path.write_bytes(_lines(1, spare + 2)[0])
    assert await _refusal(_tail(session, path)) == "log_line_too_long"


async def test_an_overlong_line_is_refused_before_it_is_complete(session: SshSession, folder: Path) -> None:
    path = folder / "events.jsonl"
    line = _lines(1)[0]
    path.write_bytes(line + b"x" * (MAX_LINE_BYTES + 1))
    tail = _tail(session, path)
    assert len(await tail.poll()) == 1
    assert await _refusal(tail) == "log_line_too_long"


async def test_a_log_above_the_limit_is_refused(session: SshSession, folder: Path) -> None:
    path = folder / "events.jsonl"
    path.write_bytes(_lines(1)[0])
    os.truncate(path, MAX_LOG_BYTES + 1)
    assert await _refusal(_tail(session, path)) == "log_too_long"


async def test_a_log_that_shrinks_or_vanishes_is_refused(session: SshSession, folder: Path) -> None:
    path = folder / "events.jsonl"
    lines = _lines(2)
    path.write_bytes(b"".join(lines))
    tail = _tail(session, path)
    await tail.poll()
    path.write_bytes(lines[0])
    assert await _refusal(tail) == "log_shrunk"
    path.unlink()
    assert await _refusal(tail) == "log_shrunk"


async def test_a_log_whose_stated_size_is_never_reached_is_refused(
    session: SshSession, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a server would never let the runner say that it had read all there was."""
    path = folder / "events.jsonl"
    path.write_bytes(b"".join(_lines(2)))
    size = session.size

    async def stated(path: str) -> int | None:
        known = await size(path)
        return None if known is None else known + 1000

    monkeypatch.setattr(session, "size", stated)
    assert await _refusal(_tail(session, path)) == "log_shrunk"


async def test_a_link_or_a_folder_is_refused_as_a_log(session: SshSession, folder: Path) -> None:
    (folder / "real").write_bytes(_lines(1)[0])
    (folder / "link").symlink_to(folder / "real")
    (folder / "sub").mkdir()
    assert await _refusal(_tail(session, folder / "link")) == "log_not_a_file"
    assert await _refusal(_tail(session, folder / "sub")) == "log_not_a_file"
