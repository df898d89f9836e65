"""`presets`: what can run by name, with the settings that are ours and not the article's marked."""

from __future__ import annotations

import click

from engine.plan import Plan, dump_plan
from engine.plan import presets as shipped
from glasshouse_tui.commands.base import Subcommand, session_of
from glasshouse_tui.commands.output import emit_json, emit_text


@click.command(cls=Subcommand, short_help="List the presets with their settings.")
@click.pass_context
def presets(context: click.Context) -> int:
    """List the presets with their settings; a star marks those that the published article does not state."""
    plans = shipped()
    if session_of(context).json:
        emit_json({"presets": [{"name": name, **dump_plan(plan)} for name, plan in plans.items()]})
        return 0
    emit_text("\n\n".join(_preset_text(name, plan) for name, plan in plans.items()))
    emit_text("\n* ours: the published article does not state it")
    return 0


def settings_of(plan: Plan) -> list[tuple[str, str, str]]:
    """(group, name, value) of every setting of a plan that a person chooses."""
    target = f"{plan.target.seconds:g} s" if plan.target.seconds is not None else f"{plan.target.steps} steps"
    training = plan.training
    return [
        ("model", "model", plan.model.name),
        (
            "model",
            "revision",
            plan.model.revision or ("made from the seed" if plan.model.source == "tiny" else "-"),
        ),
        ("data", "data", plan.data.name),
        ("segments", "segments", plan.segments),
        ("order", "order", plan.order),
        ("target", "target", f"{target} a segment"),
        ("seed", "seed", str(plan.seed)),
        ("lora", "LoRA rank", str(plan.lora.r)),
        ("lora", "LoRA alpha", str(plan.lora.alpha)),
        ("lora", "LoRA targets", ", ".join(plan.lora.targets)),
        ("training", "learning rate", f"{training.learning_rate:g}"),
        ("training", "batch", str(training.batch)),
        ("training", "max length", str(training.max_length)),
        ("training", "gradient clip", f"{training.grad_clip:g}"),
        ("training", "dtype", training.dtype),
        ("training", "warm-up", f"{training.warmup_steps} steps"),
    ]


def _preset_text(name: str, plan: Plan) -> str:
    lines = [name]
    for group, title, value in settings_of(plan):
        lines.append(f"  {'*' if group in plan.ours else ' '} {title:<14}{value}")
    return "\n".join(lines)
