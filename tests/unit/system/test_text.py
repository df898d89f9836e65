from __future__ import annotations

import json

import pytest

from engine.system.text import visible, visible_json

HOSTILE = "".join(
    map(chr, [*range(0x20), *range(0x7F, 0xA1), 0xAD, 0x61C, 0x200B, 0x200E, 0x2028, 0x202E, 0x2066, 0xFEFF])
)
BEYOND = "\U000e0041\U0010fffd"


def test_nothing_that_a_terminal_could_obey_is_left() -> None:
    shown = visible(f"a{HOSTILE}{BEYOND}é 漢 🙂")
    assert shown.isprintable()
    assert shown.startswith("a\\x00\\x01")
    assert shown.endswith("é 漢 🙂")
    assert visible("\x1b[2J\x9b2J\x7f\u202e") == "\\x1b[2J\\x9b2J\\x7f\\u202e"


def test_only_what_is_to_be_kept_is_kept() -> None:
    assert visible("a\n\tb\rc\x85d", keep="\n\t") == "a\n\tb\\rc\\x85d"


@pytest.mark.parametrize("text", [HOSTILE, BEYOND, "\x9b2J", "\u2028\u2029", "é\u202e"])
def test_json_stays_the_same_to_a_parser(text: str) -> None:
    document = {text: [text, 1.5, None], "plain": "é 🙂"}
    written = json.dumps(document, ensure_ascii=False, indent=2).encode()
    escaped = visible_json(written)
    assert json.loads(escaped) == document
    assert all(char.isprintable() or char == "\n" for char in escaped.decode())
    assert "é 🙂" in escaped.decode()
