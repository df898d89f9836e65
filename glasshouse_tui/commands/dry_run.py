"""`run --dry-run`: every check that needs no allocation, and what the run would need and cost. Nothing is entered."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from engine.errors import GlasshouseError
from engine.payload.prepare.report_text import report_lines
from engine.plan import Plan, dump_plan
from glasshouse_tui.commands.output import as_builtins, emit_json, emit_text, plain
from glasshouse_tui.commands.own_data import check
from glasshouse_tui.commands.presets import target_text
from glasshouse_tui.commands.price_quote import quote_lines, quote_of, rents
from glasshouse_tui.format import money

if TYPE_CHECKING:
    from engine.runner.feasible import Feasible, Need
    from glasshouse_tui.commands.base import Session
    from glasshouse_tui.commands.plan_options import PlanInputs

_GIB: Final = 1024**3
_GB: Final = 10**9
_THERE: Final = "the allocation itself: its login, its Python environment and its free disk"


def dry_run(session: Session, inputs: PlanInputs) -> int:
    """Check the run and print what it would do; raises the `GlasshouseError` with which the run would be refused."""
    from engine.providers.settings import load_settings
    from engine.runner.feasible import OFFLINE
    from engine.runner.spec import most_it_costs, spec_for

    settings = load_settings(session.home)
    found = check(session, inputs, tolerant=True)
    unchecked = list(found.unchecked)
    price: dict[str, Any] | None = None
    lines: list[str] = []
    if rents(found.plan):
        try:
            spec = spec_for(session.home, found.plan, settings, "quote", found.weights_bytes)
            quote = asyncio.run(quote_of(session, found.plan, spec, settings))
            most = most_it_costs(quote, spec)
            price = {"gpuModel": quote.gpu_model, "pricePerHour": quote.price_per_hour, "atMost": most}
            lines = quote_lines(quote, spec, found.plan.provider.keep_for)
        except GlasshouseError as error:
            if error.code not in OFFLINE:
                raise
            unchecked.append(f"price: {error.message}")
    if not found.plan.provider.kind.on_this_machine:
        unchecked.append(_THERE)
    if session.json:
        emit_json(_document(found, price, unchecked))
    else:
        emit_text("\n".join([*_text(found), *lines, *(f"not checked: {plain(one)}" for one in unchecked)]))
    return 0


def _document(found: Feasible, price: dict[str, Any] | None, unchecked: list[str]) -> dict[str, Any]:
    return {
        "dryRun": True,
        "plan": dump_plan(found.plan),
        "model": _model(found),
        "data": _data(found),
        "memory": [_memory(need) for need in found.needs],
        "price": price,
        "unchecked": unchecked,
    }


def _model(found: Feasible) -> dict[str, Any] | None:
    if found.inputs is None:
        return None
    model = found.inputs.model
    return {
        "modelType": model.config.get("model_type"),
        "parameters": model.parameters,
        "dtype": model.dtype,
        "storedBytes": model.stored_bytes,
        "downloadBytes": model.download_bytes,
    }


def _data(found: Feasible) -> dict[str, Any] | None:
    return None if found.inputs is None else as_builtins(found.inputs.report)


def _memory(need: Need) -> dict[str, Any]:
    """Bytes; the parts are an estimate."""
    return {
        "device": need.device.name,
        "kind": need.device.kind,
        "bytes": need.device.memory,
        "estimate": {**as_builtins(need.estimate), "total": need.estimate.total},
    }


def recipe_text(plan: Plan) -> str:
    """What is trained, in one line."""
    training, target = plan.training, target_text(plan.target)
    accumulated = f" x {training.grad_accum}" if training.grad_accum > 1 else ""
    return (
        f"{target} after {training.settling_steps} settling steps, batch {training.batch}{accumulated}, learning rate "
        f"{training.learning_rate:g} ({training.schedule}), LoRA rank {plan.lora.r} on {', '.join(plan.lora.targets)}"
    )


def _text(found: Feasible) -> list[str]:
    lines = ["Nothing speaks against this run. Nothing was rented, entered or trained."]
    model = _model(found)
    if model is not None:
        download = f", {model['downloadBytes'] / _GB:.1f} GB to download" if model["downloadBytes"] else ""
        lines.append(f"model: {model['parameters']:,} weights in {model['dtype']}{download}")
    if found.inputs is not None:
        lines += report_lines(found.inputs.report)
        lines.append(f"training: {recipe_text(found.plan)}")
    for need in found.needs:
        memory = "unknown" if need.device.memory is None else f"{need.device.memory / _GIB:.1f} GiB"
        lines.append(f"memory: an estimated {need.estimate.total / _GIB:.1f} GiB; {plain(need.device.name)}: {memory}")
    ceiling = found.plan.provider.max_cost
    return lines if ceiling is None else [*lines, f"cost ceiling: {money(ceiling)}"]
