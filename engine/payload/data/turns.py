"""The turns of a chat: roles, contents, tool calls and their replies, and whether their order can be meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from engine.payload.data.records import Problem


class Turn(msgspec.Struct, frozen=True):
    """One turn as `Sample` has it: a message for the template, and whether it is learned."""

    message: dict[str, Any]
    learned: bool


def text(value: Any, name: str) -> str:
    """A content that must be text and not blank."""
    if type(value) is not str:
        raise Problem("data_shape_invalid", f"has a {name} that is not text")
    if not value or value.isspace():
        raise Problem("data_sample_empty", f"has an empty {name}")
    return value


def spoken(role: str, content: str) -> Turn:
    """A plain turn; the assistant's are learned."""
    return Turn({"role": role, "content": content}, role == "assistant")


def require_order(turns: Sequence[Turn]) -> None:
    """Raise `Problem` for turns that no chat can have, or with nothing to learn."""
    roles = [turn.message["role"] for turn in turns]
    if "system" in roles[1:]:
        raise Problem("data_shape_invalid", "has a system message that is not the first message")
    if not roles or roles[-1] != "assistant":
        raise Problem("data_shape_invalid", "does not end with a message of the assistant")
    if "user" not in roles[: roles.index("assistant")]:
        raise Problem("data_shape_invalid", "has an answer before any user message")
    if "tool" in roles:
        _require_calls(turns)
    if not any(turn.learned for turn in turns):
        raise Problem("data_nothing_learned", "has no answer that is learned: the weight of each one is 0")


def _require_calls(turns: Sequence[Turn]) -> None:
    """Every reply of a tool answers a call before it that has no reply yet: by id where both have one, else by name.

    Where the answers have their calls as text (Hermes' `<tool_call>`), a reply without an id follows an answer or
    another reply.
    """
    as_text = not any("tool_calls" in turn.message for turn in turns)
    waiting, before = _Waiting(), ""
    for turn in turns:
        message = turn.message
        for call in message.get("tool_calls", ()):
            waiting.add(call.get("id"), call["function"]["name"])
        if message["role"] == "tool":
            call_id = message.get("tool_call_id")
            follows = as_text and call_id is None and before in ("assistant", "tool")
            if not follows and not waiting.answer(call_id, message.get("name")):
                raise Problem(
                    "data_tool_reply", "has a reply of a tool to a call that is not before it or has its reply"
                )
        before = message["role"]


class _Waiting:
    """The calls without a reply, counted: a hostile record may have tens of thousands."""

    def __init__(self) -> None:
        self._ids: dict[str, list[str]] = {}
        self._names: Counter[str] = Counter()
        self._without_id = 0

    def add(self, call_id: str | None, function: str) -> None:
        self._names[function] += 1
        if call_id is None:
            self._without_id += 1
        else:
            self._ids.setdefault(call_id, []).append(function)

    def answer(self, call_id: str | None, name: str | None) -> bool:
        """Whether there is such a call; it waits no longer."""
        if call_id is not None and self._ids.get(call_id):
            self._names[self._ids[call_id].pop()] -= 1
            return True
        if call_id is not None and not self._without_id:
            return False
        waiting = self._names[name] if name is not None else self._names.total()
        if waiting <= 0:
            return False
        called = name if name is not None else next(each for each, count in self._names.items() if count > 0)
        self._names[called] -= 1
        self._without_id -= self._without_id > 0
        return True
