"""From the options of `run` to a plan: a preset with some fields replaced, or a plan from scratch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from engine.errors import DataError, PlanError, UsageError
from engine.payload.data.spool import STANDARD_INPUT, is_stream
from engine.payload.local_files import LocalFiles
from engine.plan import (
    PROVIDERS,
    Data,
    Evaluation,
    Model,
    Order,
    Plan,
    ProviderRequest,
    Schedule,
    Segments,
    Target,
    checked,
    dump_plan,
    preset,
    presets,
)
from engine.recipe import OWN_LORA, OWN_TRAINING

OWN_MODEL: Final = "own-model"  # a plan is published, so it must not name files or folders of the operator
OWN_DATA: Final = "own-data"
AUTO: Final = "auto"
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of `run`, by their names; None means not given."""

    preset: str | None = None
    label: str | None = None
    model: str | None = None
    revision: str | None = None
    data: Path | None = None
    public_data: bool = False
    stand_in: bool = False
    seconds: float | None = None
    steps: int | None = None
    order: Order | None = None
    segments: Segments | None = None
    seed: int | None = None
    lr: float | None = None
    lora_r: int | None = None
    lora_alpha: int | None = None
    batch: int | None = None
    epochs: float | None = None
    lr_schedule: Schedule | None = None
    lr_warmup: int | None = None
    grad_accum: int | None = None
    gradient_checkpointing: bool | None = None
    lora_targets: str | None = None
    lora_dropout: float | None = None
    max_length: str | None = None
    chat_template: Path | None = None
    allow_data_loss: bool = False
    eval_split: float | None = None
    eval_file: Path | None = None
    settling: int | None = None
    checkpoint_every: int | None = None
    challenge: str | None = None
    provider: str | None = None
    gpu: str | None = None
    allocation: str | None = None
    max_price: float | None = None
    max_cost: float | None = None
    keep_for: int | None = None


@dataclass(frozen=True)
class PlanInputs:
    """A checked plan and the local files that it uses."""

    plan: Plan
    files: LocalFiles
    allow_data_loss: bool = False


def plan_from_options(options: RunOptions) -> PlanInputs:
    """The plan that the options describe; raises `UsageError`, `PlanError` or `DataError`."""
    given = [name for name in ("seconds", "steps", "epochs") if getattr(options, name) is not None]
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join(f'--{name}' for name in given)} are given, but a run stops by only one of them.",
            "Remove all but one.",
        )
    if [options.data, options.eval_file, options.chat_template].count(STANDARD_INPUT) > 1:
        raise UsageError("Standard input can be read only once.", "Give - to one option, and files to the others.")
    if options.lora_dropout:
        raise UsageError(
            "Dropout would make the two segments do different work, so it is always 0.", "Remove --lora-dropout."
        )
    model, folder = _model(options)
    base = preset(options.preset) if options.preset is not None else _from_scratch(options, model)
    plan = msgspec.structs.replace(base, **_changes(base, options, model))
    if options.preset is not None:
        plan = msgspec.structs.replace(plan, ours=(*base.ours, *_new_settings(base, plan)))
    plan = checked(plan)
    _check_provider(plan.provider, options)
    files = LocalFiles(
        data=options.data, held_out=options.eval_file, model=folder, template=_template(options.chat_template)
    )
    return PlanInputs(plan, files, options.allow_data_loss)


_NOT_SETTINGS: Final = ("label", "preset", "challenge", "ours")


def _new_settings(base: Plan, plan: Plan) -> list[str]:
    """The settings that differ from the preset's, named as in `ours`, without those that `ours` has already."""
    before, after = dump_plan(base), dump_plan(plan)
    changed: list[str] = []
    for name in after.keys() - _NOT_SETTINGS:
        if isinstance(after[name], dict):
            changed += [f"{name}.{part}" for part in after[name] if after[name][part] != before[name][part]]
        elif after[name] != before[name]:
            changed.append(name)
    return sorted(name for name in changed if name not in base.ours and name.partition(".")[0] not in base.ours)


