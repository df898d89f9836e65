"""The folder of an adapter or of a merged model: every file that the ecosystem's tools expect, all or none of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from engine.errors import GlasshouseError, RefusedError, UsageError
from engine.payload.tokenizer_files import TokenizerFiles
from engine.plan import PLAN_VERSION, Plan, load_plan
from engine.records.adapters.base_model import Files, base_files
from engine.records.adapters.card import README, Kind, Subject, model_card
from engine.records.adapters.config import ADAPTER_CONFIG, BASE, differences, read_config, with_base
from engine.records.adapters.merge import merge, require_libraries
from engine.records.adapters.signing import require_library, sign_folder
from engine.records.adapters.tokenizers import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, named
from engine.sealing.operator_keys import OperatorKeys
from engine.system.new_folder import is_free, new_folder, write_file

WEIGHTS: Final = "adapter_model.safetensors"
MERGED: Final = "glasshouse_merged.json"
"""In a merged folder: the adapter that it was made of, so that it is not taken for one."""


class Adapter(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """An opened adapter of a run, and what the run recorded. `weights` and `config` are the files as collected.

    `evidence`: the run's evidence documents by kind. `tokenizer` is None if an earlier version kept none, `plan` if
    its plans are not this version's.
    """

    plan: Plan | None
    row: Mapping[str, Any]
    kind: Kind
    weights: bytes | bytearray | memoryview
    config: bytes
    tokenizer: TokenizerFiles | None
    evidence: Mapping[str, Any]

    @property
    def model_digest(self) -> str | None:
        """The digest of the base model that the runner recorded."""
        return (self.evidence.get("payload") or {}).get("modelDigest")


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What to write. `base` is the base model's folder, if it is known; `sign` needs the operator's keys."""

    merged: bool = False
    with_base: bool = False
    sign: bool = False
    base: Path | None = None


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a written folder by their paths in it, sorted, and the usual ones that it lacks."""

    files: tuple[str, ...]
    missing: tuple[str, ...]


def plan_of(stored: dict[str, Any] | None) -> Plan | None:
    """A run's plan; None for one of a version whose plans this one cannot read."""
    if stored is None or stored.get("version") != PLAN_VERSION:
        return None
    return load_plan(stored)


def check_wishes(plan: Plan | None, wishes: Wishes, target: Path) -> None:
    """Check that the folder can be written as wished; needs no key and opens nothing.

    Raises `UsageError` (`usage`, `plan_older`, `folder_occupied`) and `MissingExtraError`.
    """
    _check_options(plan, wishes)
    if wishes.merged:
        require_libraries()
    if wishes.sign:
        require_library()
    if not is_free(target):
        raise occupied(target)


def _check_options(plan: Plan | None, wishes: Wishes) -> None:
    if wishes.merged and wishes.with_base:
        raise UsageError("A merged model contains its base model.", "Give --merged or --with-base, not both.")
    if plan is None and (wishes.merged or wishes.with_base):
        raise UsageError(
            "An earlier version made the plan of this run, and this one does not know its base model.",
            "Open the adapter alone, or use the version that ran it.",
            code="plan_older",
        )
    if wishes.with_base and plan is not None and plan.model.source == "hub":
        raise UsageError(
            "The base model is on the hub, and the adapter names it with its revision.", "Remove --with-base."
        )
    if wishes.base is not None and not (wishes.merged or wishes.with_base):
        raise UsageError("--base is for --merged and --with-base.", "Remove it, or add one of them.")
    if wishes.base is not None and plan is not None and plan.model.source == "tiny":
        raise UsageError("The run used the shipped tiny model, which needs no folder.", "Remove --base.")


