"""The inputs of a plan, read and checked on the operator's machine before anything is rented."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np

from engine.errors import DataError
from engine.payload.builtin import builtin_file
from engine.payload.chat.encoder import ChatEncoder, EncoderSpec
from engine.payload.data.read import check_data
from engine.payload.folder import folder_digest
from engine.payload.local_files import NO_FILES, LocalFiles
from engine.payload.model import ModelDescription, describe_model
from engine.payload.prepare.arrays import padded, usable_rows
from engine.payload.prepare.describe import Described, Wanted, described
from engine.payload.prepare.for_model import encoder_spec, template_of
from engine.payload.prepare.lengths import auto_length
from engine.payload.prepare.pipeline import Prepared, Progress, prepared
from engine.payload.prepare.report import Report, check_loss
from engine.payload.prepare.tokens import Tokens
from engine.payload.seeds import expand
from engine.payload.targets import resolved_targets
from engine.payload.tokenizer_files import TokenizerFiles, tokenizer_files
from engine.plan import MAX_LENGTH, Plan

Fits = Callable[[Plan, ModelDescription], int | None]
"""The longest samples, in tokens, for which the run's devices have the memory; the plan has the length that the data
would need. None if it fits, or if it is not known.
"""


class Inputs(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """The checked inputs of a plan. `held_out` is data of its own, None if it is a part of `data` or there is none."""

    model: ModelDescription
    model_digest: str | None
    encoder: ChatEncoder
    tokenizer: TokenizerFiles
    data: Prepared
    held_out: Prepared | None
    described: Described
    targets: tuple[str, ...]

    @property
    def report(self) -> Report:
        """What becomes of the data."""
        return self.described.report

    def training_tokens(self) -> Tokens:
        """The samples to train on, padded. Raises `DataError` as `padded`."""
        return padded(self.data.samples, self.described.train, self.described.length, self.encoder.pad)

    def held_out_tokens(self) -> Tokens | None:
        """The samples for the held-out loss, padded; None without any. Raises `DataError` as `padded`."""
        source, rows = self.data.samples, self.described.held_out
        if self.held_out is not None:
            source, rows = self.held_out.samples, np.arange(len(self.held_out.samples.ends))
        return padded(source, rows, self.described.length, self.encoder.pad) if len(rows) else None


def describe_inputs(
    plan: Plan,
    files: LocalFiles = NO_FILES,
    *,
    cache: Path | None = None,
    fits: Fits = lambda plan, model: None,
    allow_loss: bool = True,
    judged: bool = True,
    progress: Progress | None = None,
) -> Inputs:
    """Read and check the data and the model of a plan.

    `cache` is a folder for token ids. `fits` limits an automatic length. Without `allow_loss`, data that loses more
    than half of its answers' tokens is refused; without `judged`, nothing is refused for what it loses. Raises
    `DataError`, and `MissingExtraError` for a hub model if huggingface_hub is not installed.
    """
    data_file = _data_file(plan, files)
    is_checked = plan.model.source == "hub"
    if is_checked:
        check_data(data_file)  # bad data is refused before a hub is asked
    model = describe_model(plan, files.model)
    targets = resolved_targets(model, plan.lora.targets)
    spec = encoder_spec(model, files.template)
    data = prepared(data_file, spec, cache=cache, progress=progress, is_checked=is_checked)
    evaluation = plan.evaluation
    encoder = ChatEncoder(spec)
    limit = min(model.limits.values(), default=MAX_LENGTH)
    wanted = Wanted(
        max_length=plan.training.max_length,
        limit_by_model=limit,
        limit_by_memory=_limit_by_memory(plan, model, auto_length(data.samples.lengths, limit, None).length, fits),
        held_out=None if evaluation is None else evaluation.percent,
        seed=expand(plan.seed).order,
    )
    found = described(data.samples, data.facts, encoder, wanted, template=template_of(encoder))
    if judged:
        check_loss(found.report, allow_loss=allow_loss)
        usable_rows(data.samples, found.train, found.length)
    held_out = None
    if evaluation is not None and evaluation.source != "split":
        # A report about the data counts the samples of another file beside its own.
        held_out = _held_out_data(plan, files, spec, cache)
        usable = usable_rows(held_out.samples, np.arange(len(held_out.samples.ends)), found.length)
        counted = msgspec.structs.replace(found.report, held_out=len(usable))
        found = msgspec.structs.replace(found, report=counted)
    return Inputs(
        model=model,
        model_digest=None if model.folder is None else folder_digest(model.folder),
        encoder=encoder,
        tokenizer=tokenizer_files(model, encoder.templates),
        data=data,
        held_out=held_out,
        described=found,
        targets=targets,
    )


def _held_out_data(plan: Plan, files: LocalFiles, spec: EncoderSpec, cache: Path | None) -> Prepared:
    """The held-out samples of a file; an error says that it is about that file."""
    try:
        return prepared(_held_out_file(plan, files), spec, cache=cache)
    except DataError as error:
        hint = error.hint.replace("--data", "--eval")
        raise DataError(f"In the held-out samples: {error.message}", hint, code=error.code) from error


def _limit_by_memory(plan: Plan, model: ModelDescription, length: int, fits: Fits) -> int | None:
    """What memory makes of an automatic length; None where it does not matter, or is not known."""
    if plan.training.max_length is not None:
        return None
    return fits(with_length(plan, length), model)


def with_length(plan: Plan, length: int) -> Plan:
    """The plan with this maximum length in tokens."""
    return msgspec.structs.replace(plan, training=msgspec.structs.replace(plan.training, max_length=length))


def with_digests(plan: Plan, inputs: Inputs) -> Plan:
    """The plan with everything that its inputs decide: the form over which the plan's own digest is computed."""
    counts, training, target = inputs.report.counts, plan.training, plan.target
    training = msgspec.structs.replace(training, max_length=inputs.described.length)
    if target.epochs is not None and target.steps is None:
        updates = math.ceil(Fraction(str(target.epochs)) * counts.used / training.samples_an_update)
        settling = min(training.settling_steps, updates // 2)
        training = msgspec.structs.replace(training, settling_steps=settling)
        target = msgspec.structs.replace(target, steps=max(1, updates - settling))
    evaluation = plan.evaluation
    if evaluation is not None and inputs.held_out is not None:
        evaluation = msgspec.structs.replace(evaluation, digest=inputs.held_out.facts.digest)
    data = msgspec.structs.replace(
        plan.data, digest=inputs.data.facts.digest, samples=inputs.report.samples, counts=counts
    )
    return msgspec.structs.replace(
        plan,
        data=data,
        evaluation=evaluation,
        lora=msgspec.structs.replace(plan.lora, targets=inputs.targets),
        model=msgspec.structs.replace(plan.model, digest=inputs.model_digest, vocab=inputs.model.shape.vocab),
        target=target,
        training=training,
    )


def plan_with_digests(plan: Plan, files: LocalFiles = NO_FILES) -> Plan:
    """`with_digests` of the inputs at these places; raises as `describe_inputs`."""
    return with_digests(plan, describe_inputs(plan, files))


def _data_file(plan: Plan, files: LocalFiles) -> Path:
    if plan.data.source == "builtin":
        return builtin_file(plan.data.name)
    return _given(files.data, "data", "--data")


def _held_out_file(plan: Plan, files: LocalFiles) -> Path:
    if plan.evaluation is not None and plan.evaluation.source == "builtin":
        return builtin_file(plan.evaluation.name or "")
    return _given(files.held_out, "held-out samples", "--eval")


def _given(path: Path | None, what: str, flag: str) -> Path:
    if path is None:
        raise DataError(
            f"The plan uses {what} of your own, but no file was given.",
            f"Give the file with {flag}.",
            code="data_missing",
        )
    return path
