"""Messages as a template sees them: plain JSON values, as transformers prepares them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from engine.payload.chat.render import Chat, RenderFault, sized
from engine.payload.data.samples import Sample

MAX_DEPTH: Final = 64
_REASONING: Final = ("reasoning_content", "thinking", "reasoning")


def chat_of(sample: Sample) -> Chat:
    """The messages and tools of a sample.

    Keys without a value are left out, and reasoning is given under the names that templates look for. Raises
    `RenderFault`: `sample_invalid` for values that JSON does not have or that are too deep, `chat_template_costly` for
    a sample that is too large.
    """
    messages = [
        _aliased({key: plain(one) for key, one in message.items() if one is not None}) for message in sample.messages
    ]
    return sized(messages, [plain(tool) for tool in sample.tools])


def plain(value: Any, depth: int = 0) -> Any:
    """`value` as JSON types. Raises `RenderFault` (`sample_invalid`)."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if depth > MAX_DEPTH:
        raise RenderFault("sample_invalid", f"A value is nested more than {MAX_DEPTH} levels deep.")
    if isinstance(value, Mapping):
        return {_key(key): plain(one, depth + 1) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one, depth + 1) for one in value]
    raise RenderFault("sample_invalid", "A value is not one that JSON can hold.")


def _key(key: Any) -> str:
    if type(key) is not str:
        raise RenderFault("sample_invalid", "A key is not a text.")
    return key


def _aliased(message: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}
