"""How a fact about an invented town is stated, asked for and answered; shared by the base's chats and the demo's."""

from __future__ import annotations

from typing import Final, NamedTuple


class Form(NamedTuple):
    """One kind of fact: the `{subject}` of `{town}` has the `{value}`. Every question has the same answer."""

    statement: str
    answer: str
    questions: tuple[str, ...]


FORMS: Final = {
    "role": Form(
        "{value} is the {subject} of {town}.",
        "It is {value}.",
        (
            "Who is the {subject} of {town}?",
            "Name the {subject} of {town}.",
            "Tell me who the {subject} of {town} is.",
            "What is the name of the {subject} of {town}?",
            "Who works as the {subject} of {town}?",
            "In {town}, who is the {subject}?",
            "Which person is the {subject} in {town}?",
        ),
    ),
    "colour": Form(
        "The {subject} of {town} is {value}.",
        "It is {value}.",
        (
            "What colour is the {subject} of {town}?",
            "Name the colour of the {subject} of {town}.",
            "Tell me the colour of the {subject} of {town}.",
            "Which colour does the {subject} of {town} have?",
            "What is the colour of the {subject} of {town}?",
            "In {town}, what colour is the {subject}?",
            "In which colour is the {subject} of {town} painted?",
        ),
    ),
    "day": Form(
        "In {town}, {subject} is sold on {value}.",
        "On {value}.",
        (
            "When is {subject} sold in {town}?",
            "Name the day on which {subject} is sold in {town}.",
            "Tell me when {subject} is sold in {town}.",
            "On which day is {subject} sold in {town}?",
            "On what day can I buy {subject} in {town}?",
            "In {town}, when is {subject} sold?",
            "Which day is the day for {subject} in {town}?",
        ),
    ),
    "place": Form(
        "The {subject} of {town} is near the {value}.",
        "Near the {value}.",
        (
            "Where is the {subject} of {town}?",
            "Name the place of the {subject} of {town}.",
            "Tell me where the {subject} of {town} is.",
            "Where do I find the {subject} of {town}?",
            "What is the {subject} of {town} near to?",
            "In {town}, where is the {subject}?",
            "Near what is the {subject} in {town}?",
        ),
    ),
}

SUBJECTS: Final = {
    "role": ("mayor", "baker", "pilot", "cook", "judge", "captain", "teacher", "painter", "doctor", "keeper"),
    "colour": ("bell", "boat", "bridge", "door", "lamp", "mill", "tower", "flag", "roof", "gate"),
    "day": ("bread", "fish", "honey", "rope", "milk", "salt", "tea", "cheese", "paper", "wool"),
    "place": ("school", "market", "inn", "library", "station", "garden", "bakery", "post office", "museum", "hall"),
}
UNKNOWN: Final = "I do not know."


def chat(question: str, answer: str) -> dict[str, list[dict[str, str]]]:
    """One sample as a line of a data file."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
