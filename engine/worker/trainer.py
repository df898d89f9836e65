"""The trainer: one process per segment. It communicates with the supervisor over pipes and never holds a key.

A protected trainer hands its own memory descriptors over before it is hardened, and sees plaintext only afterwards.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import math
import os
import re
import struct
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from engine.errors import GlasshouseError, RunError
from engine.plan import STOPPED, Plan, StopReason, load_plan
from engine.wire import parse
from engine.worker.channel import TIMEOUT, Channel
from engine.worker.training import adapter, loop, model, numerics
from engine.worker.training.model import Workload

MAX_TEXT: Final = 500
_MODULE: Final = re.compile(r"[A-Za-z_][\w.]{0,79}", re.ASCII)
_HOST_MEMORY: Final = "DefaultCPUAllocator: "
GPU_ERRORS: Final = {
    "CUDA error: out of memory": "gpu_out_of_memory",
    "CUBLAS_STATUS_ALLOC_FAILED": "gpu_out_of_memory",
    "no kernel image is available for execution on the device": "gpu_failed",
    "device-side assert triggered": "gpu_failed",
    "an illegal memory access was encountered": "gpu_failed",
    "misaligned address": "gpu_failed",
    "unspecified launch failure": "gpu_failed",
    "the launch timed out and was terminated": "gpu_failed",
    "uncorrectable ECC error encountered": "gpu_failed",
    "all CUDA-capable devices are busy or unavailable": "gpu_failed",
    "no CUDA-capable device is detected": "gpu_failed",
    "CUDA driver version is insufficient for CUDA runtime version": "gpu_failed",
    "driver on your system is too old": "gpu_failed",
    "No CUDA GPUs are available": "gpu_failed",
    "CUDA unknown error": "gpu_failed",
    "CUDA driver initialization failed": "gpu_failed",
    "CUBLAS_STATUS_NOT_INITIALIZED": "gpu_failed",
    "CUBLAS_STATUS_EXECUTION_FAILED": "gpu_failed",
    "CUDNN_STATUS_NOT_INITIALIZED": "gpu_failed",
    "CUDNN_STATUS_EXECUTION_FAILED": "gpu_failed",
}
"""Words of torch and CUDA that say nothing about the payload, with the code of each."""


class _Reporter:
    """Reports the loop's progress to the supervisor and receives requests to stop."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._stop: StopReason | None = None

    def progress(self, first: int, losses: list[float], nanos: list[int]) -> None:
        self._channel.send(
            {
                "msg": "progress",
                "from": first,
                "to": first + len(losses),
                "losses": base64.b64encode(struct.pack(f"<{len(losses)}f", *losses)).decode(),
                "nanos": base64.b64encode(struct.pack(f"<{len(nanos)}Q", *nanos)).decode(),
            }
        )

    def checkpoint(self, step: int, tensor_digest: str, step_chain: str | None) -> None:
        self._channel.send({"msg": "checkpoint", "step": step, "tensorDigest": tensor_digest, "stepChain": step_chain})

    def should_stop(self) -> StopReason | None:
        if self._stop is None:
            try:
                command, _ = self._channel.recv(0)
            except RunError as error:
                if error.code != TIMEOUT:
                    raise
                return None
            self.take_stop(command)
        return self._stop

    def take_stop(self, command: dict[str, Any]) -> None:
        """Keep the reason of a request to stop."""
        self._stop = "lease_expired" if command.get("reason") == "lease_expired" else "cancelled"


