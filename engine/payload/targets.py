"""A plan's LoRA targets as the modules of one model: groups are resolved, names that it lacks are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from engine.errors import DataError
from engine.plan import TARGET_GROUPS
from engine.worker.linears import endings, ends_with


class Modules(Protocol):
    """What is asked of a `ModelDescription`."""

    @property
    def linears(self) -> Mapping[str, tuple[int, int]]:
        """The dense linear layers as (outputs, inputs)."""

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of all modules that have weights."""


def resolved_targets(model: Modules, targets: Sequence[str]) -> tuple[str, ...]:
    """The endings of module names that `targets` stand for; resolving them again changes nothing.

    `attention` are the linear layers of every layer's attention. `all-linear` are these and the dense feed-forward
    layers: neither head, embedding nor router, and in a mixture of experts neither experts nor feed-forward layers
    beside them, because peft takes their names for the experts. Raises `DataError` (`model_lacks_targets`).
    """
    available = endings(model.linears, model.modules, ("all-linear",))
    lacking = [
        target for target in targets
        if target not in TARGET_GROUPS and not any(ends_with(module, target) for module in model.linears)
    ]  # fmt: skip
    found = endings(model.linears, model.modules, targets)
    if lacking or not found:
        names = ", ".join(lacking) or ", ".join(targets)
        raise DataError(
            f"The model has no linear layers called {names[:200]} that LoRA can train.",
            f"Give --lora-targets one of the groups {', '.join(TARGET_GROUPS)}, "
            f"or some of: {', '.join(available)[:400]}.",
            code="model_lacks_targets",
        )
    return found


def trained_values(model: Modules, rank: int, targets: Sequence[str]) -> int:
    """How many values a LoRA adapter of this rank has."""
    chosen = resolved_targets(model, targets)
    sizes = (shape for module, shape in model.linears.items() if any(ends_with(module, one) for one in chosen))
    return rank * sum(outputs + inputs for outputs, inputs in sizes)
