"""Trains the shipped base, `tiny_model/model.safetensors`, on our own chats; `tiny_model/base.json` describes it.

Needs the extra `local`. From the checkout:

    python data/make_base.py              trains again and compares the held-out losses with the stated ones
    python data/make_base.py --write      trains again and replaces both files
    python data/make_base.py --evaluate   measures the shipped base

One thread, float32; the weights are stored as bfloat16. The first weights, the chats and their order are the same on
every machine; sums of floats are not, so another machine's base differs in its bytes, not in its losses.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

HERE: Final = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from base_chats import general, town_chats  # noqa: E402
from safetensors.torch import load, save  # noqa: E402
from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: E402

from engine.payload.chat.encoder import ChatEncoder, encoder_spec  # noqa: E402
from engine.payload.data.read import read_data  # noqa: E402
from engine.payload.data.samples import Sample  # noqa: E402
from engine.payload.prepare.arrays import padded  # noqa: E402
from engine.payload.prepare.tokens import Tokens  # noqa: E402
from engine.payload.seeds import sample_order  # noqa: E402
from engine.payload.shape import read_config  # noqa: E402
from engine.payload.weights import tiny_weights  # noqa: E402

MODEL: Final = HERE / "tiny_model"
WEIGHTS: Final = "model.safetensors"
RECORD: Final = "base.json"
STEPS: Final = 1600
SEED: Final = 20260517
LENGTH: Final = 96
PEAK_RATE: Final = 2e-3
WARM_UP: Final = 100
PROMPT_WEIGHT: Final = 0.2
"""How much a token of the question counts against one of the answer."""
SHARES: Final = {"corpus": 5, "general": 9, "towns": 18}
"""Samples of each part in a batch."""
TOWN_CHATS: Final = 20_000
HELD_OUT_EVERY: Final = 20
TOLERANCE: Final = {"corpus": 0.5, "general": 0.15, "towns": 0.1}
"""How far a base that was trained again may be from the stated held-out losses."""


class Part(NamedTuple):
    """One part of the chats, as tokens."""

    train: Tokens
    held_out: Tokens


def model_config() -> dict[str, Any]:
    """The shipped model's config.json."""
    config: dict[str, Any] = json.loads((MODEL / "config.json").read_bytes())
    return config


def parts() -> dict[str, Part]:
    """The chats by part; one in twenty is held out."""
    shape = read_config((MODEL / "config.json").read_bytes())[1]
    config = (MODEL / "tokenizer_config.json").read_bytes()
    encoder = ChatEncoder(encoder_spec(MODEL / "tokenizer.json", shape, config))
    corpus = read_data(HERE / "sample_corpus.jsonl").samples
    return {
        "corpus": _split(encoder, corpus),
        "general": _split(encoder, map(_sample, general())),
        "towns": _split(encoder, map(_sample, town_chats(SEED, TOWN_CHATS))),
    }


def _sample(chat: dict[str, list[dict[str, Any]]]) -> Sample:
    turns = tuple(chat["messages"])
    return Sample(messages=turns, learned=tuple(turn["role"] == "assistant" for turn in turns))


def _split(encoder: ChatEncoder, samples: Iterable[Sample]) -> Part:
    """Every twentieth sample is held out, unless the training has the same one."""
    every = list(samples)
    train = [sample for number, sample in enumerate(every, start=1) if number % HELD_OUT_EVERY]
    known = {str(sample) for sample in train}
    held_out = [sample for sample in every[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY] if str(sample) not in known]
    return Part(_encoded(encoder, train), _encoded(encoder, held_out))


def _encoded(encoder: ChatEncoder, samples: list[Sample]) -> Tokens:
    ids, faults = encoder.encode(samples)
    if faults:
        raise SystemExit(f"{len(faults)} chats cannot be encoded: {faults[0][1].what}")
    return padded(ids, np.arange(len(samples)), LENGTH, encoder.pad)


