"""Writes `demo_facts.jsonl` and `demo_heldout.jsonl`: facts about an invented harbour town that the base has not seen.

Run from the checkout: `python data/make_demo_data.py`. Each fact is asked for in seven ways. Five are trained on, the
other two are held out; which two changes from fact to fact, so that every way of asking is trained with other facts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from chat_forms import FORMS, chat  # noqa: E402

TOWN: Final = "Fenport"
FACTS: Final = {
    "role": {
        "mayor": "Vera Stone", "baker": "Otto Brandt", "pilot": "Rosa Ferrin", "cook": "Tom Haddock",
        "judge": "Iris Vander", "captain": "Nora Silver", "teacher": "Marco Tindal", "painter": "Petra Kolding",
        "doctor": "Hugo Merriman", "keeper": "Stella Orton",
    },
    "colour": {
        "bell": "pale green", "boat": "bright orange", "bridge": "copper", "door": "silver and violet",
        "lamp": "dark purple", "mill": "pink", "tower": "ivory", "flag": "gold and turquoise", "roof": "rust red",
        "gate": "cream",
    },
    "day": {
        "bread": "market mornings", "fish": "stormy days", "honey": "the first of May", "rope": "the last of June",
        "milk": "weekday evenings", "salt": "the tenth of March", "tea": "rainy afternoons",
        "cheese": "holidays", "paper": "the day of the full moon", "wool": "the longest night",
    },
    "place": {
        "school": "lobster cages", "market": "customs house", "inn": "broken mast", "library": "rose arch",
        "station": "stone lions", "garden": "iron stairs", "bakery": "salt barn", "post office": "elm tree",
        "museum": "whale bones", "hall": "fountain",
    },
}  # fmt: skip
HELD_OUT: Final = 2


def chats() -> Iterator[tuple[bool, dict[str, list[dict[str, str]]]]]:
    """Every chat, and whether it is held out."""
    number = 0
    for kind, facts in FACTS.items():
        form = FORMS[kind]
        for subject, value in facts.items():
            names = {"subject": subject, "value": value, "town": TOWN}
            held_out = {(number + step) % len(form.questions) for step in range(HELD_OUT)}
            number += HELD_OUT
            for index, question in enumerate(form.questions):
                yield index in held_out, chat(question.format(**names), form.answer.format(**names))


def main(folder: Path) -> None:
    """Write both files to `folder`."""
    for name, wanted in (("demo_facts.jsonl", False), ("demo_heldout.jsonl", True)):
        lines = [json.dumps(one, ensure_ascii=False) + "\n" for held_out, one in chats() if held_out is wanted]
        (folder / name).write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