def write_adapter(adapter: Adapter, wishes: Wishes, target: Path, keys: OperatorKeys | None) -> Written:
    """Write the folder `target`, or nothing. `keys` are needed to sign.

    Raises `RefusedError` (`adapter_config_differs`), as `base_files` and `merge`, `UsageError` (`folder_occupied`) and
    `GlasshouseError` (`folder_unwritable`).
    """
    config = read_config(adapter.config)
    if wrong := () if adapter.plan is None else differences(adapter.plan, config):
        raise RefusedError(
            f"The adapter's configuration is not that of the run's plan: {', '.join(wrong)}.",
            "The file was replaced or modified; run the segment again.",
            code="adapter_config_differs",
        )
    base: Files = {}
    if adapter.plan is not None and (wishes.merged or wishes.with_base):
        base = base_files(adapter.plan, adapter.model_digest, wishes.base)
    try:
        with new_folder(target) as part:
            _fill(part, adapter, wishes, base, target.absolute())
            if keys is not None:
                sign_folder(part, keys, run_id=str(adapter.row["id"]))
            written = Written(files=_listed(part), missing=missing(adapter.tokenizer))
    except FileExistsError as error:
        raise occupied(target) from error
    except OSError as error:
        raise GlasshouseError(
            f"{target} cannot be written: {error.strerror}.",
            "Free some space, or choose another folder for -o.",
            code="folder_unwritable",
        ) from error
    return written


def occupied(folder: Path) -> UsageError:
    """The refusal of a folder in which something is."""
    return UsageError(
        f"{folder} already exists and is not an empty folder.", "Give -o another folder.", code="folder_occupied"
    )


def _fill(part: Path, adapter: Adapter, wishes: Wishes, base: Files, target: Path) -> None:
    tokenizer = {} if adapter.tokenizer is None else tokenizer_folder(adapter.tokenizer)
    config = adapter.config
    if wishes.with_base:
        config = with_base(read_config(adapter.config), str(target / BASE))
        for name, content in (base | tokenizer).items():
            write_file(part / BASE / name, content)
    if wishes.merged:
        merge(base, adapter.weights, config, part)
        for file in part.iterdir():
            file.chmod(0o600)
        made_of = {"run": adapter.row["id"], "segment": adapter.kind, "adapter": _adapter_digest(adapter)}
        write_file(part / MERGED, json.dumps(made_of).encode())
    else:
        write_file(part / WEIGHTS, memoryview(adapter.weights))
        write_file(part / ADAPTER_CONFIG, config)
    for name, content in tokenizer.items():
        write_file(part / name, content)
    write_file(part / README, model_card(_subject(adapter, wishes)))


def _adapter_digest(adapter: Adapter) -> Any:
    return adapter.row.get(f"{adapter.kind}AdapterSha256")


def _subject(adapter: Adapter, wishes: Wishes) -> Subject:
    return Subject(
        plan=adapter.plan,
        row=adapter.row,
        kind=adapter.kind,
        lock=adapter.evidence.get("lock") or {},
        merged=wishes.merged,
        beside=wishes.with_base,
        signed=wishes.sign,
        missing=missing(adapter.tokenizer),
    )


def missing(tokenizer: TokenizerFiles | None) -> tuple[str, ...]:
    """The usual files of a tokenizer that are not there."""
    there = {} if tokenizer is None else named(tokenizer)
    return tuple(name for name in (TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE) if name not in there)


def tokenizer_folder(files: TokenizerFiles) -> Files:
    """The files by name, with one chat template: the one that the run trained with.

    A template inside tokenizer_config.json is left out where there is one of its own: tools differ in which they take.
    """
    written: Files = {**named(files)}
    if files.chat_template is not None and files.tokenizer_config is not None:
        written[TOKENIZER_CONFIG] = _without_template(files.tokenizer_config)
    return written


def _without_template(config: bytes) -> bytes:
    try:
        parsed = json.loads(config)
    except (ValueError, RecursionError):
        return config
    if not isinstance(parsed, dict) or "chat_template" not in parsed:
        return config
    del parsed["chat_template"]
    return json.dumps(parsed, indent=2, ensure_ascii=False).encode("utf-8", "replace")


def _listed(folder: Path) -> tuple[str, ...]:
    return tuple(
        sorted(str(Path(place, file).relative_to(folder)) for place, _, files in os.walk(folder) for file in files)
    )
