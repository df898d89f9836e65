"""The artifact as a file: complete as JSON, or the row alone as a page (Markdown) or a line (CSV) with its digest."""

from __future__ import annotations

import csv
import io
from typing import Any, Final, Literal

import msgspec

from engine.errors import UsageError, WireError
from engine.records.artifact import MAX_ARTIFACT_BYTES, Artifact, dump_artifact
from engine.records.row import TIER_NOTE
from engine.wire import digest_of, require_bounded

Format = Literal["json", "md", "csv"]
FORMATS: Final = ("json", "md", "csv")
_NESTED: Final = ("format", "bundle", "enforcement", "checks", "segments", "phases", "reasonCodes", "cleanup", "note")
_UNKNOWN: Final = "unknown"
_PAGE: Final = (
    ("Overhead", "overheadPct", " %"),
    ("Timing slack of the overhead, to either side", "timingSlackPct", " %"),
    ("95 % interval of the overhead", "overheadCi95", ""),
    ("Precision within this pair", "overheadPrecisionPct", " %"),
    ("Verdict on the overhead", "verdict", ""),
    ("GPU or CPU", "gpuModel", ""),
    ("Model", "model", ""),
    ("Revision", "modelRevision", ""),
    ("Order", "order", ""),
    ("Target", "targetSec", " s"),
    ("Step budget", "stepBudget", ""),
    ("Samples of the data", "dataSamples", ""),
    ("Samples without an answer left, dropped", "samplesDropped", ""),
    ("Samples cut at the maximum length", "samplesCut", ""),
    ("Answer tokens of the data", "answerTokens", ""),
    ("Answer tokens kept", "answerTokensKept", ""),
    ("Samples held out", "heldOutSamples", ""),
    ("Question", "question", ""),
    ("Answer before the training", "answerBefore", ""),
    ("Answer after the training", "answerAfter", ""),
    ("Diverged", "diverged", ""),
    ("Attestation", "attestation", ""),
    ("Tier", "tier", ""),
    ("EAR status", "earStatus", ""),
    ("Key", "keyState", ""),
    ("Runtime", "runtimeState", ""),
    ("Same allocation", "sameAllocation", ""),
    ("Cleanup", "cleanupState", ""),
    ("Cost", "costUsd", " USD"),
    ("Challenge", "challenge", ""),
    ("Started (UTC)", "startedAt", ""),
    ("Finished (UTC)", "finishedAt", ""),
    ("Plan digest", "planDigest", ""),
)
_OPTIONAL: Final = (
    "modelRevision",
    "targetSec",
    "stepBudget",
    "challenge",
    "question",
    "answerBefore",
    "answerAfter",
)
"""Fields whose null means absent, not unknown."""
_SEGMENT: Final = (
    ("Steps", "Steps", ""),
    ("Updates, settling steps included", "Updates", ""),
    ("Samples used", "SamplesUsed", ""),
    ("Epochs", "Epochs", ""),
    ("Time", "ElapsedSec", " s"),
    ("Final loss", "FinalLoss", ""),
    ("Held-out loss before", "HeldOutLossBefore", ""),
    ("Held-out loss after", "HeldOutLossAfter", ""),
    ("Stopped by", "StopReason", ""),
    ("Adapter SHA-256", "AdapterSha256", ""),
    ("Tensor digest", "TensorDigest", ""),
)


def render(artifact: Artifact, form: Format) -> bytes:
    """The artifact in one of `FORMATS`; only JSON can be verified.

    Raises `UsageError` (`export_too_large`) for JSON that `verify` would not read.
    """
    if form == "json":
        return _json(artifact)
    text = _page(artifact) if form == "md" else _line(artifact)
    return text.encode()


def _json(artifact: Artifact) -> bytes:
    compact = msgspec.json.encode(dump_artifact(artifact))
    data: bytes = msgspec.json.format(compact, indent=2) + b"\n"
    if len(data) > MAX_ARTIFACT_BYTES:
        data = compact + b"\n"
    try:
        require_bounded(data)
    except WireError as error:
        raise _too_large("The artifact would have more values than `verify` reads") from error
    if len(data) > MAX_ARTIFACT_BYTES:
        raise _too_large(f"The artifact would have {len(data):,} bytes, and `verify` reads {MAX_ARTIFACT_BYTES:,}")
    return data


def _too_large(why: str) -> UsageError:
    return UsageError(
        f"{why}.",
        "Add --summary to leave out the step series. Or plan shorter segments: two of four hours fit.",
        code="export_too_large",
    )


def artifact_digest(artifact: Artifact) -> str:
    """SHA-256 in hex over the artifact's canonical JSON."""
    return digest_of(dump_artifact(artifact))


def _line(artifact: Artifact) -> str:
    row = {name: value for name, value in dump_artifact(artifact).items() if name not in _NESTED}
    cleanup: dict[str, Any] = artifact.row.get("cleanup") or {}
    row |= cleanup | {"artifactSha256": artifact_digest(artifact)}
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(row), lineterminator="\n")
    writer.writeheader()
    writer.writerow({name: _cell(value) for name, value in row.items()})
    return out.getvalue()


def _cell(value: object) -> object:
    """A CSV cell; unknown is empty. Text that a spreadsheet would run as a formula gets a leading apostrophe."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if isinstance(value, str):
        value = "".join(c if c.isprintable() else " " for c in value)
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value


def _page(artifact: Artifact) -> str:
    row = artifact.row
    lines = [f"# {_text(row['label'])}", "", f"Run {_text(row['id'])}, {_text(row.get('state', 'published'))}.", ""]
    lines += ["| | |", "|---|---|", *(_pair(row, *entry) for entry in _PAGE if _shown(row, entry[1])), ""]
    lines += ["| | raw | protected |", "|---|---|---|"]
    for title, suffix, unit in _SEGMENT:
        cells = [_value(row.get(f"{kind}{suffix}"), unit) for kind in ("raw", "protected")]
        lines.append(f"| {title} | {cells[0]} | {cells[1]} |")
    checks = row.get("checks") or []
    if checks:
        lines += ["", "| Check | Status | Reason |", "|---|---|---|"]
        lines += [f"| {_text(c['name'])} | {_text(c['status'])} | {_text(c['reason'])} |" for c in checks]
        lines += ["", f"Clean: {_value(row.get('clean'), '')}."]
    lines += ["", *_provenance(artifact), ""]
    return "\n".join(lines)


def _provenance(artifact: Artifact) -> list[str]:
    if artifact.bundle is None:
        return ["A published figure: nothing of it was signed, and nothing of it can be verified."]
    left_out = " It is a summary: the step series were left out." if artifact.bundle.left_out else ""
    return [
        TIER_NOTE,
        "",
        f"This page proves nothing by itself. The JSON export (canonical SHA-256 {artifact_digest(artifact)}) can be "
        f"checked offline with `glasshouse verify FILE`.{left_out}",
    ]


def _shown(row: dict[str, Any], name: str) -> bool:
    return name in row and (row[name] is not None or name not in _OPTIONAL)


def _pair(row: dict[str, Any], title: str, name: str, unit: str) -> str:
    return f"| {title} | {_value(row.get(name), unit)} |"


def _value(value: object, unit: str) -> str:
    if value is None:
        return _UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " to ".join(f"{part}" for part in value)
    return f"{_text(value)}{unit}"


def _text(value: object) -> str:
    """Text for a Markdown cell, with all markup escaped."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!~$" else c for c in text)
