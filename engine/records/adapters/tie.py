"""Whether a folder holds a row's adapter, and who signed it: digest, configuration, base model, files, signer."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from engine.attestation.reasons import refusal
from engine.attestation.signers import judge_signer, successors
from engine.errors import GlasshouseError, RefusedError, UsageError
from engine.payload.listing import SINGLE
from engine.payload.tokenizer_files import MORE_TEMPLATES, is_extra
from engine.plan import Plan, load_plan
from engine.records.adapters.base_model import GENERATION_CONFIG, base_files, tiny_files
from engine.records.adapters.config import ADAPTER_CONFIG, BASE, MAX_CONFIG_BYTES, differences, read_config
from engine.records.adapters.folder import MERGED, WEIGHTS
from engine.records.adapters.signature import (
    IGNORED,
    MAX_FILES,
    MAX_SIGNATURE_BYTES,
    SIGNATURE,
    SignedFolder,
    read_signature,
)
from engine.records.adapters.tokenizers import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from engine.records.artifact import Artifact, Bundle
from engine.records.trust import Anchors
from engine.records.verify import Proven
from engine.sealing.pem import fingerprint, key_id
from engine.system.files import open_named, read_named
from engine.wire import sha256_hex

MAX_TEMPLATE_BYTES: Final = 1024 * 1024
MAX_TEMPLATES: Final = 16
_KINDS: Final = ("protected", "raw")
_MODEL_FILES: Final = ("config.json", SINGLE, "model.safetensors.index.json")


class Tie(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The result. `segment`: whose adapter it is, None if it is not the row's. `signed` is False without a signature.

    `tied`: no proof failed. Without a signature only adapter, configuration and base model were checked.
    """

    segment: str | None
    signed: bool
    signer: str | None
    tied: bool
    proofs: tuple[Proven, ...]


def tie(artifact: Artifact, folder: Path, anchors: Anchors) -> Tie:
    """Compare a folder with a row; the row itself is verified elsewhere.

    Raises `UsageError` (`adapter_folder_unusable`, `adapter_merged`), and `RefusedError` (`artifact_unsigned`).
    """
    if artifact.bundle is None:
        raise refusal("artifact_unsigned")
    _require_adapter(folder)
    case = _Case(artifact, artifact.bundle, folder, anchors)
    proofs = [
        _tried("adapter", case.adapter),
        _tried("adapter_config", case.config),
        _tried("adapter_template", case.template),
        _tried("adapter_base", case.base),
        _tried("adapter_signature", case.signature),
    ]
    if case.signed is not None:
        proofs += [_tried("adapter_files", case.files), _tried("adapter_signer", case.signer)]
    return Tie(
        segment=case.segment,
        signed=case.signed is not None,
        signer=None if case.signed is None else fingerprint(case.signed.operator),
        tied=all(proof.status != "failed" for proof in proofs),
        proofs=tuple(proofs),
    )


def _require_adapter(folder: Path) -> None:
    """Refuse what is no adapter's folder, before anything in it is read."""
    if not folder.is_dir():
        raise UsageError(
            f"There is no folder {folder}.", "Give --adapter an adapter's folder.", code="adapter_folder_unusable"
        )
    if (folder / WEIGHTS).exists():
        return
    if (folder / MERGED).exists() or any((folder / name).exists() for name in _MODEL_FILES):
        raise UsageError(
            f"{folder} holds a merged model: a row proves the adapter, and a merged model does not show which one it "
            "was made of.",
            "Give --adapter the folder that `glasshouse adapter` wrote without --merged.",
            code="adapter_merged",
        )
    raise UsageError(
        f"{folder} has no {WEIGHTS}.", "Give --adapter an adapter's folder.", code="adapter_folder_unusable"
    )


class _NothingToCheckError(Exception):
    """The message says why."""


class _UnsignedError(Exception):
    """There is no signature."""


