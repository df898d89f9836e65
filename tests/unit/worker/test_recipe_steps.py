"""The loop's recipe against a plain one: schedules, accumulation, the held-out loss and the answer to a question."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from engine.payload.build import build_payload
from engine.payload.inputs import plan_with_digests
from engine.plan import Evaluation, Plan, Target, preset
from engine.system.resources import data_path
from tests.needs import LOCAL_EXTRA

torch = pytest.importorskip("torch", reason=LOCAL_EXTRA)
transformers = pytest.importorskip("transformers", reason=LOCAL_EXTRA)

pytestmark = pytest.mark.training

STEPS = 6


def planned(**training: Any) -> Plan:
    demo = preset("demo")
    settings = msgspec.structs.replace(demo.training, settling_steps=0, batch=2, **training)
    return plan_with_digests(
        msgspec.structs.replace(demo, training=settings, target=Target(steps=STEPS), evaluation=None)
    )


def loaded(plan: Plan) -> Any:
    """The workload of a plan, built by the worker's own code."""
    from engine.worker.training.model import load

    descriptors = {}
    for name, content in build_payload(plan).files.items():
        fd = os.memfd_create(name)
        os.write(fd, content.read_bytes() if isinstance(content, Path) else content)
        descriptors[name] = fd
    try:
        return load(plan, descriptors)
    finally:
        for fd in descriptors.values():
            os.close(fd)


def trained(plan: Plan) -> list[float]:
    from engine.worker.training.loop import Trainer

    trainer = Trainer(loaded(plan), plan)
    return [float(trainer.step()) for _ in range(STEPS)]


def rates(plan: Plan) -> list[float]:
    """The learning rate of each update, written down from the definitions."""
    training = plan.training
    rise = [min(1.0, update / training.lr_warmup) if training.lr_warmup else 1.0 for update in range(STEPS)]
    rest = [max(0, update - training.lr_warmup) / (STEPS - training.lr_warmup) for update in range(STEPS)]
    fall = {
        "constant": [1.0] * STEPS,
        "linear": [1 - part for part in rest],
        "cosine": [(1 + math.cos(math.pi * part)) / 2 for part in rest],
    }[training.schedule]
    return [training.learning_rate * up * down for up, down in zip(rise, fall, strict=True)]


def plainly(plan: Plan) -> list[float]:
    """The same training without the loop: one large batch, its mean over all learned tokens, a rate set by hand."""
    workload = loaded(plan)
    parameters = list(workload.trainable.values())
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
    size, losses = plan.training.samples_an_update, []
    for update, rate in enumerate(rates(plan)):
        optimizer.param_groups[0]["lr"] = rate
        rows = workload.tokens["order"][update * size : (update + 1) * size]
        ids, labels = (workload.tokens[name][rows].long() for name in ("input_ids", "labels"))
        logits = workload.model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, plan.training.grad_clip)
        optimizer.step()
        losses.append(float(loss))
    return losses


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"grad_accum": 3},
        {"schedule": "linear", "lr_warmup": 2},
        {"schedule": "cosine", "grad_accum": 2},
        {"lr_warmup": 3},
    ],
    ids=str,
)
def test_the_loop_trains_as_the_definitions_say(training: dict[str, Any]) -> None:
    plan = planned(learning_rate=0.02, **training)
    assert trained(plan) == pytest.approx(plainly(plan), rel=1e-4)


def test_accumulation_weighs_each_token_alike_not_each_batch() -> None:
    """Batches of unequal answers: the mean of their means is another number."""
    plan = planned(grad_accum=4)
    workload = loaded(plan)
    lengths = (workload.tokens["labels"][workload.tokens["order"][:8]] != -100).sum(dim=1)
    assert len(set(lengths.reshape(4, 2).sum(dim=1).tolist())) > 1
    assert trained(plan)[0] == pytest.approx(plainly(plan)[0], rel=1e-5)


@pytest.fixture(scope="module")
def asked() -> Iterator[tuple[Any, Plan]]:
    """A workload with the first samples held out and a question, and its plan."""
    plan = planned()
    evaluation = Evaluation(source="builtin", name="demo-heldout", question="What?", answer_tokens=6)
    workload = loaded(plan)
    plan = msgspec.structs.replace(plan, evaluation=evaluation)
    workload.tokens |= {
        "held_out_ids": workload.tokens["input_ids"][:7],
        "held_out_labels": workload.tokens["labels"][:7],
        "question_ids": torch.tensor([[1, 400, 401, 402]], dtype=torch.int32),
        "question_stops": torch.tensor([2], dtype=torch.int32),
    }
    yield workload, plan


def decoder() -> Any:
    from engine.worker.training.evaluation import Decoder

    fd = os.memfd_create("tokenizer")
    os.write(fd, data_path("tiny_model", "tokenizer.json").read_bytes())
    try:
        return Decoder({"tokenizer.json": fd})
    finally:
        os.close(fd)


def test_the_held_out_loss_is_the_mean_over_all_its_learned_tokens(asked: tuple[Any, Plan]) -> None:
    from engine.worker.training.evaluation import evaluate

    workload, plan = asked
    found = evaluate(workload, plan, decoder())
    with torch.no_grad():
        logits = workload.model(input_ids=workload.tokens["held_out_ids"].long(), use_cache=False).logits[:, :-1]
    labels = workload.tokens["held_out_labels"][:, 1:].long()
    whole = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    assert found.loss == pytest.approx(float(whole), rel=1e-5)
    assert (found.samples, found.tokens) == (7, int((labels != -100).sum()))


def test_the_answer_is_what_generate_gives(asked: tuple[Any, Plan]) -> None:
    from engine.worker.training.evaluation import evaluate, reported

    workload, plan = asked
    given = workload.model.generate(
        input_ids=workload.tokens["question_ids"].long(),
        attention_mask=torch.ones((1, 4), dtype=torch.int64),
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=0,
    )[0, 4:]
    text = transformers.AutoTokenizer.from_pretrained(str(data_path("tiny_model"))).decode(
        given, skip_special_tokens=True
    )
    assert evaluate(workload, plan, decoder()).answer == reported(text)


def test_an_evaluation_changes_neither_weights_nor_what_is_trained_next(asked: tuple[Any, Plan]) -> None:
    from engine.worker.training.evaluation import evaluate

    workload, plan = asked
    before = {name: parameter.detach().clone() for name, parameter in workload.trainable.items()}
    state = torch.get_rng_state()
    assert evaluate(workload, plan, decoder()) == evaluate(workload, plan, decoder())
    assert workload.model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], parameter) for name, parameter in workload.trainable.items())
    assert np.isfinite(trained(planned())).all()
