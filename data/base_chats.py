"""The general chats that the shipped base is trained on besides `sample_corpus.jsonl`: true, short, made from tables.

Some give facts about invented towns and ask for one of them; where no fact is given, the answer says that it is not
known. The town of the demo is not among them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

from chat_forms import FORMS, SUBJECTS, UNKNOWN, chat

Chat = dict[str, list[dict[str, str]]]

CAPITALS: Final = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Germany": "Berlin", "Austria": "Vienna",
    "Poland": "Warsaw", "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "Portugal": "Lisbon", "Greece": "Athens", "Ireland": "Dublin", "Hungary": "Budapest", "Japan": "Tokyo",
    "China": "Beijing", "Egypt": "Cairo", "Kenya": "Nairobi", "Peru": "Lima", "Chile": "Santiago",
    "Cuba": "Havana", "Canada": "Ottawa", "Nepal": "Kathmandu", "Iceland": "Reykjavik", "Latvia": "Riga",
}  # fmt: skip
OPPOSITES: Final = {
    "hot": "cold", "big": "small", "old": "new", "full": "empty", "fast": "slow", "high": "low", "long": "short",
    "open": "closed", "light": "dark", "wet": "dry", "hard": "soft", "early": "late", "left": "right",
    "near": "far", "rich": "poor", "thick": "thin", "loud": "quiet", "strong": "weak",
}  # fmt: skip
COLOURS: Final = {
    "snow": "white", "coal": "black", "grass": "green", "blood": "red", "a lemon": "yellow", "milk": "white",
    "a clear sky": "blue", "a ripe tomato": "red", "a crow": "black", "a frog": "green", "ash": "grey",
    "chocolate": "brown",
}  # fmt: skip
JOBS: Final = {
    "baker": "bakes bread", "pilot": "guides ships or flies planes", "cook": "prepares food",
    "judge": "decides cases in court", "captain": "commands a ship", "teacher": "teaches at a school",
    "painter": "paints walls or pictures", "doctor": "treats the sick", "mayor": "leads a town",
    "keeper": "looks after a place",
}  # fmt: skip
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
FIRST_NAMES: Final = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Gina", "Henry", "Julia", "Leo", "Mia", "Paul", "Sonia", "Theo",
    "Lena", "Victor", "Ruth", "Simon", "Olga", "Karl",
)  # fmt: skip
SURNAMES: Final = tuple(
    start + end
    for start in ("Ald", "Ber", "Cart", "Dun", "Hart", "Lind", "Mor", "Nor", "Rey", "Sand", "Tol", "Wend")
    for end in ("en", "er", "man", "ley", "wood", "son", "ing", "ick", "et", "all")
)
SHADES: Final = ("", "", "", "light ", "dull ", "deep ")
PLAIN_COLOURS: Final = ("red", "blue", "green", "white", "black", "yellow", "grey", "brown", "orange", "purple")
HOURS: Final = ("six", "seven", "eight", "ten", "eleven", "noon", "two", "four")
QUALITIES: Final = ("old", "new", "small", "wide", "stone", "wooden", "iron", "high", "east", "west", "north", "south")
LANDMARKS: Final = (
    "river", "pier", "well", "wall", "hill", "forest", "lake", "beach", "square", "mine", "road", "church", "field",
    "canal", "farm", "mast", "cages", "shed", "orchard", "fence",
)  # fmt: skip
VALUES: Final = {
    "role": tuple(f"{first} {last}" for first in FIRST_NAMES for last in SURNAMES),
    "colour": (
        *(f"{shade}{colour}" for shade in SHADES for colour in PLAIN_COLOURS),
        *(f"{one} and {other}" for one in PLAIN_COLOURS for other in PLAIN_COLOURS if one != other),
    ),
    "day": (
        *(f"{day} at {hour}" for day in DAYS for hour in HOURS),
        *(f"the {nth} of {month}" for nth in ("second", "third", "fifth", "twentieth") for month in MONTHS),
        *(f"{quality} {time}" for quality in ("warm", "cold", "dry", "windy") for time in ("days", "nights", "weeks")),
    ),
    "place": tuple(f"{quality} {landmark}" for quality in QUALITIES for landmark in LANDMARKS),
}
TOWNS: Final = tuple(
    start + end
    for start in (
        "Ash",
        "Brin",
        "Car",
        "Del",
        "El",
        "Far",
        "Gar",
        "Han",
        "Il",
        "Jor",
        "Kel",
        "Lan",
        "Mar",
        "Nor",
        "Pen",
    )
    for end in ("bury", "by", "field", "ford", "holm", "ley", "mouth", "port", "ton", "wick")
)

PAIRS: Final = (
    (CAPITALS, "The capital of {0} is {1}.", (
        "What is the capital of {0}?", "Name the capital of {0}.", "Tell me what the capital of {0} is.",
        "Which city is the capital of {0}?", "In {0}, what is the capital?",
    )),
    (CAPITALS, "{1} is in {0}.", ("Where is {1}?", "In which country is {1}?", "Tell me where {1} is.")),
    (OPPOSITES, "The opposite of {0} is {1}.", (
        "What is the opposite of {0}?", "Name the opposite of {0}.", "Tell me the opposite of {0}.",
        "Which word is the opposite of {0}?",
    )),
    (OPPOSITES, "The opposite of {1} is {0}.", ("What is the opposite of {1}?", "Tell me the opposite of {1}.")),
    (COLOURS, "The colour of {0} is {1}.", (
        "What colour is {0}?", "Name the colour of {0}.", "Tell me the colour of {0}.",
        "Which colour does {0} have?", "What is the colour of {0}?",
    )),
    (JOBS, "A {0} {1}.", (
        "What does a {0} do?", "Tell me what a {0} does.", "What is the work of a {0}?", "Describe a {0}.",
    )),
)  # fmt: skip


def general() -> Iterator[Chat]:
    """Facts from the tables, in every way of asking."""
    for table, answer, questions in PAIRS:
        for pair in table.items():
            for question in questions:
                yield chat(question.format(*pair), answer.format(*pair))
    for names, what in ((DAYS, "day"), (MONTHS, "month")):
        for index, name in enumerate(names):
            after = names[(index + 1) % len(names)]
            yield chat(f"Which {what} comes after {name}?", f"{after} comes after {name}.")
            yield chat(f"Name the {what} after {name}.", f"{after} comes after {name}.")
            yield chat(f"Which {what} comes before {after}?", f"{name} comes before {after}.")


def town_chat(draw: random.Random, *, facts: int) -> Chat:
    """A question about an invented town, after that many statements; without any, its answer is not known."""
    town = draw.choice(TOWNS)
    kinds = [draw.choice(list(FORMS)) for _ in range(max(facts, 1))]
    stated = [(kind, draw.choice(SUBJECTS[kind]), draw.choice(VALUES[kind])) for kind in kinds]
    if len({(kind, subject) for kind, subject, _ in stated}) < len(stated):
        return town_chat(draw, facts=facts)
    kind, subject, value = draw.choice(stated)
    names = {"subject": subject, "value": value, "town": town}
    question = draw.choice(FORMS[kind].questions).format(**names)
    if not facts:
        return chat(question, UNKNOWN)
    text = " ".join(FORMS[one].statement.format(subject=of, value=is_, town=town) for one, of, is_ in stated)
    return chat(f"{text} {question}", FORMS[kind].answer.format(**names))


def town_chats(seed: int, count: int) -> list[Chat]:
    """Chats about invented towns: one in three without a fact, the others with one or two."""
    draw = random.Random(seed)  # noqa: S311 - a fixed seed, so that the chats are always the same
    return [town_chat(draw, facts=number % 3) for number in range(count)]
