"""The raw segment: the same work with the payload in the clear, for comparison."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from engine.errors import RunError
from engine.events import AdapterSaved
from engine.plan import SegmentKind
from engine.worker import hub_weights, identity
from engine.worker.context import Context
from engine.worker.segment import TrainerProcess

KIND: Final[SegmentKind] = "raw"


def run(context: Context) -> None:
    """Run the raw segment to its end; raises `RunError` when it cannot finish."""
    log = context.log
    log.state(KIND, "launching", identity=identity.observe(context.folder))
    files = {
        **open_payload(context.folder / "raw", context.job.payload_files),
        **hub_weights.fetch(context.job, context.folder),
    }
    folder = context.outbox / "raw"
    folder.mkdir(mode=0o700)
    target = os.open(folder / "adapter.safetensors", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    trainer = TrainerProcess(context, KIND, files, target)
    try:
        trainer.launch({})
        trainer.child.expect("ready", context.job.limits.launch, meanwhile=context.give_up_if_cancelled)
        finished = trainer.load_and_train()
        written = trainer.write_adapter({"runId": context.job.run_id, "segment": KIND})
        log.add(
            AdapterSaved(
                segment=KIND,
                size=written["size"],
                sha256=written["sha256"],
                tensor_digest=finished.tensor_digest,
            )
        )
        trainer.exit()
    finally:
        trainer.stop()
        for fd in (*files.values(), target):
            os.close(fd)
    log.state(KIND, "done")


def open_payload(folder: Path, digests: dict[str, str]) -> dict[str, int]:
    """Descriptors of the clear payload's files; raises `RunError` (`payload_changed`) if a digest differs."""
    descriptors: dict[str, int] = {}
    for name, expected in digests.items():
        fd = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        descriptors[name] = fd
        with os.fdopen(os.dup(fd), "rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        os.lseek(fd, 0, os.SEEK_SET)
        if actual != expected:
            raise RunError(f"The staged file {name} differs from the one that was sent.", code="payload_changed")
    return descriptors
