"""Which linear layers LoRA can train, by names and shapes alone: one rule for weight files and for loaded models.

A dense linear layer is a two-dimensional weight inside one of the model's numbered layers. Experts, routers,
embeddings, norms and convolutions are none, nor is the head, which is outside of the layers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from engine.plan import LORA_TARGETS

_IN_LAYER: Final = re.compile(r"(.+?)\.(\d{1,5})\.(.+)", re.ASCII)
_NOT_LINEAR: Final = ("norm", "embed", "conv", "rotary", "router", "bias")
_EXPERT_NAMES: Final = frozenset({"gate_proj", "up_proj", "down_proj", "gate_up_proj", "w1", "w2", "w3"})
"""peft takes these names for the experts, in a model that has any."""

Shape = tuple[int, int]


def layer_parts(names: Iterable[str]) -> tuple[str, dict[int, set[str]]]:
    """The prefix of the model's layers (`model.layers`), and the names inside each of them by its index."""
    found: dict[str, dict[int, set[str]]] = {}
    for name in names:
        matched = _IN_LAYER.fullmatch(name)
        if matched is not None:
            found.setdefault(matched[1], {}).setdefault(int(matched[2]), set()).add(matched[3])
    if not found:
        return "", {}
    sizes = Counter({prefix: sum(map(len, layers.values())) for prefix, layers in found.items()})
    prefix = sizes.most_common(1)[0][0]
    return prefix, found[prefix]


def dense_linears(weights: Mapping[str, tuple[int, ...]], layers: int) -> dict[str, Shape]:
    """The dense linear layers of a model of `layers` layers: module name -> (outputs, inputs).

    `weights` are shapes by the name of the weight, such as `model.layers.0.self_attn.q_proj.weight`.
    """
    prefix, parts = layer_parts(weights)
    has_experts = any("experts" in part.split(".") for inside in parts.values() for part in inside)
    found: dict[str, Shape] = {}
    for index in sorted(parts):
        if index >= layers:
            continue
        for part in sorted(parts[index]):
            shape = weights[f"{prefix}.{index}.{part}"]
            module = part.removesuffix(".weight")
            if len(shape) == 2 and module != part and _is_dense(module, has_experts):
                found[f"{prefix}.{index}.{module}"] = (shape[0], shape[1])
    return found


def _is_dense(module: str, has_experts: bool) -> bool:
    components = module.split(".")
    last = components[-1]
    if "experts" in components or any(word in component for component in components for word in _NOT_LINEAR):
        return False
    return not (has_experts and (last in _EXPERT_NAMES or last == "gate" or last.endswith("_gate")))


def is_attention(module: str) -> bool:
    """Whether a linear layer belongs to a layer's attention."""
    return any("attn" in component or "attention" in component for component in module.split(".")[:-1])


def ends_with(module: str, ending: str) -> bool:
    """Whether `ending` names the module, as peft compares `target_modules`."""
    return module == ending or module.endswith(f".{ending}")


def endings(linears: Collection[str], others: Collection[str], targets: Iterable[str]) -> tuple[str, ...]:
    """The endings of module names that stand for `targets`, which are groups or endings.

    `others` are the model's further modules: an ending is as long as it must be to name none of them.
    """
    found: list[str] = []
    for target in targets:
        if target == "attention":
            chosen = [name for name in linears if is_attention(name)]
        elif target == "all-linear":
            chosen = list(linears)
        else:
            found.append(target)
            continue
        taken = {ending for name in {*others, *linears} - set(chosen) for ending in _endings(name)}
        found += sorted({_shortest(name, taken) for name in chosen}, key=_in_order)
    return tuple(dict.fromkeys(found))


def _endings(module: str) -> Iterable[str]:
    """Every ending of a module's name without the number of a layer, the shortest first."""
    components = module.split(".")
    for count in range(1, len(components) + 1):
        if components[-count].isdigit():
            return
        yield ".".join(components[-count:])


def _shortest(module: str, taken: Collection[str]) -> str:
    ending = module
    for ending in _endings(module):
        if ending not in taken:
            break
    return ending


def _in_order(ending: str) -> tuple[int, str]:
    return (LORA_TARGETS.index(ending) if ending in LORA_TARGETS else len(LORA_TARGETS), ending)
