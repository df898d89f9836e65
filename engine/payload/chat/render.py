"""A chat template, compiled once, and the text that it makes of messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from jinja2 import Template, TemplateError, nodes

from engine.errors import DataError
from engine.payload.chat.meter import Meter, Sizes, TooCostly
from engine.payload.chat.sandbox import Refused, Sandbox, Turn
from engine.system.text import visible

MAX_TEMPLATE: Final = 128 * 1024
"""Characters of a template. The longest published ones have about 20,000."""
MAX_TEXT: Final = 8 * 1024 * 1024
"""Characters of a rendered chat."""
_MAX_REASON: Final = 200


class RenderFault(Exception):
    """The template makes no text of these messages. `code` as of a `Fault`, `what` a sentence."""

    def __init__(self, code: str, what: str) -> None:
        super().__init__(what)
        self.code, self.what = code, what


class Chat(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What a template is given: plain JSON values. `sizes` knows them all, `characters` is their sum."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    sizes: Sizes
    characters: int


class Rendered(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The text, the spans that `{% generation %}` marks, and where each loop was."""

    text: str
    generated: tuple[tuple[int, int], ...]
    turns: tuple[Turn, ...]


class ChatTemplate:
    """A compiled template; `tokens` are the special tokens that it sees by name (`bos_token`, ...).

    The constructor raises `DataError` (`chat_template_invalid`).
    """

    def __init__(self, text: str, tokens: Mapping[str, str]) -> None:
        self._tokens = dict(tokens)
        self._sandbox = Sandbox()
        self._template = self._compiled(text)
        parsed = self._sandbox.parse(text)
        self.marks_generation = _marks(parsed)
        self._said = frozenset(one.value for one in parsed.find_all(nodes.Const) if isinstance(one.value, str))

    def _compiled(self, text: str) -> Template:
        if len(text) > MAX_TEMPLATE:
            raise _invalid("is longer than 128 KiB")
        try:
            self._sandbox.begin(Meter())
            return self._sandbox.from_string(text)
        except TemplateError as error:
            raise _invalid(f"cannot be used: {_reason(error).rstrip('.')}") from error
        except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
            raise _invalid("cannot be compiled") from error

    def _refusal(self, error: Refused) -> str:
        """What the template says, if that is a text of its own and nothing of the data."""
        said = str(error)
        return f"The chat template refuses it{f': {_reason(error)}' if said in self._said else '.'}"

    def render(self, chat: Chat, *, until: int | None = None, prompt: bool = False) -> Rendered:
        """The text of the messages (of the first `until`), with the header of the next answer if `prompt` is set.

        Raises `RenderFault`.
        """
        sandbox = self._sandbox
        messages = chat.messages if until is None else chat.messages[:until]
        sandbox.begin(Meter(chat.characters, chat.sizes), messages)
        variables = {"documents": None, "add_generation_prompt": prompt, **self._tokens}
        pieces: list[str] = []
        try:
            for piece in self._template.generate(messages=messages, tools=chat.tools, **variables):
                pieces.append(piece)
                sandbox.place += len(piece)
                if sandbox.place > MAX_TEXT:
                    raise TooCostly("its text is longer than 8 MiB")  # noqa: TRY301
        except Refused as error:
            raise RenderFault("chat_template_refused", self._refusal(error)) from error
        except TooCostly as error:
            raise RenderFault("chat_template_costly", f"The chat template needs too much: {_reason(error)}") from error
        except (RecursionError, MemoryError) as error:
            raise RenderFault("chat_template_costly", "The chat template needs too much memory.") from error
        except Exception as error:  # a template is a program and can raise anything
            kind = type(error).__name__  # its text may quote the data
            raise RenderFault("chat_template_failed", f"The chat template fails on it: {kind}.") from error
        return Rendered(text="".join(pieces), generated=tuple(sandbox.generated), turns=tuple(sandbox.turns))


def _marks(template: nodes.Template) -> bool:
    blocks = template.find_all(nodes.CallBlock)
    return any(isinstance(block.call.node, nodes.ExtensionAttribute) for block in blocks)


def _invalid(what: str) -> DataError:
    return DataError(
        f"The model's chat template {what}.",
        "Give another template with --chat-template FILE.",
        code="chat_template_invalid",
    )


def _reason(error: BaseException) -> str:
    """What the template says, on one line and cut; a template is foreign text."""
    text = " ".join(str(error).split())
    if len(text) > _MAX_REASON:
        text = f"{text[:_MAX_REASON]}..."
    shown = visible(text or type(error).__name__)
    return shown if shown.endswith((".", "!", "?")) else f"{shown}."


def sized(messages: Sequence[dict[str, Any]], tools: Sequence[Any] | None) -> Chat:
    """The chat of plain messages. Raises `RenderFault` (`chat_template_costly`) if it is too large."""
    sizes = Sizes()
    try:
        characters = sum(sizes.of(message) for message in messages) + (sizes.of(list(tools)) if tools else 0)
    except TooCostly as error:
        raise RenderFault("chat_template_costly", "The sample is too large.") from error
    return Chat(messages=list(messages), tools=list(tools) if tools else None, sizes=sizes, characters=characters)