def _tried(name: str, proof: Callable[[], str]) -> Proven:
    try:
        return Proven(name=name, status="passed", reason=proof())
    except _NothingToCheckError as none:
        return Proven(name=name, status="not_applicable", reason=str(none))
    except _UnsignedError:
        return Proven(
            name=name,
            status="unknown",
            reason="The folder has no signature: nothing shows who made it, and its other files were not checked.",
            code="adapter_unsigned",
            hint="Ask for the folder signed with `glasshouse adapter --sign`.",
        )
    except GlasshouseError as error:
        return Proven(name=name, status="failed", reason=error.message, code=error.code, hint=error.hint)
    except OSError as error:
        reason = f"A file of the folder cannot be read: {error.strerror}."
        hint = "Copy the folder to a place where you may read it."
        return Proven(name=name, status="failed", reason=reason, code="adapter_file_unreadable", hint=hint)


@dataclass
class _Case:
    artifact: Artifact
    bundle: Bundle
    place: Path
    anchors: Anchors
    segment: str | None = None
    signed: SignedFolder | None = None

    @property
    def plan(self) -> Plan:
        return load_plan(self.bundle.plan)

    @property
    def has_base(self) -> bool:
        return (self.place / BASE).is_dir()

    def adapter(self) -> str:
        """The weights are those whose digest the row has."""
        with open_named(self.place / WEIGHTS) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        row = self.artifact.row
        self.segment = next((kind for kind in _KINDS if row.get(f"{kind}AdapterSha256") == digest), None)
        if self.segment is None:
            raise RefusedError(
                f"{WEIGHTS} is not an adapter of this row: its SHA-256 is {digest}.",
                "Give the row of this adapter, or the adapter of this row.",
                code="adapter_other",
            )
        return f"the row's {self.segment} adapter, {digest}"

    def config(self) -> str:
        """The configuration is the plan's."""
        config = read_config(read_named(self.place / ADAPTER_CONFIG, MAX_CONFIG_BYTES))
        if wrong := differences(self.plan, config, beside=self.has_base):
            raise RefusedError(
                f"{ADAPTER_CONFIG} is not what the row's plan says: {', '.join(wrong)[:200]}.",
                "Do not use this folder: with another configuration the adapter computes something else.",
                code="adapter_config_differs",
            )
        lora = self.plan.lora
        return f"as planned: rank {lora.r}, alpha {lora.alpha}, {', '.join(lora.targets)}"

    def template(self) -> str:
        """The chat template is the one whose digest the plan states."""
        counts = self.plan.data.counts
        if counts is None or counts.template is None:
            raise _NothingToCheckError("the plan states no chat template")
        templates = _templates(self.place)
        if not templates:
            raise _NothingToCheckError("the folder has no chat template")
        if counts.template not in _template_digests(templates):
            raise RefusedError(
                f"{CHAT_TEMPLATE} is not the chat template that the run trained with.",
                "Do not use this folder: with another template the model sees other text than in training.",
                code="adapter_template_differs",
            )
        return f"the one that the run trained with, {counts.template}"

    def base(self) -> str:
        """The base model beside the adapter, if there is one, is the one that the run used."""
        if not self.has_base:
            raise _NothingToCheckError("the folder has no base model")
        plan, place = self.plan, self.place / BASE
        if plan.model.source == "hub":
            raise _other_base("the plan's is on the hub")
        if plan.model.source == "folder":
            files = base_files(plan, None, place)
        else:
            files = tiny_files()
            for name, content in files.items():
                if isinstance(content, bytes) and read_named(place / name, len(content)) != content:
                    raise _other_base(f"{name} is not the shipped model's")
        if others := [path.name for path in place.iterdir() if not (path.name in files or _may_add(path.name))]:
            raise _other_base(f"it holds {_some(sorted(others))}, which does not belong to it")
        return "the one that the run used"

    def signature(self) -> str:
        """The signature is valid, whoever made it."""
        try:
            data = read_named(self.place / SIGNATURE, MAX_SIGNATURE_BYTES)
        except FileNotFoundError as error:
            raise _UnsignedError from error
        self.signed = read_signature(data)
        return f"valid, over {len(self.signed.files)} files, made at {self.signed.issued.isoformat()}"

    def files(self) -> str:
        """The folder's files are exactly those that were signed."""
        signed = {} if self.signed is None else self.signed.files
        there = _walk(self.place)
        if extra := sorted(set(there) - set(signed)):
            raise RefusedError(
                f"The signature does not cover {_some(extra)}.",
                "Remove what was added (a download may leave `.cache`), or ask for the folder again.",
                code="adapter_file_unsigned",
            )
        if absent := sorted(set(signed) - set(there)):
            raise RefusedError(
                f"The folder lacks signed files: {_some(absent)}.",
                "Copy the whole folder again.",
                code="adapter_file_missing",
            )
        for name, path in sorted(there.items()):
            with open_named(path) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != signed[name]:
                    raise RefusedError(
                        f"{_some([name])} was changed after the folder was signed.",
                        "Do not use this folder: ask for it again.",
                        code="adapter_file_changed",
                    )
        return ", ".join(sorted(there))[:400]

    def signer(self) -> str:
        """The signer is the row's operator, or another whom the verifier trusts."""
        signed, anchors = self.signed, self.anchors
        if signed is None:
            raise _UnsignedError
        known = judge_signer(signed.operator, signed.issued, trusted=anchors.trusted, revocations=anchors.revocations)
        operator = key_id(bytes.fromhex(self.bundle.operator))
        if known.key_id == operator:
            return f"{known.fingerprint}, the row's operator"
        if known.key_id in successors(operator, anchors.trusted.statements + anchors.revocations):
            return f"{known.fingerprint}, a later key of the row's operator"
        return f"{known.fingerprint}, which you trust; not the row's operator"