def _set_fields(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _from_scratch(options: RunOptions, model: Model | None) -> Plan:
    if options.seconds is None and options.steps is None and options.epochs is None:
        raise UsageError(
            "There is nothing to run.",
            f"Give --preset NAME ({', '.join(presets())}), "
            "or --seconds, --steps or --epochs together with your own --model or --data.",
        )
    demo = preset("demo")
    model = model or demo.model
    return Plan(
        label=model.name.rpartition("/")[2],
        model=model,
        target=demo.target,
        lora=OWN_LORA,
        training=OWN_TRAINING,
    )


def _changes(base: Plan, options: RunOptions, model: Model | None) -> dict[str, Any]:
    changes = _set_fields(
        label=options.label,
        segments=options.segments,
        order=options.order,
        seed=options.seed,
        challenge=options.challenge,
        model=model,
        data=_data(options),
    )
    if (options.seconds, options.steps, options.epochs) != (None, None, None):
        changes["target"] = Target(seconds=options.seconds, steps=options.steps, epochs=options.epochs)
    if options.data is not None:  # a preset's held-out samples belong to its own data
        changes["evaluation"] = None
    if (held_out := _evaluation(options)) is not None:
        changes["evaluation"] = held_out
    if options.provider is not None and options.provider != base.provider.name:
        base = msgspec.structs.replace(
            base, provider=ProviderRequest()
        )  # the preset's provider options do not apply to another provider
    nested = {
        "lora": _set_fields(r=options.lora_r, alpha=options.lora_alpha, targets=_targets(options.lora_targets)),
        "training": _set_fields(
            learning_rate=options.lr,
            schedule=options.lr_schedule,
            lr_warmup=options.lr_warmup,
            batch=options.batch,
            grad_accum=options.grad_accum,
            gradient_checkpointing=options.gradient_checkpointing,
            settling_steps=options.settling,
            checkpoint_every=options.checkpoint_every,
        ),
        "provider": _set_fields(
            name=options.provider,
            gpus=gpu_names(options.gpu),
            allocation=options.allocation,
            max_price=options.max_price,
            max_cost=options.max_cost,
            keep_for=options.keep_for,
        ),
    }
    if options.max_length is not None or options.data is not None:
        nested["training"]["max_length"] = _length(options.max_length)
    for name, fields in nested.items():
        if fields:
            changes[name] = msgspec.structs.replace(getattr(base, name), **fields)
    return changes


def _length(text: str | None) -> int | None:
    """A maximum length in tokens; None for an automatic one, the default for own data."""
    if text is None or text == AUTO:
        return None
    if not text.isascii() or not text.isdigit():
        raise UsageError(
            "--max-length is neither a number of tokens nor `auto`.", "Give a number such as 1024, or auto."
        )
    return int(text[:9])


def _targets(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _evaluation(options: RunOptions) -> Evaluation | None:
    """What is held out by the options; None if they say nothing about it."""
    if options.eval_split is not None and options.eval_file is not None:
        raise UsageError(
            "Both --eval-split and --eval are given, but only one can be held out.", "Remove one of the two."
        )
    if options.eval_split is not None:
        return Evaluation(source="split", percent=options.eval_split)
    if options.eval_file is None:
        return None
    if options.data is None:
        raise UsageError("--eval belongs to a data file, and none is given.", "Add --data FILE.")
    _require_file(options.eval_file, "--eval")
    return Evaluation(source="file", name=OWN_DATA)


def _template(path: Path | None) -> Path | None:
    if path is not None and not path.is_file() and not is_stream(path):
        raise DataError(
            f"There is no chat template {path}.", "Check the path given to --chat-template.", code="data_missing"
        )
    return path


def _require_file(path: Path, flag: str) -> None:
    if not path.exists() and not is_stream(path):
        raise DataError(f"There is no data file {path}.", f"Check the path given to {flag}.", code="data_missing")


def gpu_names(text: str | None) -> tuple[str, ...] | None:
    """The comma-separated names; None if the option is absent. Raises `UsageError` for an empty list."""
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UsageError("--gpu names no GPU.", "Give comma-separated names, best first.")
    return names


def _data(options: RunOptions) -> Data | None:
    if options.data is None:
        if options.public_data or options.stand_in:
            flag = "--public-data" if options.public_data else "--stand-in"
            raise UsageError(f"{flag} applies to a data file, and none is given.", "Add --data FILE.")
        return None
    _require_file(options.data, "--data")
    return Data(source="file", name=OWN_DATA, public=options.public_data, stand_in=options.stand_in)


def _model(options: RunOptions) -> tuple[Model | None, Path | None]:
    """The model and, for a local one, its folder; (None, None) if the option is absent."""
    name, revision = options.model, options.revision
    if revision is not None and not _COMMIT.fullmatch(revision):
        raise PlanError(
            f"The revision {revision!r} is not a full commit id, so what it refers to could change.",
            "Give --revision the 40 hexadecimal digits of a commit.",
        )
    if name is None:
        if revision is not None:
            raise UsageError("--revision applies to a Hub model, and none is given.", "Add --model ID.")
        return None, None
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if revision is not None:
            raise UsageError(f"{name} is a local folder and has no revision.", "Remove --revision.")
        folder = folder.resolve()
        return Model(source="folder", name=OWN_MODEL), folder
    if name == preset("demo").model.name:
        return preset("demo").model, None
    if folder.exists() or not _HUB_ID.fullmatch(name):
        raise DataError(
            f"There is no model folder {name}.",
            "Give --model a folder with config.json, tokenizer and safetensors weights, or a Hub id such as "
            "Qwen/Qwen2.5-0.5B-Instruct.",
            code="model_missing",
        )
    revision = revision or _pinned().get(name)
    if revision is None:
        raise PlanError(
            f"There is no model folder {name}, and no preset pins a revision of a Hub model with this name.",
            "Check the path, or add --revision with a full commit id.",
            code="model_missing",
        )
    return Model(source="hub", name=name, revision=revision), None


def _pinned() -> dict[str, str]:
    """The revisions that presets pin, by Hub id."""
    models = (plan.model for plan in presets().values())
    return {model.name: model.revision for model in models if model.source == "hub" and model.revision}


def _check_provider(request: ProviderRequest, options: RunOptions) -> None:
    if request.name not in PROVIDERS:
        raise UsageError(
            f"There is no provider called {request.name!r}.",
            f"Choose one of: {', '.join(PROVIDERS)}.",
            code="provider_unknown",
        )
    kind = request.kind
    of_rented: dict[str, object] = {"--gpu": options.gpu, "--keep-for": options.keep_for}
    if kind.on_this_machine:
        inapplicable, reason = {**of_rented, "--allocation": options.allocation}, "this run uses the local one"
    elif not kind.rents:
        inapplicable, reason = of_rented, "a static host is your own"
    elif options.allocation is not None:
        inapplicable, reason = {"--gpu": options.gpu}, "--allocation names an existing one"
    else:
        return
    for flag, value in inapplicable.items():
        if value is not None:
            raise UsageError(
                f"{flag} applies to rented allocations, but {reason}.",
                f"Remove {flag}{', or add --provider' if kind.on_this_machine else ''}.",
            )
