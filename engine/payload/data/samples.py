"""What the formats of data files have in common: a sample, and what is wrong with a record that is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One sample: a chat (`messages`) or plain text (`text`), never both.

    `messages` have the keys that chat templates know: `role`, `content`, and where given `name`, `tool_calls`,
    `tool_call_id`, `reasoning_content`. `learned` says for each message whether it is an answer that is trained on.
    `tools` are the functions that the chat may call. Plain text is learned as a whole.
    """

    messages: tuple[Mapping[str, Any], ...] = ()
    learned: tuple[bool, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    text: str | None = None


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Why a record is not a sample. `place` is as a person would look for it: "line 3", "a.jsonl, line 3", "row 7"."""

    place: str
    code: str
    what: str
