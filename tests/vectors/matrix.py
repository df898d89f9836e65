"""The refusal matrix as data: `matrix.json`, read and checked."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import msgspec

from engine.attestation.reasons import OF_OTHER_ROOMS, REASONS
from engine.records.checks import ARTIFACT, LIFECYCLE
from tests.vectors.case import MATRIX, vectors

ROOT = MATRIX.parents[2]


class Refusal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way in which an attack fails, and the proof of it.

    `code` is a reason code or the name of a check of the row. It is None if the attack changes nothing, so that nothing
    is refused; `effect` then says what happens. `vectors` are folders beside the matrix, `tests` node ids.
    """

    stage: str
    code: str | None
    vectors: tuple[str, ...]
    tests: tuple[str, ...]
    effect: str = ""


class Attack(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One attack."""

    number: int
    title: str
    attacker: str
    refusals: tuple[Refusal, ...]


class Matrix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The stages in the order of a run, with what happens in each; the attacks by number."""

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
    """The sentence for a code; empty if the engine's tables have none."""
    if code in REASONS:
        return REASONS[code][0]
    if code in OF_OTHER_ROOMS:
        return OF_OTHER_ROOMS[code]
    return "A check of the row fails." if code in {*LIFECYCLE, *ARTIFACT} else ""


def known_codes() -> set[str]:
    """Every code that the engine can raise or report: those in its tables and source, and those in the vectors."""
    codes = {*REASONS, *LIFECYCLE, *ARTIFACT, *(code for vector in vectors() for code in vector.codes)}
    for path in sorted((ROOT / "engine").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                codes.add(str(node.value.value))
    launcher = ast.parse((ROOT / "engine" / "remote" / "launch.py").read_text())
    codes |= {str(node.value) for node in ast.walk(launcher) if isinstance(node, ast.Constant)}
    return codes


def has_test(node_id: str) -> bool:
    """Whether a node id names a test function of the checkout."""
    file, _, name = node_id.partition("::")
    path = ROOT / file
    return path.is_file() and any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
        for node in ast.parse(path.read_text()).body
    )


def page_path() -> Path:
    """The path of the generated page."""
    return ROOT / "engine" / "attestation" / "REFUSALS.md"
