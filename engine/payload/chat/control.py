"""Text of the data that looks like a control token stays text.

A message may contain `<|im_end|>`. Encoded as a whole, the rendered chat would then have a turn end where its author
only wrote one. So where data contain such a text, or a part of it that could become one beside other text, the chat is
rendered once more with the first character of each such place replaced by a private character. In that rendering the
tokens that are whole are the template's own; they get names that only a second tokenizer knows, to which the usual
names are plain text. Chats without such data are encoded exactly as transformers does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from engine.payload.chat.render import Chat, Rendered, RenderFault, sized
from engine.payload.data.samples import Sample

_ROLE: Final = "role"
_PRIVATE: Final = range(0xF0000, 0xFFFFE)


class ControlText:
    """The texts of a tokenizer's control tokens, to be found in data.

    `normalise` is what the tokenizer does to a text before it looks for them, None if it looks first.
    """

    def __init__(self, texts: Iterable[str], normalise: Callable[[str], str] | None = None) -> None:
        self._normalise = normalise
        known = sorted(set(texts), key=len, reverse=True)
        self._all = tuple(known)
        self._starts = tuple({text[:2] for text in known})
        self._whole = re.compile("|".join(map(re.escape, known)) or "(?!)")
        self._prefixes = tuple({text[:end] for text in known for end in range(1, len(text))})
        self._suffixes = tuple({text[start:] for text in known for start in range(1, len(text))})

    def in_text(self, text: str) -> bool:
        """Whether a text has a whole control token."""
        return self._in(text) or self.hidden(text)

    def hidden(self, text: str) -> bool:
        """Whether a text has a whole control token once it is normalised."""
        return self._normalise is not None and self._in(self._normalise(text))

    def _in(self, text: str) -> bool:
        return any(start in text for start in self._starts) and self._whole.search(text) is not None

    def suspect(self, value: Any) -> bool:
        """Whether a value has the text of a control token anywhere, or a part of one at an end of a text."""
        if isinstance(value, str):
            return self.in_text(value) or bool(self._parts(value))
        if isinstance(value, Mapping):
            return any(self.suspect(name) or self.suspect(one) for name, one in value.items())
        if isinstance(value, (list, tuple)):
            return any(map(self.suspect, value))
        return False

    def _parts(self, text: str) -> set[int]:
        """Where a part of a control token begins that text before or after it could complete."""
        places = set()
        if text.endswith(self._prefixes):
            longest = max((part for part in self._prefixes if text.endswith(part)), key=len)
            places.add(len(text) - len(longest))
        if text.startswith(self._suffixes):
            places.add(0)
        return places

    def places(self, text: str) -> list[int]:
        """The first characters of all control tokens in `text`, overlapping ones too, and of parts of them."""
        found = self._parts(text)
        start = 0
        while (match := self._whole.search(text, start)) is not None:
            found.add(match.start())
            start = match.start() + 1
        return sorted(found)

    def ends(self, text: str, start: int, end: int) -> bool:
        """Whether `text[start:end]` ends with a control token."""
        return text.endswith(self._all, start, end)

    def first(self, text: str, start: int, headers: Iterable[str]) -> int:
        """The length of the control token at `start` if it comes before a header that is not there yet."""
        match = self._whole.match(text, start)
        known = tuple(one for one in headers if one)
        if match is None or not known or text.startswith(known, start):
            return 0
        return len(match[0])

    def written(self, text: str) -> list[tuple[int, int]]:
        """The spans of the control tokens in a rendered chat."""
        return [match.span() for match in self._whole.finditer(text)]


class Marked:
    """A chat in which the first character of each control text is a private one; `restored` undoes it."""

    def __init__(self, chat: Chat, control: ControlText) -> None:
        self._control = control
        self._free = _unused(chat)
        self._stands: dict[str, str] = {}
        messages = [
            {name: one if name == _ROLE else self._value(one) for name, one in message.items()}
            for message in chat.messages
        ]
        tools = None if chat.tools is None else [self._value(tool) for tool in chat.tools]
        self.chat = sized(messages, tools)

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict):
            return {self._text(key): self._value(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._value(one) for one in value]
        return value

    def _text(self, text: str) -> str:
        letters = list(text)
        for place in self._control.places(text):
            letters[place] = self._stand(letters[place])
        marked = "".join(letters)
        if self._control.hidden(marked):
            raise RenderFault("chat_template_control_text", "It has a hidden form of a control token.")
        return marked

    def _stand(self, letter: str) -> str:
        if letter not in self._stands:
            free = next(self._free, None)
            if free is None:
                raise RenderFault("chat_template_control_text", "It has too many private characters.")
            self._stands[letter] = free
        return self._stands[letter]

    def restored(self, text: str) -> str:
        """The text with the original characters."""
        return text.translate({ord(stand): letter for letter, stand in self._stands.items()})


def _unused(chat: Chat) -> Iterator[str]:
    present: set[str] = set()
    _letters([chat.messages, chat.tools], present)
    return (chr(number) for number in _PRIVATE if chr(number) not in present)


def _letters(value: Any, into: set[str]) -> None:
    if isinstance(value, str):
        into.update(letter for letter in value if ord(letter) in _PRIVATE)
    elif isinstance(value, dict):
        for key, one in value.items():
            _letters(key, into)
            _letters(one, into)
    elif isinstance(value, list):
        for one in value:
            _letters(one, into)


def suspicious(sample: Sample, control: ControlText) -> bool:
    """Whether the chat of a sample must be rendered twice.

    A role is not looked at, nor the middle of a token: a template may make one of `<|`, a word of the data and `|>`.
    """
    fields = (one for message in sample.messages for name, one in message.items() if name != _ROLE)
    return any(map(control.suspect, fields)) or any(map(control.suspect, sample.tools))


def check_same(rendered: Rendered, marked: Rendered, undo: Marked) -> None:
    """Raise `RenderFault` (`chat_template_control_text`) if the template did something else for the marked chat.

    It looks at the control text then, so that nobody can say whether a token of its text is its own.
    """
    if undo.restored(marked.text) != rendered.text:
        raise RenderFault(
            "chat_template_control_text",
            "It has the text of a control token, which the chat template does not treat as text.",
        )


def with_names(rendered: Rendered, marked: Rendered, control: ControlText, names: Mapping[str, str]) -> str:
    """The text of a chat with its template's control tokens under other names of the same lengths."""
    pieces, end = [], 0
    for start, stop in control.written(marked.text):
        pieces += [rendered.text[end:start], names[marked.text[start:stop]]]
        end = stop
    return "".join([*pieces, rendered.text[end:]])
