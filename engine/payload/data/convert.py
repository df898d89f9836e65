"""A record's meaning: the sample that it is, or why it is none. Pure, and fit for worker processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from engine.payload.data import conversations, messages
from engine.payload.data.formats import SECOND, SYSTEM, Format, recognise
from engine.payload.data.messages import Ignored, note
from engine.payload.data.records import Problem, Record
from engine.payload.data.samples import Fault, Sample
from engine.payload.data.strict_json import decoded
from engine.payload.data.tools import functions, parsed
from engine.payload.data.turns import Turn, require_order, spoken, text

_TOOLS: Final = frozenset({"tools", "functions", "parallel_tool_calls"})  # the last one changes no text


def format_of(record: Record | Fault) -> Format | Fault:
    """The format of a record, or why it has none."""
    if isinstance(record, Fault):
        return record
    try:
        return recognise(_object(record.raw))
    except Problem as problem:
        return Fault(place=record.place, code=problem.code, what=problem.what)


def convert(record: Record | Fault, form: Format, ignored: Ignored | None = None) -> Sample | Fault:
    """The sample of a record in a file of the format `form`; what is a fault already stays one.

    `ignored` counts the keys that were passed over: `id`, and `messages[].id` for one inside a list.
    """
    if isinstance(record, Fault):
        return record
    try:
        return _sample(_object(record.raw), form, ignored)
    except Problem as problem:
        return Fault(place=record.place, code=problem.code, what=problem.what)


def convert_batch(records: Sequence[Record | Fault], form: Format) -> tuple[list[Sample | Fault], Ignored]:
    """`convert` of each, and the keys that were ignored: one call to a worker process."""
    ignored = Ignored()
    return [convert(record, form, ignored) for record in records], ignored


def _object(raw: bytes) -> dict[str, Any]:
    value = decoded(raw)
    if not isinstance(value, dict):
        raise Problem("data_shape_invalid", "is not a JSON object")
    return value


def _sample(raw: dict[str, Any], form: Format, ignored: Ignored | None) -> Sample:
    found = recognise(raw)
    if found != form:
        raise Problem("data_format_mixed", f"is in the format {found.title}, and the records before it in {form.title}")
    key = form.keys[0]
    if form.kind == "text":
        note(ignored, raw, frozenset(form.keys))
        return Sample(text=text(raw[key], key))
    if form.kind == "pair":
        return _pair(raw, form, ignored)
    note(ignored, raw, frozenset({key, *SYSTEM}) | _TOOLS)
    read = messages.turns if form.kind == "messages" else conversations.turns
    return _chat(raw, read(parsed(raw[key], key), key, ignored))


def _pair(raw: dict[str, Any], form: Format, ignored: Ignored | None) -> Sample:
    """A prompt and its answer: both text, or both messages (then only the answer's are learned)."""
    prompt, answer = form.keys
    _refuse_more(raw, prompt)
    note(ignored, raw, frozenset({*form.keys, *SYSTEM, *SECOND, "history"}) | _TOOLS)
    if isinstance(raw[prompt], list):
        asked = messages.turns(raw[prompt], prompt, ignored, learn=False)
    else:
        asked = [spoken("user", _question(raw, prompt))]
    if isinstance(raw[answer], list):
        return _chat(raw, asked + messages.turns(raw[answer], answer, ignored))
    return _chat(raw, [*asked, spoken("assistant", text(raw[answer], answer))])


def _question(raw: Mapping[str, Any], prompt: str) -> str:
    """The prompt; an instruction and what it is about are joined by a blank line."""
    asked = text(raw[prompt], prompt)
    if prompt != "instruction":
        return asked
    about = [text(raw[key], key) for key in SECOND if raw.get(key) not in (None, "")]
    if len(about) > 1:
        raise Problem("data_ambiguous", f"has both {' and '.join(SECOND)}")
    return "\n\n".join([asked, *about])


def _refuse_more(raw: Mapping[str, Any], prompt: str) -> None:
    """Raise `Problem` for keys that change what a prompt with an answer means."""
    if isinstance(raw.get("label"), bool) or raw.get("label") in ("true", "false", "True", "False"):
        raise Problem("data_preference", "is preference data (KTO: a label that is true or false)")
    if prompt != "instruction" and raw.get("context") not in (None, "", [], {}):
        raise Problem("data_ambiguous", f"has a context beside its {prompt}, and nothing says where it belongs")
    if raw.get("history") not in (None, "", []):
        raise Problem("data_shape_invalid", "has a history, which is not read")


def _chat(raw: Mapping[str, Any], turns: list[Turn]) -> Sample:
    given = [raw[key] for key in SYSTEM if raw.get(key) not in (None, "")]
    if len(given) > 1 or (given and turns[0].message["role"] == "system"):
        raise Problem("data_ambiguous", "has more than one system prompt")
    if given:
        turns = [spoken("system", text(given[0], "system")), *turns]
    require_order(turns)
    tools = functions(raw["tools"], "tools") if raw.get("tools") not in (None, "") else ()
    if raw.get("functions") not in (None, ""):
        tools += functions(raw["functions"], "functions")
    return Sample(
        messages=tuple(turn.message for turn in turns), learned=tuple(turn.learned for turn in turns), tools=tools
    )
