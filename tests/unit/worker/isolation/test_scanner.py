from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engine.errors import RunError
from engine.worker.channel import Channel, pair
from engine.worker.isolation import memfd, patterns
from tests.unit.worker.isolation.clients import ScannerClient

if TYPE_CHECKING:
    from tests.unit.worker.isolation.conftest import Script, Start

# A process that creates a secret, hands over its memory and the pattern, hardens itself, and follows commands.
HOLDER = r"""
import os, sys
from engine.sealing.memory import random_key, wipe
from engine.worker.channel import Channel
from engine.worker.isolation import hardening, memfd, patterns, procfs
from engine.worker.isolation.wipe import sweep_heap, sweep_python

channel = Channel(int(sys.argv[1]))
key = random_key()
fd = memfd.create("patterns", 4096)
with memfd.opened(memfd.map_writable(fd)) as view:
    patterns.write(view, patterns.key_items(patterns.CONTENT_KEY, memoryview(key)))
memory = procfs.self_memory()
channel.send({"msg": "held"}, [*memory, fd])
for each in (*memory, fd):
    os.close(each)
leaks = []
hardening.harden(hardening.Options())
while True:
    order = channel.recv()[0]["cmd"]
    if order == "leak":
        leaks.append(bytearray(32))
        memoryview(leaks[-1])[:] = key
    elif order == "leak_half":
        leaks.append(bytearray(40))
        memoryview(leaks[-1])[3:19] = memoryview(key)[16:]
    elif order == "wipe":
        wipe(key)
        sweep_python()
        sweep_heap()
    elif order == "wipe_leaks":
        for each in leaks:
            wipe(each)
    channel.send({"msg": "done"})
"""

SECRET = os.urandom(32)


