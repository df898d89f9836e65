"""Downloads the adapters and checks them against the digests in the allocation's log.

The outcome goes into the runner's log, and so into the row and its proof: digests, and a code if a check failed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Final

from engine.errors import GlasshouseError
from engine.events import AdapterCollected, AdapterSaved, AdapterSealed
from engine.measure.digest import tensor_digest
from engine.measure.safetensors_header import read_header
from engine.plan import SegmentKind
from engine.records.adapters.base_model import FOLDER_FILE
from engine.records.adapters.tokenizers import TOKENIZER_FILE
from engine.remote.reconnect import Reconnecting
from engine.remote.transfer import download
from engine.runner.context import RunContext
from engine.runner.folder import ADAPTER_CONFIG, ADAPTER_FILES, FILES, INPUTS
from engine.sealing.adapter import AdapterBinding, open_adapter
from engine.sealing.cobblestone import sealed_size
from engine.sealing.memory import wipe
from engine.sealing.operator_keys import OperatorKeys
from engine.system.files import mapped, write_private
from engine.wire import sha256_hex

MAX_ADAPTER_BYTES: Final = 4 * 1024**3
"""For a run whose plan's own adapter was not measured, by an earlier version."""
ADAPTER_SLACK: Final = 1024 * 1024
"""Metadata, padding, and the header of a sealed file."""


async def collect(context: RunContext, link: Reconnecting, run_dir: str) -> None:
    """Download each adapter that the log names, check it, and log the outcome as `adapter.collected`."""
    target = context.folder.adapters
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(target / ADAPTER_CONFIG, context.staging.adapter_config())
    if (digest := context.staging.tokenizer_digest()) is not None:
        write_private(target / TOKENIZER_FILE, digest)
    if model_folder := ((context.folder.read_json(INPUTS) or {}).get(FILES) or {}).get("model"):
        write_private(target / FOLDER_FILE, os.fsencode(model_folder))
    most = _most_bytes(context)
    raw, protected = context.ingest.adapters.get("raw"), context.ingest.adapters.get("protected")
    if raw is not None:
        path = target / ADAPTER_FILES["raw"]
        await link.call(lambda session: download(session, f"{run_dir}/outbox/raw/adapter.safetensors", path, most))
        _log_once(context, await asyncio.to_thread(_check_file, path, raw))
    if isinstance(protected, AdapterSealed):
        sealed = target / ADAPTER_FILES["protected"]
        await link.call(
            lambda session: download(session, f"{run_dir}/outbox/protected/adapter.sealed", sealed, sealed_size(most))
        )
        _log_once(context, await asyncio.to_thread(_open, context, sealed, protected))


def _most_bytes(context: RunContext) -> int:
    """The most that an adapter of this plan can have, by its rank, its targets and the model's shape."""
    known = context.staging.prepared.adapter_bytes
    return MAX_ADAPTER_BYTES if known is None else known + ADAPTER_SLACK


def _log_once(context: RunContext, outcome: AdapterCollected) -> None:
    earlier = [body for body in context.journal.bodies(AdapterCollected) if body.segment == outcome.segment]
    if earlier[-1:] != [outcome]:  # an earlier runner may have logged the same outcome
        context.journal.add(outcome)


def _check_file(path: Path, logged: AdapterSaved | AdapterSealed) -> AdapterCollected:
    """`_check` of a file, which is mapped and not read into memory."""
    with mapped(path) as view:
        return _check(view, logged, "raw")


def _check(view: memoryview, logged: AdapterSaved | AdapterSealed, kind: SegmentKind) -> AdapterCollected:
    """Compare these bytes, and the tensors in them, with the digests in the log."""
    if sha256_hex(view) != logged.sha256:
        return _wrong(kind, "adapter_other_digest")
    try:
        header = read_header(view)
        digest = tensor_digest(
            (name, spec.dtype, spec.shape, view[spec.start : spec.end]) for name, spec in header.items()
        )
    except (GlasshouseError, ValueError):
        return _wrong(kind, "adapter_malformed")
    if digest != logged.tensor_digest:
        return _wrong(kind, "adapter_other_tensors")
    return AdapterCollected(
        segment=kind, status="opened", sha256=logged.sha256, tensor_digest=logged.tensor_digest, size=len(view)
    )


def _wrong(kind: SegmentKind, code: str) -> AdapterCollected:
    return AdapterCollected(segment=kind, status="wrong", code=code)


def _open(context: RunContext, sealed: Path, logged: AdapterSealed) -> AdapterCollected:
    with sealed.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != logged.sealed_sha256:
            return _wrong("protected", "adapter_other_sealed_file")
    try:
        keys = OperatorKeys.load(context.folder.home / "keys")
    except GlasshouseError as error:
        if error.code in {"passphrase_needed", "key_passphrase_needed"}:
            return AdapterCollected(segment="protected", status="sealed", sealed_sha256=logged.sealed_sha256)
        raise
    expected = AdapterBinding(
        context.run_id,
        "protected",
        context.staging.prepared.manifest_digest or "",
        context.ingest.nonce_digest or logged.nonce_sha256,
    )
    try:
        plain = keys.with_recipient(lambda recipient: open_adapter(sealed, recipient, expected))
    except GlasshouseError as error:
        return _wrong("protected", error.code)
    try:
        with memoryview(plain) as view:
            return _check(view, logged, "protected")
    finally:
        wipe(plain)
