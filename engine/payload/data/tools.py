"""Functions that a chat may call, and calls of them, in the form that chat templates of Hugging Face expect.

That form is OpenAI's except for the arguments of a call: OpenAI has them as JSON text, and templates expect an object,
which they write as JSON themselves.
"""

from __future__ import annotations

from typing import Any

from engine.payload.data.records import Problem
from engine.payload.data.strict_json import decoded


def parsed(value: Any, name: str) -> Any:
    """A value that tables and some data sets write as JSON text; raises `Problem` for text that is none."""
    if type(value) is not str:
        return value
    try:
        return decoded(value.encode("utf-8"))
    except Problem:
        raise Problem(
            "data_json_invalid", f"has {name} as text that is not JSON (Python's own notation is not JSON)"
        ) from None


def functions(value: Any, name: str) -> tuple[dict[str, Any], ...]:
    """The functions in `tools`, or in the deprecated `functions`, each as `{"type": "function", "function": {...}}`."""
    raw = parsed(value, name)
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise Problem("data_tool_call", f"has {name} that are not a list")
    return tuple(_function(each, name) for each in raw)


def _function(raw: Any, name: str) -> dict[str, Any]:
    tool = parsed(raw, name)
    described = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(described, dict) or not isinstance(described.get("name"), str) or not described["name"]:
        raise Problem("data_tool_call", f"has an entry in {name} that is not a function with a name")
    return tool if described is not tool else {"type": "function", "function": described}


def calls(value: Any, name: str) -> list[dict[str, Any]]:
    """The calls in `tool_calls`; None and an empty list are none."""
    raw = parsed(value, name)
    if raw is None:
        return []
    if not isinstance(raw, list):
        raise Problem("data_tool_call", f"has {name} that are not a list")
    return [_call(each, name) for each in raw]


def _call(raw: Any, name: str) -> dict[str, Any]:
    if not isinstance(raw, dict) or raw.get("type", "function") not in ("function", None):
        raise Problem("data_tool_call", f"has an entry in {name} that is not the call of a function")
    call = called(raw.get("function", raw), name)
    call_id = raw.get("id")
    if call_id is None:
        return call
    if not isinstance(call_id, str):
        raise Problem("data_tool_call", f"has an entry in {name} with an id that is not text")
    return {"id": call_id, **call}


def called(raw: Any, name: str) -> dict[str, Any]:
    """One call, from `{"name", "arguments"}` (ShareGPT and OpenAI's deprecated `function_call` too)."""
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str) or not raw["name"]:
        raise Problem("data_tool_call", f"has an entry in {name} that does not name its function")
    return {"type": "function", "function": {"name": raw["name"], "arguments": _arguments(raw.get("arguments"), name)}}


def _arguments(value: Any, name: str) -> dict[str, Any]:
    """Arguments as an object; without any it is empty."""
    raw = {} if value is None or value == "" else parsed(value, f"arguments in {name}")
    if not isinstance(raw, dict):
        raise Problem("data_tool_call", f"has arguments in {name} that are not a JSON object")
    return raw
