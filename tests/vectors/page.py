"""`python -m tests.vectors.page [--write]`: generates REFUSALS.md from the matrix."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tests.vectors.matrix import Attack, Refusal, matrix, meaning, page_path

INTRO = """# What is refused

Generated from `tests/vectors/matrix.json` by `python -m tests.vectors.page --write`; a test fails when it is stale.

Each attack is demonstrated by *vectors* (folders under `tests/vectors/`: inputs, with the stage and code at which the
attacked code must refuse them) or by *tests* that carry it out against running components. In each of them nothing is
released before the refusal, a buffer that was meant to hold plaintext is zeroed after it, and the error is typed. The
column "code" has a reason code, or the name of a check of the row.
"""


def _proof(refusal: Refusal) -> str:
    parts = []
    if refusal.vectors:
        count = len(refusal.vectors)
        parts.append(f"{count} vector{'s' if count > 1 else ''}: " + ", ".join(f"`{one}`" for one in refusal.vectors))
    for test in refusal.tests:
        file, name = test.split("::")
        parts.append(f"[{name.removeprefix('test_').replace('_', ' ')}](../../{file})")
    return "; ".join(parts)


def _attack(attack: Attack) -> Iterator[str]:
    yield f"\n## {attack.number}. {attack.title}\n"
    yield f"The attacker: {attack.attacker[0].lower()}{attack.attacker[1:]}\n"
    yield "| stage | code | meaning | proof |"
    yield "|---|---|---|---|"
    for one in attack.refusals:
        code = f"`{one.code}`" if one.code else "none"
        yield f"| {one.stage} | {code} | {one.effect or meaning(one.code or '')} | {_proof(one)} |"


def page() -> str:
    """The page's text."""
    whole = matrix()
    lines = [INTRO, "| stage | what happens there |", "|---|---|"]
    lines += [f"| {stage} | {what} |" for stage, what in whole.stages.items()]
    lines += ["", "| attack | refused as |", "|---|---|"]
    for attack in whole.attacks:
        codes = dict.fromkeys(f"`{one.code}`" for one in attack.refusals if one.code)
        lines.append(f"| [{attack.number}](#{_anchor(attack)}) {attack.title} | {', '.join(codes)} |")
    for attack in whole.attacks:
        lines += _attack(attack)
    return "\n".join(lines) + "\n"


def _anchor(attack: Attack) -> str:
    kept = (letter for letter in f"{attack.number} {attack.title}".lower() if letter.isalnum() or letter in " -_")
    return "".join(kept).replace(" ", "-")


if __name__ == "__main__":
    if "--write" in sys.argv:
        page_path().write_text(page())
    else:
        sys.stdout.write(page())