def losses(model: Any, chats: dict[str, Part]) -> dict[str, float]:
    """The loss on each part's held-out answers."""
    model.eval()
    with torch.no_grad():
        return {
            name: round(
                model(
                    input_ids=torch.from_numpy(part.held_out.input_ids).long(),
                    labels=torch.from_numpy(part.held_out.labels).long(),
                ).loss.item(),
                4,
            )
            for name, part in chats.items()
        }


def train(chats: dict[str, Part], steps: int, seed: int) -> Any:
    """A model after that many steps of AdamW with a cosine rate."""
    shape = read_config((MODEL / "config.json").read_bytes())[1]
    start = {name: torch.from_numpy(array) for name, array in tiny_weights(seed, shape).items()}
    model = _model(start)
    model.requires_grad_(True)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.1)
    orders = {name: _order(part, SHARES[name] * steps, seed) for name, part in chats.items()}
    for step in range(steps):
        rate = PEAK_RATE * min(1.0, (step + 1) / WARM_UP) * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _loss(model, [_rows(chats[name].train, orders[name], step, SHARES[name]) for name in chats])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} of {steps}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return model


def _order(part: Part, entries: int, seed: int) -> np.ndarray[Any, Any]:
    samples = len(part.train.lengths)
    return sample_order(seed, samples, math.ceil(entries / samples) * samples)


def _rows(tokens: Tokens, order: np.ndarray[Any, Any], step: int, count: int) -> tuple[Any, Any]:
    rows = order[step * count : (step + 1) * count]
    return tokens.input_ids[rows], tokens.labels[rows]


def _loss(model: Any, batch: list[tuple[Any, Any]]) -> Any:
    """The mean over all tokens but the padding; those of questions count less."""
    ids = torch.from_numpy(np.concatenate([ids for ids, _ in batch])).long()
    learned = torch.from_numpy(np.concatenate([labels for _, labels in batch])) >= 0
    pad = model.config.pad_token_id
    longest = int((ids != pad).sum(1).max())
    ids, learned = ids[:, :longest], learned[:, 1:longest]
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    weights = torch.where(learned, 1.0, PROMPT_WEIGHT) * (ids[:, 1:] != pad)
    return (each * weights).sum() / weights.sum()


def _model(weights: dict[str, Any]) -> Any:
    model = Qwen2ForCausalLM(Qwen2Config(**model_config()))
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
    model.tie_weights()
    return model


def packed(model: Any) -> bytes:
    """The model's weights as bfloat16 in a safetensors file."""
    file: bytes = save({name: tensor.detach().to(torch.bfloat16) for name, tensor in model.named_parameters()})
    return file


def record(weights: bytes, model: Any, held_out: dict[str, float], steps: int, seed: int) -> dict[str, Any]:
    """What `base.json` states about a weight file."""
    return {
        "sha256": hashlib.sha256(weights).hexdigest(),
        "bytes": len(weights),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": steps,
        "seed": seed,
        "heldOutLoss": held_out,
        "tolerance": TOLERANCE,
    }


def main() -> int:
    """Train or evaluate; 1 if the losses are not within the tolerance of the stated ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--evaluate", action="store_true", help="measure the shipped base, train nothing")
    parser.add_argument("--write", action="store_true", help="write the weights and their record")
    parser.add_argument("--folder", type=Path, default=MODEL, help="where to write them")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    chats = parts()
    weights = (MODEL / WEIGHTS).read_bytes() if chosen.evaluate else packed(train(chats, chosen.steps, chosen.seed))
    model = _model(load(weights))
    description = record(weights, model, losses(model, chats), chosen.steps, chosen.seed)
    print(json.dumps(description, indent=2))
    if chosen.write:
        (chosen.folder / WEIGHTS).write_bytes(weights)
        (chosen.folder / RECORD).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        return 0
    stated = json.loads((MODEL / RECORD).read_bytes())["heldOutLoss"]
    far = [part for part, loss in description["heldOutLoss"].items() if abs(loss - stated[part]) > TOLERANCE[part]]
    for part in far:
        print(f"{part}: {description['heldOutLoss'][part]} instead of {stated[part]}", file=sys.stderr)
    return 1 if far else 0


if __name__ == "__main__":
    sys.exit(main())
