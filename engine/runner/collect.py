"""Bringing the adapters home, and seeing that they are what the allocation's log says.

What was seen goes into the runner's log, and so into the row and its proof: digests, and a code where it is wrong.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

from engine.errors import GlasshouseError
from engine.measure.digest import tensor_digest
from engine.measure.safetensors_header import read_header
from engine.remote.reconnect import Reconnecting
from engine.remote.transfer import download
from engine.runner.context import RunContext
from engine.runner.folder import ADAPTER_CONFIG, ADAPTER_FILES
from engine.sealing.adapter import AdapterBinding, open_adapter
from engine.sealing.operator_keys import OperatorKeys
from engine.system.files import write_private
from engine.wire import ADAPTER_COLLECTED, sha256_hex

MAX_ADAPTER_BYTES: Final = 4 * 1024**3


async def collect(context: RunContext, link: Reconnecting, run_dir: str) -> None:
    """Download each adapter that the log names, check it, and log what was seen as `adapter.collected`."""
    target = context.folder.adapters
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(target / ADAPTER_CONFIG, context.staging.adapter_config())
    if "raw" in context.ingest.adapters:
        path = target / ADAPTER_FILES["raw"]
        await link.call(
            lambda session: download(session, f"{run_dir}/outbox/raw/adapter.safetensors", path, MAX_ADAPTER_BYTES)
        )
        _note(context, "raw", _judge(path.read_bytes(), context.ingest.adapters["raw"]))
    if "protected" in context.ingest.adapters:
        sealed = target / ADAPTER_FILES["protected"]
        await link.call(
            lambda session: download(session, f"{run_dir}/outbox/protected/adapter.sealed", sealed, MAX_ADAPTER_BYTES)
        )
        _note(context, "protected", _open(context, sealed, context.ingest.adapters["protected"]))


def _note(context: RunContext, kind: str, seen: dict[str, Any]) -> None:
    body = {"segment": kind, **seen}
    if context.journal.last(ADAPTER_COLLECTED, kind) != body:  # an earlier runner may have come to this
        context.journal.add(ADAPTER_COLLECTED, body)


def _judge(plain: bytes, named: dict[str, Any]) -> dict[str, Any]:
    """Whether these bytes are the artifact, and the tensors, that the log names."""
    if sha256_hex(plain) != named.get("sha256"):
        return _wrong("adapter_other_digest")
    view = memoryview(plain)
    try:
        header = read_header(view)
        found = tensor_digest(
            (name, spec.dtype, spec.shape, view[spec.start : spec.end]) for name, spec in header.items()
        )
    except (GlasshouseError, ValueError):
        return _wrong("adapter_malformed")
    if found != named.get("tensorDigest"):
        return _wrong("adapter_other_tensors")
    return {"status": "opened", "sha256": named["sha256"], "tensorDigest": named["tensorDigest"], "size": len(plain)}


def _wrong(code: str) -> dict[str, Any]:
    return {"status": "wrong", "code": code}


def _open(context: RunContext, sealed: Path, named: dict[str, Any]) -> dict[str, Any]:
    with sealed.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != named.get("sealedSha256"):
            return _wrong("adapter_other_sealed_file")
    try:
        keys = OperatorKeys.load(context.folder.home / "keys")
    except GlasshouseError as error:
        if error.code in {"passphrase_needed", "key_passphrase_needed"}:
            return {"status": "sealed", "sealedSha256": named.get("sealedSha256")}
        raise
    expected = AdapterBinding(
        context.run_id,
        "protected",
        context.staging.prepared.manifest_digest or "",
        context.ingest.nonce_digest or str(named.get("nonceSha256", "")),
    )
    try:
        plain = keys.with_recipient(lambda recipient: open_adapter(sealed, recipient, expected))
        return _judge(plain, named)
    except GlasshouseError as error:
        return _wrong(error.code)
