"""README.md of an adapter's folder: a model card in the form of the Hugging Face hub, made of what the row says."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from engine import __version__
from engine.plan import Evaluation, Plan, Target, Training
from engine.records.adapters.config import BASE
from engine.records.adapters.signature import SIGNATURE
from engine.records.adapters.signing import OPERATOR_CERTIFICATE
from engine.records.row import TIER_NOTE
from engine.system.text import visible

README: Final = "README.md"
_MARKUP: Final = re.compile(r"([\\`*_{}\[\]<>#|~!$])")
_LIBRARIES: Final = ("torch", "transformers", "peft", "tokenizers", "safetensors")
_LORA: Final = {"r": "rank", "alpha": "alpha", "targets": "target modules"}
_TRAINING: Final = {name: name.replace("_", " ") for name in Training.__struct_fields__}

Kind = Literal["raw", "protected"]


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What a card describes. `row` is the run's row as it was signed; `lock` what was installed where it trained.

    `plan` is None for a run of a version whose plans this one cannot read: the card then states less.
    `merged`: the folder holds a whole model. `beside`: it holds the base model in `BASE`. `signed`: it gets a
    signature. `missing`: the tokenizer files that were not kept.
    """

    plan: Plan | None
    row: Mapping[str, Any]
    kind: Kind
    lock: Mapping[str, str]
    merged: bool
    beside: bool
    signed: bool
    missing: tuple[str, ...]


def model_card(subject: Subject) -> bytes:
    """The card, in UTF-8. It has no sample, no name of a data file and no path."""
    parts = [
        _front(subject),
        f"# {_title(subject)}\n",
        f"{_what(subject)}\n",
        f"## Load it\n\n```python\n{_loading(subject)}\n```\n",
        *_notes(subject),
        *_of_plan(subject.plan),
        f"## The run\n\n{_table(_run(subject))}\n",
        f"## What was checked\n\n{_checked(subject)}\n",
        f"## Versions\n\n{_table(_versions(subject))}\n",
    ]
    return "\n".join(parts).encode()


def _of_plan(plan: Plan | None) -> list[str]:
    if plan is None:
        return ["An earlier version of Glasshouse made the plan of this run; its recipe is not stated here.\n"]
    return [f"## Data\n\n{_table(_data(plan))}\n", f"## Recipe\n\n{_table(_recipe(plan))}\n"]


def _front(subject: Subject) -> str:
    """YAML; a JSON text is a YAML scalar."""
    plan = subject.plan
    lines = ["---"]
    if plan is not None and plan.model.source == "hub":
        lines.append(f"base_model: {json.dumps(plan.model.name)}")
        lines.append(f"base_model_relation: {'finetune' if subject.merged else 'adapter'}")
    lines.append(f"library_name: {'transformers' if subject.merged else 'peft'}")
    lines += ["pipeline_tag: text-generation", "tags:", "- lora", "- glasshouse", "---", ""]
    return "\n".join(lines)


def _title(subject: Subject) -> str:
    return f"{plain(str(subject.row.get('label')))}: {'merged model' if subject.merged else 'LoRA adapter'}"


def _base(subject: Subject) -> str:
    plan = subject.plan
    if plan is None:
        return plain(str(subject.row.get("model")))
    if plan.model.source == "hub":
        return f"the hub model {plain(plan.model.name)} at revision `{plan.model.revision}`"
    if plan.model.source == "tiny":
        return "Glasshouse's shipped tiny model, which knows next to nothing: good for demonstrations alone"
    return f"a model folder with the digest `{plan.model.digest}`"


def _what(subject: Subject) -> str:
    kind = "in the clear" if subject.kind == "raw" else "on the protected path"
    if subject.merged:
        return (
            f"A LoRA adapter merged into its base model, {_base(subject)}. The adapter was trained {kind} by "
            f"Glasshouse; the merge was computed afterwards, on the operator's machine, and no row describes it."
        )
    return f"A LoRA adapter, trained {kind} by Glasshouse. Its base model is {_base(subject)}."


def _loading(subject: Subject) -> str:
    tokenizer = 'tokenizer = AutoTokenizer.from_pretrained("DIR")'
    if subject.merged:
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
            f'model = AutoModelForCausalLM.from_pretrained("DIR")\n{tokenizer}'
        )
    if subject.plan is not None and subject.plan.model.source == "hub":
        return (
            "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n"
            f'model = AutoPeftModelForCausalLM.from_pretrained("DIR")\n{tokenizer}'
        )
    base = f"DIR/{BASE}" if subject.beside else "BASE"
    return (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
        f'model = PeftModel.from_pretrained(base, "DIR")\n{tokenizer}'
    )


