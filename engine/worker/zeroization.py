"""Proving the wipe: a scanner process searches for the secrets before and after it; the counts go into the receipt."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final, Literal

import msgspec

from engine.attestation.wipe_proof import SUPERVISOR
from engine.attestation.zeroization import METHODS, ProcessEnd, Scan, Zeroization
from engine.errors import RunError
from engine.events import ZeroizeScan
from engine.system.clock import utc
from engine.wire import utc_text
from engine.worker.children import Child, spawn_on_socket
from engine.worker.context import Context
from engine.worker.gpu_memory import DeviceMemory, device_after
from engine.worker.isolation import procfs
from engine.worker.isolation.procfs import gone

SCAN_SECONDS: Final = 600.0
READY_SECONDS: Final = 60.0
END_SECONDS: Final = 30.0
# Beside `zeroization_hits`: a hit on the stack (a saved register) has another cause than memory freed without a wipe.
STACK_HITS: Final = "zeroization_stack_hits"
Moment = Literal["before", "after"]


def stack_faults(proof: Zeroization) -> tuple[str, ...]:
    """The reason code for secrets that were still on a main thread's stack; empty if there were none."""
    return (STACK_HITS,) if any(scan.where.get("stack") for scan in proof.after.values()) else ()


class Prover:
    """The scanner of one protected segment, its reports, and the processes that must be gone."""

    def __init__(self, context: Context, baseline: DeviceMemory | None) -> None:
        self._context = context
        self._baseline = baseline
        self._watched: set[tuple[int, int]] = set()
        self._ended: list[tuple[str, int, int]] = []
        self._scans: dict[Moment, dict[str, Scan]] = {"before": {}, "after": {}}
        self._began = utc()
        self._clock = time.monotonic()
        self.failures: list[str] = []
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
        self._watched |= {procfs.file_of(fd) for fd in fds}

    def take_patterns(self, fd: int) -> None:
        """Hand over the fingerprints of what to search for; the scanner zeroes the memfd."""
        self.child.ask({"cmd": "patterns"}, "patterns", SCAN_SECONDS, [fd])

    def scan(self, moment: Moment, targets: list[str]) -> None:
        """Search the named targets before their wipe for the patterns handed over last, after it for every pattern so
        far; logs `zeroize.scan`.
        """
        if SUPERVISOR in targets:
            self._renew_supervisor()
        command = {
            "cmd": "scan",
            "label": moment,
            "targets": targets,
            "only": "latest" if moment == "before" else "all",
        }
        answer = self.child.ask(command, "scan", SCAN_SECONDS)
        scans = msgspec.convert(answer["targets"], dict[str, Scan], strict=True)
        self._scans[moment] |= scans
        totals: dict[str, int] = {}
        for report in scans.values():
            for name, count in report.hits.items():
                totals[name] = totals.get(name, 0) + count
        self._context.log.add(
            ZeroizeScan(
                moment=moment,
                targets=targets,
                hits=totals,
                bytes_read=sum(report.bytes_read for report in scans.values()),
                milliseconds=answer["milliseconds"],
            )
        )

    def _renew_supervisor(self) -> None:
        """Hand over the memfds that this process holds now: a scan of its memory misses those that are not mapped."""
        self.drop(SUPERVISOR)
        self.watch(SUPERVISOR, [*(os.dup(fd) for fd in self._context.memory), *procfs.own_memfds(self._watched)])

    def drop(self, name: str) -> None:
        """Forget a target that has exited, so that the scanner's descriptors keep no memory alive."""
        self.child.ask({"cmd": "drop", "name": name}, "dropped", SCAN_SECONDS)

    def ended(self, child: Child) -> None:
        """Record a process that must be gone at the end, by pid and start time."""
        if (ended := (child.role, child.pid, child.start)) not in self._ended:
            self._ended.append(ended)

    def finish(self, *, nonce_digest: str, adapter_digest: str | None, methods: Sequence[str] = METHODS) -> Zeroization:
        """End the scanner and assemble its results. What they prove is for the reader to judge."""
        context = self._context
        try:
            self.child.ask({"cmd": "end"}, "ended", END_SECONDS)
        except RunError as error:
            self.failures.append(error.code)
        if self.child.finish() != 0:
            self.failures.append("scanner_status")
        self.ended(self.child)
        held, unseen = procfs.deleted_files_held(context.folder.resolve())
        return Zeroization(
            run_id=context.job.run_id,
            segment="protected",
            manifest_sha256=context.job.manifest_digest or "",
            nonce_sha256=nonce_digest,
            adapter_sha256=adapter_digest,
            methods=list(methods),
            before=self._scans["before"],
            after=self._scans["after"],
            processes=[
                ProcessEnd(role=role, pid=pid, start_time=start, gone=gone(pid, start))
                for role, pid, start in self._ended
            ],
            scratch_empty=not procfs.leftovers(context.scratch),
            deleted_files_held=held,
            processes_unseen=unseen,
            device=device_after(self._baseline, known_gpu=context.identity.gpu_uuid is not None),
            pod_head=context.log.head,
            began=utc_text(self._began),
            # By the monotonic clock: a wall clock that is set back must not end the wipe before it began.
            ended=utc_text(self._began + timedelta(seconds=time.monotonic() - self._clock)),
        )