def _may_add(name: str) -> bool:
    """True for what a model folder may have beside configuration and weights; nothing of it is code."""
    own = (GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE, MORE_TEMPLATES)
    return name in own or is_extra(name)


def _templates(folder: Path) -> dict[str, str]:
    """The chat templates in a folder by name, as transformers finds them."""
    more = sorted((folder / MORE_TEMPLATES).glob("*.jinja"))[:MAX_TEMPLATES]
    default = folder / CHAT_TEMPLATE
    places = {path.stem: path for path in more} | ({"default": default} if default.exists() else {})
    return {name: read_named(path, MAX_TEMPLATE_BYTES).decode("utf-8", "replace") for name, path in places.items()}


def _template_digests(templates: dict[str, str]) -> set[str]:
    """What a plan may state of them: a digest over names and texts, or of the only text."""
    digests = {sha256_hex(json.dumps(templates, sort_keys=True).encode())}
    return digests | {sha256_hex(text.encode()) for text in templates.values() if len(templates) == 1}


def _other_base(why: str) -> RefusedError:
    return RefusedError(
        f"The base model in {BASE}/ is not the plan's: {why}.",
        f"Remove {BASE}/ and load the base model from where you trust it.",
        code="adapter_base_differs",
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in names[:3])[:200]
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _walk(folder: Path) -> dict[str, Path]:
    """Every file but the signature and what the format leaves out; links and special files are refused."""
    found: dict[str, Path] = {}
    for place, folders, files in os.walk(folder, onerror=_raise):
        here = Path(place)
        top = here == folder
        folders[:] = [name for name in folders if not (top and name in IGNORED)]
        kept = [name for name in files if not (top and (name in IGNORED or name == SIGNATURE))]
        for path in (here / name for name in (*folders, *kept)):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise RefusedError(
                    f"{_some([str(path.relative_to(folder))])} is a link or no regular file.",
                    "Copy the folder with regular files alone.",
                    code="adapter_file_refused",
                )
        found |= {str((here / name).relative_to(folder)): here / name for name in kept}
        if len(found) > MAX_FILES:
            raise RefusedError(
                f"The folder has more than {MAX_FILES:,} files.",
                "Give --adapter the adapter's own folder.",
                code="adapter_file_refused",
            )
    return found


def _raise(error: OSError) -> Any:
    raise error
