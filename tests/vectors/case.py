"""The format of a vector: inputs, and how they must be refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

INPUT: Final = "input.json"
EXPECTED: Final = "expected.json"
MATRIX: Final = Path(__file__).parent / "matrix.json"

Kind = Literal[
    "evidence",
    "release",
    "opening",
    "policy",
    "package",
    "challenge",
    "delegation",
    "zeroization",
    "envelope",
    "signed",
    "log",
    "adapter",
    "tensors",
]


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One vector. `name` begins with the number of its attack, 00 for honest inputs that must pass.

    `codes` are all reason codes of the refusal in their order, empty for an honest input; `given` becomes `input.json`,
    and `files` are stored beside it.
    """

    name: str
    kind: Kind
    what: str
    given: dict[str, Any]
    files: dict[str, bytes] = {}
    stage: str = ""
    codes: tuple[str, ...] = ()

    @property
    def attack(self) -> int:
        return int(self.name[:2])

    def contents(self) -> dict[str, bytes]:
        """Every file of the vector's folder."""
        inputs = {"kind": self.kind, "what": self.what, **self.given}
        expected: dict[str, Any] = {"stage": self.stage or None, "code": self.codes[0] if self.codes else None}
        if len(self.codes) > 1:
            expected |= {"further": list(self.codes[1:])}
        return {INPUT: _text(inputs), EXPECTED: _text(expected), **self.files}


class Vector(msgspec.Struct, frozen=True, kw_only=True):
    """A vector as stored on disk."""

    folder: Path
    kind: Kind
    what: str
    given: dict[str, Any]
    stage: str | None
    codes: tuple[str, ...]

    @property
    def attack(self) -> int:
        return int(self.folder.name[:2])


def _text(value: object) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=True).encode() + b"\n"


def read(folder: Path) -> Vector:
    """The vector in a folder."""
    given = json.loads((folder / INPUT).read_bytes())
    expected = json.loads((folder / EXPECTED).read_bytes())
    code = expected["code"]
    return Vector(
        folder=folder,
        kind=given["kind"],
        what=given["what"],
        given=given,
        stage=expected["stage"],
        codes=() if code is None else (code, *expected.get("further", [])),
    )


def vectors() -> list[Vector]:
    """Every vector, by name."""
    return [read(path.parent) for path in sorted(MATRIX.parent.glob(f"[0-9]*/{INPUT}"))]
