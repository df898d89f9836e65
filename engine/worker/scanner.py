"""The scanner: a separate hardened process that looks for given byte patterns in the memory of the others, and its own.

It has fingerprints of what it looks for, never a key or plaintext (`isolation/patterns.py`), and zeroes them at the
end. What it reads passes through one window, which it zeroes after every target; then it sweeps its stack and heap.

Commands (`cmd`), each answered by one message (`msg`):
    (start)                           -> ready: enforcement
    target: name; descriptors: mem,
        smaps, then memfds            -> target
    memfds: name; descriptors: memfds -> memfds: memfds of a known target, or of a new one without memory
    drop: name                        -> dropped: its descriptors are closed
    patterns; descriptor: a memfd     -> patterns: how many of each class were stored; the memfd is zeroed
    scan: label, targets, only        -> scan: label, milliseconds, targets {name: report}; `only` "latest" searches for
                                         the patterns of the last hand-over alone
    end                               -> ended: how many patterns were wiped; the process exits with status 0
A command that fails is answered by `error` (code, message, hint), and the scanner keeps running.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from engine.errors import RunError
from engine.worker.channel import Channel
from engine.worker.isolation import hardening, memfd
from engine.worker.isolation.procfs import self_memory
from engine.worker.isolation.scan import PatternStore, Scan, Target
from engine.worker.isolation.wipe import sweep_heap, sweep_python, sweep_stack, trim

_Handler = Callable[[dict[str, Any], list[int]], dict[str, Any]]
_UNKNOWN: Final = "scan_target_unknown"
SELF: Final = "scanner"


def _unknown(_: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    for fd in fds:
        os.close(fd)
    raise RunError("The scanner does not know this command.", code="worker_protocol")


class Scanner:
    """The targets and patterns of one protected segment. `memory`: descriptors of this process's own mem and smaps."""

    def __init__(self, memory: tuple[int, int] | None = None) -> None:
        self._store = PatternStore()
        self._targets: dict[str, Target] = {}
        if memory is not None:
            self._targets[SELF] = Target(SELF, *memory)
        self._scans = 0
        self._handlers: dict[str, _Handler] = {
            "target": self._add_target,
            "memfds": self._add_memfds,
            "drop": self._drop,
            "patterns": self._add_patterns,
            "scan": self._scan,
        }

    def answer(self, command: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Run one command; an error becomes the answer."""
        handler = self._handlers.get(str(command.get("cmd")), _unknown)
        try:
            return handler(command, fds)
        except RunError as error:
            return {"msg": "error", **error.as_dict()}
        except OSError as error:
            failed = RunError(f"The scan failed: {os.strerror(error.errno or 0)}.", code="scan_failed")
            return {"msg": "error", **failed.as_dict()}

    def end(self) -> dict[str, Any]:
        """Close every descriptor and zero every pattern."""
        for target in self._targets.values():
            target.close()
        self._targets.clear()
        wiped = self._store.wipe()
        _sweep()
        return {"msg": "ended", "patterns_wiped": wiped, "scans": self._scans}

    def _add_target(self, command: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        name = str(command.get("name"))
        if len(fds) < 2 or (name in self._targets and self._targets[name].memory is not None):
            for fd in fds:
                os.close(fd)
            raise RunError("A target needs a new name, its memory and its smaps.", code="worker_protocol")
        target = self._targets.setdefault(name, Target(name))
        target.memory, target.smaps = fds[:2]
        target.memfds += fds[2:]
        return {"msg": "target", "name": name}

    def _add_memfds(self, command: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        name = str(command.get("name"))
        self._targets.setdefault(name, Target(name)).memfds += fds
        return {"msg": "memfds", "name": name}

    def _drop(self, command: dict[str, Any], _: list[int]) -> dict[str, Any]:
        name = str(command.get("name"))
        self._target(name).close()
        del self._targets[name]
        return {"msg": "dropped", "name": name}

    def _add_patterns(self, _: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Store the patterns and zero the memfd, also when they are refused."""
        if len(fds) != 1:
            raise RunError("Patterns must arrive in exactly one memfd.", code="worker_protocol")
        try:
            mapping = memfd.map_writable(fds[0])
            with memfd.opened(mapping) as view:
                try:
                    counts = self._store.add(view)
                finally:
                    memfd.wipe_map(mapping)
        finally:
            os.close(fds[0])
        return {"msg": "patterns", "counts": counts}

    def _scan(self, command: dict[str, Any], _: list[int]) -> dict[str, Any]:
        names = command.get("targets") or sorted(self._targets)
        store = self._store.latest() if command.get("only") == "latest" else self._store
        others = [self._target(str(name)) for name in names if name != SELF]
        began = time.monotonic_ns()
        reports = Scan(store).run(others)
        _sweep()
        if SELF in names:
            reports |= Scan(store).run([self._target(SELF)], beside=others)
        self._scans += 1
        milliseconds = (time.monotonic_ns() - began) // 1_000_000
        label = str(command.get("label"))
        return {"msg": "scan", "label": label, "milliseconds": milliseconds, "targets": reports}

    def _target(self, name: str) -> Target:
        if name not in self._targets:
            raise RunError(f"The scanner has no target {name}.", code=_UNKNOWN)
        return self._targets[name]


def _sweep() -> None:
    """Overwrite what is free in this process: confirming a hit hashes the secret that was found, on its stack."""
    sweep_python()
    sweep_heap()
    sweep_stack()
    trim()


def main(argv: Sequence[str]) -> int:
    """`--channel FD`: a connected socket inherited from the supervisor; exits with status 1 if it closes
    early.
    """
    parser = argparse.ArgumentParser("scanner")
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--site", action="append")
    options = parser.parse_args(argv)
    with Channel(options.channel) as channel:
        scanner = Scanner(self_memory())
        observed = hardening.harden(hardening.Options())
        try:
            channel.send({"msg": "ready", "enforcement": {n: seen.as_dict() for n, seen in observed.items()}})
            while True:
                command, fds = channel.recv()
                if command.get("cmd") == "end":
                    channel.send(scanner.end())
                    return 0
                channel.send(scanner.answer(command, fds))
        except RunError:
            scanner.end()
            return 1
