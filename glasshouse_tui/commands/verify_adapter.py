"""`verify --adapter`: whether a folder holds the adapter of the row that is verified, and who signed it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from glasshouse_tui.commands.output import as_builtins, plain
from glasshouse_tui.commands.proof_text import proof_lines

if TYPE_CHECKING:
    from engine.records.adapters.tie import Tie
    from engine.records.trust import Anchors

_FAILED: Final = 1
_NOT_CLEAN: Final = 3


def with_adapter(
    document: dict[str, Any], code: int, content: bytes, folder: Path, known: Anchors
) -> tuple[dict[str, Any], int]:
    """A verdict on a row (see `export`) with the one on the folder, and the exit code of both.

    Raises `UsageError` for what is no adapter's folder.
    """
    from engine.records.adapters.tie import tie
    from engine.records.artifact import parse_artifact

    result = tie(parse_artifact(content), folder, known)
    text = f"{document['text']}\n{_text(folder, result, genuine=bool(document['genuine']))}"
    worst = _FAILED if not result.tied else code if result.signed or code == _FAILED else _NOT_CLEAN
    return {**document, "adapter": {"folder": str(folder), **as_builtins(result)}, "text": text}, worst


def _text(folder: Path, result: Tie, *, genuine: bool) -> str:
    return "\n".join([f"{plain(str(folder))}:", *proof_lines(result.proofs), _verdict(result, genuine=genuine)])


def _verdict(result: Tie, *, genuine: bool) -> str:
    if not result.tied:
        codes = dict.fromkeys(proof.code for proof in result.proofs if proof.status == "failed")
        return f"The folder is NOT TIED to this row: {', '.join(codes)}."
    row = "" if genuine else " The row itself is not genuine, so this says nothing."
    if not result.signed:
        return f"The folder holds the row's {result.segment} adapter, UNSIGNED: nobody vouches for its files.{row}"
    return f"The folder holds the row's {result.segment} adapter, signed by {result.signer}.{row}"