def _notes(subject: Subject) -> list[str]:
    notes = []
    if subject.beside:
        notes.append(
            f"`adapter_config.json` names the absolute path at which `{BASE}/` was written, because peft resolves a "
            "relative one against the working directory and not against the adapter's folder. While the folder is "
            'there, `AutoPeftModelForCausalLM.from_pretrained("DIR")` works too; once it was moved, load it as above.\n'
        )
    if subject.missing:
        notes.append(
            f"Not kept with this run, and so not here: {', '.join(subject.missing)}. Take the base model's tokenizer.\n"
        )
    if subject.signed:
        notes.append(
            f"`{SIGNATURE}` signs every file in the format of OpenSSF model signing. Whoever trusts the operator's "
            f"certificate (`{OPERATOR_CERTIFICATE}`, from a trusted source) checks it with `model_signing verify "
            f"certificate DIR --signature DIR/{SIGNATURE} --certificate_chain {OPERATOR_CERTIFICATE}`.\n"
        )
    return notes


def _data(plan: Plan) -> dict[str, object]:
    data, counts = plan.data, plan.data.counts
    found: dict[str, object] = {
        "SHA-256": data.digest,
        "samples in the file": data.samples,
        "declared public": data.public,
    }
    if data.source == "builtin":
        found["name"] = data.name
    if data.stand_in:
        found["trained on"] = "synthetic samples of the same shape, not on the file"
    if counts is not None:
        found |= {
            "used": counts.used,
            "dropped": counts.dropped,
            "cut": counts.cut,
            "held out": counts.held_out,
            "tokens": counts.tokens,
            "answer tokens kept": f"{counts.answer_tokens_kept:,} of {counts.answer_tokens:,}",
            "chat template, SHA-256": counts.template,
        }
    return found


def _recipe(plan: Plan) -> dict[str, object]:
    found: dict[str, object] = {f"LoRA {shown}": getattr(plan.lora, name) for name, shown in _LORA.items()}
    found |= {shown: getattr(plan.training, name) for name, shown in _TRAINING.items()}
    found |= {f"target, {name}": getattr(plan.target, name) for name in Target.__struct_fields__}
    found["seed"] = plan.seed
    if plan.evaluation is not None:
        shown = ("source", "percent", "digest")
        found |= {f"held-out loss, {name}": getattr(plan.evaluation, name) for name in _of(plan.evaluation, shown)}
    return found


def _of(evaluation: Evaluation, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if getattr(evaluation, name) is not None]


def _run(subject: Subject) -> dict[str, object]:
    row, kind = subject.row, subject.kind
    protected = {"attestation": row.get("attestation"), "tier": row.get("tier")} if kind == "protected" else {}
    return {
        "row": row.get("id"),
        "plan, SHA-256": row.get("planDigest"),
        "segment": kind,
        "adapter, SHA-256": row.get(f"{kind}AdapterSha256"),
        "adapter's tensors, digest": row.get(f"{kind}TensorDigest"),
        "provider": row.get("provider"),
        "GPU": row.get("gpuModel"),
        "steps measured": row.get(f"{kind}Steps"),
        "stopped for": row.get(f"{kind}StopReason"),
        "final loss": row.get(f"{kind}FinalLoss"),
        "overhead of protection": _overhead(row),
        "finished at": row.get("finishedAt"),
        **protected,
    }


def _overhead(row: Mapping[str, Any]) -> str | None:
    """Of this pair; the verdict says whether the run was long enough to tell it from noise."""
    overhead = row.get("overheadPct")
    return None if overhead is None else f"{overhead:+.2f} % ({row.get('verdict') or 'no verdict'})"


def _checked(subject: Subject) -> str:
    row = subject.row
    open_checks = [f"`{check['name']}` ({check['status']})" for check in row.get("checks") or () if _is_open(check)]
    if row.get("clean") is True:
        verdict = "The row is clean: every check that applies to the run passed, and none is pending."
    elif row.get("clean") is None:
        verdict = "The row is not final: the run had not ended when this folder was written."
    else:
        verdict = f"The row is **not clean**. Did not pass: {', '.join(open_checks) or 'no check is recorded'}."
    return (
        f"{verdict} {TIER_NOTE}\n\nThe row says how the adapter was trained, not whether it is any good. "
        "`glasshouse verify ROW.json --adapter DIR` checks the row, that this folder is the row's, and who signed it."
    )


def _is_open(check: Mapping[str, Any]) -> bool:
    return check["status"] not in ("passed", "not_applicable")


def _versions(subject: Subject) -> dict[str, object]:
    found: dict[str, object] = {"glasshouse (run)": subject.row.get("version"), "glasshouse (this folder)": __version__}
    found |= {f"{name} (run)": subject.lock.get(name) for name in _LIBRARIES}
    if subject.merged:
        found |= {f"{name} (merge)": version for name, version in _installed().items()}
    return found


def _installed() -> dict[str, str]:
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES[:3]}}


def _table(rows: Mapping[str, object]) -> str:
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ", ".join(f"`{one}`" for one in value)
    return plain(str(value))


def plain(text: str) -> str:
    """Foreign text as Markdown that shows it and does nothing else."""
    return _MARKUP.sub(r"\\\1", visible(text))
