"""Builds the public artifact of an ended run from the store, and refuses anything that may not be published."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from engine.attestation.ear import peek_result
from engine.attestation.statements import unverified_payload
from engine.attestation.tokens import unverified_claims
from engine.errors import RefusedError, UsageError, WireError
from engine.events import Chain
from engine.records.artifact import SERIES, Artifact, Bundle, Entry, Heads, Logs, Receipts, Row, dump_artifact, packed
from engine.records.public import is_public
from engine.store.reader import Reader
from engine.store.views import FINAL_RUN_STATES, RunView
from engine.wire import (
    ATTEST_CHALLENGE,
    ATTEST_EVIDENCE,
    ATTEST_RESULT,
    RELEASE_GRANTED,
    Event,
    committed,
    parse,
)

_SECRET_NAMES: Final = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD", "PASSPHRASE")
_SHORTEST_SECRET: Final = 12
_PACKED: Final = re.compile(r"[A-Za-z0-9+/_=.-]{64,}")


def export_run(reader: Reader, run_id: str, *, summary: bool = False) -> Artifact:
    """The artifact of an ended run; `summary` leaves the series out, and the artifact says so.

    Raises `UsageError` (`run_unknown`, `run_unfinished`, `export_unsigned`, `export_earlier_version`) and
    `RefusedError` (`export_private`).
    """
    view = reader.run(run_id)
    if view.summary.source == "published":
        return Artifact(row=dict(view.row or {}), bundle=None)
    if view.row is None or view.summary.state not in FINAL_RUN_STATES:
        raise UsageError(
            f"Run {run_id} has not ended: {view.summary.state}.",
            f"Follow it with `glasshouse watch {run_id}`, and export it afterwards.",
            code="run_unfinished",
        )
    receipts, evidence = reader.receipts(run_id), reader.evidence(run_id)
    if "run" not in receipts or "delegation" not in receipts or "operator" not in evidence:
        raise UsageError(
            f"Run {run_id} ended before anything of it was signed, so it cannot be exported.",
            f"See it with `glasshouse show {run_id}`.",
            code="export_unsigned",
        )
    _refuse_earlier(run_id, view.row)
    artifact = Artifact(row=view.row, bundle=_bundle(reader, run_id, view, receipts, evidence, summary=summary))
    _refuse_private(artifact, reader)
    return artifact


def _bundle(
    reader: Reader,
    run_id: str,
    view: RunView,
    receipts: dict[str, dict[str, Any]],
    evidence: dict[str, Any],
    *,
    summary: bool,
) -> Bundle:
    logs: dict[Chain, list[Event]] = {chain: reader.events(run_id, chain) for chain in ("runner", "pod")}
    series = None if summary else {one.kind: packed(reader.series(run_id, one.kind)) for one in view.segments}
    logged = {event.event for log in logs.values() for event in log}
    appraised = ATTEST_RESULT in logged
    result = _result_in(run_id, evidence) if appraised else None
    return Bundle(
        operator=evidence["operator"]["signing"],
        delegation=receipts["delegation"],
        plan=view.plan or {},
        policy=evidence["policy"] if appraised else None,
        lock=evidence["lock"] if appraised and _is_accepted(result) else None,
        challenge=evidence["challenge"] if ATTEST_CHALLENGE in logged else None,
        evidence=evidence["token"]["token"] if ATTEST_EVIDENCE in logged else None,
        result=result,
        receipts=Receipts(
            release=receipts["release"] if RELEASE_GRANTED in logged else None,
            zeroization=receipts.get("zeroization"),
            run=receipts["run"],
        ),
        logs=Logs(**{chain: [_entry(chain, event) for event in log] for chain, log in logs.items()}),
        heads=Heads(**{chain: log[-1].hash if log else "0" * 64 for chain, log in logs.items()}),
        series=series,
        left_out=[SERIES] if summary else [],
    )


def _refuse_earlier(run_id: str, row: dict[str, Any]) -> None:
    """The signature covers the row as it is, so fields that an earlier version did not know cannot be added."""
    missing = set(Row.__struct_encode_fields__) - set(row)
    if missing:
        raise _earlier(run_id, f"whose row lacks {min(missing)}")


def _earlier(run_id: str, what: str) -> UsageError:
    return UsageError(
        f"Run {run_id} was made by an earlier version, {what}.",
        "Export it with that version of glasshouse.",
        code="export_earlier_version",
    )


def _result_in(run_id: str, evidence: dict[str, Any]) -> str:
    token = evidence["result"].get("token")
    if not isinstance(token, str):
        raise _earlier(run_id, "whose attestation result is not an EAR token")
    return token


def _is_accepted(token: str | None) -> bool:
    result = None if token is None else peek_result(token)
    return result is not None and result.accepted


def _entry(chain: Chain, event: Event) -> Entry:
    body = committed(event.event, event.body)
    if not is_public(chain, event.event, body):
        raise _private(f"an event {event.event} with fields that are not public")
    return Entry(seq=event.seq, ts=event.ts, event=event.event, hash=event.hash, body=body)


def _refuse_private(artifact: Artifact, reader: Reader) -> None:
    """A final check that no text contains a known secret or a path of this machine."""
    texts = list(_texts(dump_artifact(artifact)))
    for what, private, is_path in _secrets(reader):
        if any(_contains(text, private, is_path=is_path) for text in texts):
            raise _private(what)


def _texts(value: object) -> Iterator[str]:
    """Every text, including those inside signed payloads; except digests and packed bytes."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
        if isinstance(value.get("payload"), str):
            yield from _texts(unverified_payload(value))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str) and not _PACKED.fullmatch(value):
        yield value
    elif isinstance(value, str):
        yield from _texts(_claims_in(value))


def _claims_in(text: str) -> object:
    """The claims of a token; None for any other packed text."""
    try:
        return parse(unverified_claims(text))
    except (ValueError, WireError):
        return None


def _contains(text: str, private: str, *, is_path: bool) -> bool:
    if not is_path:
        return private in text
    return re.search(rf"(?<![\w./-]){re.escape(private)}(?![\w.-])", text) is not None


def _private(what: str) -> RefusedError:
    return RefusedError(
        f"The export would contain {what}, which is never published.",
        "Report this as a bug; nothing was written.",
        code="export_private",
    )


def _secrets(reader: Reader) -> list[tuple[str, str, bool]]:
    """For each secret: a description, its text, and whether it is a path."""
    paths = {"the path of the home folder": str(reader.home), "the path of the user's folder": str(Path.home())}
    secrets = [(what, path.rstrip("/"), True) for what, path in paths.items() if len(path) > 1]
    secrets += [
        (f"the value of {name}", value, False)
        for name, value in os.environ.items()
        if name.upper().endswith(_SECRET_NAMES) and len(value) >= _SHORTEST_SECRET
    ]
    return [*secrets, ("a private key", "PRIVATE KEY-----", False)]
