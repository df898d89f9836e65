"""Turns from messages with `role` and `content`, as OpenAI's fine-tuning has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from engine.payload.data.records import Problem, listed
from engine.payload.data.tools import called, calls
from engine.payload.data.turns import Turn, text

Ignored = Counter[str]
"""How often each key was ignored."""
MAX_IGNORED: Final = 1000
"""Most different keys that are counted."""

ROLES: Final = {
    "system": "system",
    "developer": "system",  # templates have no role of that name
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_THOUGHTS: Final = ("reasoning_content", "thinking", "reasoning")
_REFUSED: Final = ("audio", "image", "images", "video", "videos", "refusal")
_USED: Final = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "function_call", "weight"}) | {
    *_THOUGHTS,
    *_REFUSED,
}
_PLAIN: Final = frozenset({"role", "content"})


def turns(
    value: Any, key: str, ignored: Ignored | None, roles: Mapping[str, str] = ROLES, *, learn: bool = True
) -> list[Turn]:
    """The turns of a non-empty list of messages; `key` is its name. With `learn` false no answer is learned."""

    def one(raw: dict[str, Any]) -> Turn:
        return message(raw, key, ignored, roles, learn=learn)

    return each_of(value, key, one)


def each_of(value: Any, key: str, one: Callable[[dict[str, Any]], Turn]) -> list[Turn]:
    """`one` of each object in a non-empty list; a `Problem` of one says which."""
    if not isinstance(value, list) or not value:
        raise Problem("data_shape_invalid", f"has {key} that are not a non-empty list")
    found = []
    for index, raw in enumerate(value):
        if type(raw) is not dict:
            raise Problem("data_shape_invalid", f"has {key}[{index}], which is not an object with role and content")
        try:
            found.append(one(raw))
        except Problem as problem:
            raise Problem(problem.code, f"{problem.what} in {key}[{index}]") from None
    return found


def message(
    raw: dict[str, Any], key: str, ignored: Ignored | None, roles: Mapping[str, str] = ROLES, *, learn: bool = True
) -> Turn:
    """One message as a turn. Raises `Problem`."""
    named = raw.get("role")
    role = roles.get(named) if type(named) is str else None
    if role is None:
        raise Problem("data_shape_invalid", f"has a role other than {', '.join(roles)}")
    if raw.keys() == _PLAIN and role != "tool":
        return Turn({"role": role, "content": content(raw["content"], role)}, learn and role == "assistant")
    note(ignored, raw, _USED, f"{key}[].")
    refused = [name for name in _REFUSED if raw.get(name)]
    if refused:
        raise Problem("data_not_text", f"has {listed(refused)}; only text can be trained on")
    if role == "assistant":
        return _answer(raw, learn=learn)
    if raw.get("weight") not in (None, 0) or raw.get("tool_calls") or raw.get("function_call"):
        raise Problem("data_shape_invalid", f"has a weight or calls of tools that are not the assistant's ({role})")
    return Turn(_asked(raw, role), learned=False)


def _asked(raw: Mapping[str, Any], role: str) -> dict[str, Any]:
    """A message that is not the assistant's."""
    found = {"role": role, "content": content(raw.get("content"), role)}
    for name in ("name", "tool_call_id") if role == "tool" else ("name",):
        _copy_text(raw, name, found)
    return found


def _copy_text(raw: Mapping[str, Any], name: str, found: dict[str, Any]) -> None:
    value = raw.get(name)
    if value is not None and not isinstance(value, str):
        raise Problem("data_shape_invalid", f"has a {name} that is not text")
    if value is not None:
        found[name] = value


def _answer(raw: Mapping[str, Any], *, learn: bool) -> Turn:
    """A message of the assistant: content, calls of tools, or both."""
    made = calls(raw.get("tool_calls"), "tool_calls")
    if raw.get("function_call") is not None:
        made.append(called(raw["function_call"], "function_call"))
    said = raw.get("content")
    found: dict[str, Any] = {"role": "assistant"}
    found["content"] = "" if made and said in (None, "", []) else content(said, "assistant")
    thought = _thought(raw)
    if thought is not None:
        found["reasoning_content"] = thought
    if made:
        found["tool_calls"] = made
    _copy_text(raw, "name", found)
    return Turn(found, _weighed(raw.get("weight")) and learn)


def _thought(raw: Mapping[str, Any]) -> str | None:
    given = [raw[name] for name in _THOUGHTS if raw.get(name) not in (None, "")]
    if len(given) > 1 and given[0] != given[1]:
        raise Problem("data_ambiguous", f"has more than one reasoning ({', '.join(_THOUGHTS)})")
    if given and not isinstance(given[0], str):
        raise Problem("data_shape_invalid", "has reasoning that is not text")
    return given[0] if given else None


def _weighed(weight: Any) -> bool:
    """Whether an answer with this `weight` is learned."""
    if weight is None:
        return True
    if not isinstance(weight, int | float) or weight not in (0, 1):
        raise Problem("data_shape_invalid", "has a weight other than 0 and 1")
    return bool(weight)


def content(value: Any, role: str) -> str:
    """A message's text; parts of the type `text` are joined by line breaks, as vLLM joins them.

    A tool may say nothing.
    """
    said = "\n".join(_part(part) for part in value) if isinstance(value, list) else value
    return "" if role == "tool" and said == "" else text(said, f"{role} content")


def _part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    said = part.get("text") if isinstance(part, dict) else None
    if kind == "text" and isinstance(said, str):
        return said
    if isinstance(kind, str) and kind != "text":
        raise Problem("data_not_text", f"has a part of the type {listed([kind])}; only text can be trained on")
    raise Problem("data_shape_invalid", 'has a part that is not {"type": "text", "text"}')


def note(ignored: Ignored | None, raw: Mapping[str, Any], used: frozenset[str], path: str = "") -> None:
    """Count the keys of an object that are not used and have a value."""
    if ignored is None:
        return
    for key in raw.keys() - used:
        name = f"{path}{listed([key])}"
        if raw[key] is not None and (name in ignored or len(ignored) < MAX_IGNORED):
            ignored[name] += 1
