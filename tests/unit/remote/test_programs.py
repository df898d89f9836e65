"""What is sent to another machine as text must run there with nothing but its Python."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from engine.providers import runpod
from engine.remote import programs

SENT = [
    *sorted(path for path in Path(programs.__file__).parent.glob("*.py") if path.name != "__init__.py"),
    Path(runpod.__file__).parent / "deadman.py",
]


@pytest.mark.parametrize("program", SENT, ids=lambda path: path.stem)
def test_a_program_that_is_sent_imports_the_standard_library_alone(program: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(program.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or ".")
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names | {"__future__"}
