"""The refusal matrix as data: `matrix.json`, read and checked."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import msgspec

from engine.attestation.reasons import REASONS
from engine.records.checks import ARTIFACT, LIFECYCLE
from tests.vectors.case import MATRIX, vectors

ROOT = MATRIX.parents[2]


class Refusal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way in which an attack fails, and what proves it.

    `code` is a reason code or the name of a check of the row; None where the attack has no `effect` at all.
    `vectors` are folders beside the matrix, `tests` node ids.
    """

    stage: str
    code: str | None
    vectors: tuple[str, ...]
    tests: tuple[str, ...]
    effect: str = ""


class Attack(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One attack of the list in PROTECTED_PATH."""

    number: int
    title: str
    attacker: str
    refusals: tuple[Refusal, ...]


class Matrix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Stages in the order of a run, with what happens there; attacks by number."""

    stages: dict[str, str]
    attacks: tuple[Attack, ...]

    def refusals(self) -> Iterator[tuple[Attack, Refusal]]:
        """Every refusal with its attack."""
        for attack in self.attacks:
            for refusal in attack.refusals:
                yield attack, refusal


def matrix() -> Matrix:
    """The matrix in the checkout."""
    return msgspec.json.decode(MATRIX.read_bytes(), type=Matrix, strict=True)


def meaning(code: str) -> str:
    """What a code says to a person, where the engine's table has it."""
    if code in REASONS:
        return REASONS[code][0]
    return "A check of the row fails." if code in {*LIFECYCLE, *ARTIFACT} else ""


def known_codes() -> set[str]:
    """Every code that the engine can raise or report: its string constants, and what vectors have shown."""
    found = {*REASONS, *LIFECYCLE, *ARTIFACT, *(code for vector in vectors() for code in vector.codes)}
    for path in sorted((ROOT / "engine").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                found.add(str(node.value.value))
    launcher = ast.parse((ROOT / "engine" / "remote" / "launch.py").read_text())
    found |= {str(node.value) for node in ast.walk(launcher) if isinstance(node, ast.Constant)}
    return found


def has_test(node_id: str) -> bool:
    """Whether a node id names a test function of the checkout."""
    file, _, name = node_id.partition("::")
    path = ROOT / file
    return path.is_file() and any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
        for node in ast.parse(path.read_text()).body
    )


def page_path() -> Path:
    """Where the page for readers lies."""
    return ROOT / "engine" / "attestation" / "REFUSALS.md"
