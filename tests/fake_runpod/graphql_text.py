"""Parses the part of the GraphQL language that RunPod's clients use: one operation, fields with literal arguments.

The grammar is that of the GraphQL specification (October 2021), section 2, without variables, fragments and directives.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Final

_TOKEN: Final = re.compile(
    r"""[\s,\ufeff]+ | \#[^\n]*
      | (?P<string>"(?:[^"\\\n]|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4}))*")
      | (?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![\w.]))
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<mark>[{}()\[\]:])""",
    re.VERBOSE,
)
_WORDS: Final[dict[str, object]] = {"true": True, "false": False, "null": None}
_DEPTH: Final = 12


class GraphqlError(Exception):
    """The text is not a query, or requests something that does not exist."""


class Enum(str):
    """A bare word."""

    __slots__ = ()


@dataclass(frozen=True)
class Field:
    """One field of a selection; `selection` is empty for a leaf."""

    name: str
    arguments: dict[str, object] = field(default_factory=dict)
    selection: tuple[Field, ...] = ()


@dataclass(frozen=True)
class Operation:
    """`kind` is `query` or `mutation`."""

    kind: str
    fields: tuple[Field, ...]


def parse(text: str) -> Operation:
    """The operation of a document; raises `GraphqlError`."""
    reader = _Reader(_tokens(text))
    kind = "query"
    if reader.peek()[0] == "name":
        kind = reader.take("name")
        if kind not in {"query", "mutation"}:
            raise GraphqlError(f'Syntax Error: Unexpected Name "{kind}".')
        if reader.peek()[0] == "name":
            reader.take("name")
    fields = reader.selection(0)
    if reader.peek()[0] != "end":
        raise GraphqlError("Syntax Error: only one operation is read.")
    return Operation(kind, fields)


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise GraphqlError(f"Syntax Error: Unexpected character at {at}.")
        if match.lastgroup:
            tokens.append((match.lastgroup, match.group()))
        at = match.end()
    return [*tokens, ("end", "")]


class _Reader:
    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._at = 0

    def peek(self) -> tuple[str, str]:
        """The next token."""
        return self._tokens[self._at]

    def take(self, kind: str, text: str | None = None) -> str:
        """The next token's text, which must be of this kind."""
        token = self.peek()
        if token[0] != kind or (text is not None and token[1] != text):
            raise GraphqlError(f"Syntax Error: Expected {text or kind}, found {token[0]}.")
        self._at += 1
        return token[1]

    def _is(self, mark: str) -> bool:
        return self.peek() == ("mark", mark)

    def selection(self, depth: int) -> tuple[Field, ...]:
        """`{ ... }`, at least one field."""
        if depth > _DEPTH:
            raise GraphqlError("Syntax Error: nested too deeply.")
        self.take("mark", "{")
        fields = [self._field(depth)]
        while not self._is("}"):
            fields.append(self._field(depth))
        self.take("mark", "}")
        return tuple(fields)

    def _field(self, depth: int) -> Field:
        name = self.take("name")
        arguments: dict[str, object] = {}
        if self._is("("):
            arguments = self._pairs("(", ")", depth)
        return Field(name, arguments, self.selection(depth + 1) if self._is("{") else ())

    def _pairs(self, opening: str, closing: str, depth: int) -> dict[str, object]:
        self.take("mark", opening)
        pairs: dict[str, object] = {}
        while not self._is(closing):
            name = self.take("name")
            if name in pairs:
                raise GraphqlError(f'There can be only one input field named "{name}".')
            self.take("mark", ":")
            pairs[name] = self._value(depth + 1)
        self.take("mark", closing)
        return pairs

    def _value(self, depth: int) -> object:
        kind, text = self.peek()
        if depth > _DEPTH:
            raise GraphqlError("Syntax Error: nested too deeply.")
        if kind == "string":
            return json.loads(self.take("string"))
        if kind == "number":
            return json.loads(self.take("number"))
        if kind == "name":
            word = self.take("name")
            return _WORDS[word] if word in _WORDS else Enum(word)
        if text == "{":
            return self._pairs("{", "}", depth)
        self.take("mark", "[")
        values = []
        while not self._is("]"):
            values.append(self._value(depth + 1))
        self.take("mark", "]")
        return values
