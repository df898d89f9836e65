"""`presets`: the named plans; settings that are ours and not from the published article are marked."""

from __future__ import annotations

import click

from engine.plan import Plan, Target, dump_plan
from engine.plan import presets as shipped
from glasshouse_tui.commands.base import Subcommand, session_of
from glasshouse_tui.commands.output import emit_json, emit_text


@click.command(cls=Subcommand, short_help="List the presets with their settings.")
@click.pass_context
def presets(context: click.Context) -> int:
    """List the presets with their settings; a star marks settings that the published article does not state."""
    plans = shipped()
    if session_of(context).json:
        emit_json({"presets": [{"name": name, **dump_plan(plan)} for name, plan in plans.items()]})
        return 0
    emit_text("\n\n".join(_preset_text(name, plan) for name, plan in plans.items()))
    emit_text("\n* our choice: the published article does not state it")
    return 0


def target_text(target: Target) -> str:
    """When a segment stops."""
    if target.seconds is not None:
        return f"{target.seconds:g} s"
    return f"{target.epochs:g} epochs" if target.steps is None and target.epochs else f"{target.steps} steps"


def settings_of(plan: Plan) -> list[tuple[str, str, str]]:
    """(name in the plan, title, value) of every setting that a user can choose."""
    target = target_text(plan.target)
    training, provider = plan.training, plan.provider
    unversioned = "shipped with this version" if plan.model.source == "tiny" else "-"
    activations = "computed twice" if training.gradient_checkpointing else "kept"
    settings = [
        ("provider.name", "provider", provider.name),
        ("model.name", "model", plan.model.name),
        ("model.revision", "revision", plan.model.revision or unversioned),
        ("data", "data", plan.data.name),
        ("segments", "segments", plan.segments),
        ("order", "order", plan.order),
        ("target", "target", f"{target} per segment"),
        ("seed", "seed", str(plan.seed)),
        ("lora.r", "LoRA rank", str(plan.lora.r)),
        ("lora.alpha", "LoRA alpha", str(plan.lora.alpha)),
        ("lora.targets", "LoRA targets", ", ".join(plan.lora.targets)),
        ("training.learningRate", "learning rate", f"{training.learning_rate:g}"),
        ("training.schedule", "schedule", training.schedule),
        ("training.lrWarmup", "rate warm-up", f"{training.lr_warmup} updates"),
        ("training.batch", "batch", str(training.batch)),
        ("training.gradAccum", "accumulation", f"{training.grad_accum} batches an update"),
        ("training.gradientCheckpointing", "activations", activations),
        ("training.maxLength", "max length", "automatic" if training.max_length is None else str(training.max_length)),
        ("training.gradClip", "gradient clip", f"{training.grad_clip:g}"),
        ("training.dtype", "dtype", training.dtype),
        ("training.weightDecay", "weight decay", f"{training.weight_decay:g}"),
        ("training.settlingSteps", "settling", f"{training.settling_steps} steps"),
        ("training.checkpointEvery", "checkpoint", f"every {training.checkpoint_every} steps"),
        ("training.failOnNonfinite", "non-finite", "fail" if training.fail_on_nonfinite else "continue"),
        ("marginPct", "margin", f"{plan.margin_pct:g} %"),
    ]
    if plan.evaluation is not None:
        settings.append(("evaluation", "held out", plan.evaluation.name or f"{plan.evaluation.percent:g} %"))
    if provider.gpus:
        settings.insert(1, ("provider.gpus", "GPU", ", ".join(provider.gpus)))
    if provider.max_price is not None:
        settings.append(("provider.maxPrice", "price ceiling", f"{provider.max_price:g} USD an hour"))
    if provider.max_cost is not None:
        settings.append(("provider.maxCost", "cost ceiling", f"{provider.max_cost:g} USD"))
    return settings


def is_ours(plan: Plan, name: str) -> bool:
    """True if the plan marks this setting, or its group, as not from the article."""
    return name in plan.ours or name.partition(".")[0] in plan.ours


def _preset_text(name: str, plan: Plan) -> str:
    lines = [name]
    for setting, title, value in settings_of(plan):
        lines.append(f"  {'*' if is_ours(plan, setting) else ' '} {title:<15}{value}")
    return "\n".join(lines)
