"""Which format a record is in, by its keys alone. Nothing is guessed: what could be read in two ways is refused."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, Literal

import msgspec

from engine.payload.data.records import Problem, listed

Kind = Literal["messages", "conversations", "pair", "text"]


class Format(msgspec.Struct, frozen=True):
    """A format of records. `keys` hold the sample: the list of turns, prompt and answer, or the text."""

    kind: Kind
    title: str
    keys: tuple[str, ...]


CHAT: Final = Format("messages", "OpenAI chats (messages)", ("messages",))
TEXT: Final = Format("text", "plain text (text)", ("text",))
LISTS: Final = (
    CHAT,
    Format("conversations", "ShareGPT chats (conversations)", ("conversations",)),
    Format("conversations", "ShareGPT chats (conversation)", ("conversation",)),
)
PROMPTS: Final = frozenset({"prompt", "instruction", "question", "query", "input", "inputs"})
ANSWERS: Final = frozenset({"completion", "response", "answer", "output", "target", "targets"})
SYSTEM: Final = ("system", "system_prompt")
SECOND: Final = ("input", "context")
"""The optional second part of an instruction (Alpaca, Dolly)."""

_RANKED: Final = frozenset({"chosen", "rejected", "preferred_output", "non_preferred_output", "completions"})
_OF_A_CHAT: Final = frozenset({"prompt", "completion", "instruction"})
_EMBEDDED: Final = frozenset(
    {"anchor", "positive", "negative", "sentence1", "sentence2", "premise", "hypothesis", "embedding"}
)
_LABELS: Final = frozenset({"label", "labels"})
_SENTENCES: Final = frozenset({"text", "sentence"})
_TOKENISED: Final = frozenset({"input_ids"})
_PICTURES: Final = frozenset({"image", "images", "audio", "audios", "video", "videos"})
KNOWN: Final = frozenset().union(
    _RANKED, _EMBEDDED, _LABELS, _SENTENCES, _TOKENISED, _PICTURES, PROMPTS, ANSWERS, ("messages", "text"),
    ("conversations", "conversation"),
)  # fmt: skip


def recognise(record: Mapping[str, Any]) -> Format:
    """The format of a decoded record; a key without a value (null, or an empty list of pictures) does not count.

    Raises `Problem`: `data_preference`, `data_embedding`, `data_classification`, `data_tokenised`, `data_not_text`,
    `data_ambiguous`, `data_shape_invalid` (a prompt without an answer), `data_format_unknown`.
    """
    known = frozenset(
        key for key in record.keys() & KNOWN if record[key] or (record[key] is not None and key not in _PICTURES)
    )
    found = _recognised(known)
    if isinstance(found, Format):
        return found
    if found is None:
        keys = listed(record)
        raise Problem(
            "data_format_unknown", f"has none of the known formats (its keys: {keys})" if keys else "has no keys"
        )
    raise Problem(*found)


@lru_cache(maxsize=1024)
def _recognised(keys: frozenset[str]) -> Format | tuple[str, str] | None:
    """The format, the code and words of a refusal, or None for no known format."""
    if keys & _RANKED:
        return "data_preference", f"is preference data ({listed(keys & _RANKED)}), not an answer to learn"
    if keys & _PICTURES:
        return "data_not_text", f"has {listed(keys & _PICTURES)}; only text can be trained on"
    lists = [each for each in LISTS if each.keys[0] in keys]
    if lists:
        both = [each.keys[0] for each in lists] + sorted(keys & _OF_A_CHAT)
        return lists[0] if len(both) == 1 else _ambiguous(both)
    prompts, answers = keys & PROMPTS, keys & ANSWERS
    if "instruction" in prompts:
        prompts -= {"input"}
    if prompts and answers:
        both = [*prompts, *answers]
        return _pair(*prompts, *answers) if len(both) == 2 else _ambiguous(both)
    return _foreign(keys, prompts, answers)


def _foreign(keys: frozenset[str], prompts: frozenset[str], answers: frozenset[str]) -> Format | tuple[str, str] | None:
    if keys & _TOKENISED:
        return "data_tokenised", "has token ids (input_ids), which only the tokenizer that made them can read"
    if keys & _EMBEDDED:
        return "data_embedding", f"is data for an embedding model ({listed(keys & _EMBEDDED)})"
    if keys & _LABELS and keys & _SENTENCES:
        return "data_classification", f"is data for a classifier ({listed(keys & (_LABELS | _SENTENCES))})"
    if prompts:
        return "data_shape_invalid", f"has {listed(prompts)}, but no answer to it"
    if answers:
        return "data_shape_invalid", f"has {listed(answers)}, but no prompt for it"
    return TEXT if "text" in keys else None


def _pair(prompt: str, answer: str) -> Format:
    names = f"{prompt} and {answer}"
    return Format("pair", f"Alpaca ({names})" if prompt == "instruction" else names, (prompt, answer))


def _ambiguous(keys: list[str]) -> tuple[str, str]:
    return "data_ambiguous", f"can be read in more than one way (its keys: {listed(keys)})"
