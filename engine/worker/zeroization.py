"""Proving the wipe: a scanner process looks for the secrets before it and after it, and the counts decide.

A class that was never found before proves nothing by being absent afterwards; memory that could not be read, outside
the classes that never can, proves nothing either. Then the runtime is `unverified`, with the reasons.
"""

from __future__ import annotations

import os
import stat
from typing import Any, Final

from engine.wire import ZEROIZE_SCAN
from engine.worker.children import Child, spawn_on_socket
from engine.worker.context import Context
from engine.worker.identity import compute_processes
from engine.worker.isolation import memfd, patterns, procfs
from engine.worker.isolation.procfs import gone

SCAN_SECONDS: Final = 600.0
READY_SECONDS: Final = 60.0
END_SECONDS: Final = 30.0
SUPERVISOR: Final = "supervisor"
METHOD: Final = "overwrite and scan; Clear in the sense of NIST SP 800-88"


class Prover:
    """The scanner of one protected segment, what it saw, and the processes that must be gone."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ended: list[tuple[str, int, int]] = []
        self.scans: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self._pattern_counts: dict[str, int] = {}
        self.scanner_end: dict[str, Any] | None = None
        self._gpu_before = compute_processes()
        self.child: Child = spawn_on_socket(
            context.bundle, "scanner", [], fds=[], env={}, log=context.folder / "protected.log"
        )
        self.enforcement: dict[str, Any] = self.child.expect("ready", READY_SECONDS)["enforcement"]
        self.watch(SUPERVISOR, [os.dup(fd) for fd in context.memory])

    def watch(self, name: str, fds: list[int]) -> None:
        """Give the scanner a target: its mem and smaps descriptors, then memfds. Closes them here."""
        self.child.ask({"cmd": "target", "name": name}, "target", SCAN_SECONDS, fds)
        for fd in fds:
            os.close(fd)

    def watch_memfds(self, name: str, fds: list[int]) -> None:
        """Give the scanner memfds to read by descriptor; they stay open here."""
        self.child.ask({"cmd": "memfds", "name": name}, "memfds", SCAN_SECONDS, fds)

    def take_patterns(self, fd: int) -> None:
        """Hand over what to look for; the scanner empties the memfd."""
        counts = self.child.ask({"cmd": "patterns"}, "patterns", SCAN_SECONDS, [fd])["counts"]
        for name, count in counts.items():
            self._pattern_counts[name] = self._pattern_counts.get(name, 0) + int(count)

    def scan(self, label: str, targets: list[str]) -> dict[str, Any]:
        """Look for every pattern so far in the named targets; logged as `zeroize.scan`."""
        seen = self.child.ask({"cmd": "scan", "label": label, "targets": targets}, "scan", SCAN_SECONDS)
        body = {key: value for key, value in seen.items() if key != "msg"}
        self.scans.append(body)
        self._context.log.add(ZEROIZE_SCAN, body)
        return body

    def drop(self, name: str) -> None:
        """Forget a target that has ended, so that the scan keeps no memory alive."""
        self.child.ask({"cmd": "drop", "name": name}, "dropped", SCAN_SECONDS)

    def ended(self, child: Child) -> None:
        """Remember a process that must be gone, by pid and start time."""
        self._ended.append((child.role, child.pid, child.start))

    def finish(self) -> dict[str, Any]:
        """End the scanner and weigh everything; returns the facts and the verdict for the receipt."""
        if self.child.process.poll() is None:
            self.scanner_end = self.child.ask({"cmd": "end"}, "ended", END_SECONDS)
            status = self.child.finish()
            self.ended(self.child)
            if status != 0:
                self.failures.append("scanner_status")
        facts = self._facts()
        reasons = sorted({*self.failures, *_judge(self._pattern_counts, self.scans), *_judge_rest(facts)})
        return {**facts, "state": "unverified" if reasons else "zeroized", "reasons": reasons}

    def _facts(self) -> dict[str, Any]:
        left = [role for role, pid, start in self._ended if not gone(pid, start)]
        after = compute_processes()
        return {
            "method": METHOD,
            "patterns": dict(sorted(self._pattern_counts.items())),
            "scans": self.scans,
            "scannerEnd": self.scanner_end,
            "processes": [{"role": role, "pid": pid, "start": start} for role, pid, start in self._ended],
            "processesLeft": left,
            "scratchLeft": len(procfs.leftovers(self._context.scratch)),
            "deletedOpenFiles": deleted_files_held(),
            "gpuProcessesBefore": self._gpu_before,
            "gpuProcessesAfter": after,
        }


def deleted_files_held() -> int:
    """How many deleted disk files this process holds open; memfds are looked at by the scan."""
    probe = memfd.create("probe", 0)
    try:
        memory_device = os.fstat(probe).st_dev
    finally:
        os.close(probe)
    held = 0
    for fd in range(os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 65536 else 65536):
        try:
            seen = os.fstat(fd)
        except OSError:
            continue
        if stat.S_ISREG(seen.st_mode) and seen.st_nlink == 0 and seen.st_dev != memory_device:
            held += 1
    return held


def _judge(looked_for: dict[str, int], scans: list[dict[str, Any]]) -> list[str]:
    """Reasons against a proof that the scans give."""
    reasons: list[str] = []
    found: set[str] = set()
    for scan in scans:
        after = str(scan["label"]).endswith("after")
        for name, report in scan["targets"].items():
            if report["unread_other"] or report["state"] != "read":
                reasons.append(f"unread_memory:{name}")
            hits = {kind for kind, count in report["hits"].items() if count}
            if after:
                reasons.extend(f"left:{kind}" for kind in hits)
            else:
                found |= hits
    reasons.extend(f"no_positive_control:{kind}" for kind in looked_for if kind not in found)
    required = {patterns.CONTENT_KEY, patterns.RELEASE_KEY, patterns.CANARY_ROW, patterns.ADAPTER}
    reasons.extend(f"not_looked_for:{kind}" for kind in required - set(looked_for))
    if not any(str(scan["label"]) == "wipe after" for scan in scans):
        reasons.append("no_final_scan")
    return reasons


def _judge_rest(facts: dict[str, Any]) -> list[str]:
    reasons = [f"process_left:{role}" for role in facts["processesLeft"]]
    if facts["scratchLeft"]:
        reasons.append("scratch_not_empty")
    if facts["deletedOpenFiles"]:
        reasons.append("deleted_file_open")
    if facts["gpuProcessesAfter"] is not None and facts["gpuProcessesAfter"] > (facts["gpuProcessesBefore"] or 0):
        reasons.append("gpu_in_use")
    return reasons
