"""Turns from ShareGPT's `conversations`: `from` and `value`, or `role` and `content`."""

from __future__ import annotations

from typing import Any, Final

from engine.payload.data.messages import ROLES, Ignored, content, each_of, message, note
from engine.payload.data.records import Problem
from engine.payload.data.tools import called, parsed
from engine.payload.data.turns import Turn

_CALL: Final = "function_call"
SPEAKERS: Final = {
    **ROLES,
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "claude": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
_USED: Final = frozenset({"from", "value", "weight"})


def turns(value: Any, key: str, ignored: Ignored | None) -> list[Turn]:
    """The turns of a non-empty list; `key` is its name. Raises `Problem`."""

    def one(raw: dict[str, Any]) -> Turn:
        if "from" not in raw and "value" not in raw:
            return message(raw, key, ignored, SPEAKERS)
        if "role" in raw or "content" in raw:
            raise Problem("data_ambiguous", "has from or value and also role or content")
        note(ignored, raw, _USED, f"{key}[].")
        return _spoken(raw)

    return each_of(value, key, one)


def _spoken(raw: dict[str, Any]) -> Turn:
    speaker, weight = raw.get("from"), raw.get("weight")
    if speaker == _CALL:
        return _called(raw.get("value"))
    role = SPEAKERS.get(speaker) if type(speaker) is str else None
    if role is None:
        raise Problem("data_shape_invalid", f"has a from other than {', '.join(SPEAKERS)} and {_CALL}")
    if weight is None or role != "assistant":
        return Turn({"role": role, "content": content(raw.get("value"), role)}, role == "assistant")
    return message({"role": "assistant", "content": raw.get("value"), "weight": weight}, "", None)


def _called(value: Any) -> Turn:
    """A turn that calls: one `{"name", "arguments"}` or a list of them, mostly as JSON text."""
    raw = parsed(value, _CALL)
    made = [called(each, _CALL) for each in (raw if isinstance(raw, list) and raw else [raw])]
    return Turn({"role": "assistant", "content": "", "tool_calls": made}, learned=True)
