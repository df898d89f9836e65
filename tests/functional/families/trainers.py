"""The shipped trainer, raw and protected, and transformers with peft alone, over one payload: a program of its own.

Each trains in a fork of this process, which has imported the libraries and computed nothing. The protected one is
locked down for real. Prints one JSON document.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

SECONDS: Final = 120.0


def forked(work: Callable[[], None]) -> int:
    """Run `work` in a fork, which exits afterwards; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


class Driver:
    """The supervisor's side of one trainer."""

    def __init__(self, kind: str, plan: dict[str, Any], model_type: str, files: dict[str, Path], scratch: Path) -> None:
        from engine.worker.channel import Channel
        from engine.worker.isolation import memfd, patterns
        from engine.worker.trainer import TrainerRole

        descriptors = {name: memfd.from_bytes(name, path.read_bytes()) for name, path in files.items()}
        self.adapter = memfd.create("adapter", 0)
        ours, theirs = socket.socketpair()
        setup = {
            "kind": kind, "plan": plan, "modelType": model_type, "noiseSeed": 7, "files": descriptors,
            "adapterFd": self.adapter, "handover": theirs.fileno(), "scratch": str(scratch),
            "patternsFd": memfd.create("patterns", patterns.STORE_BYTES), "secretWeights": True,
        }  # fmt: skip
        from_trainer, to_us = os.pipe()
        from_us, to_trainer = os.pipe()
        self.pid = forked(lambda: TrainerRole(setup, Channel(from_us, to_us)).run())
        os.close(to_us)
        os.close(from_us)
        theirs.close()
        self._handover = ours
        self.kind = kind
        self.channel = Channel(from_trainer, to_trainer)
        self.losses: list[float] = []

    def until(self, kind: str) -> dict[str, Any]:
        """The next message of a kind; the losses of those before are kept."""
        while True:
            message, _ = self.channel.recv(SECONDS)
            if message.get("msg") == "error":
                raise RuntimeError(str(message))
            if message.get("msg") == "progress":
                raw = base64.b64decode(message["losses"])
                self.losses += struct.unpack(f"<{len(raw) // 4}f", raw)
            if message.get("msg") == kind:
                return message

    def run(self) -> dict[str, Any]:
        """Let it train from ready to exit."""
        enforced = self.until("hardened")["enforcement"] if self.kind == "protected" else {}
        self.until("ready")
        self.channel.send({"cmd": "load"})
        self.until("warmed")
        self.channel.send({"cmd": "train"})
        finished = self.until("finished")
        self.channel.send({"cmd": "write_adapter", "metadata": "test"})
        self.until("adapter")
        patterns: dict[str, int] = {}
        if self.kind == "protected":
            self.channel.send({"cmd": "patterns"})
            patterns = self.until("patterns")["counts"]
            self.channel.send({"cmd": "wipe"})
            self.until("wiped")
        self.channel.send({"cmd": "exit"})
        _, status = os.waitpid(self.pid, 0)
        return {
            "losses": self.losses,
            "digest": finished["tensorDigest"],
            "status": status,
            "patterns": patterns,
            "enforced": sorted(name for name, seen in enforced.items() if seen["value"] == "enforced"),
            "names": names_in(self.adapter),
        }


def names_in(fd: int) -> list[str]:
    """The tensors of a safetensors file."""
    (length,) = struct.unpack("<Q", os.pread(fd, 8, 0))
    return sorted(set(json.loads(os.pread(fd, length, 8))) - {"__metadata__"})


def plain(plan: dict[str, Any], model: Path, files: dict[str, Path]) -> list[float]:
    """The same training by transformers and peft alone, from the folder: one loss for each update."""
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    training = plan["training"]
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, experts_implementation="eager")
    described = json.loads(files["adapter_config.json"].read_bytes())
    adapted = get_peft_model(
        base,
        LoraConfig(r=described["r"], lora_alpha=described["lora_alpha"], target_modules=described["target_modules"]),
    )
    start = load_file(files["adapter.safetensors"])
    trained = {n.replace(".default.", "."): p for n, p in adapted.named_parameters() if p.requires_grad}
    assert set(trained) == set(start)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(start[name])
    adapted.train()
    ordered = [trained[name] for name in sorted(trained)]
    optimizer = torch.optim.AdamW(ordered, lr=training["learningRate"], weight_decay=0.0, fused=True)
    tokens = load_file(files["tokens.safetensors"])
    updates = plan["target"]["steps"] + training["settlingSteps"]
    losses = []
    for update in range(updates):
        rows = tokens["order"][update * training["batch"] : (update + 1) * training["batch"]]
        ids, labels = tokens["input_ids"][rows].long(), tokens["labels"][rows].long()
        loss = adapted(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ordered, training["gradClip"])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.item()))
    return losses[training["settlingSteps"] :]


def main(work: Path, model: Path) -> None:
    """Train what is in `work`: plan.json and the payload's files. The model's folder is for the plain training."""
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    plan = json.loads((work / "plan.json").read_bytes())
    files = {path.name: path for path in sorted((work / "payload").iterdir())}
    model_type = json.loads(files["config.json"].read_bytes())["model_type"]
    found: dict[str, Any] = {}
    for kind in ("raw", "protected"):
        scratch = work / f"scratch-{kind}"
        scratch.mkdir()
        found[kind] = Driver(kind, plan, model_type, files, scratch).run()
    alone = work / "plain.json"
    os.waitpid(forked(lambda: _write(alone, plain(plan, model, files))), 0)
    found["plain"] = json.loads(alone.read_bytes())
    found["threads"] = torch.get_num_threads()
    sys.stdout.write(json.dumps(found))


def _write(path: Path, losses: list[float]) -> None:
    path.write_text(json.dumps(losses))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
