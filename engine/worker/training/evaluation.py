"""The loss on held-out samples and the answer to the plan's question, both outside the measured window."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from engine.plan import Plan
from engine.worker.payload_names import HELD_OUT_IDS, HELD_OUT_LABELS, IGNORED, QUESTION, STOPS, TOKENIZER
from engine.worker.training.model import Workload

MAX_ANSWER: Final = 256
"""The most characters of an answer that are reported."""


class Evaluated(msgspec.Struct, frozen=True, kw_only=True):
    """`loss` is the mean over the `tokens` that are learned in the held-out samples, None where it is not finite."""

    loss: float | None
    samples: int
    tokens: int
    answer: str | None


class Decoder:
    """Ids as text, by the payload's tokenizer. Without a tokenizer there is no question to answer."""

    def __init__(self, files: Mapping[str, int]) -> None:
        self._tokenizer: Any = None
        if TOKENIZER in files:
            from tokenizers import Tokenizer

            size = os.fstat(files[TOKENIZER]).st_size
            self._tokenizer = Tokenizer.from_buffer(os.pread(files[TOKENIZER], size, 0))

    def text(self, ids: list[int]) -> str:
        """The ids' text without control tokens."""
        return "" if self._tokenizer is None else str(self._tokenizer.decode(ids, skip_special_tokens=True))


def evaluate(workload: Workload, plan: Plan, decoder: Decoder) -> Evaluated:
    """Evaluate the model as it is now. Changes neither weights nor random state."""
    import torch

    workload.model.eval()
    try:
        with torch.no_grad():
            loss, tokens = _held_out(workload, plan.training.batch)
            answer = _answer(workload, plan, decoder)
    finally:
        workload.model.train()
    mean = loss / tokens if tokens else math.nan
    return Evaluated(
        loss=mean if math.isfinite(mean) else None,
        samples=len(workload.tokens[HELD_OUT_IDS]),
        tokens=tokens,
        answer=answer,
    )


def _held_out(workload: Workload, batch: int) -> tuple[float, int]:
    """The sum of the losses of all learned tokens, and their number."""
    ids, labels = workload.tokens[HELD_OUT_IDS], workload.tokens[HELD_OUT_LABELS]
    total, tokens = 0.0, 0
    for first in range(0, len(ids), batch):
        part, wanted = _on_device(workload, ids[first : first + batch]), labels[first : first + batch]
        learned = int((wanted[:, 1:] != IGNORED).sum())
        loss = workload.model(input_ids=part, labels=_on_device(workload, wanted), use_cache=False).loss
        total += float(loss) * learned
        tokens += learned
    return total, tokens


def _answer(workload: Workload, plan: Plan, decoder: Decoder) -> str | None:
    """The most likely continuation of the question, token by token, up to a token that ends an answer."""
    import torch

    if plan.evaluation is None or plan.evaluation.question is None:
        return None
    stops = {int(stop) for stop in workload.tokens[STOPS]}
    ids = _on_device(workload, workload.tokens[QUESTION].reshape(1, -1))
    answer: list[int] = []
    while len(answer) < plan.evaluation.answer_tokens:
        logits = workload.model(input_ids=ids, use_cache=False).logits
        token = int(logits[0, -1].argmax())
        if token in stops:
            break
        answer.append(token)
        ids = torch.cat([ids, torch.tensor([[token]], device=ids.device, dtype=ids.dtype)], dim=1)
    return reported(decoder.text(answer))


def reported(answer: str) -> str:
    """An answer on one line, without what is not printable: the log accepts no other."""
    printable = "".join(char if char.isprintable() else " " for char in answer)
    return " ".join(printable.split())[:MAX_ANSWER]


def _on_device(workload: Workload, tensor: Any) -> Any:
    import torch

    return tensor.to(device=workload.device, dtype=torch.int64)


def rehearse(workload: Workload, plan: Plan) -> None:
    """Evaluate the rehearsal's model, so that nothing is imported later. Its first samples are taken as held out."""
    import torch
    from tokenizers import Tokenizer, models

    if plan.evaluation is None:
        return
    tokens = workload.tokens
    tokens |= {HELD_OUT_IDS: tokens["input_ids"], HELD_OUT_LABELS: tokens["labels"]}
    tokens |= {QUESTION: tokens["input_ids"][:1], STOPS: torch.zeros(1, dtype=torch.int32)}
    fd = os.memfd_create("rehearsal")
    try:
        os.pwrite(fd, Tokenizer(models.BPE()).to_str().encode(), 0)
        evaluate(workload, plan, Decoder({TOKENIZER: fd}))
    finally:
        os.close(fd)
