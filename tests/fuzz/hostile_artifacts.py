"""Artifacts that cost a careless verifier memory or time, made from the stored honest one.

Some carry valid signatures: the attacker has keys of its own, and every proof behind the signatures is reached.
"""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.attestation.receipts import delegate, run_receipt
from engine.measure.series import pack_series
from engine.measure.stepchain import step_chain
from engine.records.artifact import MAX_ARTIFACT_BYTES, MAX_STEPS
from engine.store.progress import Steps, body_of
from engine.wire import GENESIS, TRAIN_FINISHED, TRAIN_PROGRESS, committed, digest_of, event_hash, sha256_hex

STORED: Final = Path(__file__).parents[1] / "vectors" / "artifact" / "row.json"
SLOW_NANOS: Final = 4_000_000_000
"""A step longer than a block of the bootstrap: every step is a block of its own."""
_ROOM: Final = 2048

Document = dict[str, Any]


@cache
def _text() -> bytes:
    return STORED.read_bytes()


def honest() -> Document:
    """A fresh copy of the stored artifact."""
    document: Document = json.loads(_text())
    return document


def with_steps(steps: int, nanos: int = SLOW_NANOS) -> Document:
    """The stored artifact with series of so many equal steps, whose log says so; nothing is signed again."""
    document = honest()
    losses = np.ones(steps, dtype="<f4")
    taken = np.full(steps, nanos, dtype="<u8")
    packed = pack_series(losses, taken)
    bundle = document["bundle"]
    bundle["plan"]["target"] = {"seconds": 600_000.0, "steps": None}
    for kind in bundle["series"]:
        data = base64.b64encode(packed).decode()
        bundle["series"][kind] = {"steps": steps, "sha256": sha256_hex(packed), "data": data}
    brought = body_of(Steps("raw", 0, losses.tobytes(), taken.tobytes()))
    digest = committed(TRAIN_PROGRESS, brought)["sha256"]
    entries: list[Document] = []
    for entry in bundle["logs"]["pod"]:
        if entry["event"] == TRAIN_PROGRESS:
            if entry["body"]["from"]:
                continue
            entry["body"] |= {"to": steps, "sha256": digest}
        if entry["event"] == TRAIN_FINISHED:
            chain = step_chain(losses.tolist(), taken.tolist())
            entry["body"] |= {"steps": steps, "elapsedNs": steps * nanos, "stepChain": chain, "finalLoss": 1.0}
        entries.append({**entry, "seq": len(entries)})
    bundle["logs"]["pod"] = entries
    return document


def signed(document: Document) -> Document:
    """The document with its logs chained and everything signed again, by keys that nobody knows."""
    forged = copy.deepcopy(document)
    bundle = forged["bundle"]
    for name, log in bundle["logs"].items():
        bundle["heads"][name] = _chained(log, forged["id"])
    forged["planDigest"] = digest_of(bundle["plan"])
    operator, run = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    delegation = delegate(
        operator,
        run.public_key().public_bytes_raw(),
        run_id=forged["id"],
        plan_digest=forged["planDigest"],
        seconds=1e6,
        now=datetime.now(UTC),
    )
    earlier = json.loads(base64.b64decode(bundle["receipts"]["run"]["payload"]))["predicate"]
    bundle["receipts"]["run"] = run_receipt(
        run_id=forged["id"],
        row={name: value for name, value in forged.items() if name not in ("format", "bundle")},
        plan_digest=forged["planDigest"],
        manifest_sha256=earlier["manifest_sha256"],
        adapters=earlier["adapters"],
        series={kind: _chain_of(blob) for kind, blob in bundle["series"].items()},
        runner_head=bundle["heads"]["runner"],
        pod_head=bundle["heads"]["pod"],
        delegation=delegation,
        bundle_sha256=earlier["bundle_sha256"],
        challenge=earlier["challenge"],
        privates=[run],
    )
    bundle |= {"delegation": delegation, "operator": operator.public_key().public_bytes_raw().hex()}
    return forged


def _chained(log: list[Document], run_id: str) -> str:
    head = GENESIS
    for place, entry in enumerate(log):
        entry["seq"] = place
        head = entry["hash"] = event_hash(place, head, entry["ts"], entry["event"], run_id, entry["body"])
    return head


def _chain_of(blob: Document) -> str:
    from engine.measure.series import unpack_series

    losses, nanos = unpack_series(base64.b64decode(blob["data"]))
    return step_chain(losses.tolist(), nanos.tolist())


def _dumped(document: Document) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _filled(piece: bytes, joint: bytes, most: int = MAX_ARTIFACT_BYTES) -> bytes:
    """The piece as often as there is room in an artifact beside the honest one."""
    count = (most - len(_text()) - _ROOM) // len(piece + joint)
    return ((piece + joint) * count)[: count * len(piece + joint) - len(joint)]


def _planted(text: bytes) -> bytes:
    """The honest artifact with `text` in place of its plan's label."""
    document = honest()
    document["bundle"]["plan"]["label"] = "@planted@"
    return _dumped(document).replace(b'"@planted@"', text)


def _many_entries() -> bytes:
    """As many log entries as the limits allow, in a document that is signed."""
    document = honest()
    pod = document["bundle"]["logs"]["pod"]
    last = pod[-1]
    pod[-1:] = [{**last, "event": "log", "body": {"sha256": "0" * 64}} for _ in range(90_000)]
    return _dumped(signed(document))


def _many_codes() -> bytes:
    document = honest()
    document["reasonCodes"] = ["a"] * 1_200_000
    return _dumped(signed(document))


HOSTILE: Final[dict[str, Callable[[], bytes]]] = {
    "12,000 slow steps": lambda: _dumped(with_steps(12_000)),
    "60,000 slow steps": lambda: _dumped(with_steps(60_000)),
    "60,000 slow steps, signed": lambda: _dumped(signed(with_steps(60_000))),
    "most steps, signed": lambda: _dumped(signed(with_steps(MAX_STEPS))),
    "a series beyond the limit": lambda: _dumped(signed(with_steps(MAX_STEPS + 1))),
    "most entries, signed": _many_entries,
    "most codes, signed": _many_codes,
    "empty lists": lambda: _planted(b"[" + _filled(b"[]", b",") + b"]"),
    "empty lists within the limit": lambda: _planted(b"[" + b",".join([b"[]"] * 700_000) + b"]"),
    "small objects": lambda: _planted(b"[" + _filled(b'{"a":{}}', b",") + b"]"),
    "objects within the limit": lambda: _planted(b"[" + b",".join([b'{"a":{}}'] * 350_000) + b"]"),
    "keys": lambda: _planted(b"{" + b",".join(b'"k%d":0' % n for n in range(700_000)) + b"}"),
    "brackets": lambda: _planted(_filled(b"[", b"")),
    "an open text of quotes": lambda: _planted(b'"' + _filled(rb"\"", b"")),
    "one long text": lambda: _planted(b'"' + _filled(b"a", b"") + b'"'),
    "one long text of wide characters": lambda: _planted(b'"' + _filled(b"a", b"") + "\U0001f600".encode() + b'"'),
    "escaped surrogates": lambda: _planted(b'"' + _filled(rb"\ud83d\ude00", b"") + b'"'),
    "a long number": lambda: _planted(_filled(b"9", b"")),
}
"""By name, an artifact's bytes; each is within the limit of an artifact's size."""
