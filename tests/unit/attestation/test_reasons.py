"""The table of reasons, and what importing this room loads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import engine.attestation
from engine.attestation.reasons import REASONS, refusal

ROOM = Path(engine.attestation.__file__).parent
CODE = re.compile(r"[a-z]+(_[a-z]+)+")


def test_every_reason_is_a_sentence_with_an_instruction() -> None:
    for code, (sentence, hint) in REASONS.items():
        assert CODE.fullmatch(code)
        assert sentence.endswith(".")
        assert hint.endswith(".")
        assert sentence[0].isupper()
        assert hint[0].isupper()


def test_every_code_that_the_room_raises_is_in_the_table() -> None:
    used = {
        code
        for path in ROOM.glob("*.py")
        for code in re.findall(r"""(?:refusal\(|_equal\(|return |else \(?|if )"([a-z]+_[a-z_]+)\"""", path.read_text())
    }
    assert len(used) > 40
    assert used - set(REASONS) <= {"policy_digest", "runtime_state"}


def test_a_refusal_adds_the_detail_to_its_sentence() -> None:
    error = refusal("enforcement_missing", "seccomp")
    assert error.code == "enforcement_missing"
    assert error.message == "A control that the policy requires is not enforced: seccomp."
    assert error.hint == REASONS["enforcement_missing"][1]


def test_these_rooms_load_nothing_that_an_allocation_lacks() -> None:
    modules = [
        f"engine.{room}.{path.stem}"
        for room in ("sealing", "attestation")
        for path in (ROOM.parent / room).glob("*.py")
        if path.stem != "__init__"
    ]
    script = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "print([m for m in ('torch', 'numpy', 'asyncssh', 'sqlite_utils', 'textual', 'runpod') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_opening_a_package_needs_neither_tokens_nor_envelopes() -> None:
    script = (
        "import sys, engine.sealing.package, engine.sealing.release, engine.sealing.adapter\n"
        "print([m for m in ('joserfc', 'securesystemslib', 'ssl', 'socket', 'asyncio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