class TrainerRole:
    """One trainer's life, from imports to exit."""

    def __init__(self, setup: dict[str, Any], channel: Channel) -> None:
        self.plan: Plan = load_plan(setup["plan"])
        self.kind: str = setup["kind"]
        self.files: dict[str, int] = setup["files"]
        self.setup = setup
        self.channel = channel

    def run(self) -> None:
        """Follow the supervisor's commands to the end."""
        numerics.pin(self.setup["noiseSeed"])
        model.import_architecture(self.setup["modelType"])
        if self.kind == "protected":
            self._lock_down()
        self.channel.send({"msg": "ready"})
        self._expect("load")
        numerics.seed(self.setup["noiseSeed"])  # the rehearsal of a protected segment has drawn from the generators
        workload = model.load(self.plan, self.files)
        self.channel.send({"msg": "loaded", "numerics": numerics.recorded(workload.device, workload.dtype)})
        trainer = loop.Trainer(workload, self.plan)
        try:
            self._work(workload, trainer)
        except BaseException:
            if self.kind == "protected":
                from engine.worker.training import secret_patterns

                with contextlib.suppress(Exception):  # the original error is the one to report
                    secret_patterns.wipe(workload, trainer)
            raise
        self._expect("exit")

    def _work(self, workload: Workload, trainer: loop.Trainer) -> None:
        reporter = _Reporter(self.channel)
        self._evaluate(workload, "before")
        warmed = loop.settle(trainer, reporter)
        self.channel.send({"msg": "warmed", "gpu": _gpu(workload.device), "settlingSteps": warmed})
        self._await_train(reporter)
        outcome = loop.measure(trainer, reporter, with_evidence=self.kind == "protected")
        # Before the adapter is digested, which may take seconds: the runner times the window by this message.
        self.channel.send({"msg": "measured", "steps": outcome.steps, "elapsedNs": outcome.elapsed_ns})
        tensor_digest = adapter.digest(workload.trainable)
        if outcome.stop_reason not in STOPPED:
            self._evaluate(workload, "after")
        if outcome.steps and outcome.steps % self.plan.training.checkpoint_every == 0:
            reporter.checkpoint(outcome.steps, tensor_digest, outcome.step_chain)
        self.channel.send(
            {
                "msg": "finished",
                "steps": outcome.steps,
                "elapsedNs": outcome.elapsed_ns,
                "stopReason": outcome.stop_reason,
                "finalLoss": _finite(outcome.final_loss),
                "stepChain": outcome.step_chain,
                "tensorDigest": tensor_digest,
                "adapterFinite": adapter.is_finite(workload.trainable),
            }
        )
        self._write_adapter(workload)
        if self.kind == "protected":
            self._wipe(workload, trainer, outcome.last_row)

    def _evaluate(self, workload: Workload, moment: str) -> None:
        """Report the held-out loss, outside the measured window."""
        if self.plan.evaluation is None:
            return
        from engine.worker.training import evaluation

        found = evaluation.evaluate(workload, self.plan, evaluation.Decoder(self.files))
        self.channel.send({"msg": "evaluated", "moment": moment, **msgspec.to_builtins(found)})

    def _await_train(self, reporter: _Reporter) -> None:
        """Wait until `train.started` is in the log: the window must lie between that line and `train.measured`."""
        while (received := self.channel.recv()[0]).get("cmd") == "stop":
            reporter.take_stop(received)
        if received.get("cmd") != "train":
            raise _unexpected(received, "train")

    def _expect(self, command: str) -> dict[str, Any]:
        """Wait for one command; any other ends the process. Stops that arrive before `write_adapter` are ignored."""
        received, _ = self.channel.recv()
        while command == "write_adapter" and received.get("cmd") == "stop":
            received, _ = self.channel.recv()
        if received.get("cmd") != command:
            raise _unexpected(received, command)
        return received

    def _lock_down(self) -> None:
        from engine.worker.isolation.hardening import Options, device_files, harden
        from engine.worker.isolation.procfs import self_memory
        from engine.worker.training.rehearsal import rehearse

        rehearse(self.plan, self.setup["modelType"])
        handover = Channel(self.setup["handover"])
        mem, smaps = self_memory()
        handover.send({"msg": "memory"}, fds=[mem, smaps])
        handover.close()
        os.close(mem)
        os.close(smaps)
        observed = harden(Options(scratch=Path(self.setup["scratch"]), device_paths=device_files()))
        self.channel.send({"msg": "hardened", "enforcement": {name: seen.as_dict() for name, seen in observed.items()}})

    def _write_adapter(self, workload: Workload) -> None:
        command = self._expect("write_adapter")
        fd = int(self.setup["adapterFd"])
        size = adapter.write(workload.trainable, command["metadata"], fd)
        os.lseek(fd, 0, os.SEEK_SET)
        with os.fdopen(os.dup(fd), "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.channel.send({"msg": "adapter", "size": size, "sha256": digest})

    def _wipe(self, workload: Workload, trainer: loop.Trainer, last_row: int) -> None:
        from engine.worker.training import secret_patterns

        self._expect("patterns")
        counts = secret_patterns.write_patterns(
            workload,
            trainer.optimizer,
            last_row,
            int(self.setup["patternsFd"]),
            secret_weights=bool(self.setup["secretWeights"]),
        )
        self.channel.send({"msg": "patterns", "counts": counts})
        self._expect("wipe")
        detail = secret_patterns.wipe(workload, trainer)
        self.channel.send({"msg": "wiped", "detail": detail})


def _unexpected(received: dict[str, Any], command: str) -> GlasshouseError:
    return GlasshouseError(
        f"The supervisor sent {received.get('cmd')!r} where {command!r} was expected.", code="worker_stopped"
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _gpu(device: str) -> dict[str, Any] | None:
    if device != "cuda":
        return None
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {"name": properties.name, "uuid": f"GPU-{properties.uuid}", "memory": properties.total_memory}


def main(argv: Sequence[str]) -> int:
    """`trainer --setup FD --read FD --write FD`: descriptors inherited from the supervisor."""
    parser = argparse.ArgumentParser("trainer")
    for name in ("--setup", "--read", "--write"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--site", action="append")
    options = parser.parse_args(argv)
    with os.fdopen(options.setup, "rb") as file:
        setup = parse(file.read())
    channel = Channel(options.read, options.write)
    try:
        TrainerRole(setup, channel).run()
    except Exception as error:
        if setup["kind"] == "raw":
            traceback.print_exc()
        with contextlib.suppress(RunError):  # the supervisor may be gone
            channel.send({"msg": "error", **failure(error, setup["kind"])})
        return 1
    return 0


def failure(error: Exception, kind: str) -> dict[str, str]:
    """The error for the supervisor. A protected trainer's error text may hold plaintext, so none of it is sent: only
    the error's type, the name of a module, or words of the GPU's driver that are known beforehand.
    """
    if isinstance(error, GlasshouseError):
        return error.as_dict()
    code, sentence = diagnosed(error)
    name = type(error).__name__
    if kind == "raw":
        return RunError(f"{sentence} ({name}: {str(error)[:MAX_TEXT]})", code=code).as_dict()
    return RunError(sentence if code != "trainer_failed" else f"{sentence} ({name})", code=code).as_dict()


def diagnosed(error: Exception) -> tuple[str, str]:
    """A code and a sentence for an error of Python or torch, which hold nothing of its text but what is named here."""
    text = str(error)
    if isinstance(error, MemoryError) or _HOST_MEMORY in text:
        return "out_of_memory", "The trainer ran out of memory."
    if type(error).__name__ == "OutOfMemoryError":  # torch's; the module itself may not be loaded
        return "gpu_out_of_memory", "The GPU ran out of memory."
    if isinstance(error, ImportError) and _MODULE.fullmatch(error.name or ""):
        absent = isinstance(error, ModuleNotFoundError)
        return "module_missing", f"The Python module {error.name} {'is missing' if absent else 'cannot be imported'}."
    known = next((words for words in GPU_ERRORS if words in text), None)
    if known is None:
        return "trainer_failed", "The training failed."
    return GPU_ERRORS[known], f"The GPU reported: {known}."
