"""The supervisor: survives disconnects of the runner, runs the segments in order, and writes the allocation's log."""

from __future__ import annotations

import argparse
import base64
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.errors import GlasshouseError, RunError
from engine.events import Envelope, LaunchAccepted, PodClosed
from engine.plan import SegmentKind, StopReason
from engine.sealing.manifest import is_digest
from engine.wire import sha256_hex, utc_now
from engine.worker import identity, raw
from engine.worker.children import Bundle
from engine.worker.context import Cancelled, Context
from engine.worker.event_log import EventLog
from engine.worker.isolation import procfs
from engine.worker.isolation.hardening import CONTROLS, Options, harden
from engine.worker.job import read_job

KEPT: Final = frozenset({"no_core", "no_dump", "no_new_privs", "yama"})


def _run_segment(context: Context, kind: SegmentKind) -> None:
    if kind == "raw":
        raw.run(context)
    else:
        from engine.worker import protected

        protected.run(context)


class Supervisor:
    """One run on one allocation."""

    def __init__(self, folder: Path, sites: Sequence[str]) -> None:
        os.umask(0o077)
        job, job_digest = read_job(folder)
        for name in ("inbox", "outbox", "scratch"):
            (folder / name).mkdir(mode=0o700, exist_ok=True)
        bundle = Bundle(sites)
        memory = procfs.self_memory()
        # It holds writable maps of the plaintext, so no other process of this user may read its memory. The
        # controls that would keep it from starting children are skipped.
        enforcement = harden(Options(skip=frozenset(CONTROLS) - KEPT))
        attester = Ed25519PrivateKey.generate()
        self.context = Context(
            folder,
            job,
            bundle,
            EventLog(folder, job.run_id),
            attester,
            identity.observe(folder),
            memory,
            {name: seen.as_dict() for name, seen in enforcement.items() if name in KEPT},
        )
        self.context.log.add(
            LaunchAccepted(
                attester_key=base64.b64encode(attester.public_key().public_bytes_raw()).decode(),
                bundle_digest=sha256_hex(bundle.content()),
                job_digest=job_digest,
                pid=os.getpid(),
                identity=self.context.identity,
                cpu=identity.cpu_name(),
                gpu=identity.gpu(),
            )
        )

    def run(self) -> int:
        """Run every segment, then wait until the runner has collected the results; returns the exit status."""
        kinds = self.context.job.kinds()
        failed: SegmentKind | None = None
        for kind in kinds:
            if failed is None:
                failed = None if self._segment(kind) else kind
            else:
                self.context.log.failed(kind, "not_started", f"The {failed} segment did not finish.")
        try:
            end = self.context.inbox.wait("end.json", self.context.job.limits.end, give_up=lambda: None)
        except RunError as error:
            self.context.log.note(error.message, code=error.code)
            end = {}
        self._close_log(end.get("runnerHead"), failed)
        shutil.rmtree(self.context.folder / "raw", ignore_errors=True)
        return 0 if failed is None else 1

    def _close_log(self, last_head: object, failed: SegmentKind | None) -> None:
        """End the log with the attester's signature over all of it, linked to the runner's last head."""
        from engine.attestation.receipts import Closing, closing_receipt

        runner_head = last_head if isinstance(last_head, str) and is_digest(last_head) else None
        closing = Closing(
            run_id=self.context.job.run_id, pod_head=self.context.log.head, runner_head=runner_head, closed=utc_now()
        )
        receipt = closing_receipt(closing, self.context.attester)
        self.context.log.add(
            PodClosed(runner_head=runner_head, failed=failed, receipt=msgspec.convert(receipt, Envelope))
        )

    def _segment(self, kind: SegmentKind) -> bool:
        log = self.context.log
        try:
            self.context.give_up_if_cancelled()
            _run_segment(self.context, kind)
        except Cancelled as error:
            log.failed(kind, error.code, error.message, stop_reason="cancelled")
        except GlasshouseError as error:
            stop: StopReason = "lease_expired" if error.code == "lease_expired" else "error"
            log.failed(kind, error.code, error.message, stop_reason=stop)
        except OSError as error:
            name = error.strerror or "an operating system error"
            log.failed(kind, "os_error", f"The operating system reported an error: {name}.", stop_reason="error")
        except Exception as error:
            # The run must end with a closed log; stderr, and so the traceback, goes to supervisor.log.
            traceback.print_exc()
            text = f"The supervisor met an internal error ({type(error).__name__}); supervisor.log has the traceback."
            log.failed(kind, "internal_error", text, stop_reason="error")
        else:
            return True
        return False


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """Raise `SystemExit`, so that the segment's own clean-up runs; a second signal must not interrupt it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main(argv: Sequence[str]) -> int:
    """`supervisor --dir DIR --site PATH...`"""
    parser = argparse.ArgumentParser("supervisor")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--site", action="append", default=[])
    options = parser.parse_args(argv)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    supervisor = Supervisor(options.dir, options.site)
    return supervisor.run()
