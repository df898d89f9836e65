from __future__ import annotations

import fcntl
import os
import struct
import threading
from collections.abc import Iterator

import pytest

from engine.errors import RunError
from engine.worker.channel import CLOSED, INVALID, MAX_MESSAGE_BYTES, OVERSIZE, TIMEOUT, Channel, pair


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    left, right = pair()
    with Channel(left.detach()) as one, Channel(right.detach()) as other:
        yield one, other


@pytest.fixture
def pipes() -> Iterator[tuple[Channel, Channel]]:
    there_read, there_write = os.pipe()
    back_read, back_write = os.pipe()
    with Channel(back_read, there_write) as one, Channel(there_read, back_write) as other:
        yield one, other


def refused(code: str, channel: Channel, timeout: float = 1.0) -> None:
    with pytest.raises(RunError) as caught:
        channel.recv(timeout)
    assert caught.value.code == code


def test_messages_keep_their_order_and_content_over_a_socket(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    for number in range(3):
        one.send({"number": number, "text": "grüße"})
    assert [other.recv(1.0) for _ in range(3)] == [({"number": n, "text": "grüße"}, []) for n in range(3)]


def test_pipes_carry_messages_both_ways(pipes: tuple[Channel, Channel]) -> None:
    one, other = pipes
    one.send({"ask": 1})
    assert other.recv(1.0) == ({"ask": 1}, [])
    other.send({"answer": 2})
    assert one.recv(1.0) == ({"answer": 2}, [])


def test_descriptors_arrive_with_their_own_message_and_are_not_inherited(
    ends: tuple[Channel, Channel],
) -> None:
    one, other = ends
    for text in (b"first", b"second"):
        fd = os.memfd_create("sent")
        os.write(fd, text)
        one.send({"text": text.decode()}, [fd])
        one.send({"between": True})
        os.close(fd)
    for text in (b"first", b"second"):
        message, fds = other.recv(1.0)
        assert message == {"text": text.decode()}
        assert os.pread(fds[0], 10, 0) == text
        assert fcntl.fcntl(fds[0], fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        os.close(fds[0])
        assert other.recv(1.0) == ({"between": True}, [])


def test_descriptors_do_not_travel_over_pipes(pipes: tuple[Channel, Channel]) -> None:
    with pytest.raises(RunError) as caught:
        pipes[0].send({}, [0])
    assert caught.value.code == INVALID


def test_a_message_larger_than_the_socket_buffer_arrives_whole(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    message = {"text": "x" * (MAX_MESSAGE_BYTES - 100)}
    sender = threading.Thread(target=one.send, args=(message,))
    sender.start()
    assert other.recv(5.0)[0] == message
    sender.join()


def test_a_message_over_the_limit_is_refused_by_both_ends(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    with pytest.raises(RunError) as caught:
        one.send({"text": "x" * MAX_MESSAGE_BYTES})
    assert caught.value.code == OVERSIZE
    os.write(one.fileno(), struct.pack(">IH", MAX_MESSAGE_BYTES + 1, 0))
    refused(OVERSIZE, other)


def test_a_frame_that_comes_in_pieces_survives_a_timeout(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    frame = struct.pack(">IH", 7, 0) + b'{"a":1}'
    os.write(one.fileno(), frame[:8])
    refused(TIMEOUT, other, 0.05)
    os.write(one.fileno(), frame[8:])
    assert other.recv(1.0) == ({"a": 1}, [])


def test_a_reader_that_does_not_read_times_the_sender_out(pipes: tuple[Channel, Channel]) -> None:
    with pytest.raises(RunError) as caught:
        pipes[0].send({"text": "x" * 500_000}, timeout=0.05)
    assert caught.value.code == TIMEOUT


def test_a_closed_end_is_seen_by_reader_and_writer(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    one.close()
    refused(CLOSED, other)
    with pytest.raises(RunError) as caught:
        other.send({})
    assert caught.value.code == CLOSED


@pytest.mark.parametrize("body", [b"[1]", b"{", b'{"a":1,"a":2}', b'{"a":NaN}', b"\xff"])
def test_what_is_not_a_strict_json_object_is_refused(ends: tuple[Channel, Channel], body: bytes) -> None:
    one, other = ends
    os.write(one.fileno(), struct.pack(">IH", len(body), 0) + body)
    refused(INVALID, other)


def test_announced_descriptors_that_do_not_come_are_refused(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    os.write(one.fileno(), struct.pack(">IH", 2, 1) + b"{}")
    refused(INVALID, other)