def peak_kib(pid: int) -> int:
    """The peak resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


class Holder:
    """The process that holds a secret, as the test sees it."""

    def __init__(self, script: Script) -> None:
        ours, theirs = pair()
        theirs.set_inheritable(True)
        self.process = script(HOLDER, str(theirs.fileno()), keep=[theirs.fileno()])
        theirs.close()
        self.channel = Channel(ours.detach())
        message, (self.memory, self.smaps, self.patterns) = self.channel.recv(120.0)
        assert message == {"msg": "held"}

    def do(self, order: str) -> None:
        """Run one command, to its end."""
        assert self.channel.request({"cmd": order}, timeout=120.0)[0] == {"msg": "done"}


@pytest.fixture
def holder(script: Script) -> Holder:
    return Holder(script)


@pytest.fixture
def scanner(start: Start) -> ScannerClient:
    client = ScannerClient(start("scanner").channel, 30.0)
    client.ready()
    return client


def test_a_secret_is_found_while_it_lives_and_not_after_its_wipe(holder: Holder, scanner: ScannerClient) -> None:
    scanner.add_target("holder", holder.memory, holder.smaps)
    assert scanner.add_patterns(holder.patterns) == {"content_key": 1, "content_key_half": 2}
    before = scanner.scan("before")
    holder.do("wipe")
    after = scanner.scan("after")["targets"]["holder"]
    assert before["label"] == "before"
    assert before["targets"]["holder"]["hits"]["content_key"] >= 1
    assert before["targets"]["holder"]["hits"]["content_key_half"] >= 2
    assert after["hits"] == {"content_key": 0, "content_key_half": 0}
    assert (after["state"], after["unread_other"]) == ("read", [])
    assert after["bytes_read"] > 4 << 20


@pytest.mark.parametrize(("leak", "key", "halves"), [("leak", 1, 2), ("leak_half", 0, 1)])
def test_a_planted_leak_is_found_until_it_is_wiped(
    holder: Holder, scanner: ScannerClient, leak: str, key: int, halves: int
) -> None:
    scanner.add_target("holder", holder.memory, holder.smaps)
    scanner.add_patterns(holder.patterns)
    holder.do(leak)
    holder.do("wipe")
    hits = scanner.scan("after")["targets"]["holder"]["hits"]
    assert hits == {"content_key": key, "content_key_half": halves}
    holder.do("wipe_leaks")
    assert not any(scanner.scan("again")["targets"]["holder"]["hits"].values())


def test_the_pattern_memfd_comes_back_zeroed_also_when_it_is_refused(holder: Holder, scanner: ScannerClient) -> None:
    scanner.add_patterns(holder.patterns)
    assert os.pread(holder.patterns, 4096, 0) == bytes(4096)
    damaged = memfd.from_bytes("damaged", b"GHP1\0\1\7secret of some length that is no pattern")
    with pytest.raises(RunError) as caught:
        scanner.add_patterns(damaged)
    assert caught.value.code == "pattern_invalid"
    assert not any(os.pread(damaged, 4096, 0))
    os.close(damaged)


def test_a_process_that_ended_is_reported_as_gone(holder: Holder, scanner: ScannerClient) -> None:
    scanner.add_target("holder", holder.memory, holder.smaps)
    scanner.add_patterns(holder.patterns)
    holder.process.kill()
    holder.process.wait()
    report = scanner.scan("after")["targets"]["holder"]
    assert (report["state"], report["bytes_read"]) == ("gone", 0)


def test_memfds_of_a_dead_process_are_still_scanned_until_dropped(holder: Holder, scanner: ScannerClient) -> None:
    payload = memfd.create("payload", 8192)
    os.pwrite(payload, SECRET, 5000)
    laid = memfd.create("patterns", 8192)
    with memfd.opened(memfd.map_writable(laid)) as view:
        patterns.write(view, [(patterns.CONTENT_KEY, memoryview(SECRET))])
    scanner.add_patterns(laid)
    os.close(laid)
    holder.process.kill()
    scanner.add_memfds("payload", [payload])
    assert scanner.scan("with", ["payload"])["targets"]["payload"]["hits"]["content_key"] == 1
    scanner.drop("payload")
    with pytest.raises(RunError) as caught:
        scanner.scan("without", ["payload"])
    assert caught.value.code == "scan_target_unknown"
    os.close(payload)


def test_a_refused_command_leaves_the_scanner_working(holder: Holder, scanner: ScannerClient) -> None:
    for command in ({"cmd": "no such"}, {"cmd": "patterns"}, {"cmd": "target", "name": "x"}, {}):
        answer, _ = scanner.channel.request(command, timeout=120.0)
        assert (answer["msg"], answer["code"]) == ("error", "worker_protocol")
    scanner.add_target("holder", holder.memory, holder.smaps)
    with pytest.raises(RunError):
        scanner.add_target("holder", holder.memory, holder.smaps)
    assert scanner.scan("all")["targets"]["holder"]["state"] == "read"


def test_the_scanner_is_hardened_wipes_its_patterns_and_ends(holder: Holder, start: Start) -> None:
    role = start("scanner")
    client = ScannerClient(role.channel, 120.0)
    enforcement = client.ready()
    sure = ("single_task", "no_dump", "no_core", "no_new_privs", "seccomp")
    assert {name: enforcement[name]["value"] for name in sure} == dict.fromkeys(sure, "enforced")
    client.add_patterns(holder.patterns)
    client.scan("nothing")
    assert client.end() == {"msg": "ended", "patterns_wiped": 3, "scans": 1}
    assert role.process.wait(60) == 0


def test_the_scanner_ends_when_its_supervisor_is_gone(start: Start) -> None:
    role = start("scanner")
    ScannerClient(role.channel, 120.0).ready()
    role.channel.close()
    assert role.process.wait(60) == 1


def test_a_large_target_is_read_whole_in_little_memory(start: Start) -> None:
    role = start("scanner")
    scanner = ScannerClient(role.channel, 120.0)
    scanner.ready()
    size = 200 << 20
    fd = memfd.create("large", size)
    block = os.urandom(1 << 20)
    for at in range(0, size, len(block)):
        os.pwrite(fd, block, at)
    os.pwrite(fd, SECRET, size - len(SECRET))
    laid = memfd.create("patterns", 8192)
    with memfd.opened(memfd.map_writable(laid)) as view:
        others = (("other", memoryview(os.urandom(32))) for _ in range(8))
        patterns.write(view, [("key", memoryview(SECRET)), *others])
    scanner.add_patterns(laid)
    scanner.add_memfds("large", [fd])
    report = scanner.scan("large")["targets"]["large"]
    assert (report["bytes_read"], report["hits"]) == (size, {"key": 1, "other": 0})
    assert peak_kib(role.process.pid) < 100 * 1024
    os.close(fd)
    os.close(laid)
