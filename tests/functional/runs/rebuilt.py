"""A run again from its published plan, its data file and its model folder, by transformers and peft alone.

A program of its own: `rebuilt.py PLAN DATA FOLDER` prints the ids, the losses and the held-out losses as JSON. Of this
project it uses the random streams alone (sample order, initial adapter, held-out draw): they are not defined elsewhere.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

from engine.payload.seeds import expand, order_entries, sample_order, stream
from engine.payload.weights import uniform

IGNORED = -100


def encoded(chat: list[dict[str, str]], tokenizer: Any, length: int) -> tuple[list[int], list[int]]:
    """Ids and labels of a chat; what follows each generation prompt, up to the end of the turn, is learned."""
    ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    labels = [IGNORED] * len(ids)
    for index, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        begin = len(
            tokenizer.apply_chat_template(chat[:index], tokenize=True, return_dict=False, add_generation_prompt=True)
        )
        end = len(tokenizer.apply_chat_template(chat[: index + 1], tokenize=True, return_dict=False))
        while ids[end - 1] != tokenizer.eos_token_id:
            end -= 1
        labels[begin:end] = ids[begin:end]
    padding = length - len(ids)
    return ids + [tokenizer.pad_token_id] * padding, labels + [IGNORED] * padding


def held_out(count: int, percent: float, seed: int) -> list[int]:
    """The samples that are not trained on: the first of a random order."""
    order = np.argsort(stream(seed, "held-out").random_raw(count), kind="stable")
    return sorted(order[: max(1, round(count * percent / 100))].tolist())


def adapted(plan: dict[str, Any], folder: Path, seed: int) -> Any:
    """The model with a LoRA adapter that starts as the plan's seed says."""
    lora = plan["lora"]
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = get_peft_model(
        base,
        LoraConfig(r=lora["r"], lora_alpha=lora["alpha"], target_modules=list(lora["targets"]), task_type="CAUSAL_LM"),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                stem = name.removesuffix(".default.weight").removesuffix(".lora_A")
                bound = 1 / math.sqrt(parameter.shape[1])
                parameter.copy_(torch.from_numpy(uniform(seed, f"{stem}.lora_A", tuple(parameter.shape), bound)))
    return model


def mean_loss(model: Any, rows: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """The mean over all learned tokens."""
    total, tokens = 0.0, 0
    model.eval()
    with torch.no_grad():
        for ids, labels in rows:
            count = int((labels[:, 1:] != IGNORED).sum())
            total += float(model(input_ids=ids, labels=labels).loss) * count
            tokens += count
    model.train()
    return total / tokens


def batches(ids: torch.Tensor, labels: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(ids[at : at + size], labels[at : at + size]) for at in range(0, len(ids), size)]


def main(plan_file: str, data: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    plan = json.loads(Path(plan_file).read_bytes())
    training, seeds = plan["training"], expand(plan["seed"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chats = [json.loads(line)["messages"] for line in Path(data).read_text().splitlines()]
    rows = [encoded(chat, tokenizer, training["maxLength"]) for chat in chats]
    out = held_out(len(rows), plan["evaluation"]["percent"], seeds.order)
    ids, labels = (torch.tensor([row[side] for at, row in enumerate(rows) if at not in out]) for side in (0, 1))
    kept = [torch.tensor([rows[at][side] for at in out]) for side in (0, 1)]
    model = adapted(plan, Path(folder), seeds.init)
    model.train()
    parameters = [parameter for _, parameter in sorted(model.named_parameters()) if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=training["learningRate"], weight_decay=0.0, fused=True)
    updates = training["settlingSteps"] + plan["target"]["steps"]
    scheduler = get_scheduler(
        training["schedule"], optimizer, num_warmup_steps=training["lrWarmup"], num_training_steps=updates
    )
    size = training["batch"] * training["gradAccum"]
    order = sample_order(seeds.order, len(ids), order_entries(len(ids), updates * size))
    before = mean_loss(model, batches(kept[0], kept[1], training["batch"]))
    losses = []
    for update in range(updates):
        chosen = order[[at % len(order) for at in range(update * size, (update + 1) * size)]]
        parts = batches(ids[chosen], labels[chosen], training["batch"])
        learned = [(part[:, 1:] != IGNORED).sum() for _, part in parts]
        whole, loss = sum(learned), torch.zeros(())
        for (part_ids, part_labels), count in zip(parts, learned, strict=True):
            piece = model(input_ids=part_ids, labels=part_labels).loss * (count / whole)
            piece.backward()
            loss = loss + piece.detach()
        torch.nn.utils.clip_grad_norm_(parameters, training["gradClip"])
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    after = mean_loss(model, batches(kept[0], kept[1], training["batch"]))
    print(json.dumps({
        "ids": ids.tolist(), "labels": labels.tolist(), "before": before, "after": after,
        "losses": losses[training["settlingSteps"] :],
    }))  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
