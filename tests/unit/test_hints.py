"""Every error that is raised says what to do: at its place or by its code, or it has no hint on purpose."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

import engine
import glasshouse_tui
from engine import errors
from engine.errors import GlasshouseError, RunError
from engine.hints import HINTS
from engine.worker.trainer import GPU_ERRORS

ERRORS: Final = {
    name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, GlasshouseError)
}
WITHOUT: Final = {
    "cancelled": "the user asked for it",
    "declined": "the user answered no",
}
"""Codes that have no hint, and why."""
PASSED_ON: Final = {
    "engine/worker/children.py": "the child's own error, with its hint",
    "engine/store/failure.py": "a stored error, with its hint",
    "engine/worker/trainer.py": "one of the codes of `diagnosed`, which have hints",
}
"""Files in which an error with a code that is decided elsewhere is raised again."""
CONSTANTS: Final = {"CLOSED", "TIMEOUT", "OVERSIZE", "INVALID", "_UNKNOWN"}
"""Names that stand for a code; `test_the_names_of_codes_are_known` reads what they hold."""


class Raised(NamedTuple):
    """One place that makes an error. `code` None: it is no literal."""

    place: str
    code: str | None
    has_hint: bool


def raised() -> Iterator[Raised]:
    for package in (engine, glasshouse_tui):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            relative = f"{root.name}/{path.relative_to(root)}"
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                    yield one(f"{relative}:{node.lineno}", node, node.func.id)


def one(place: str, call: ast.Call, name: str) -> Raised:
    named = {word.arg: word.value for word in call.keywords}
    hint = call.args[1] if len(call.args) > 1 else named.get("hint")
    has_hint = hint is not None and not (isinstance(hint, ast.Constant) and not hint.value)
    code = named.get("code")
    if code is None:
        return Raised(place, ERRORS[name].default_code, has_hint)
    if isinstance(code, ast.Constant):
        return Raised(place, str(code.value), has_hint)
    if isinstance(code, ast.Name) and code.id in CONSTANTS:
        return Raised(place, constant(place.partition(":")[0], code.id), has_hint)
    if isinstance(code, ast.JoinedStr):  # `trainer_killed`, `scanner_killed`, ...: a role and a fixed end
        end = code.values[-1]
        fixed = str(end.value) if isinstance(end, ast.Constant) else None
        return Raised(place, None if fixed is None else f"trainer{fixed}", has_hint)
    return Raised(place, None, has_hint)


def constant(relative: str, name: str) -> str | None:
    path = Path(str(engine.__file__)).parent.parent / relative
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return str(node.value.value) if isinstance(node.value, ast.Constant) else None
    return None


def test_the_search_finds_the_errors_that_there_are() -> None:
    found = list(raised())
    assert len(found) > 300
    assert {"trainer_killed", "channel_closed", "event_invalid", "plan_invalid"} <= {each.code for each in found}


def test_every_error_has_a_hint_or_none_on_purpose() -> None:
    silent = [
        f"{each.place} ({each.code})"
        for each in raised()
        if not each.has_hint and each.code not in HINTS and each.code not in WITHOUT
        if each.code is not None or each.place.partition(":")[0] not in PASSED_ON
    ]
    assert silent == []


@pytest.mark.parametrize("code", sorted(HINTS))
def test_a_hint_is_one_or_two_sentences(code: str) -> None:
    hint = HINTS[code]
    assert hint[0].isupper()
    assert hint.endswith(".")
    assert "\n" not in hint
    assert len(hint) <= 160
    assert RunError("It failed.", code=code).hint == hint


def test_a_hint_of_the_place_comes_before_that_of_the_code() -> None:
    assert RunError("It failed.", "Do this.", code="link_lost").hint == "Do this."
    assert RunError("It failed.", code="without_any_hint").hint == ""


def test_every_diagnosis_of_a_failed_training_has_a_hint() -> None:
    assert {"out_of_memory", "gpu_out_of_memory", "module_missing", "trainer_failed", *GPU_ERRORS.values()} <= (
        HINTS.keys()
    )


@pytest.mark.parametrize("role", ["trainer", "keyproc", "scanner"])
def test_every_process_of_the_worker_has_hints_for_how_it_may_end(role: str) -> None:
    assert {f"{role}_{end}" for end in ("killed", "out_of_memory", "worker_died")} <= HINTS.keys()
