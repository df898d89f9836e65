"""The shipped data files by the names that plans use."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from engine.errors import PlanError
from engine.system.resources import data_path

BUILTIN: Final = {
    "sample-corpus": "sample_corpus.jsonl",
    "demo-facts": "demo_facts.jsonl",
    "demo-heldout": "demo_heldout.jsonl",
}


def builtin_file(name: str) -> Path:
    """The file of a built-in data set; raises `PlanError` (`data_unknown`)."""
    try:
        return data_path(BUILTIN[name])
    except KeyError:
        raise PlanError(
            f"There is no built-in data called {name[:80]!r}.",
            f"Choose one of: {', '.join(BUILTIN)}.",
            code="data_unknown",
        ) from None
