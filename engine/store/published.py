"""The published rows: facts shipped in `data/published_rows.json`, stored next to the operator's own runs."""

from __future__ import annotations

import re
import sqlite3
from typing import Any, Final

from engine.errors import GlasshouseError
from engine.system.resources import data_path
from engine.wire import canonical, parse

FILE: Final = "published_rows.json"
MLP_MODEL: Final = "MLP"
_LEFT_OUT_OF_IDS: Final = re.compile(r"\bNVIDIA\b|\bBlackwell\b|\b\d+GB\b|\bHBM\d\b")


def published_rows() -> list[dict[str, Any]]:
    """Every published row with its `id`, oldest article first within its kind; each overhead is recomputed.

    Raises `GlasshouseError` (`install_broken`) when the file is damaged.
    """
    facts = parse(data_path(FILE).read_bytes())
    rows = [{"id": _row_id(row), **row} for row in [*facts["loraRows"], *facts["mlpRows"]]]
    for row in rows:
        if recomputed_overhead(row) != row["overheadPct"]:
            raise GlasshouseError(
                f"The overhead of the shipped row {row['id']} does not follow from its other values.",
                "Install glasshouse again.",
                code="install_broken",
            )
    return rows


def recomputed_overhead(row: dict[str, Any]) -> float:
    """`(1 - protected rate / raw rate) * 100` in percent, to the two decimals that were published."""
    if row["workload"] == "mlp":
        raw, protected = row["rawEpochsPerSec"], row["protectedEpochsPerSec"]
    else:
        raw = row["rawSteps"] / row["rawElapsedSec"]
        protected = row["protectedSteps"] / row["protectedElapsedSec"]
    return round(float(1 - protected / raw) * 100, 2)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace(".", "")).strip("-")


def _row_id(row: dict[str, Any]) -> str:
    """For example `pub-lora-05b-15m`. The MLP labels are not unique, so their ids contain the GPU and the order too."""
    parts = [row["label"]]
    if row["workload"] == "mlp":
        parts += [_LEFT_OUT_OF_IDS.sub("", row["gpuModel"]), row["order"]]
        return "pub-" + _slug(" ".join(parts))
    return "pub-lora-" + _slug(row["label"])


def search_text(*parts: str | None) -> str:
    """The text that a filter searches: these columns, case-folded."""
    return "\n".join(part.casefold() for part in parts if part)


def insert_published(connection: sqlite3.Connection) -> None:
    """Add the published rows as finished runs; those with step counts get segments too."""
    for row in published_rows():
        created_at = f"{row['published']}T00:00:00.000Z"
        key = connection.execute(
            """INSERT INTO runs (id, source, label, provider, gpu_model, model, segments, run_order, state,
                reason, created_at, target_sec, step_budget, overhead_pct, attestation, key_state,
                runtime_state, cleanup, search)
            VALUES (:id, 'published', :label, :provider, :gpuModel, :model, 'pair', :order, 'finished',
                :scope, :created_at, :targetSec, :stepBudget, :overheadPct, :attestation, 'destroyed',
                :runtimeState, 'gone', :search)""",
            {
                "stepBudget": None,
                "model": MLP_MODEL,
                **row,
                "created_at": created_at,
                "search": search_text(
                    row["label"], row["id"], row.get("model", MLP_MODEL), row["gpuModel"], row["provider"]
                ),
            },
        ).lastrowid
        kinds = ("protected", "raw") if row["order"] == "protected-first" else ("raw", "protected")
        for position, kind in enumerate(kinds if row["workload"] == "lora" else ()):
            connection.execute(
                """INSERT INTO segments (run, kind, position, state, steps, elapsed_ns, final_loss, last_loss,
                    adapter_sha256)
                VALUES (?, ?, ?, 'done', ?, ?, ?, ?, ?)""",
                (
                    key,
                    kind,
                    position,
                    row[f"{kind}Steps"],
                    round(row[f"{kind}ElapsedSec"] * 1e9),
                    row[f"{kind}FinalLoss"],
                    row[f"{kind}FinalLoss"],
                    row[f"{kind}AdapterSha256"],
                ),
            )
        connection.execute(
            "INSERT INTO results (run, at, body, checks) VALUES (?, ?, ?, '[]')",
            (key, created_at, canonical(row).decode()),
        )
